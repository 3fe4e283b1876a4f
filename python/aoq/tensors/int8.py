"""int8 weights with a scale per row, for activations as given and for those quantized to int8 (W8A8)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from aoq.config import AOBaseConfig, Granularity, MappingType, PerGroup, PerRow
from aoq.ops.int8_mm import int8_mm
from aoq.ops.int8_pack import int8_pack, packed_dtype, packed_shape
from aoq.ops.int8_quantize import int8_dequantize, int8_quantize
from aoq.ops.int8_unpack import int8_rows, int8_unpack
from aoq.ops.int8_weight_mm import int8_weight_mm
from aoq.tensors.base import QuantizedTensor, check_act_mapping, check_scale_dtype, check_weight
from aoq.tensors.formats import WeightFormat
from aoq.tensors.int4 import check_group_size
from aoq.tensors.packed import PackedTensor, PackedWeight
from aoq.tensors.parts import Codes, RowSums
from aoq.tensors.parts import PerGroup as PartPerGroup

logger = logging.getLogger("aoq")


@dataclass
class Int8DynamicActivationInt8WeightConfig(AOBaseConfig):
    """int8 weights with a scale per row; the matmul quantizes activations to int8, with a scale per row (token).

    Args:
        act_mapping_type: activations symmetric around zero, or over [min, max] with a zero point (better for those
            that are mostly of one sign, slightly slower). Weights are symmetric.
        granularity: of weights and activations; PerRow() is what there is.
        weight_only_decode: no effect here: activations are quantized however few there are.
        scale_dtype: of the weights' scales; by default the weight's.
    """

    act_mapping_type: MappingType = MappingType.SYMMETRIC
    granularity: Granularity = field(default_factory=PerRow)
    weight_only_decode: bool = False
    scale_dtype: torch.dtype | None = None

    ACTIVATIONS: ClassVar[str] = "int8 per token"

    def __post_init__(self) -> None:
        name = type(self).__name__
        self.check_types(act_mapping_type=MappingType, weight_only_decode=bool)
        check_scale_dtype(self, self.scale_dtype)
        if self.granularity != PerRow():
            raise ValueError(f"{name}.granularity: expected PerRow(), got {self.granularity!r}")
        if self.weight_only_decode:
            logger.warning("%s: no effect here: weight_only_decode", name)

    def quantize(self, weight: Tensor) -> Int8Tensor:
        """The weight [..., n, k] as an `Int8Tensor` in its device's layout.

        Raises:
            ValueError: fewer than 2 dimensions, NaN or Inf.
            TypeError: the weight is not bf16, fp16 or fp32.
        """
        return quantized(weight, self.scale_dtype, self.act_mapping_type.name.lower())


@dataclass
class Int8WeightOnlyConfig(AOBaseConfig):
    """int8 weights with a scale per row or group, activations as given.

    Args:
        group_size: neighbours along k that share a scale, a multiple of 8; None for one scale a row.
        granularity: the same as a granularity, PerRow() or PerGroup(size).
        scale_dtype: of the weights' scales; by default the weight's.
    """

    group_size: int | None = None
    granularity: Granularity = field(default_factory=PerRow)
    scale_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_scale_dtype(self, self.scale_dtype)
        if isinstance(self.granularity, PerGroup) and self.group_size in (None, self.granularity.group_size):
            self.group_size = self.granularity.group_size
        elif self.granularity != PerRow():
            raise ValueError(f"{name}.granularity: expected PerRow() or PerGroup(size), got {self.granularity!r}")
        if self.group_size is not None:
            self.check_types(group_size=int)
            check_group_size(self, self.group_size)
            self.granularity = PerGroup(self.group_size)

    def with_options(self, **options: Any) -> Self:
        return replace(self, granularity=PerRow(), **options)

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The weight [..., n, k] in its device's layout: an `Int8Tensor`, in groups an `IntxTensor`; raises as
        `Int8DynamicActivationInt8WeightConfig`."""
        if self.group_size is None:
            return quantized(weight, self.scale_dtype, None)
        from aoq.tensors.intx import IntxWeightOnlyConfig  # which makes int8 per row by this module

        groups = IntxWeightOnlyConfig(torch.int8, PerGroup(self.group_size), scale_dtype=self.scale_dtype)
        return groups.quantize(weight)


