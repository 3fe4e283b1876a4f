"""Weights of 1 to 7 bits, groupwise along k, for activations as given and for those quantized to int8.

There is a width here as soon as the library has a format named after it, "int3": csrc/formats/formats.inc.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from aoq.config import AOBaseConfig, Granularity, Json, MappingType, PerAxis, PerGroup, PerRow
from aoq.ops.dtypes import dtype_name
from aoq.ops.formats import Format
from aoq.ops.mm import FORMATS, mm
from aoq.tensors import int4, int8
from aoq.tensors.base import QuantizedTensor, check_act_mapping, check_scale_dtype
from aoq.tensors.formats import WeightFormat
from aoq.tensors.packed import GroupedTensor, GroupedWeight
from aoq.tensors.parts import Codes, ColumnOrder, RowSums
from aoq.tensors.parts import PerGroup as PartPerGroup

# Widths that have a format of their own; of 4 and 8 bits there are Int4Tensor and Int8Tensor.
INT4_DTYPE: torch.dtype = torch.int4  # type: ignore[attr-defined]
OF_BITS = {
    form.bits: form for name, form in FORMATS.items() if name.startswith("int") and form.grouped and form.bits != 4
}
WIDTHS = {getattr(torch, f"int{bits}"): bits for bits in OF_BITS}
DTYPES = [getattr(torch, f"int{bits}") for bits in range(1, 9)]
PER_ROW = (PerRow(), PerAxis(0))


def check_weight_dtype(config: AOBaseConfig, dtype: torch.dtype) -> None:
    """Raises ValueError unless `dtype` is a width of integers; where files are read it need not have kernels."""
    if dtype not in DTYPES:
        raise ValueError(f"{type(config).__name__}.weight_dtype: expected torch.int1 to torch.int8, got {dtype}")


def group_of(config: AOBaseConfig, name: str, granularity: Granularity) -> int | None:
    """The group size that a granularity of weights means; None for the row."""
    if granularity in PER_ROW:
        return None
    if not isinstance(granularity, PerGroup):
        text = f"expected PerGroup(size), PerAxis(0) or PerRow(), got {granularity!r}"
        raise ValueError(f"{type(config).__name__}.{name}: {text}")
    int4.check_group_size(config, granularity.group_size)
    return granularity.group_size


def quantized(
    weight: Tensor,
    dtype: torch.dtype,
    group: int | None,
    mapping: str,
    scale_dtype: torch.dtype | None,
    act_mapping: str | None,
) -> IntxTensor:
    """The weight as an `IntxTensor` in its device's layout; ValueError where there are no kernels for `dtype`."""
    if dtype not in WIDTHS:
        known = ", ".join(sorted(map(dtype_name, (*WIDTHS, INT4_DTYPE, torch.int8))))
        raise ValueError(f"weight_dtype: expected one with kernels, {known}, got {dtype_name(dtype)}")
    size, bits = group or weight.shape[-1], WIDTHS[dtype]
    parts = int4.quantized_parts(weight, size, mapping, scale_dtype, bits)
    attrs = (size, "plain", bits, act_mapping)
    return IntxTensor(*parts, None, *attrs, shape=weight.shape, dtype=weight.dtype).pack()


