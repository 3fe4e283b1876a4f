"""humming: kernels compiled at run time for each shape, for any pair of dtypes. It quantizes by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender
from ..figures import GROUP
from ..problem import Problem


class Humming(Contender):
    def __init__(self, op: str, name: str, w: dict[str, Any], x: str | None) -> None:
        self.op, self.name, self.w, self.x = op, f"humming {name}", w, x
        self.tolerance = 0.2 if "int4" in w["dtype"] else 0.06

    def ready(self, device: str) -> None:
        from humming.layer import HummingLayer

        self.layer = HummingLayer

    def weight(self, problem: Problem) -> Any:
        config = {} if self.x is None else {"input_config": {"dtype": self.x}}
        layer = self.layer(
            shape_n=problem.n, shape_k=problem.k, weight_config=dict(self.w), torch_dtype=torch.bfloat16, **config
        ).cuda()
        layer.load_from_unquantized(problem.w)
        layer.transform()
        return layer

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = weight(x)
        return out


INT4 = {"dtype": "int4", "group_size": GROUP}
CONTENDERS: list[Contender] = [
    Humming("int4_mm", "W4A16", INT4, None),
    Humming("fp8_weight_mm", "W8A16 fp8", {"dtype": "float8e4m3"}, None),
    Humming("int8_weight_mm", "W8A16 int8", {"dtype": "int8"}, None),
    Humming("int8_mm", "W8A8 int8", {"dtype": "int8"}, "int8"),
    Humming("fp8_mm", "W8A8 fp8", {"dtype": "float8e4m3"}, "float8e4m3"),
    Humming("int8_int4_mm", "W4A8 int8", INT4, "int8"),
    Humming("int8_int4_mm", "W4A8 fp8", INT4, "float8e4m3"),
]
