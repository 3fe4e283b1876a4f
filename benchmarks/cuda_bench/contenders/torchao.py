"""torchao's tensors, through F.linear, as its configs make them. It quantizes by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender, Missing
from ..figures import GROUP
from ..problem import Problem


class Torchao(Contender):
    def __init__(self, op: str, name: str, tolerance: float = 0.06, **options: Any) -> None:
        self.op, self.tolerance, self.options = op, tolerance, options
        self.config = name
        self.name = f"torchao {name.removesuffix('Config')}"

    def ready(self, device: str) -> None:
        import torchao.quantization as torchao

        if device != "cuda":
            raise Missing("its kernels are for CUDA")
        options = {
            key: getattr(torchao, value)() if value in ("PerRow", "PerTensor") else value
            for key, value in self.options.items()
        }
        self.quantize_ = torchao.quantize_
        self.made = getattr(torchao, self.config)(**options)

    def weight(self, problem: Problem) -> Any:
        layer = torch.nn.Linear(problem.k, problem.n, bias=False, dtype=torch.bfloat16, device="meta")
        layer.weight = torch.nn.Parameter(problem.w.clone(), requires_grad=False)
        self.quantize_(layer, self.made)
        return layer.weight.detach()

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        return torch.nn.functional.linear(x, weight)


CONTENDERS: list[Contender] = [
    Torchao("int4_mm", "Int4WeightOnlyConfig", 0.2, group_size=GROUP, int4_packing_format="tile_packed_to_4d"),
    Torchao("fp8_weight_mm", "Float8WeightOnlyConfig", granularity="PerRow"),
    Torchao("int8_weight_mm", "Int8WeightOnlyConfig"),
    Torchao("int8_mm", "Int8DynamicActivationInt8WeightConfig"),
    Torchao("fp8_mm", "Float8DynamicActivationFloat8WeightConfig", granularity="PerRow"),
    Torchao("fp8_mm tensor", "Float8DynamicActivationFloat8WeightConfig", granularity="PerTensor"),
    Torchao("int8_int4_mm", "Float8DynamicActivationInt4WeightConfig", 0.2),
]
