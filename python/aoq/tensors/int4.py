"""int4 weights, groupwise along k, for activations as given and for those quantized to int8 (W4A8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from aoq.config import AOBaseConfig, Json, MappingType
from aoq.ops.dtypes import dtype_name
from aoq.ops.int4_mm import int4_mm
from aoq.ops.int4_pack import int4_pack, packed_shape
from aoq.ops.int4_quantize import int4_dequantize, intx_quantize
from aoq.ops.int4_unpack import int4_rows, int4_unpack
from aoq.ops.int8_int4_mm import int8_int4_mm
from aoq.tensors.base import check_act_mapping, check_scale_dtype, check_weight
from aoq.tensors.formats import WeightFormat
from aoq.tensors.packed import GroupedTensor, GroupedWeight
from aoq.tensors.parts import MOST_GROUP, Codes, ColumnOrder, PerGroup, RowSums


@dataclass
class Int4WeightOnlyConfig(AOBaseConfig):
    """int4 weights with a scale and a zero point per group; activations are used as given.

    Args:
        group_size: neighbours along k that share a scale: a multiple of 8, or anything >= k for one group a
            row. It need not divide k: the last group may be shorter.
        use_hqq: optimize the zero points for the weights' heavy-tailed error (slower, better).
        mapping_type: symmetric around zero (no zero points) or over [min, max].
        scale_dtype: of scales and zero points; by default the weight's.
    """

    group_size: int = 128
    use_hqq: bool = False
    mapping_type: MappingType = MappingType.ASYMMETRIC
    scale_dtype: torch.dtype | None = None

    VERSION: ClassVar[int] = 2
    OPTIONS: ClassVar[tuple[str, ...]] = ("group_size", "use_hqq", "mapping_type")

    def __post_init__(self) -> None:
        self.check_types(group_size=int, use_hqq=bool, mapping_type=MappingType)
        check_group_size(self, self.group_size)
        check_scale_dtype(self, self.scale_dtype)
        if self.use_hqq and self.mapping_type is MappingType.SYMMETRIC:
            raise ValueError("Int4WeightOnlyConfig.use_hqq: HQQ optimizes zero points, which symmetric has none of")

    @classmethod
    def upgrade(cls, data: dict[str, Json]) -> dict[str, Json]:
        """torchao names the algorithm where this class has `use_hqq`."""
        algorithm = data.pop("int4_choose_qparams_algorithm", None)
        if isinstance(algorithm, dict):  # an enum member, by name
            algorithm = algorithm.get("_data")
        if isinstance(algorithm, str) and algorithm.lower() == "hqq":
            data["use_hqq"] = True
        return data

    def quantize(self, weight: Tensor) -> Int4Tensor:
        """The weight [..., n, k] as an `Int4Tensor` in its device's layout.

        Raises:
            ValueError: fewer than 2 dimensions, NaN or Inf, a group size that the kernels do not have.
            TypeError: the weight is not bf16, fp16 or fp32.
        """
        mapping = "hqq" if self.use_hqq else self.mapping_type.name.lower()
        parts = quantized_parts(weight, self.group_size, mapping, self.scale_dtype)
        return Int4Tensor(*parts, self.group_size, "plain", shape=weight.shape, dtype=weight.dtype).pack()


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

    OPTIONS: ClassVar[tuple[str, ...]] = ("group_size", "mapping_type")
    ACTIVATIONS: ClassVar[str] = "int8 per token"

    def __post_init__(self) -> None:
        self.check_types(group_size=int, mapping_type=MappingType, act_mapping_type=MappingType)
        check_group_size(self, self.group_size)
        check_scale_dtype(self, self.scale_dtype)

    def quantize(self, weight: Tensor) -> Int8Int4Tensor:
        """The weight [..., n, k] as an `Int8Int4Tensor` in its device's layout; raises as `Int4WeightOnlyConfig`."""
        parts = quantized_parts(weight, self.group_size, self.mapping_type.name.lower(), self.scale_dtype)
        attrs = (self.group_size, "plain", self.act_mapping_type.name.lower())
        return Int8Int4Tensor(*parts, None, *attrs, shape=weight.shape, dtype=weight.dtype).pack()


def check_group_size(config: AOBaseConfig, group_size: int) -> None:
    if group_size < 8:
        raise ValueError(f"{type(config).__name__}.group_size: expected 8 or more, got {group_size}")
    if group_size > MOST_GROUP:
        raise ValueError(f"{type(config).__name__}.group_size: expected at most {MOST_GROUP}, got {group_size}")


