"""int4 weights and int8 activations, W4A8: `Int8DynamicActivationInt4WeightConfig` and its `Int8Int4Tensor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aoq.config import AOBaseConfig, MappingType
from aoq.ops.int4_mm import int4_mm
from aoq.ops.int8_int4_mm import int8_int4_mm
from aoq.tensors.base import check_scale_dtype
from aoq.tensors.int4 import Int4Tensor, check_group_size, quantized_parts
from aoq.tensors.int8 import w_sum_part
from aoq.tensors.tiled import Part


@dataclass
class Int8DynamicActivationInt4WeightConfig(AOBaseConfig):
    """int4 weights with a scale per group; the matmul quantizes activations to int8, with a scale per row (token).

    Args:
        group_size: as in `Int4WeightOnlyConfig`.
        mapping_type: weights symmetric around zero (no zero points) or over [min, max].
        act_mapping_type: the same of activations.
        scale_dtype: of the weights' scales and zero points; by default the weight's.
    """

    group_size: int = 32
    mapping_type: MappingType = MappingType.SYMMETRIC
    act_mapping_type: MappingType = MappingType.ASYMMETRIC
    scale_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.check_types(group_size=int, mapping_type=MappingType, act_mapping_type=MappingType)
        check_group_size(self, self.group_size)
        check_scale_dtype(self, self.scale_dtype)

    def quantize(self, weight: Tensor) -> Int8Int4Tensor:
        """The weight [..., n, k] as an `Int8Int4Tensor` in its device's layout; raises as `Int4WeightOnlyConfig`."""
        parts = quantized_parts(weight, self.group_size, self.mapping_type.name.lower(), self.scale_dtype)
        attrs = (self.group_size, "plain", self.act_mapping_type.name.lower())
        return Int8Int4Tensor(*parts, None, *attrs, shape=weight.shape, dtype=weight.dtype).pack()


class Int8Int4Tensor(Int4Tensor):
    """An `Int4Tensor` for activations quantized to int8.

    act_mapping: "symmetric" or "asymmetric", how activations are quantized.
    w_sum: fp32 [..., n], the sums of the rows of w; only if tiled and asymmetric.
    """

    tensors: ClassVar[tuple[str, ...]] = (*Int4Tensor.tensors, "w_sum")
    attrs: ClassVar[tuple[str, ...]] = (*Int4Tensor.attrs, "act_mapping")
    mm_op = "int8_int4_mm"

    w_sum: Tensor | None
    act_mapping: str

    def expected_parts(self) -> dict[str, Part]:
        return super().expected_parts() | {"w_sum": w_sum_part(self, self.act_mapping)}

    def tiled_parts(self, qdata: Tensor, *scales: Tensor | None) -> list[Tensor | None]:
        packed, scale, zero_point, w_sum = super().tiled_parts(qdata, *scales)
        assert packed is not None and scale is not None
        if self.act_mapping == "asymmetric":
            n, k = self.weight_shape[-2:]
            ones = torch.ones(1, k, dtype=torch.float32, device=qdata.device)
            w_sum = int4_mm(ones, packed, scale, zero_point, None, n, self.group_size)[0]
        return [packed, scale, zero_point, w_sum]

    def plain_parts(self, qdata: Tensor, *scales: Tensor | None) -> list[Tensor | None]:
        return [*super().plain_parts(qdata, *scales[:-1]), None]

    def linear_tiled(self, x: Tensor, bias: Tensor | None) -> Tensor:
        n, parts = self.weight_shape[0], (self.qdata, self.scale, self.zero_point, self.w_sum)
        return int8_int4_mm(x, *parts, bias, n, self.group_size)
