"""fp8_mm: activations, quantized to fp8, times fp8 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.mm_op import MmOp

_mm = MmOp("fp8_mm", None, "fp8")


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
    return _mm(x, (packed, scale), bias, n, w_dtype, x_dtype, granularity, lb, ub)


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
    return _mm.reference(x, (packed, scale), bias, n, w_dtype, x_dtype, granularity, lb, ub)
