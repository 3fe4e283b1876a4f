"""aoq's own matmuls, through F.linear on the tensors that its configs make by default."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..contender import Contender, Problem, Selects


class _Aoq(Contender):
    package = "aoq"
    models = True
    devices = ("cpu", "cuda")

    def config(self, group_size: int) -> Any:
        raise NotImplementedError

    def weight(self, problem: Problem) -> tuple[Any, Tensor]:
        quantized = self.config(problem.group_size).quantize(problem.w)
        return quantized, self.exact(quantized.unpack())

    def another(self, weight: Any) -> Any:
        return weight.unpack().pack()  # as a model's weights are made, on huge pages

    def exact(self, plain: Any) -> Tensor:
        """Decoded here, not by aoq: low nibbles are even k."""
        codes = torch.stack((plain.qdata & 15, plain.qdata >> 4), -1).flatten(1).float()
        zero = torch.full_like(plain.scale, 8) if plain.zero_point is None else plain.zero_point
        scale, zero = (part.float().repeat_interleave(plain.group_size, 1) for part in (plain.scale, zero))
        exact: Tensor = (codes - zero[:, : codes.shape[1]]) * scale[:, : codes.shape[1]]
        return exact

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        return linear(x, weight)

    def quantize_model(self, model: torch.nn.Module, selects: Selects, group_size: int) -> None:
        import aoq

        aoq.quantize_(model, self.config(group_size), selects, progress=False)


class AoqInt4(_Aoq):
    name = "aoq int4"
    op = "int4_mm"

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Int4WeightOnlyConfig(group_size)


class AoqInt8Int4(_Aoq):
    name = "aoq int8-int4"
    op = "int8_int4_mm"
    x_half_steps = 1
    w_rounded = False

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Int8DynamicActivationInt4WeightConfig(group_size)


class _Aoq8(_Aoq):
    """Weights with a scale per row, whose codes are floats or integers already."""

    w_rounded = False

    def exact(self, plain: Any) -> Tensor:
        exact: Tensor = plain.qdata.float() * plain.scale.float()
        return exact


class AoqInt8(_Aoq8):
    name = "aoq int8"
    op = "int8_mm"
    x_half_steps = 1

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Int8DynamicActivationInt8WeightConfig()


class AoqInt8Weight(_Aoq8):
    name = "aoq int8 weight"
    op = "int8_weight_mm"

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Int8WeightOnlyConfig()


class AoqFp8(_Aoq8):
    name = "aoq fp8"
    op = "fp8_mm"
    x_relative = 2**-4

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Float8DynamicActivationFloat8WeightConfig(granularity=aoq.PerRow())


class AoqFp8Weight(_Aoq8):
    name = "aoq fp8 weight"
    op = "fp8_weight_mm"

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Float8WeightOnlyConfig()


class _Int8Head(_Aoq):
    """Whole models only: the embedding and the output layer too, as int8 weights."""

    matmuls = False

    def quantize_model(self, model: Any, selects: Selects, group_size: int) -> None:
        import aoq
        from aoq.integrations.transformers import with_embedding

        config = with_embedding(model, self.config(group_size), aoq.Int8WeightOnlyConfig())
        aoq.quantize_(model, config, progress=False)


class AoqInt4Int8Head(_Int8Head, AoqInt4):
    name = "aoq int4, int8 head"


class AoqInt8Int4Int8Head(_Int8Head, AoqInt8Int4):
    name = "aoq int8-int4, int8 head"
