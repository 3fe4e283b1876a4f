"""torchao's tensors on the CPU, as its configs make them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..contender import Contender, Indices, Problem, Selects

_INT4: Any = torch.int4  # type: ignore[attr-defined]


class _Torchao(Contender):
    package = "torchao"
    models = True
    devices = ("cpu", "cuda")

    def __init__(self, threads: int, device: str = "cpu") -> None:
        import torchao.quantization

        super().__init__(threads, device)
        self.configs: Any = torchao.quantization

    def config(self, group_size: int) -> Any:
        raise NotImplementedError

    def weight(self, problem: Problem) -> Any:
        module = torch.nn.Linear(problem.k, problem.n, bias=False, dtype=torch.bfloat16)
        module.weight = torch.nn.Parameter(problem.w, requires_grad=False)
        self.quantize_model(module, lambda module, name: True, problem.group_size)
        return module.weight.detach()

    def quantize_model(self, model: torch.nn.Module, selects: Selects, group_size: int) -> None:
        try:
            self.configs.quantize_(model, self.config(group_size), selects)
        except (ImportError, AssertionError) as error:
            raise NotImplementedError(str(error)) from error

    def another(self, weight: Any) -> Any:
        return weight.clone()

    def exact(self, problem: Problem, weight: Any, rows: Indices) -> Tensor:
        groups = weight.qdata.float().unflatten(1, (-1, weight.qdata.shape[1] // weight.scale.shape[1]))
        exact: Tensor = (groups * weight.scale.float()[..., None]).flatten(1)[rows]
        return exact

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        return linear(x, weight)


class TorchaoInt4(_Torchao):
    name = "torchao int4"
    op = "int4_mm"

    def config(self, group_size: int) -> Any:
        return self.configs.Int4WeightOnlyConfig(group_size=group_size)


class TorchaoIntx(_Torchao):
    """Its int4 that runs on CPUs: a byte a weight, multiplied as bf16."""

    name = "torchao intx"
    op = "int4_mm"
    out_roundings = 2

    def config(self, group_size: int) -> Any:
        granularity = self.configs.PerGroup(group_size)
        return self.configs.IntxWeightOnlyConfig(weight_dtype=_INT4, granularity=granularity)


class TorchaoInt8Int4(_Torchao):
    """Quantizes x and back, then multiplies as bf16."""

    name = "torchao int8-int4"
    op = "int8_int4_mm"
    x_half_steps = 1.5  # in bf16, x / scale is off by up to a quarter before it is rounded
    out_roundings = 2

    def config(self, group_size: int) -> Any:
        granularity = self.configs.PerGroup(group_size)
        return self.configs.Int8DynamicActivationIntxWeightConfig(weight_dtype=_INT4, weight_granularity=granularity)


class TorchaoInt8(_Torchao):
    name = "torchao int8"
    op = "int8_mm"
    x_half_steps = 1.5
    w_rounded = False
    out_roundings = 3

    def config(self, group_size: int) -> Any:
        return self.configs.Int8DynamicActivationInt8WeightConfig()


class _TorchaoWeight(_Torchao):
    """Multiplies by the weight as bf16."""

    out_roundings = 2

    def exact(self, problem: Problem, weight: Any, rows: Indices) -> Tensor:
        exact: Tensor = (weight.qdata.float() * weight.scale.float())[rows]
        return exact


class TorchaoInt8Weight(_TorchaoWeight):
    name = "torchao int8 weight"
    op = "int8_weight_mm"

    def config(self, group_size: int) -> Any:
        return self.configs.Int8WeightOnlyConfig()


class TorchaoFp8Weight(_TorchaoWeight):
    name = "torchao fp8 weight"
    op = "fp8_weight_mm"

    def config(self, group_size: int) -> Any:
        return self.configs.Float8WeightOnlyConfig()


class TorchaoFp8(_TorchaoWeight):
    name = "torchao fp8"
    op = "fp8_mm"
    x_relative = 2**-4

    def config(self, group_size: int) -> Any:
        return self.configs.Float8DynamicActivationFloat8WeightConfig(granularity=self.configs.PerRow())
