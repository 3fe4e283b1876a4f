"""int8_mm: activations, quantized to int8 per row, times int8 weights (W8A8)."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.int8_pack import packed_dtype, packed_shape
from aoq.ops.int8_quantize import int8_dequantize, int8_quantize_reference
from aoq.ops.int8_unpack import int8_unpack, int8_unpack_reference
from aoq.ops.packed import check_config, packed_mm, packed_mm_fake, untile_scale

_op = torch.ops.aoq.int8_mm.default


def int8_mm(x: Tensor, packed: Tensor, scale: Tensor, w_sum: Tensor | None, bias: Tensor | None, n: int) -> Tensor:
    """Quantizes each row of `x` to int8 as `int8_quantize` does and multiplies it with an int8 weight.

    `out = x_scale * (scale * (x_code @ code.T) - x_zero_point * w_sum) + bias`; products of codes are summed as
    integers, the rest in fp32.

    Differentiable once in `x` and `bias`. Quantizing is straight-through: the gradient of `x` is
    `grad @ dequantized w`.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides; zero rows are fine. A row with NaN or Inf gives NaN.
        packed: from `int8_pack`, on the device of `x`.
        scale: [ceil(n / 16), 1, 16] from `tile_scale`, bf16, fp16 or fp32.
        w_sum: fp32 [n], the sum over k of the dequantized weight, to quantize `x` asymmetrically; None for
            symmetrically.
        bias: [n] bf16, fp16 or fp32, or None.
        n: rows of the weight.

    Returns:
        [..., n] in the dtype of `x`.

    Raises:
        ValueError, TypeError: an operand has a wrong shape, device or dtype; the text names it.
    """
    return packed_mm(_op, _dequantize, x, (packed, scale, w_sum), bias, n)


def _dequantize(packed: Tensor, scale: Tensor, w_sum: Tensor | None, n: int, k: int, dtype: torch.dtype) -> Tensor:
    return int8_dequantize(int8_unpack(packed, n, k), untile_scale(scale, n), None, dtype)


@torch.library.register_fake("aoq::int8_mm")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    w_sum: Tensor | None,
    bias: Tensor | None,
    n: int,
    config: int = -1,
) -> Tensor:
    check = Checks("int8_mm")
    check_config(check, config, x)
    return packed_mm_fake(check, packed_shape, packed_dtype, x, packed, scale, bias, n, w_sum=w_sum)


def int8_mm_reference(
    x: Tensor, packed: Tensor, scale: Tensor, w_sum: Tensor | None, bias: Tensor | None, n: int
) -> Tensor:
    """The reference for `int8_mm` in PyTorch: fp64 products and sums of exactly dequantized x and w."""
    qdata = int8_unpack_reference(packed, n, x.shape[-1])
    w = int8_dequantize(qdata, untile_scale(scale, n), None, torch.float64)
    return linear_reference(x, w, w_sum, bias)


def linear_reference(x: Tensor, w: Tensor, w_sum: Tensor | None, bias: Tensor | None) -> Tensor:
    """`x`, quantized to int8 per row, times an fp64 `w` [n, k]; the other operands as in `int8_mm`."""
    codes, x_scale, x_zero = int8_quantize_reference(x, "symmetric" if w_sum is None else "asymmetric")
    out = codes.double() @ w.t()
    if w_sum is not None:
        out = out - x_zero.double() * w_sum.double()
    out = out * x_scale.double()
    return (out if bias is None else out + bias.double()).to(x.dtype)
