"""int8_weight_mm: activations as given times int8 weights."""

from __future__ import annotations

from torch import Tensor

from aoq.ops.mm_op import MmOp

_mm = MmOp("int8_weight_mm", "int8")


def int8_weight_mm(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """Multiplies `x` with an int8 weight: `out = scale * (x @ code.T) + bias`.

    Products of bf16 x are exact; sums are fp32 and scaled once. Differentiable once in `x` and `bias`.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides; zero rows are fine.
        packed: from `int8_pack`, on the device of `x`.
        scale: [ceil(n / 16), 1, 16] from `tile_scale`, bf16, fp16 or fp32.
        bias: [n] bf16, fp16 or fp32, or None.
        n: rows of the weight.

    Returns:
        [..., n] in the dtype of `x`.

    Raises:
        ValueError, TypeError: an operand has a wrong shape, device or dtype; the text names it.
    """
    return _mm(x, (packed, scale), bias, n)


def int8_weight_mm_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    n: int,
) -> Tensor:
    """The reference for `int8_weight_mm` in PyTorch: fp64 products and sums."""
    return _mm.reference(x, (packed, scale), bias, n)
