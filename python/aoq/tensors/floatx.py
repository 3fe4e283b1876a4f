"""Weights whose codes are small floats, or stand for a table of values, in groups along k; activations as given.

MXFP4, MXFP6, MXFP8 and NVFP4 are such codes with scales of 8 bits. There is a format here for each grouped one of the
library whose codes are not integers: csrc/formats/formats.inc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from aoq.config import AOBaseConfig
from aoq.ops.bits import from_codes
from aoq.ops.dtypes import FLOAT_DTYPES, dtype_name
from aoq.ops.formats import Format
from aoq.ops.int4_quantize import per_column
from aoq.ops.mm import FORMATS, mm
from aoq.tensors.base import QuantizedTensor, check_weight
from aoq.tensors.formats import WeightFormat
from aoq.tensors.int4 import check_group_size
from aoq.tensors.intx import codes_of
from aoq.tensors.packed import GroupedTensor, GroupedWeight
from aoq.tensors.parts import SMALL_SCALES, KernelScales, RowScale, SmallScales

OF_NAME = {name: form for name, form in FORMATS.items() if form.grouped and (form.values or form.fp8)}
E8M0: torch.dtype = torch.float8_e8m0fnu
E4M3 = torch.float8_e4m3fn
BLOCK = 4_194_304  # values of a weight that are quantized at a time


# ---- quantizing


def largest(of: Format) -> float:
    """The largest magnitude of a code."""
    return max(map(abs, of.values)) if of.values else torch.finfo(of.plain_dtype).max


def encode(values: Tensor, of: Format) -> Tensor:
    """The nearest codes of fp32 `values` [..., k]: plain codes [..., *]. Values beyond the largest become that."""
    if not of.values:
        most = largest(of)
        return values.clamp(-most, most).to(of.plain_dtype)
    table, order = of.table(values.device).sort(stable=True)
    middles = (table[1:] + table[:-1]) / 2
    # Of two values as near the one whose code is even: as floats round, and no matter of other tables.
    lower = torch.bucketize(values, middles)
    upper = torch.bucketize(values, middles, right=True)
    codes = torch.where(order[lower] % 2 == 0, order[lower], order[upper]).to(torch.uint8)
    return from_codes(codes, of.bits)


def group_scales(absmax: Tensor, of: Format, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Scales for groups of these absmax [n, G], and of a row, [n, 1], where they are e4m3.

    e8m0: the power of two that takes absmax to the binade of the largest code, as the OCP's MX specification has it;
    codes beyond the largest are clamped. e4m3: around a second scale for the whole matrix, which takes the largest
    absmax to the largest product of the two. Else absmax over the largest code.
    """
    most = largest(of)
    if scale_dtype == E8M0:
        exponent = torch.frexp(absmax.clamp(min=2.0**-126))[1] - torch.frexp(torch.tensor(most))[1]
        return torch.ldexp(torch.ones_like(absmax), exponent.clamp(-127, 127)).to(E8M0), None
    if scale_dtype == E4M3:
        second = (absmax.amax() / most / torch.finfo(E4M3).max).clamp(min=torch.finfo(torch.float32).tiny)
        scale = (absmax / most / second).clamp(min=2.0**-9, max=torch.finfo(E4M3).max)
        return scale.to(E4M3), second.expand(len(absmax), 1).contiguous()
    scale = (absmax / most).to(scale_dtype)
    return torch.where(scale == 0, torch.finfo(scale_dtype).tiny, scale), None


