"""gemlite: Triton kernels, tuned at the first call of each shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender
from ..figures import GROUP
from ..problem import Problem


class Gemlite(Contender):
    def __init__(self, op: str, name: str, maker: str, form: str, tolerance: float) -> None:
        self.op, self.name, self.maker, self.form, self.tolerance = op, f"gemlite {name}", maker, form, tolerance

    def ready(self, device: str) -> None:
        import gemlite.helper

        self.make = getattr(gemlite.helper, self.maker)(device=device, dtype=torch.bfloat16)

    def weight(self, problem: Problem) -> Any:
        if self.form == "w":  # it quantizes by itself
            layer = torch.nn.Linear(problem.k, problem.n, bias=False, device="meta")
            layer.weight = torch.nn.Parameter(problem.w, requires_grad=False)
            return self.make.from_linear(layer, del_orig=False)
        scale = problem.int4[1].reshape(-1, 1)
        codes = problem.int4_codes.contiguous().view(-1, GROUP).to(torch.uint8).view(problem.n, problem.k)
        return self.make.from_weights(codes, scale, torch.full_like(scale, 8))

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = weight(x)
        return out


CONTENDERS: list[Contender] = [
    Gemlite("int4_mm", "A16W4", "A16W4_HQQ_INT", "int4", 0.02),
    Gemlite("int8_int4_mm", "A8W4, x in fp8", "A8W4_HQQ_INT_dynamic", "int4", 0.06),
    Gemlite("fp8_weight_mm", "A16W8 fp8", "A16W8_FP8", "w", 0.06),
    Gemlite("int8_weight_mm", "A16W8 int8", "A16W8_INT8", "w", 0.06),
    Gemlite("int8_mm", "A8W8 int8", "A8W8_int8_dynamic", "w", 0.06),
    Gemlite("fp8_mm", "A8W8 fp8", "A8W8_fp8_dynamic", "w", 0.06),
]
