"""GPTQ checkpoints, as AutoGPTQ, gptqmodel and optimum write them.

`qweight` int32 [k * bits / 32, n] has the codes of a column of inputs one after the other, from the lowest bit on:
transposed it is aoq's layout as it stands. `qzeros` [G, n * bits / 32] has zero points likewise, along n.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from aoq.ops.bits import to_codes
from aoq.ops.dtypes import FLOAT_DTYPES
from aoq.storage.checkpoint import StoredWeight
from aoq.storage.producers.base import Reader, Roles, integers, stream
from aoq.tensors.base import QuantizedTensor

WORD_BITS = (2, 3, 4, 8)  # of codes that fill words one after the other


class GptqReader(Reader):
    method = "gptq"
    roles = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    def check(self) -> None:
        layout = self.setting("checkpoint_format", "format", default="gptq")
        if layout not in ("gptq", "gptq_v2"):
            raise ValueError(f"{self.file}: checkpoint_format: expected gptq or gptq_v2, got {layout!r}")
        # The first version stores what is one less than the zero point.
        self.zero_offset = 1 if layout == "gptq" else 0
        self.rules: list[tuple[bool, re.Pattern[str], dict[str, Any]]] = []
        for pattern, changes in (self.setting("dynamic", default=None) or {}).items():
            sign, text = (pattern[:2], pattern[2:]) if pattern[:2] in ("-:", "+:") else ("+:", pattern)
            try:
                self.rules.append((sign == "-:", re.compile(text), dict(changes or {})))
            except (re.error, TypeError, ValueError) as error:
                raise ValueError(f"{self.file}: dynamic: {pattern}: {error}") from error

    def settings_of(self, module: str) -> Mapping[str, Any] | None:
        """The settings for one module, by the first of the `dynamic` rules that matches; None if it is skipped."""
        for skips, pattern, changes in self.rules:
            if pattern.match(module):
                return None if skips else {**self.settings, **changes}
        return self.settings

    def weight(self, module: str, roles: Mapping[str, str]) -> StoredWeight | None:
        settings = self.settings_of(module)
        if settings is None:
            raise self.error(next(iter(roles.values())), f"dynamic says that {module} is not quantized")
        bits, group = settings.get("bits"), settings.get("group_size", -1)
        self.need(module, roles, "qweight", "scales")
        return gptq_weight(self, module, roles, bits, group, self.zero_offset, settings.get("sym", True))


def gptq_weight(
    reader: Reader, module: str, roles: Mapping[str, str], bits: Any, group: Any, zero_offset: int, symmetric: Any
) -> StoredWeight:
    """The weight of a module by its settings; `zero_offset` is what stored zero points lack."""
    qweight, scales = roles["qweight"], roles["scales"]
    if bits not in WORD_BITS:
        raise reader.error(qweight, f"expected codes of {', '.join(map(str, WORD_BITS))} bits, got {bits!r}")
    if type(group) is not int or (group < 1 and group != -1):
        raise reader.error(qweight, f"group_size: expected 1 or more, or -1 for one group, got {group!r}")
    rows, n = (*reader.shape(qweight), 0, 0)[:2]
    k = rows * 32 // bits
    size = k if group == -1 else min(group, k)
    groups = -(-k // max(size, 1))
    reader.expect(qweight, torch.int32, (k * bits // 32, n))
    if not k or not n:
        raise reader.error(qweight, f"expected codes, got shape {list(reader.shape(qweight))}")
    reader.expect(scales, FLOAT_DTYPES, (groups, n))
    reader.check_width(qweight, bits, (n, k), size)
    if "qzeros" in roles:
        reader.expect(roles["qzeros"], torch.int32, (groups, -(-n * bits // 32)))
    elif not symmetric:
        reader.need(module, roles, "qzeros")
    if "g_idx" in roles:
        reader.expect(roles["g_idx"], (torch.int32, torch.int64), (k,))

    def make(parts: Roles) -> QuantizedTensor:
        zeros = None
        if "qzeros" in parts:
            # One by one, and within their bits: the largest stored one stands for 0.
            stored = to_codes(stream(parts["qzeros"]), n, bits)[:, :n].int()
            zeros = ((stored + zero_offset) & ((1 << bits) - 1)).t()
        return integers(
            stream(parts["qweight"].t()),
            parts["scales"].t(),
            zeros,
            bits=bits,
            group=size,
            shape=(n, k),
            dtype=reader.dtype,
            g_idx=parts.get("g_idx"),
        )

    label = f"{bits}-bit {'per row' if group == -1 else f'g{group}'}"
    return reader.found(module, roles, label, (n, k), make)
