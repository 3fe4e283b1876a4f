"""AWQ checkpoints as AutoAWQ and its successors write them, in the layout of its GEMM kernels.

`qweight` int32 [k, n / 8] and `qzeros` [G, n / 8] have eight neighbours along n in a word, in an order of their own;
`scales` are [G, n].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aoq.ops.bits import from_codes
from aoq.ops.dtypes import FLOAT_DTYPES
from aoq.storage.checkpoint import StoredWeight
from aoq.storage.producers.base import Reader, Roles, integers
from aoq.tensors.base import QuantizedTensor

# The shift in a word of each of its eight columns in turn: column 1 is the fifth nibble, and so on.
_SHIFTS = tuple(4 * nibble for nibble in (0, 4, 1, 5, 2, 6, 3, 7))


def unpack_words(words: Tensor) -> Tensor:
    """Words int32 [r, c] as the codes uint8 [r, 8 * c] that they hold."""
    return torch.stack([(words >> shift & 15).to(torch.uint8) for shift in _SHIFTS], -1).flatten(1)


class AwqReader(Reader):
    method = "awq"
    roles = frozenset({"qweight", "qzeros", "scales"})

    def check(self) -> None:
        version = str(self.setting("version", default="gemm")).lower()
        # Kernels for a GPU that read the same files are named as versions too.
        if version not in ("gemm", "exllama", "ipex"):
            raise ValueError(f"{self.file}: version: expected gemm, got {version!r}, which lays out weights otherwise")
        bits = self.setting("bits", "w_bit", default=4)
        if bits != 4:
            raise ValueError(f"{self.file}: bits: expected 4, got {bits!r}")
        self.group = self.setting("group_size", "q_group_size", default=128)
        if type(self.group) is not int or (self.group < 1 and self.group != -1):
            raise ValueError(f"{self.file}: group_size: expected 1 or more, or -1, got {self.group!r}")

    def weight(self, module: str, roles: Mapping[str, str]) -> StoredWeight | None:
        if roles.keys() == {"scales"}:
            text = "a scale of activations, which this architecture has in place of an activation function's"
            raise self.error(roles["scales"], f"expected a quantized weight's, got {text}; aoq does not read it")
        self.need(module, roles, "qweight", "scales", "qzeros")
        return awq_weight(self, module, roles, self.group)


def awq_weight(reader: Reader, module: str, roles: Mapping[str, str], group: int) -> StoredWeight:
    """The weight of a module in groups of `group`, -1 for one."""
    qweight, scales, qzeros = (roles[role] for role in ("qweight", "scales", "qzeros"))
    k, words = (*reader.shape(qweight), 0, 0)[:2]
    n = 8 * words
    size = k if group == -1 else min(group, k)
    groups = -(-k // max(size, 1))
    reader.expect(qweight, torch.int32, (k, words))
    if not k or not n:
        raise reader.error(qweight, f"expected codes, got shape {list(reader.shape(qweight))}")
    reader.expect(scales, FLOAT_DTYPES, (groups, n))
    reader.expect(qzeros, torch.int32, (groups, words))
    reader.check_width(qweight, 4, (n, k), size)

    def make(parts: Roles) -> QuantizedTensor:
        # Some columns at a time: as codes they take twice the memory, and as what packs them eight times.
        runs = [from_codes(unpack_words(run).t(), 4) for run in parts["qweight"].split(64, 1)]
        settings: dict[str, Any] = {"bits": 4, "group": size, "shape": (n, k), "dtype": reader.dtype}
        return integers(torch.cat(runs), parts["scales"].t(), unpack_words(parts["qzeros"]).t(), **settings)

    return reader.found(module, roles, f"4-bit {'per row' if group == -1 else f'g{group}'}", (n, k), make)
