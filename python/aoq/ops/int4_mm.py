"""int4_mm: activations times int4 weights, `out = x @ ((code - zero_point) * scale).T + bias`."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.int4_pack import packed_dtype, packed_shape
from aoq.ops.int4_quantize import int4_dequantize
from aoq.ops.int4_unpack import int4_unpack, int4_unpack_reference
from aoq.ops.packed import check_config, mm_reference, packed_mm, packed_mm_fake, untile_scale

_op = torch.ops.aoq.int4_mm.default


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
    return packed_mm(_op, dequantize_packed, x, (packed, scale, zero_point), bias, n, group_size)


def dequantize_packed(
    packed: Tensor, scale: Tensor, zero_point: Tensor | None, n: int, group_size: int, k: int, dtype: torch.dtype
) -> Tensor:
    """The weight [n, k] that `int4_mm` multiplies with."""
    zero_point = None if zero_point is None else untile_scale(zero_point, n)
    return int4_dequantize(int4_unpack(packed, n, k), untile_scale(scale, n), zero_point, group_size, k, dtype)


@torch.library.register_fake("aoq::int4_mm")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    n: int,
    group_size: int,
    config: int = -1,
) -> Tensor:
    check = Checks("int4_mm")
    check_config(check, config, x)
    return packed_mm_fake(check, packed_shape, packed_dtype, x, packed, scale, bias, n, group_size, zero_point)


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
    k = x.shape[-1]
    zero_point = None if zero_point is None else untile_scale(zero_point, n).double()
    qdata, scale = int4_unpack_reference(packed, n, k), untile_scale(scale, n).double()
    w = int4_dequantize(qdata, scale, zero_point, group_size, k, torch.float64)
    return mm_reference(x.double(), w, bias, x.dtype)
