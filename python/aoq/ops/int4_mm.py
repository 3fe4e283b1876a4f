"""int4_mm: activations times int4 weights, `out = x @ ((code - zero_point) * scale).T + bias`."""

from __future__ import annotations

from torch import Tensor

from aoq.ops.mm_op import MmOp

_mm = MmOp("int4_mm", "int4")


def int4_mm(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    n: int,
    group_size: int,
) -> Tensor:
    """Multiplies `x`, used as given, with an int4 weight; sums in fp32.

    Differentiable once in `x` and `bias`: the backward pass dequantizes the weight.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides; zero rows are fine.
        packed: from `int4_pack`, on the device of `x`.
        scale: [ceil(n / 16), G, 16] from `tile_scale`, G = ceil(k / group_size), bf16, fp16 or fp32.
        zero_point: like `scale`, or None for 8.
        bias: [n] bf16, fp16 or fp32, or None.
        n: rows of the weight.
        group_size: as given to `int4_quantize`.

    Returns:
        [..., n] in the dtype of `x`.

    Raises:
        ValueError, TypeError: an operand has a wrong shape, device or dtype; the text names it.
    """
    return _mm(x, (packed, scale, zero_point), bias, n, group_size)


def int4_mm_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    n: int,
    group_size: int,
) -> Tensor:
    """The reference for `int4_mm` in PyTorch: fp64 products and sums of exactly dequantized weights."""
    return _mm.reference(x, (packed, scale, zero_point), bias, n, group_size)
