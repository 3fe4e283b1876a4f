"""fp8_weight_mm: activations as given times fp8 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.mm_op import MmOp

_mm = MmOp("fp8_weight_mm", None)


def fp8_weight_mm(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    n: int,
    w_dtype: torch.dtype = torch.float8_e4m3fn,
) -> Tensor:
    """Multiplies `x` with an fp8 weight: `out = scale * (x @ code.T) + bias`.

    Products of bf16 x are exact; sums are fp32 and scaled once. Differentiable once in `x` and `bias`.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides; zero rows are fine.
        packed: `int8_pack` of the codes viewed as int8, in the layout of its device. On CUDA codes have to be finite.
        scale: [ceil(n / 16), 1, 16] from `tile_scale`, bf16, fp16 or fp32.
        bias: [n] bf16, fp16 or fp32, or None.
        n: rows of the weight.
        w_dtype: of the codes, torch.float8_e4m3fn or torch.float8_e5m2.

    Returns:
        [..., n] in the dtype of `x`.

    Raises:
        ValueError, TypeError: an operand has a wrong shape, device or dtype; the text names it.
    """
    return _mm(x, (packed, scale), bias, n, w_dtype)


def fp8_weight_mm_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    n: int,
    w_dtype: torch.dtype = torch.float8_e4m3fn,
) -> Tensor:
    """The reference for `fp8_weight_mm` in PyTorch: fp64 products and sums."""
    return _mm.reference(x, (packed, scale), bias, n, w_dtype)
