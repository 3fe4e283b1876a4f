"""int8_int4_mm: activations, quantized to int8 per row, times int4 weights (W4A8)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.int4_mm import dequantize_packed
from aoq.ops.int4_pack import packed_dtype, packed_shape
from aoq.ops.int4_quantize import int4_dequantize
from aoq.ops.int4_unpack import int4_unpack_reference
from aoq.ops.int8_mm import linear_reference
from aoq.ops.packed import check_config, packed_mm, packed_mm_fake, untile_scale

_op = torch.ops.aoq.int8_int4_mm.default


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
    return packed_mm(_op, _dequantize, x, (packed, scale, zero_point, w_sum), bias, n, group_size)


def _dequantize(
    packed: Tensor, scale: Tensor, zero_point: Tensor | None, w_sum: Tensor | None, *shape_and_dtype: Any
) -> Tensor:
    return dequantize_packed(packed, scale, zero_point, *shape_and_dtype)


@torch.library.register_fake("aoq::int8_int4_mm")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    w_sum: Tensor | None,
    bias: Tensor | None,
    n: int,
    group_size: int,
    config: int = -1,
) -> Tensor:
    check = Checks("int8_int4_mm")
    check_config(check, config, x)
    return packed_mm_fake(check, packed_shape, packed_dtype, x, packed, scale, bias, n, group_size, zero_point, w_sum)


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
    k = x.shape[-1]
    zero_point = None if zero_point is None else untile_scale(zero_point, n)
    qdata, scale = int4_unpack_reference(packed, n, k), untile_scale(scale, n)
    w = int4_dequantize(qdata, scale, zero_point, group_size, k, torch.float64)
    return linear_reference(x, w, w_sum, bias)
