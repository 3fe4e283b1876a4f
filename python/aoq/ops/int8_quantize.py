"""int8_quantize: floats to int8 codes with a scale, and maybe a zero point, per row."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed

QMIN, QMAX = -128, 127


@raises_typed
def int8_quantize(
    x: Tensor, mapping: str = "symmetric", scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes the rows of `x` to int8: `x ~= (code - zero_point) * scale`, rounding half to even.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides.
        mapping: "symmetric" (scale = absmax / 127.5, no zero point) or "asymmetric" (scale = (max - min) / 255
            over a range that includes 0, zero point a whole number from -128 to 127).
        scale_dtype: dtype of `scale` and `zero_point`; by default fp32. Codes are chosen with the rounded scale.

    Returns:
        qdata: int8 [..., k], codes -128..127.
        scale: [..., 1], more than 0; NaN for a row with NaN or Inf, whose codes mean nothing.
        zero_point: like `scale`, or [..., 0] when symmetric.

    Raises:
        ValueError: `x` is a scalar or k is 0, a bad `mapping`.
        TypeError: `x` or `scale_dtype` is not one of the three dtypes.
    """
    qdata, scale, zero_point = torch.ops.aoq.int8_quantize.default(x, mapping, scale_dtype)
    return qdata, scale, zero_point


@torch.library.register_fake("aoq::int8_quantize")  # type: ignore[untyped-decorator]
def _(x: Tensor, mapping: str = "symmetric", scale_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    check = Checks("int8_quantize")
    check.rows(x, "x")
    check.mapping(mapping, torch.int8)
    check.floats(scale_dtype or torch.float32, "scale_dtype")
    scale = x.new_empty((*x.shape[:-1], 1), dtype=scale_dtype or torch.float32)
    zero_point = scale.new_empty((*x.shape[:-1], 0 if mapping == "symmetric" else 1))
    return x.new_empty(x.shape, dtype=torch.int8), scale, zero_point


def int8_quantize_reference(
    x: Tensor, mapping: str = "symmetric", scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference for `int8_quantize`, in fp32 PyTorch: the same arguments and results."""
    values, dtype = x.float(), scale_dtype or torch.float32
    low, high = values.amin(-1, keepdim=True).clamp(max=0), values.amax(-1, keepdim=True).clamp(min=0)
    symmetric = mapping == "symmetric"
    # Quotients first: high - low may overflow.
    scale = torch.maximum(-low, high) / 127.5 if symmetric else high / 255 - low / 255
    # At least the smallest normal number of its dtype, of fp16 the smallest at all, so that zeros give zeros.
    scale = scale.clamp(min=2.0**-24 if dtype == torch.float16 else 2.0**-126).to(dtype).float()
    zero_point = torch.zeros_like(scale) if symmetric else (QMIN - (low / scale).round()).clamp(QMIN, QMAX)
    codes = ((values / scale).round() + zero_point).clamp(QMIN, QMAX)
    finite = values.isfinite().all(-1, keepdim=True)
    scale = torch.where(finite, scale, torch.nan)
    return codes.to(torch.int8), scale.to(dtype), zero_point.to(dtype)[..., : 0 if symmetric else 1]


def int8_dequantize(qdata: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int8 as floats: `(code - zero_point) * scale`, computed in fp32 (in fp64 for `dtype` fp64).

    Args:
        qdata: int8 [..., k].
        scale: [..., 1].
        zero_point: like `scale`; None or an empty last dimension means 0.
        dtype: of the result.

    Returns:
        [..., k] in `dtype`.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    codes = qdata.to(compute)
    if zero_point is not None and zero_point.shape[-1]:
        codes = codes - zero_point.to(compute)
    return (codes * scale.to(compute)).to(dtype)