def quantized(
    weight: Tensor, of: Format, group_size: int, scale_dtype: torch.dtype | None, rows: int = 1
) -> FloatxTensor:
    """The weight [..., n, k] as a `FloatxTensor` in its device's layout.

    Args:
        rows: how many neighbours along n share their scales.

    Raises:
        ValueError: fewer than 2 dimensions, NaN or Inf.
        TypeError: the weight is not bf16, fp16 or fp32.
    """
    check_weight(weight)
    dtype, (n, k) = scale_dtype or weight.dtype, weight.shape[-2:]
    group = min(group_size, k)
    matrices = [_quantize(matrix, of, group, dtype, rows) for matrix in weight.detach().reshape(-1, n, k)]
    parts = [
        None if column[0] is None else _stack(column).view(*weight.shape[:-1], -1)
        for column in zip(*matrices, strict=True)
    ]
    attrs = (group_size, "plain", of.name)
    return FloatxTensor(*parts, None, *attrs, shape=weight.shape, dtype=weight.dtype).pack()


def _stack(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].dtype in SMALL_SCALES:
        return torch.stack([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)
    return torch.stack(list(parts))


def _quantize(
    w: Tensor, of: Format, group: int, scale_dtype: torch.dtype, rows: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Plain parts of a matrix."""
    k = w.shape[1]
    absmax = torch.stack([part.abs().amax(-1) for part in w.float().split(group, -1)], -1)
    if rows > 1:
        blocks = [block.amax(0, keepdim=True).expand(len(block), -1) for block in absmax.split(rows)]
        absmax = torch.cat(blocks)
    if not w.is_meta and not absmax.isfinite().all():
        row = int(w.isfinite().all(-1).int().argmin())
        raise ValueError(f"w: expected finite values, got NaN or infinity in row {row}")
    scale, row_scale = group_scales(absmax, of, scale_dtype)
    wide = scale.float() if row_scale is None else scale.float() * row_scale
    if not w.is_meta and not wide.isfinite().all():
        raise ValueError(f"w: expected values whose scale {dtype_name(scale_dtype)} holds; use another scale_dtype")
    step = max(1, BLOCK // k)
    codes = [
        encode(rows.float() / per_column(scales, group, k), of)
        for rows, scales in zip(w.split(step), wide.split(step), strict=True)
    ]
    return torch.cat([code.view(torch.uint8) for code in codes]).view(of.plain_dtype), scale, row_scale


# ---- configs


def check_format(config: AOBaseConfig, name: str) -> None:
    if name not in OF_NAME:
        raise ValueError(f"{type(config).__name__}.weight_format: expected one of {', '.join(OF_NAME)}, got {name!r}")


@dataclass
class FloatxWeightOnlyConfig(AOBaseConfig):
    """Weights whose codes are small floats or stand for a table of values; activations are used as given.

    Args:
        weight_format: "fp4_e2m1", "fp5_e2m2", "fp6_e2m3", "fp6_e3m2", "nf4", "iq4_nl" or "fp8_e4m3_grouped".
        group_size: neighbours along k that share a scale: a multiple of 8, or anything >= k for one a row.
        scale_dtype: torch.bfloat16, float16 or float32, by default the weight's; torch.float8_e8m0fnu for powers of
            two (MX formats), torch.float8_e4m3fn with a second scale in fp32 (NVFP4).
    """

    weight_format: str = "nf4"
    group_size: int = 64
    scale_dtype: torch.dtype | None = None

    OPTIONS: ClassVar[tuple[str, ...]] = ("group_size",)

    def __post_init__(self) -> None:
        self.check_types(weight_format=str, group_size=int)
        check_format(self, self.weight_format)
        check_group_size(self, self.group_size)
        if self.scale_dtype not in (None, *FLOAT_DTYPES, *SMALL_SCALES):
            raise TypeError(f"{type(self).__name__}.scale_dtype: expected a float dtype, got {self.scale_dtype}")

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The weight [..., n, k] as a `FloatxTensor` in its device's layout.

        Raises:
            ValueError: fewer than 2 dimensions, NaN or Inf.
            TypeError: the weight is not bf16, fp16 or fp32.
        """
        return quantized(weight, OF_NAME[self.weight_format], self.group_size, self.scale_dtype)


@dataclass
class FPXWeightOnlyConfig(AOBaseConfig):
    """Floats of a sign, `ebits` and `mbits`, without infinities and NaN; activations are used as given.

    Args:
        ebits, mbits: (2, 1) is fp4, (2, 2) fp5, (2, 3) and (3, 2) fp6.
        group_size: neighbours along k that share a scale, a multiple of 8; None for one a row.
    """

    ebits: int = 3
    mbits: int = 2
    group_size: int | None = None

    OPTIONS: ClassVar[tuple[str, ...]] = ("group_size",)

    def __post_init__(self) -> None:
        self.check_types(ebits=int, mbits=int)
        self.weight_format()
        if self.group_size is not None:
            check_group_size(self, self.group_size)

    def weight_format(self) -> str:
        end = f"_e{self.ebits}m{self.mbits}"
        for name, form in OF_NAME.items():
            if form.values and name.endswith(end):
                return name
        known = ", ".join(name for name, form in OF_NAME.items() if form.values and name.startswith("fp"))
        raise ValueError(
            f"FPXWeightOnlyConfig.ebits: expected one of {known}, got ebits {self.ebits}, mbits {self.mbits}"
        )

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The weight in its device's layout; raises as `FloatxWeightOnlyConfig.quantize`."""
        return quantized(weight, OF_NAME[self.weight_format()], self.group_size or max(weight.shape[-1], 8), None)


@dataclass
class NF4WeightOnlyConfig(AOBaseConfig):
    """NormalFloat codes of 4 bits (Dettmers et al., QLoRA, 2023); activations are used as given.

    Args:
        group_size: neighbours along k that share a scale, a multiple of 8.
    """

    group_size: int = 64

    OPTIONS: ClassVar[tuple[str, ...]] = ("group_size",)

    def __post_init__(self) -> None:
        self.check_types(group_size=int)
        check_group_size(self, self.group_size)

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The weight in its device's layout; raises as `FloatxWeightOnlyConfig.quantize`."""
        return quantized(weight, OF_NAME["nf4"], self.group_size, None)


@dataclass
class MXWeightOnlyConfig(AOBaseConfig):
    """Small floats in groups of 32 with a power of two each (OCP Microscaling Formats); activations are as given.

    Args:
        weight_format: "fp4_e2m1" (MXFP4), "fp6_e2m3", "fp6_e3m2" (MXFP6) or "fp8_e4m3_grouped" (MXFP8).
        block_size: neighbours along k that share a scale.
    """

    weight_format: str = "fp4_e2m1"
    block_size: int = 32

    scale_dtype: ClassVar[torch.dtype] = E8M0

    def __post_init__(self) -> None:
        self.check_types(weight_format=str, block_size=int)
        check_format(self, self.weight_format)
        check_group_size(self, self.block_size)

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The weight in its device's layout; raises as `FloatxWeightOnlyConfig.quantize`."""
        return quantized(weight, OF_NAME[self.weight_format], self.block_size, self.scale_dtype)


@dataclass
class NVFP4WeightOnlyConfig(AOBaseConfig):
    """fp4 e2m1 in groups of 16 with e4m3 scales, and one in fp32 for the whole weight; activations are as given."""

    scale_dtype: ClassVar[torch.dtype] = E4M3

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The weight in its device's layout; raises as `FloatxWeightOnlyConfig.quantize`."""
        return quantized(weight, OF_NAME["fp4_e2m1"], 16, self.scale_dtype)


# ---- formats

CONFIGS: dict[str, dict[str, AOBaseConfig]] = {
    "fp4_e2m1": {
        "fp4": FloatxWeightOnlyConfig("fp4_e2m1"),
        "mxfp4": MXWeightOnlyConfig(),
        "nvfp4": NVFP4WeightOnlyConfig(),
    },
    "fp6_e2m3": {"fp6-e2m3": FloatxWeightOnlyConfig("fp6_e2m3"), "mxfp6": MXWeightOnlyConfig("fp6_e2m3")},
    "fp6_e3m2": {"fp6-e3m2": FloatxWeightOnlyConfig("fp6_e3m2")},
    "fp8_e4m3_grouped": {
        "fp8-grouped": FloatxWeightOnlyConfig("fp8_e4m3_grouped", 128),
        "mxfp8": MXWeightOnlyConfig("fp8_e4m3_grouped"),
    },
}


def format_of(of: Format) -> WeightFormat:
    """The library's format `of`."""

    def floats(parts: Sequence[Any], group: int, k: int, dtype: torch.dtype) -> Tensor:
        codes, scale, row_scale = parts
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = scale.to(wide) if row_scale is None else scale.float() * row_scale.float()
        return of.floats(codes, scale, None, group, k, dtype)

    name = of.name.replace("_", "-")
    configs = CONFIGS.get(of.name, {name: FloatxWeightOnlyConfig(of.name)})
    parts = codes_of(of), SmallScales("scale"), RowScale("row_scale"), KernelScales("kernel_scale")
    title = f"{of.name.removesuffix('_grouped').replace('_', '-')} groupwise"
    return WeightFormat(of.name, title, parts, floats, configs)


WEIGHT_FORMATS = {name: format_of(of) for name, of in OF_NAME.items()}


class FloatxWeight(GroupedWeight):
    """How such a weight multiplies."""

    qdata: Tensor
    scale: Tensor
    row_scale: Tensor | None
    kernel_scale: Tensor | None
    weight_format: str

    @property
    def format(self) -> WeightFormat:  # type: ignore[override]
        return WEIGHT_FORMATS[self.weight_format]

    @property
    def torch_op(self) -> str:
        return "mm"

    @property
    def x_as(self) -> str:
        return "given"

    @property
    def mm_op(self) -> str:  # type: ignore[override]
        return OF_NAME[self.weight_format].ops["given"]

    def linear_packed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        scale = self.scale if self.kernel_scale is None else self.kernel_scale
        n = self.weight_shape[0]
        return mm(x, self.qdata, scale, None, None, bias, n, self.weight_format, group_size=self.group_size)

    def config(self) -> AOBaseConfig:
        return FloatxWeightOnlyConfig(self.weight_format, self.group_size, self.scale.dtype)

    @property
    def command(self) -> str:
        small = self.scale.dtype if self.scale.dtype in SMALL_SCALES else None
        named = {getattr(config, "scale_dtype", None): command for command, config in self.format.configs.items()}
        return named.get(small, next(iter(self.format.configs)))


class FloatxTensor(FloatxWeight, GroupedTensor):
    """A weight [..., n, k] of small floats or codes into a table: `w = value(code) * scale * row_scale`.

    weight_format: what codes stand for, by its name in the library: "fp4_e2m1", "nf4", "fp8_e4m3_grouped", ...
    packing "plain" (checkpoints, slices, any device):
        qdata: uint8 [..., n, ceil(k * bits / 8)]: code i of a row is its bits [i * bits, (i + 1) * bits), lowest first;
            of fp8 e4m3 [..., n, k].
        scale: [..., n, G], G = ceil(k / group_size): bf16, fp16, fp32, e8m0 or e4m3.
        row_scale: fp32 [..., n, 1], a second scale, or None: 1. One for the whole weight is the same for all rows.
    packing `layout(device)` (what the device's kernels read):
        qdata: [..., *packed_shape(n, k, bits)].
        scale: [..., ceil(n / 16), G, 16] from `tile_scale`; row_scale: [..., ceil(n / 16), 1, 16].
        kernel_scale: like scale, their product in a dtype that kernels read, where scale has 8 bits.
    """

    tensors: ClassVar[tuple[str, ...]] = ("qdata", "scale", "row_scale", "kernel_scale")
    attrs: ClassVar[tuple[str, ...]] = ("group_size", "packing", "weight_format")

    def check_attrs(self) -> None:
        super().check_attrs()
        if self.weight_format not in OF_NAME:
            known = ", ".join(OF_NAME)
            raise ValueError(f"FloatxTensor: weight_format: expected one of {known}, got {self.weight_format!r}")