@dataclass
class IntxWeightOnlyConfig(AOBaseConfig):
    """Weights of a few bits; activations are used as given.

    Args:
        weight_dtype: torch.int1 to torch.int8, as far as there are kernels; an error says which.
        granularity: PerGroup(size), a multiple of 8, or PerAxis(0) for one scale a row. int8 weights have that alone.
        mapping_type: symmetric around zero (no zero points) or over [min, max].
        scale_dtype: of scales and zero points; by default the weight's.
        intx_choose_qparams_algorithm: "affine", or "hqq", which optimizes zero points (slower, better).
    """

    weight_dtype: torch.dtype = torch.int8
    granularity: Granularity = field(default_factory=lambda: PerAxis(0))
    mapping_type: MappingType = MappingType.SYMMETRIC
    scale_dtype: torch.dtype | None = None
    intx_choose_qparams_algorithm: str = "affine"

    OPTIONS: ClassVar[tuple[str, ...]] = ("group_size", "use_hqq", "mapping_type")

    def __post_init__(self) -> None:
        self.check_types(weight_dtype=torch.dtype, mapping_type=MappingType, intx_choose_qparams_algorithm=str)
        check_weight_dtype(self, self.weight_dtype)
        check_scale_dtype(self, self.scale_dtype)
        group_of(self, "granularity", self.granularity)
        algorithm = self.intx_choose_qparams_algorithm
        if algorithm not in ("affine", "hqq"):
            name = f"{type(self).__name__}.intx_choose_qparams_algorithm"
            raise ValueError(f"{name}: expected 'affine' or 'hqq', got {algorithm!r}")
        if algorithm == "hqq" and self.weight_dtype != torch.int8:
            self.mapping_type = MappingType.ASYMMETRIC  # what it optimizes

    @classmethod
    def upgrade(cls, data: dict[str, Json]) -> dict[str, Json]:
        """torchao names the algorithm by a member of an enum: AFFINE, or one of several HQQ."""
        algorithm = data.get("intx_choose_qparams_algorithm")
        if isinstance(algorithm, dict):
            algorithm = algorithm.get("_data")
        if isinstance(algorithm, str):
            data["intx_choose_qparams_algorithm"] = "hqq" if "hqq" in algorithm.lower() else "affine"
        return data

    def options(self) -> dict[str, Any]:
        hqq = self.intx_choose_qparams_algorithm == "hqq"
        group = group_of(self, "granularity", self.granularity)
        return {"group_size": group, "use_hqq": hqq, "mapping_type": self.mapping_type}

    def with_options(self, **options: Any) -> Self:
        fields = {name: value for name, value in options.items() if name == "mapping_type"}
        if "group_size" in options:
            fields["granularity"] = PerGroup(options["group_size"])
        if "use_hqq" in options:
            fields["intx_choose_qparams_algorithm"] = "hqq" if options["use_hqq"] else "affine"
        return dataclasses.replace(self, **fields)

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The weight [..., n, k] in its device's layout: an `IntxTensor`, or of 4 and 8 bits those that there are.

        Raises:
            ValueError: fewer than 2 dimensions, NaN or Inf.
            TypeError: the weight is not bf16, fp16 or fp32.
        """
        group, hqq = group_of(self, "granularity", self.granularity), self.intx_choose_qparams_algorithm == "hqq"
        if self.weight_dtype == torch.int8 and group is None and self.mapping_type is MappingType.SYMMETRIC:
            return int8.Int8WeightOnlyConfig(scale_dtype=self.scale_dtype).quantize(weight)
        if self.weight_dtype == INT4_DTYPE:
            size = group or max(weight.shape[-1], 8)
            return int4.Int4WeightOnlyConfig(size, hqq, self.mapping_type, self.scale_dtype).quantize(weight)
        mapping = "hqq" if hqq else self.mapping_type.name.lower()
        return quantized(weight, self.weight_dtype, group, mapping, self.scale_dtype, None)


@dataclass
class Int8DynamicActivationIntxWeightConfig(AOBaseConfig):
    """Weights of a few bits; the matmul quantizes activations to int8, with a scale per row (token).

    Args:
        weight_dtype, weight_granularity, weight_mapping_type, weight_scale_dtype: as in `IntxWeightOnlyConfig`.
        act_mapping_type: activations symmetric around zero, or over [min, max] with a zero point.
    """

    weight_dtype: torch.dtype = torch.int8
    weight_granularity: Granularity = field(default_factory=lambda: PerGroup(32))
    weight_mapping_type: MappingType = MappingType.SYMMETRIC
    weight_scale_dtype: torch.dtype | None = None
    act_mapping_type: MappingType = MappingType.ASYMMETRIC

    OPTIONS: ClassVar[tuple[str, ...]] = ("group_size", "mapping_type")
    ACTIVATIONS: ClassVar[str] = "int8 per token"

    def __post_init__(self) -> None:
        mapping = dict(weight_mapping_type=MappingType, act_mapping_type=MappingType)
        self.check_types(weight_dtype=torch.dtype, **mapping)
        check_weight_dtype(self, self.weight_dtype)
        check_scale_dtype(self, self.weight_scale_dtype)
        group_of(self, "weight_granularity", self.weight_granularity)

    def options(self) -> dict[str, Any]:
        group = group_of(self, "weight_granularity", self.weight_granularity)
        return {"group_size": group, "mapping_type": self.weight_mapping_type}

    def with_options(self, **options: Any) -> Self:
        fields = {f"weight_{name}": value for name, value in options.items() if name == "mapping_type"}
        if "group_size" in options:
            fields["weight_granularity"] = PerGroup(options["group_size"])
        return dataclasses.replace(self, **fields)

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The weight [..., n, k] in its device's layout; raises as `IntxWeightOnlyConfig.quantize`."""
        group, mapping = group_of(self, "weight_granularity", self.weight_granularity), self.weight_mapping_type
        if self.weight_dtype == torch.int8 and group is None and mapping is MappingType.SYMMETRIC:
            both = int8.Int8DynamicActivationInt8WeightConfig(
                self.act_mapping_type, scale_dtype=self.weight_scale_dtype
            )
            return both.quantize(weight)
        if self.weight_dtype == INT4_DTYPE:
            size = group or max(weight.shape[-1], 8)
            fields = (size, mapping, self.act_mapping_type, self.weight_scale_dtype)
            return int4.Int8DynamicActivationInt4WeightConfig(*fields).quantize(weight)
        act_mapping = self.act_mapping_type.name.lower()
        return quantized(weight, self.weight_dtype, group, mapping.name.lower(), self.weight_scale_dtype, act_mapping)


# ---- formats


