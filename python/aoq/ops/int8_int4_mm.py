"""int8_int4_mm: activations, quantized to int8 per row, times int4 weights (W4A8)."""

from __future__ import annotations

from torch import Tensor

from aoq.ops.mm_op import MmOp

_mm = MmOp("int8_int4_mm", "int4", "int8")


def int8_int4_mm(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    w_sum: Tensor | None,
    bias: Tensor | None,
    n: int,
    group_size: int,
) -> Tensor:
    """Quantizes each row of `x` to int8 as `int8_quantize` does and multiplies it with an int4 weight.

    Sums of products within a group are exact integers; scales and zero points are applied to them in fp32.

    Differentiable once in `x` and `bias`. Quantizing is straight-through: the gradient of `x` is
    `grad @ dequantized w`.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides; zero rows are fine. A row with NaN or Inf gives NaN.
        packed: from `int4_pack`, on the device of `x`.
        scale: [ceil(n / 16), G, 16] from `tile_scale`, G = ceil(k / group_size), bf16, fp16 or fp32.
        zero_point: like `scale`, or None for 8.
        w_sum: fp32 [n], the sum over k of the dequantized weight, to quantize `x` asymmetrically; None for
            symmetrically.
        bias: [n] bf16, fp16 or fp32, or None.
        n: rows of the weight.
        group_size: as given to `int4_quantize`.

    Returns:
        [..., n] in the dtype of `x`.

    Raises:
        ValueError, TypeError: an operand has a wrong shape, device or dtype; the text names it.
    """
    return _mm(x, (packed, scale, zero_point, w_sum), bias, n, group_size)


def int8_int4_mm_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    w_sum: Tensor | None,
    bias: Tensor | None,
    n: int,
    group_size: int,
) -> Tensor:
    """The reference for `int8_int4_mm` in PyTorch: fp64 products and sums of exactly dequantized x and w."""
    return _mm.reference(x, (packed, scale, zero_point, w_sum), bias, n, group_size)
