"""fp8_weight_mm: activations as given times fp8 weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.fp8_quantize import fp8_dequantize
from aoq.ops.int8_pack import packed_dtype, packed_shape
from aoq.ops.int8_unpack import int8_unpack, int8_unpack_reference
from aoq.ops.packed import check_config, mm_reference, packed_mm, packed_mm_fake, untile_scale

_op = torch.ops.aoq.fp8_weight_mm.default


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
    return packed_mm(_op, fp8_dequantize_packed, x, (packed, scale), bias, n, w_dtype)


def fp8_dequantize_packed(
    packed: Tensor,
    scale: Tensor,
    n: int,
    w_dtype: torch.dtype,
    k: int,
    dtype: torch.dtype,
    unpack: Callable[[Tensor, int, int], Tensor] = int8_unpack,
) -> Tensor:
    """The weight [n, k] that the op multiplies with, in `dtype`."""
    return fp8_dequantize(unpack(packed, n, k).view(w_dtype), untile_scale(scale, n), dtype)


@torch.library.register_fake("aoq::fp8_weight_mm")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    n: int,
    w_dtype: torch.dtype | None = None,
    config: int = -1,
) -> Tensor:
    check = Checks("fp8_weight_mm")
    check_config(check, config, x)
    check.fp8(w_dtype, "w_dtype")
    return packed_mm_fake(check, packed_shape, packed_dtype, x, packed, scale, bias, n)


def fp8_weight_mm_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    n: int,
    w_dtype: torch.dtype = torch.float8_e4m3fn,
) -> Tensor:
    """The reference for `fp8_weight_mm` in PyTorch: fp64 products and sums."""
    w = fp8_dequantize_packed(packed, scale, n, w_dtype, x.shape[-1], torch.float64, int8_unpack_reference)
    return mm_reference(x.double(), w, bias, x.dtype)