def row_sums(name: str, plain: Sequence[Any], packed: Sequence[Any], k: int, group: int) -> Tensor:
    """The sums of the rows of w, by the matmul itself."""
    ones = torch.ones(1, k, dtype=torch.float32, device=plain[0].device)
    codes, scale, zero_point = packed
    return mm(ones, codes, scale, zero_point, None, None, len(plain[0]), name, group_size=group)[0]


def codes_of(of: Format) -> Codes:
    """The codes of a format of the library."""
    return Codes(
        "qdata",
        of.bits,
        lambda codes, k: of.pack(codes.contiguous(), k),
        of.unpack,
        of.rows,
        of.packed_shape,
        of.plain_dtype,
        of.packed_dtype,
    )


def format_of(of: Format, dtype: torch.dtype) -> WeightFormat:
    """Integers of the library's format `of`, in groups of 64 from the command line."""
    name = of.name

    def floats(parts: Sequence[Any], group: int, k: int, dtype: torch.dtype) -> Tensor:
        codes, scale, zero_point = parts
        return of.floats(codes, scale, zero_point, group, k, dtype)

    scales = PartPerGroup("scale"), PartPerGroup("zero_point", optional=True)
    configs = {
        command(of): IntxWeightOnlyConfig(dtype, PerGroup(64), MappingType.ASYMMETRIC),
        f"int8-{command(of)}": Int8DynamicActivationIntxWeightConfig(dtype, PerGroup(64), MappingType.ASYMMETRIC),
    }
    title = f"int{of.bits} groupwise, symmetric or with float zero points"
    parts = (codes_of(of), *scales, RowSums("w_sum", partial(row_sums, name)), ColumnOrder("order"))
    return WeightFormat(name, title, parts, floats, configs)


def command(of: Format) -> str:
    """The name on the command line of the config that makes such weights."""
    return of.name.replace("_", "-")


BY_BITS = {bits: format_of(OF_BITS[bits], dtype) for dtype, bits in WIDTHS.items()}


class IntxWeight(GroupedWeight):
    """How a weight of a few bits multiplies."""

    qdata: Tensor
    scale: Tensor
    zero_point: Tensor | None
    w_sum: Tensor | None
    bits: int
    act_mapping: str | None

    @property
    def format(self) -> WeightFormat:  # type: ignore[override]
        return BY_BITS[self.bits]

    @property
    def torch_op(self) -> str:
        return "mm"

    @property
    def x_as(self) -> str:
        return "int8" if self.act_mapping else "given"

    @property
    def mm_op(self) -> str:  # type: ignore[override]
        return FORMATS[self.format.name].ops[self.x_as]

    def linear_packed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        parts, n = (self.qdata, self.scale, self.zero_point, self.w_sum), self.weight_shape[0]
        return mm(x, *parts, bias, n, self.format.name, self.x_as, self.group_size)

    def config(self) -> AOBaseConfig:
        dtype = next(dtype for dtype, bits in WIDTHS.items() if bits == self.bits)
        mapping = MappingType.SYMMETRIC if self.zero_point is None else MappingType.ASYMMETRIC
        fields = (dtype, PerGroup(self.group_size), mapping, self.scale.dtype)
        if self.act_mapping is None:
            return IntxWeightOnlyConfig(*fields)
        return Int8DynamicActivationIntxWeightConfig(*fields, MappingType[self.act_mapping.upper()])

    @property
    def command(self) -> str:
        name = command(FORMATS[self.format.name])
        return f"int8-{name}" if self.act_mapping else name


class IntxTensor(IntxWeight, GroupedTensor):
    """A weight [..., n, k] of a few bits: `w = (code - zero_point) * scale`; no zero point means 2^(bits - 1).

    bits: of a code, one of the widths that have kernels.
    act_mapping: "symmetric" or "asymmetric", how activations are quantized to int8; None for those used as given.
    packing "plain" (checkpoints, slices, any device):
        qdata: uint8 [..., n, ceil(k * bits / 8)]: code i of a row is its bits [i * bits, (i + 1) * bits), lowest first.
        scale, zero_point: [..., n, G], G = ceil(k / group_size).
    packing `layout(device)` (what the device's kernels read):
        qdata: uint8 [..., *packed_shape(n, k, bits)] from `intx_pack`.
        scale, zero_point: [..., ceil(n / 16), G, 16] from `tile_scale`.
        w_sum: fp32 [..., n], the sums of the rows of w; only if activations are quantized asymmetrically.
    """

    tensors: ClassVar[tuple[str, ...]] = ("qdata", "scale", "zero_point", "w_sum")
    attrs: ClassVar[tuple[str, ...]] = ("group_size", "packing", "bits", "act_mapping")

    def check_attrs(self) -> None:
        super().check_attrs()
        if self.bits not in BY_BITS:
            raise ValueError(f"IntxTensor: bits: expected one of {', '.join(map(str, BY_BITS))}, got {self.bits!r}")
        if self.act_mapping is not None:
            check_act_mapping(self, self.act_mapping)
