"""fp8_mm: activations, quantized to fp8, times fp8 weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.fp8_quantize import fp8_quantize_reference
from aoq.ops.fp8_weight_mm import fp8_dequantize_packed
from aoq.ops.int8_pack import packed_dtype, packed_shape
from aoq.ops.int8_unpack import int8_unpack_reference
from aoq.ops.packed import check_config, mm_reference, packed_mm, packed_mm_fake

_op = torch.ops.aoq.fp8_mm.default


def fp8_mm(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    n: int,
    w_dtype: torch.dtype = torch.float8_e4m3fn,
    x_dtype: torch.dtype = torch.float8_e4m3fn,
    granularity: str = "row",
    lb: float | None = None,
    ub: float | None = None,
) -> Tensor:
    """Quantizes `x` to fp8 as `fp8_quantize` does and multiplies it with an fp8 weight.

    `out = x_scale * scale * (x_code @ code.T) + bias`; products of codes are exact, sums are scaled once. They are fp32
    on the CPU; tensor cores of Hopper and Ada keep some 14 bits of each.

    Differentiable once in `x` and `bias`. Quantizing is straight-through: the gradient of `x` is
    `grad @ dequantized w`.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides; zero rows are fine. A row with NaN or Inf gives NaN, of
            granularity "tensor" in all rows.
        packed, scale, bias, n, w_dtype: as in `fp8_weight_mm`.
        x_dtype: of the codes of `x`, torch.float8_e4m3fn or torch.float8_e5m2.
        granularity: "row" (a scale per row of `x`) or "tensor" (one of all).
        lb, ub: bounds of the absmax that makes a scale, 0 <= lb <= ub; by default none.

    Returns:
        [..., n] in the dtype of `x`.

    Raises:
        ValueError, TypeError: an operand has a wrong shape, device or dtype; the text names it.
    """
    sizes = (n, w_dtype, x_dtype, granularity, lb, ub)
    return packed_mm(_op, _dequantize, x, (packed, scale), bias, *sizes)


def _dequantize(packed: Tensor, scale: Tensor, n: int, w_dtype: torch.dtype, *x_options: Any) -> Tensor:
    *_, k, dtype = x_options
    return fp8_dequantize_packed(packed, scale, n, w_dtype, k, dtype)


@torch.library.register_fake("aoq::fp8_mm")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    n: int,
    w_dtype: torch.dtype | None = None,
    x_dtype: torch.dtype | None = None,
    granularity: str = "row",
    lb: float | None = None,
    ub: float | None = None,
    config: int = -1,
) -> Tensor:
    check = Checks("fp8_mm")
    check_config(check, config, x)
    check.fp8(w_dtype, "w_dtype")
    check.granularity(granularity)
    check.fp8(x_dtype, "x_dtype")
    check.bounds(lb, ub)
    return packed_mm_fake(check, packed_shape, packed_dtype, x, packed, scale, bias, n)


def fp8_mm_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    n: int,
    w_dtype: torch.dtype = torch.float8_e4m3fn,
    x_dtype: torch.dtype = torch.float8_e4m3fn,
    granularity: str = "row",
    lb: float | None = None,
    ub: float | None = None,
) -> Tensor:
    """The reference for `fp8_mm` in PyTorch: fp64 products and sums."""
    w = fp8_dequantize_packed(packed, scale, n, w_dtype, x.shape[-1], torch.float64, int8_unpack_reference)
    codes, x_scale = fp8_quantize_reference(x, granularity, x_dtype, lb, ub)
    return mm_reference(codes.double() * x_scale.double(), w, bias, x.dtype)
