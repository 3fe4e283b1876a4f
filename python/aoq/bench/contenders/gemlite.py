"""gemlite: Triton kernels, tuned at the first call of each shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender, Problem


class _Gemlite(Contender):
    package = "gemlite"
    matmuls = ("cuda",)
    tolerance = 0.06
    maker: str

    def __init__(self, threads: int, device: str = "cpu") -> None:
        import gemlite.helper

        super().__init__(threads, device)
        self.make = getattr(gemlite.helper, self.maker)(device=device, dtype=torch.bfloat16)

    def weight(self, problem: Problem) -> Any:
        if self.form == "w":  # it quantizes by itself
            layer = torch.nn.Linear(problem.k, problem.n, bias=False, device="meta")
            layer.weight = torch.nn.Parameter(problem.w, requires_grad=False)
            return self.make.from_linear(layer, del_orig=False)
        codes, scale = problem.int4
        scale = scale.reshape(-1, 1)
        return self.make.from_weights(codes.contiguous(), scale, torch.full_like(scale, 8))

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = weight(x)
        return out


class Int4(_Gemlite):
    name, op, maker, form, tolerance = "gemlite A16W4", "int4_mm", "A16W4_HQQ_INT", "int4", 0.02


class Fp8Int4(_Gemlite):
    name, op, maker, form = "gemlite A8W4, x in fp8", "int8_int4_mm", "A8W4_HQQ_INT_dynamic", "int4"


class Fp8Weight(_Gemlite):
    name, op, maker = "gemlite A16W8 fp8", "fp8_weight_mm", "A16W8_FP8"


class Int8Weight(_Gemlite):
    name, op, maker = "gemlite A16W8 int8", "int8_weight_mm", "A16W8_INT8"


class Int8(_Gemlite):
    name, op, maker = "gemlite A8W8 int8", "int8_mm", "A8W8_int8_dynamic"


class Fp8(_Gemlite):
    name, op, maker = "gemlite A8W8 fp8", "fp8_mm", "A8W8_fp8_dynamic"
