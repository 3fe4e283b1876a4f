"""Checkpoints in fp8 with a scale for each block of a weight, as DeepSeek and Qwen publish them, or one for all of it.

`weight` float8_e4m3fn [n, k]; `weight_scale_inv` [ceil(n / rows), ceil(k / columns)], by which codes are multiplied in
spite of its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from aoq.ops.dtypes import FLOAT_DTYPES
from aoq.storage.checkpoint import StoredWeight
from aoq.storage.producers.base import Reader, Roles, small_floats
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.fp8 import Float8Tensor

_STATIC = ("activation_scale", "input_scale")


class Fp8Reader(Reader):
    method = "fp8"
    roles = frozenset({"weight", "weight_scale_inv", *_STATIC})

    def check(self) -> None:
        fmt, block = self.setting("fmt", default="e4m3"), self.setting("weight_block_size")
        if fmt not in ("e4m3", "float8_e4m3fn"):
            raise ValueError(f"{self.file}: fmt: expected e4m3, got {fmt!r}")
        whole = isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
        if block is not None and (not whole or block[1] % 8):
            raise ValueError(
                f"{self.file}: weight_block_size: expected rows and a multiple of 8 columns, got {block!r}"
            )
        self.block: tuple[int, int] | None = None if block is None else (block[0], block[1])

    def weight(self, module: str, roles: Mapping[str, str]) -> StoredWeight | None:
        if "weight" not in roles:
            self.need(module, roles, "weight")
        where = roles["weight"]
        if "weight_scale_inv" not in roles:
            if self.stored[where][1].dtype in FLOAT_DTYPES:
                return None
            self.need(module, roles, "weight_scale_inv")
        n, k = (*self.shape(where), 0, 0)[:2]
        self.expect(where, torch.float8_e4m3fn, (n, k))
        rows, columns = self.block or (n, k)
        shapes = [(-(-n // rows), -(-k // columns))] + ([] if self.block else [(), (1,)])
        self.expect(roles["weight_scale_inv"], (*FLOAT_DTYPES, torch.float8_e8m0fnu), *shapes)
        if any(role in roles for role in _STATIC):
            self.notes[
                "static fp8 activations: aoq has none, so activations are used as given, which is more exact"
            ] = None
        elif self.block:
            self.notes["fp8 activations in blocks: activations are used as given, which is more exact"] = None

        def make(parts: Roles) -> QuantizedTensor:
            codes, scale = parts["weight"], parts["weight_scale_inv"]
            if self.block is not None:
                sizes: dict[str, Any] = {"group": columns, "rows": rows, "shape": (n, k), "dtype": self.dtype}
                return small_floats("fp8_e4m3_grouped", codes, scale, **sizes)
            whole = scale.float().reshape(1, 1).expand(n, 1).contiguous()
            attrs = (torch.float8_e4m3fn, None, None, None, None, "plain")
            return Float8Tensor(codes.contiguous(), whole, *attrs, shape=(n, k), dtype=self.dtype)

        ordered = {role: roles[role] for role in sorted(roles, key=lambda role: role != "weight")}
        label = f"in blocks of {rows}x{columns}" if self.block else "per tensor"
        return self.found(module, ordered, label, (n, k), make)
