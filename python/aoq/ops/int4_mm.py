"""int4_mm: activations times int4 weights, `out = x @ ((code - zero_point) * scale).T + bias`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aoq.ops.errors import typed
from aoq.ops.int4_pack import untile_scale
from aoq.ops.int4_quantize import int4_dequantize
from aoq.ops.int4_unpack import int4_unpack, int4_unpack_reference

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
        packed: uint8 [ceil(n / 16), ceil(k / 8), 64] from `int4_pack`.
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
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        out: Tensor = _Int4Mm.apply(x, packed, scale, zero_point, bias, n, group_size)
        return out
    try:
        out = _op(x, packed, scale, zero_point, bias, n, group_size)
        return out
    except RuntimeError as error:
        _check_devices(x, packed, scale, zero_point, bias)  # the dispatcher names no operand
        raise typed(error) from None


def _check_devices(x: Tensor, packed: Tensor, scale: Tensor, zero_point: Tensor | None, bias: Tensor | None) -> None:
    for name, operand in (("packed", packed), ("scale", scale), ("zero_point", zero_point), ("bias", bias)):
        if operand is not None and operand.device != x.device:
            raise ValueError(f"aoq::int4_mm: {name}: expected the device of x, {x.device}, got {operand.device}")


class _Int4Mm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, zero_point: Tensor | None, *rest: Any) -> Tensor:
        bias, n, group_size = rest
        ctx.save_for_backward(packed, scale, zero_point)
        ctx.n, ctx.k, ctx.group_size, ctx.dtype = n, x.shape[-1], group_size, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        with torch.no_grad():
            return int4_mm(x, packed, scale, zero_point, bias, n, group_size)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, scale, zero_point = ctx.saved_tensors
        n, k = ctx.n, ctx.k
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            qdata = int4_unpack(packed, n, k)
            zero_point = None if zero_point is None else untile_scale(zero_point, n)
            w = int4_dequantize(qdata, untile_scale(scale, n), zero_point, ctx.group_size, k, ctx.dtype)
            grad_x = grad @ w
        if ctx.needs_input_grad[4]:
            grad_bias = grad.reshape(-1, n).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_x, None, None, None, grad_bias, None, None


@torch.library.register_fake("aoq::int4_mm")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    n: int,
    group_size: int,
) -> Tensor:
    _check_devices(x, packed, scale, zero_point, bias)
    torch._check_value(
        (x.shape[-1] + 7) // 8 == packed.shape[1],
        lambda: f"aoq::int4_mm: x: expected packed's {packed.shape[1]} units of 8 columns, got {x.shape[-1]}",
    )
    return x.new_empty((*x.shape[:-1], n))


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
    out = x.double() @ int4_dequantize(qdata, scale, zero_point, group_size, k, torch.float64).t()
    return (out if bias is None else out + bias.double()).to(x.dtype)