def quantized(weight: Tensor, scale_dtype: torch.dtype | None, act_mapping: str | None) -> Int8Tensor:
    check_weight(weight)
    qdata, scale, _ = int8_quantize(weight.detach(), "symmetric", scale_dtype or weight.dtype)
    if not weight.is_meta and not (finite := scale.flatten().isfinite()).all():
        row = int(finite.int().argmin())
        if weight.flatten(0, -2)[row].isfinite().all():
            raise ValueError("w: expected values whose scale float16 holds; use another scale_dtype")
        raise ValueError(f"w: expected finite values, got NaN or infinity in row {row}")
    return Int8Tensor(qdata, scale, None, act_mapping, "plain", shape=weight.shape, dtype=weight.dtype).pack()


def row_sums(plain: Sequence[Any], packed: Sequence[Any], k: int, group: int) -> Tensor:
    """The sums of the rows of w, whose codes add up exactly."""
    codes, scale = plain[:2]
    # In pieces: sum() would widen all of the codes at once.
    sums = torch.cat([rows.sum(-1, dtype=torch.int32) for rows in codes.split(256)])
    total: Tensor = sums * scale[:, 0].float()
    return total


def floats(parts: Sequence[Any], group: int, k: int, dtype: torch.dtype) -> Tensor:
    codes, scale = parts
    return int8_dequantize(codes, scale, None, dtype)


INT8 = WeightFormat(
    "int8",
    "int8 per row",
    (
        Codes(
            "qdata",
            8,
            lambda codes, k: int8_pack(codes),
            int8_unpack,
            int8_rows,
            packed_shape,
            torch.int8,
            packed_dtype,
        ),
        PartPerGroup("scale"),
        RowSums("w_sum", row_sums),
    ),
    floats,
    {"int8": Int8DynamicActivationInt8WeightConfig(), "int8-weight": Int8WeightOnlyConfig()},
)


class Int8Weight(PackedWeight):
    """How an int8 weight multiplies."""

    format = INT8

    qdata: Tensor
    scale: Tensor
    w_sum: Tensor | None
    act_mapping: str | None

    @property
    def mm_op(self) -> str:  # type: ignore[override]
        return "int8_mm" if self.act_mapping else "int8_weight_mm"

    def linear_packed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.act_mapping is None:
            return int8_weight_mm(x, self.qdata, self.scale, bias, self.weight_shape[0])
        return int8_mm(x, self.qdata, self.scale, self.w_sum, bias, self.weight_shape[0])

    def config(self) -> AOBaseConfig:
        if self.act_mapping is None:
            return Int8WeightOnlyConfig(scale_dtype=self.scale.dtype)
        act_mapping = MappingType[self.act_mapping.upper()]
        return Int8DynamicActivationInt8WeightConfig(act_mapping, scale_dtype=self.scale.dtype)

    @property
    def command(self) -> str:
        return "int8" if self.act_mapping else "int8-weight"


class Int8Tensor(Int8Weight, PackedTensor):
    """A weight [..., n, k] of int8 codes, `w = code * scale`.

    act_mapping: "symmetric" or "asymmetric", how activations are quantized to int8; None for those used as given.
    packing "plain" (checkpoints, slices, any device):
        qdata: int8 [..., n, k].
        scale: [..., n, 1].
    packing `layout(device)` (what the device's kernels read):
        qdata: [..., *packed_shape(n, k, device)] from `int8_pack`.
        scale: [..., ceil(n / 16), 1, 16] from `tile_scale`.
        w_sum: fp32 [..., n], the sums of the rows of w, if activations are asymmetric.

    Slices along k share the scales of the whole rows, so nothing can be copied into them.
    """

    tensors: ClassVar[tuple[str, ...]] = ("qdata", "scale", "w_sum")
    attrs: ClassVar[tuple[str, ...]] = ("act_mapping", "packing")

    def check_attrs(self) -> None:
        if self.act_mapping is not None:
            check_act_mapping(self, self.act_mapping)
