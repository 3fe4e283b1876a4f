"""torchao's tensors on CUDA, through F.linear, as its configs make them. It quantizes by itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..contender import Contender, Problem


class _Torchao(Contender):
    package = "torchao"
    matmuls = ("cuda",)
    tolerance = 0.06
    fields: ClassVar[dict[str, Any]] = {}  # of its config, `name` without "torchao"

    def __init__(self, threads: int, device: str = "cpu") -> None:
        import torchao.quantization as torchao

        super().__init__(threads, device)
        self.torchao: Any = torchao

    def weight(self, problem: Problem) -> Any:
        granularity = ("PerRow", "PerTensor")
        fields = {key: getattr(self.torchao, v)() if v in granularity else v for key, v in self.fields.items()}
        if self.op == "int4_mm":
            fields["group_size"] = problem.group_size
        layer = torch.nn.Linear(problem.k, problem.n, bias=False, dtype=torch.bfloat16, device="meta")
        layer.weight = torch.nn.Parameter(problem.w.clone(), requires_grad=False)
        config = getattr(self.torchao, self.name.split()[1].partition(",")[0] + "Config")
        self.torchao.quantize_(layer, config(**fields))
        return layer.weight.detach()

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        return torch.nn.functional.linear(x, weight)


class Int4(_Torchao):
    name, op, tolerance = "torchao Int4WeightOnly", "int4_mm", 0.2
    fields: ClassVar[dict[str, Any]] = {"int4_packing_format": "tile_packed_to_4d"}


class Fp8Weight(_Torchao):
    name, op = "torchao Float8WeightOnly", "fp8_weight_mm"
    fields: ClassVar[dict[str, Any]] = {"granularity": "PerRow"}


class Int8Weight(_Torchao):
    name, op = "torchao Int8WeightOnly", "int8_weight_mm"


class Int8(_Torchao):
    name, op = "torchao Int8DynamicActivationInt8Weight", "int8_mm"


class Fp8(_Torchao):
    name, op = "torchao Float8DynamicActivationFloat8Weight, per row", "fp8_mm"
    fields: ClassVar[dict[str, Any]] = {"granularity": "PerRow"}


class Fp8Tensor(_Torchao):
    name, op = "torchao Float8DynamicActivationFloat8Weight, per tensor", "fp8_mm tensor"
    fields: ClassVar[dict[str, Any]] = {"granularity": "PerTensor"}


class Fp8Int4(_Torchao):
    name, op, tolerance = "torchao Float8DynamicActivationInt4Weight", "int8_int4_mm", 0.2
