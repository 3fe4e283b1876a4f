"""int8_mm: activations, quantized to int8 per row, times int8 weights (W8A8)."""

from __future__ import annotations

from torch import Tensor

from aoq.ops.mm_op import MmOp

_mm = MmOp("int8_mm", "int8", "int8")


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
    return _mm(x, (packed, scale, w_sum), bias, n)


def int8_mm_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    w_sum: Tensor | None,
    bias: Tensor | None,
    n: int,
) -> Tensor:
    """The reference for `int8_mm` in PyTorch: fp64 products and sums of exactly dequantized x and w."""
    return _mm.reference(x, (packed, scale, w_sum), bias, n)
