"""fp8 weights with a scale per row, for activations as given and for those quantized to fp8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from aoq.config import AOBaseConfig, Granularity, PerBlock, PerGroup, PerRow, PerTensor
from aoq.ops.dtypes import FP8_DTYPES, dtype_name
from aoq.ops.fp8_mm import fp8_mm
from aoq.ops.fp8_quantize import fp8_dequantize, fp8_quantize
from aoq.ops.fp8_weight_mm import fp8_weight_mm
from aoq.ops.int8_pack import int8_pack, packed_dtype, packed_shape
from aoq.ops.int8_unpack import int8_rows, int8_unpack
from aoq.tensors import floatx
from aoq.tensors.base import QuantizedTensor, check_weight
from aoq.tensors.formats import WeightFormat
from aoq.tensors.int4 import check_group_size
from aoq.tensors.packed import PackedTensor, PackedWeight
from aoq.tensors.parts import Codes
from aoq.tensors.parts import PerGroup as PartPerGroup

GRANULARITIES = {PerRow(): "row", PerTensor(): "tensor"}


@dataclass
class Float8WeightOnlyConfig(AOBaseConfig):
    """fp8 weights, activations as given.

    Args:
        weight_dtype: torch.float8_e4m3fn (more precise) or torch.float8_e5m2 (wider range).
        granularity: of the weights' scales, PerRow(), PerTensor(), or of e4m3 also PerGroup(size) and
            PerBlock((rows, columns)).
    """

    weight_dtype: torch.dtype = torch.float8_e4m3fn
    granularity: Granularity = field(default_factory=PerRow)

    def __post_init__(self) -> None:
        check_fp8(self, weight_dtype=self.weight_dtype)
        if not isinstance(self.granularity, (PerGroup, PerBlock)):
            granularities(self, self.granularity)
            return
        rows, group = self.block()
        check_group_size(self, group)
        if rows < 1 or self.weight_dtype != torch.float8_e4m3fn:
            text = f"expected blocks of whole rows of e4m3, got {self.granularity!r} of {dtype_name(self.weight_dtype)}"
            raise ValueError(f"{type(self).__name__}.granularity: {text}")

    def block(self) -> tuple[int, int]:
        """Rows and columns that share a scale, where groups of columns do."""
        if isinstance(self.granularity, PerGroup):
            return 1, self.granularity.group_size
        sizes = self.granularity.block_size if isinstance(self.granularity, PerBlock) else ()
        if len(sizes) != 2:
            raise ValueError(f"{type(self).__name__}.granularity: expected 2 sizes, got {self.granularity!r}")
        return sizes

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """The weight [..., n, k] in its device's layout: a `Float8Tensor`, in groups a `FloatxTensor`.

        Raises:
            ValueError: fewer than 2 dimensions, NaN or Inf.
            TypeError: the weight is not bf16, fp16 or fp32.
        """
        if isinstance(self.granularity, (PerGroup, PerBlock)):
            rows, group = self.block()
            return floatx.quantized(weight, floatx.OF_NAME["fp8_e4m3_grouped"], group, torch.float32, rows)
        return quantized(weight, self.weight_dtype, GRANULARITIES[self.granularity], (None, None, None, None))


@dataclass
class Float8DynamicActivationFloat8WeightConfig(AOBaseConfig):
    """fp8 weights; the matmul quantizes activations to fp8.

    Args:
        activation_dtype, weight_dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        granularity: PerTensor() or PerRow(), of weights and activations, or a pair: of activations, of weights.
            PerRow() is more precise.
        activation_value_lb, activation_value_ub: bounds of the absmax that makes an activation's scale.
    """

    activation_dtype: torch.dtype = torch.float8_e4m3fn
    weight_dtype: torch.dtype = torch.float8_e4m3fn
    granularity: Granularity | Sequence[Granularity] = field(default_factory=PerTensor)
    activation_value_lb: float | None = None
    activation_value_ub: float | None = None

    ACTIVATIONS: ClassVar[str] = "fp8 per token or tensor"

    def __post_init__(self) -> None:
        check_fp8(self, activation_dtype=self.activation_dtype, weight_dtype=self.weight_dtype)
        granularities(self, self.granularity)
        lb, ub = self.activation_value_lb, self.activation_value_ub
        if not 0 <= (lb or 0) <= (float("inf") if ub is None else ub):
            name = type(self).__name__
            raise ValueError(f"{name}.activation_value_lb: expected 0 <= lb <= ub, got lb {lb!r} and ub {ub!r}")

    def quantize(self, weight: Tensor) -> Float8Tensor:
        """The weight [..., n, k] as a `Float8Tensor` in its device's layout.

        Raises:
            ValueError: fewer than 2 dimensions, NaN or Inf.
            TypeError: the weight is not bf16, fp16 or fp32.
        """
        act, own = granularities(self, self.granularity)
        acts = (self.activation_dtype, act, self.activation_value_lb, self.activation_value_ub)
        return quantized(weight, self.weight_dtype, own, acts)


def check_fp8(config: AOBaseConfig, **dtypes: torch.dtype) -> None:
    for name, dtype in dtypes.items():
        if dtype not in FP8_DTYPES:
            got = dtype_name(dtype) if isinstance(dtype, torch.dtype) else repr(dtype)
            raise ValueError(f"{type(config).__name__}.{name}: expected float8_e4m3fn or float8_e5m2, got {got}")


def granularities(config: AOBaseConfig, given: Granularity | Sequence[Granularity]) -> tuple[str, str]:
    """Of activations and of weights, as the ops name them."""
    both = tuple(given) if isinstance(given, Sequence) else (given, given)
    if len(both) != 2 or any(one not in GRANULARITIES for one in both):
        raise ValueError(f"{type(config).__name__}.granularity: expected PerTensor() or PerRow(), got {given!r}")
    return GRANULARITIES[both[0]], GRANULARITIES[both[1]]


def quantized(weight: Tensor, code_dtype: torch.dtype, granularity: str, acts: tuple[Any, ...]) -> Float8Tensor:
    check_weight(weight)
    n, k = weight.shape[-2:]
    each = [fp8_quantize(matrix, granularity, code_dtype) for matrix in weight.detach().reshape(-1, n, k)]
    qdata = torch.stack([codes for codes, _ in each]).view(weight.shape)
    scale = torch.stack([scale.expand(n, 1) for _, scale in each]).view(*weight.shape[:-1], 1)
    if not weight.is_meta and not (finite := scale.flatten().isfinite()).all():
        raise ValueError(f"w: expected finite values, got NaN or infinity in row {int(finite.int().argmin())}")
    return Float8Tensor(qdata, scale, code_dtype, *acts, "plain", shape=weight.shape, dtype=weight.dtype).pack()


def fp8_format(name: str, dtype: torch.dtype, configs: Mapping[str, AOBaseConfig]) -> WeightFormat:
    """Codes of `dtype`, packed as int8 ones are."""
    codes = Codes(
        "qdata",
        8,
        lambda codes, k: int8_pack(codes.view(torch.int8)),
        lambda packed, n, k: int8_unpack(packed, n, k).view(dtype),
        lambda packed, ids, k: int8_rows(packed, ids, k).view(dtype),
        packed_shape,
        dtype,
        packed_dtype,
    )
    title = "fp8 (e4m3, e5m2) per row or tensor"
    return WeightFormat(f"fp8_{name}", title, (codes, PartPerGroup("scale")), floats, configs)


def floats(parts: Sequence[Any], group: int, k: int, dtype: torch.dtype) -> Tensor:
    codes, scale = parts
    return fp8_dequantize(codes, scale, dtype)


FP8 = {
    torch.float8_e4m3fn: fp8_format(
        "e4m3",
        torch.float8_e4m3fn,
        {
            "fp8": Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
            "fp8-weight": Float8WeightOnlyConfig(),
        },
    ),
    torch.float8_e5m2: fp8_format("e5m2", torch.float8_e5m2, {}),
}


class Float8Weight(PackedWeight):
    """How an fp8 weight multiplies."""

    qdata: Tensor
    scale: Tensor
    code_dtype: torch.dtype
    act_dtype: torch.dtype | None
    act_granularity: str | None
    act_lb: float | None
    act_ub: float | None

    @property
    def format(self) -> WeightFormat:  # type: ignore[override]
        return FP8[self.code_dtype]

    @property
    def mm_op(self) -> str:  # type: ignore[override]
        return "fp8_mm" if self.act_dtype else "fp8_weight_mm"

    def linear_packed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        weight = (x, self.qdata, self.scale, bias, self.weight_shape[0], self.code_dtype)
        if self.act_dtype is None or self.act_granularity is None:
            return fp8_weight_mm(*weight)
        return fp8_mm(*weight, self.act_dtype, self.act_granularity, self.act_lb, self.act_ub)

    def config(self) -> AOBaseConfig:
        rows = (self.scale.flatten(-3) if self.packed else self.scale.flatten(-2))[..., : self.weight_shape[-2]]
        granularity = PerTensor() if bool((rows == rows[..., :1]).all()) else PerRow()
        if self.act_dtype is None:
            return Float8WeightOnlyConfig(self.code_dtype, granularity)
        both = (PerTensor() if self.act_granularity == "tensor" else PerRow(), granularity)
        return Float8DynamicActivationFloat8WeightConfig(
            self.act_dtype, self.code_dtype, both, self.act_lb, self.act_ub
        )

    @property
    def command(self) -> str:
        return "fp8" if self.act_dtype else "fp8-weight"


class Float8Tensor(Float8Weight, PackedTensor):
    """A weight [..., n, k] of fp8 codes, `w = code * scale`.

    code_dtype: torch.float8_e4m3fn or torch.float8_e5m2.
    act_dtype: the same, of activations that are quantized; None for those used as given.
    act_granularity: "row" or "tensor", of activations; None likewise.
    act_lb, act_ub: bounds of the absmax that makes an activation's scale, or None.
    packing "plain" (checkpoints, slices, any device):
        qdata: fp8 [..., n, k].
        scale: [..., n, 1], all alike for a scale per tensor.
    packing `layout(device)` (what the device's kernels read):
        qdata: [..., *packed_shape(n, k, device)], `int8_pack` of the codes as int8.
        scale: [..., ceil(n / 16), 1, 16] from `tile_scale`.

    Slices along k share the scales of the whole rows, so nothing can be copied into them.
    """

    tensors: ClassVar[tuple[str, ...]] = ("qdata", "scale")
    attrs: ClassVar[tuple[str, ...]] = ("code_dtype", "act_dtype", "act_granularity", "act_lb", "act_ub", "packing")

    def check_attrs(self) -> None:
        for name in ("code_dtype", "act_dtype"):
            dtype = getattr(self, name)
            if dtype not in FP8_DTYPES and not (name == "act_dtype" and dtype is None):
                raise ValueError(f"Float8Tensor: {name}: expected float8_e4m3fn or float8_e5m2, got {dtype!r}")
        if self.act_granularity not in (("row", "tensor") if self.act_dtype else (None,)):
            wanted = "'row' or 'tensor'" if self.act_dtype else "None"
            raise ValueError(f"Float8Tensor: act_granularity: expected {wanted}, got {self.act_granularity!r}")
