"""fp8_quantize: floats to fp8 codes with a scale per row, or one of all."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed

EPS = 1e-12  # the smallest absmax, so that zeros give zeros


@raises_typed
def fp8_quantize(
    x: Tensor,
    granularity: str = "row",
    dtype: torch.dtype = torch.float8_e4m3fn,
    lb: float | None = None,
    ub: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantizes `x` to fp8: `x ~= code * scale`; values are divided, clamped, and rounded half to even.

    `scale = max(clamp(absmax, lb, ub), 1e-12) / torch.finfo(dtype).max`, in fp32.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides.
        granularity: "row" (a scale per row) or "tensor" (one of all; `x` has at least one row).
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        lb, ub: bounds of absmax, 0 <= lb <= ub; by default none.

    Returns:
        qdata: [..., k] in `dtype`.
        scale: fp32 [..., 1], or a scalar per tensor; NaN where NaN or Inf was, whose codes mean nothing.

    Raises:
        ValueError: `x` is a scalar, k is 0, a bad `granularity` or bounds.
        TypeError: `x` is not one of the three dtypes, or `dtype` no fp8.
    """
    qdata, scale = torch.ops.aoq.fp8_quantize.default(x, granularity, dtype, lb, ub)
    return qdata, scale


@torch.library.register_fake("aoq::fp8_quantize")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    granularity: str = "row",
    dtype: torch.dtype | None = None,
    lb: float | None = None,
    ub: float | None = None,
) -> tuple[Tensor, Tensor]:
    check = Checks("fp8_quantize")
    check.rows(x, "x")
    check.granularity(granularity)
    check.bounds(lb, ub)
    any_rows = granularity == "row" or not isinstance(x.numel(), int) or x.numel() > 0
    check.value(any_rows, "x", lambda: f"expected at least one row for a scale of all, got {list(x.shape)}")
    check.fp8(dtype, "dtype")
    scale = x.new_empty((*x.shape[:-1], 1) if granularity == "row" else (), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=dtype or torch.float8_e4m3fn), scale


def fp8_quantize_reference(
    x: Tensor,
    granularity: str = "row",
    dtype: torch.dtype = torch.float8_e4m3fn,
    lb: float | None = None,
    ub: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference for `fp8_quantize`, in fp32 PyTorch: the same arguments and results."""
    values, largest = x.float(), torch.finfo(dtype).max
    absmax = values.abs().amax(-1, keepdim=True) if granularity == "row" else values.abs().amax()
    if lb is not None or ub is not None:
        absmax = absmax.clamp(lb, ub)
    scale = absmax.clamp(min=EPS) / largest
    finite = values.isfinite()
    finite = finite.all(-1, keepdim=True) if granularity == "row" else finite.all()
    codes = (values / scale).clamp(-largest, largest).to(dtype)
    return codes, torch.where(finite, scale, torch.nan)


def fp8_dequantize(qdata: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """fp8 as floats: `code * scale`, computed in fp32 (in fp64 for `dtype` fp64).

    Args:
        qdata: fp8 [..., k].
        scale: [..., 1], or a scalar.
        dtype: of the result.

    Returns:
        [..., k] in `dtype`.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return (qdata.to(compute) * scale.to(compute)).to(dtype)