def quantized_parts(
    weight: Tensor, group_size: int, mapping: str, scale_dtype: torch.dtype | None = None, bits: int = 4
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The plain parts, `bits` a code, of a weight [..., n, k]; raises as `Int4WeightOnlyConfig.quantize`."""
    check_weight(weight)
    rows = weight.detach().reshape(-1, weight.shape[-1])
    parts = intx_quantize(rows, bits, group_size, mapping, scale_dtype)
    qdata, scale, zero_point = (part.unflatten(0, weight.shape[:-1]) for part in parts)
    narrow = scale.dtype is torch.float16 and weight.dtype is not torch.float16
    # The CPU's kernel has raised for weights that are not finite; CUDA's cannot, and makes their scales NaN.
    if (narrow or weight.is_cuda) and not weight.is_meta and not scale.isfinite().all():
        if scale.isnan().any():
            raise ValueError("w: expected finite values, got NaN or infinity")
        raise ValueError(f"w: expected values whose scale {dtype_name(scale.dtype)} holds; use another scale_dtype")
    return qdata, scale, None if mapping == "symmetric" else zero_point


def row_sums(plain: Sequence[Any], packed: Sequence[Any], k: int, group: int) -> Tensor:
    """The sums of the rows of w, by the matmul itself."""
    ones = torch.ones(1, k, dtype=torch.float32, device=plain[0].device)
    codes, scale, zero_point = packed
    return int4_mm(ones, codes, scale, zero_point, None, len(plain[0]), group)[0]


def floats(parts: Sequence[Any], group: int, k: int, dtype: torch.dtype) -> Tensor:
    codes, scale, zero_point = parts
    return int4_dequantize(codes, scale, zero_point, group, k, dtype)


INT4 = WeightFormat(
    "int4",
    "int4 groupwise, symmetric or with float zero points",
    (
        Codes("qdata", 4, lambda codes, k: int4_pack(codes.contiguous(), k), int4_unpack, int4_rows, packed_shape),
        PerGroup("scale"),
        PerGroup("zero_point", optional=True),
        RowSums("w_sum", row_sums),
        ColumnOrder("order"),
    ),
    floats,
    {"int4": Int4WeightOnlyConfig(), "int8-int4": Int8DynamicActivationInt4WeightConfig()},
)


class Int4Weight(GroupedWeight):
    """How an int4 weight multiplies activations as given."""

    format = INT4
    mm_op = "int4_mm"

    qdata: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def linear_packed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return int4_mm(x, self.qdata, self.scale, self.zero_point, bias, self.weight_shape[0], self.group_size)

    @property
    def mapping(self) -> MappingType:
        return MappingType.SYMMETRIC if self.zero_point is None else MappingType.ASYMMETRIC

    def config(self) -> AOBaseConfig:
        return Int4WeightOnlyConfig(self.group_size, mapping_type=self.mapping, scale_dtype=self.scale.dtype)


class Int4Tensor(Int4Weight, GroupedTensor):
    """A weight [..., n, k] of int4 codes: `w = (code - zero_point) * scale`; no zero point means 8.

    packing "plain" (checkpoints, slices, any device):
        qdata: uint8 [..., n, ceil(k / 2)], low nibble = even k.
        scale, zero_point: [..., n, G], G = ceil(k / group_size).
    packing `layout(device)` (what the device's kernels read):
        qdata: uint8 [..., *packed_shape(n, k, device)] from `int4_pack`.
        scale, zero_point: [..., ceil(n / 16), G, 16] from `tile_scale`.
    """

    tensors: ClassVar[tuple[str, ...]] = ("qdata", "scale", "zero_point")
    attrs: ClassVar[tuple[str, ...]] = ("group_size", "packing")


class Int8Int4Weight(Int4Weight):
    """How an int4 weight multiplies activations quantized to int8."""

    mm_op = "int8_int4_mm"

    w_sum: Tensor | None
    act_mapping: str

    def linear_packed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        n, parts = self.weight_shape[0], (self.qdata, self.scale, self.zero_point, self.w_sum)
        return int8_int4_mm(x, *parts, bias, n, self.group_size)

    def config(self) -> AOBaseConfig:
        act_mapping = MappingType[self.act_mapping.upper()]
        return Int8DynamicActivationInt4WeightConfig(self.group_size, self.mapping, act_mapping, self.scale.dtype)

    @property
    def command(self) -> str:
        return "int8-int4"


class Int8Int4Tensor(Int8Int4Weight, Int4Tensor):
    """An `Int4Tensor` for activations quantized to int8.

    act_mapping: "symmetric" or "asymmetric", how activations are quantized.
    w_sum: fp32 [..., n], the sums of the rows of w; only if packed and asymmetric.
    """

    tensors: ClassVar[tuple[str, ...]] = (*Int4Tensor.tensors, "w_sum")
    attrs: ClassVar[tuple[str, ...]] = (*Int4Tensor.attrs, "act_mapping")

    def check_attrs(self) -> None:
        super().check_attrs()
        check_act_mapping(self, self.act_mapping)
