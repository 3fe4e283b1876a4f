"""humming: kernels compiled at run time for each shape, for any pair of dtypes. It quantizes by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender, Problem


class _Humming(Contender):
    package = "humming-kernels"
    matmuls = ("cuda",)
    tolerance = 0.06
    w_dtype: str
    x_dtype: str | None = None  # of x, if it is quantized

    def __init__(self, threads: int, device: str = "cpu") -> None:
        from humming.layer import HummingLayer

        super().__init__(threads, device)
        self.layer: Any = HummingLayer

    def weight(self, problem: Problem) -> Any:
        groups = {"group_size": problem.group_size} if self.w_dtype == "int4" else {}
        x = {} if self.x_dtype is None else {"input_config": {"dtype": self.x_dtype}}
        w = {"weight_config": {"dtype": self.w_dtype, **groups}}
        layer = self.layer(shape_n=problem.n, shape_k=problem.k, torch_dtype=torch.bfloat16, **w, **x).cuda()
        layer.load_from_unquantized(problem.w)
        layer.transform()
        return layer

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = weight(x)
        return out


class Int4(_Humming):
    name, op, w_dtype, tolerance = "humming W4A16", "int4_mm", "int4", 0.2


class Fp8Weight(_Humming):
    name, op, w_dtype = "humming W8A16 fp8", "fp8_weight_mm", "float8e4m3"


class Int8Weight(_Humming):
    name, op, w_dtype = "humming W8A16 int8", "int8_weight_mm", "int8"


class Int8(_Humming):
    name, op, w_dtype, x_dtype = "humming W8A8 int8", "int8_mm", "int8", "int8"


class Fp8(_Humming):
    name, op, w_dtype, x_dtype = "humming W8A8 fp8", "fp8_mm", "float8e4m3", "float8e4m3"


class Int8Int4(_Humming):
    name, op, w_dtype, x_dtype, tolerance = "humming W4A8 int8", "int8_int4_mm", "int4", "int8", 0.2


class Fp8Int4(_Humming):
    name, op, w_dtype, x_dtype, tolerance = "humming W4A8 fp8", "int8_int4_mm", "int4", "float8e4m3", 0.2
