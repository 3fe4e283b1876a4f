"""HQQ's checkpoints as transformers writes them: 4 bits in groups along k, with float zero points.

`W_q` uint8 [n * k / g / 2, g] has the first half of the groups in its high nibbles; `scale` and `zero` are a float a
group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from aoq.ops.bits import from_codes
from aoq.ops.dtypes import FLOAT_DTYPES
from aoq.storage.checkpoint import StoredWeight
from aoq.storage.producers.base import Reader, Roles, integers
from aoq.tensors.base import QuantizedTensor

# What HQQ stores of a weight, beside its parts, of how it was made and how it is to be run.
_FIELDS = (
    *("nbits", "group_size", "axis", "shape", "packing", "view_as_float", "channel_wise", "optimize", "round_zero"),
    *("compute_dtype", "unpack_view_dtype", "offload_meta", "quant_scale", "quant_zero"),
    *("stores_quant_config", "encoded_state_dict"),
)


class HqqReader(Reader):
    method = "hqq"
    roles = frozenset({"W_q", "scale", "zero", *_FIELDS})

    def check(self) -> None:
        found = self.setting("quant_config", default={})
        nested = found.get("weight_quant_params") if isinstance(found, Mapping) else None
        if not isinstance(nested, Mapping):
            raise ValueError(f"{self.file}: quant_config: expected weight_quant_params for all layers, got {found!r}")
        bits, axis, group = nested.get("nbits"), nested.get("axis"), nested.get("group_size")
        if axis != 1:
            raise ValueError(f"{self.file}: axis: expected 1, groups along the inputs, got {axis!r}")
        if bits != 4:
            raise ValueError(f"{self.file}: nbits: expected 4, got {bits!r}")
        if type(group) is not int or group < 1:
            raise ValueError(f"{self.file}: group_size: expected 1 or more, got {group!r}")
        for name in ("quant_scale", "quant_zero"):
            if found.get(f"{name.removeprefix('quant_')}_quant_params"):
                raise ValueError(f"{self.file}: {name}: expected scales and zero points that are floats")
        self.group = group

    def weight(self, module: str, roles: Mapping[str, str]) -> StoredWeight | None:
        if "W_q" not in roles:
            return None
        self.need(module, roles, "scale", "zero", "shape")
        codes, scale, zero = roles["W_q"], roles["scale"], roles["zero"]
        self.expect(roles["shape"], (torch.int64, torch.int32), (2,))
        n, k = self.values("shape")[roles["shape"]].tolist()
        group = self.group
        if n < 1 or k < 1 or k % group or (n * k // group) % 2:
            raise self.error(
                roles["shape"], f"expected whole groups of {group} and an even number of them, got {[n, k]}"
            )
        count = n * k // group
        self.expect(codes, torch.uint8, (count // 2, group))
        self.expect(scale, FLOAT_DTYPES, (count, 1))
        self.expect(zero, FLOAT_DTYPES, (count, 1))
        self.check_width(codes, 4, (n, k), group)

        def make(parts: Roles) -> QuantizedTensor:
            both = parts["W_q"]
            settings: dict[str, Any] = {"bits": 4, "group": group, "shape": (n, k), "dtype": self.dtype}
            unpacked = torch.cat([both >> 4, both & 15]).view(n, k)
            return integers(from_codes(unpacked, 4), parts["scale"].view(n, -1), parts["zero"].view(n, -1), **settings)

        ordered = {role: roles[role] for role in sorted(roles, key=lambda role: role != "W_q")}
        return self.found(module, ordered, f"4-bit g{group}", (n, k), make)
