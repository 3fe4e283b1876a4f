"""What the packed layouts, and the matmuls with weights in them, have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from aoq.ops.errors import typed

TILE_N = 16  # rows of a tile

Operands: TypeAlias = "tuple[Tensor | None, ...]"
Dequantize: TypeAlias = Callable[..., Tensor]
PackedShape: TypeAlias = Callable[[int, int, torch.device], tuple[int, ...]]


def tile_scale(scale: Tensor) -> Tensor:
    """Scales or zero points [n, G] in the order that the tiles are read: [ceil(n / 16), G, 16], padding 0."""
    padded: Tensor = pad(scale, (0, 0, 0, -scale.shape[0] % TILE_N))
    return padded.view(-1, TILE_N, scale.shape[1]).transpose(1, 2).contiguous()


def untile_scale(tiled: Tensor, n: int) -> Tensor:
    """The inverse of `tile_scale`: [ceil(n / 16), G, 16] -> [n, G]."""
    return tiled.transpose(1, 2).flatten(0, 1)[:n].contiguous()


def packed_mm(
    op: OpOverload, dequantize: Dequantize, x: Tensor, weight: Operands, bias: Tensor | None, *sizes: Any
) -> Tensor:
    """`op(x, *weight, bias, *sizes)`, `sizes` being n and what else the op takes, with typed errors.

    Differentiable once in `x` and `bias`, as if `x` had been used as given.

    Args:
        dequantize: (*weight, *sizes, k, dtype) -> [n, k], for the backward pass.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        count = len(weight)

        def call(x: Tensor, *rest: Any) -> Tensor:
            return packed_mm(op, dequantize, x, rest[:count], *rest[count:])

        return differentiable(call, dequantize, x, weight, bias, *sizes)
    try:
        out: Tensor = op(x, *weight, bias, *sizes)
        return out
    except RuntimeError as error:
        _check_operands(op, x, *weight, bias)  # the dispatcher names no operand
        raise typed(error) from None


def differentiable(
    call: Callable[..., Tensor], dequantize: Dequantize, x: Tensor, weight: Operands, bias: Tensor | None, *sizes: Any
) -> Tensor:
    """`call(x, *weight, bias, *sizes)` with gradients, once, in `x` and `bias`.

    Args:
        dequantize: (*weight, *sizes, k, dtype) -> [n, k], for the backward pass.
    """
    out: Tensor = _PackedMm.apply(call, dequantize, x, bias, sizes, *weight)
    return out


def packed_mm_fake(
    op: OpOverload, packed_shape: PackedShape, x: Tensor, weight: Operands, bias: Tensor | None, n: int
) -> Tensor:
    """What `op` returns, without values. `packed_shape`: (n, k, device) -> that of the packed codes there."""
    _check_operands(op, x, *weight, bias)
    assert weight[0] is not None
    k, got = x.shape[-1], tuple(weight[0].shape)
    wanted = packed_shape(n, k, x.device)
    torch._check_value(
        got == wanted, lambda: f"{op.name()}: packed: expected shape {wanted} for x with {k} columns, got {got}"
    )
    return x.new_empty((*x.shape[:-1], n))


def mm_reference(x: Tensor, w: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ w.T + bias` of fp64 `x` [..., k] and `w` [n, k], rounded once, to `dtype`."""
    out = x @ w.t()
    return (out if bias is None else out + bias.double()).to(dtype)


def _check_operands(op: OpOverload, x: Tensor, *others: Tensor | None) -> None:
    names = (argument.name for argument in op._schema.arguments[1:])
    check_devices(op._schema.name, x, dict(zip(names, others, strict=False)))


def check_devices(op: str, x: Tensor, others: dict[str, Tensor | None]) -> None:
    """Raises ValueError unless every operand is on the device of `x`."""
    for name, operand in others.items():
        if operand is not None and operand.device != x.device:
            raise ValueError(f"{op}: {name}: expected the device of x, {x.device}, got {operand.device}")


class _PackedMm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Callable[..., Tensor], dequantize: Dequantize, *operands: Any) -> Tensor:
        x, bias, sizes, *weight = operands
        ctx.save_for_backward(*weight)
        ctx.dequantize, ctx.sizes, ctx.k, ctx.dtype = dequantize, sizes, x.shape[-1], x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        with torch.no_grad():
            return call(x, *weight, bias, *sizes)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_bias = None
        weight = ctx.saved_tensors  # once: gradient checkpointing recomputes what is saved at each reading
        if ctx.needs_input_grad[2]:
            # Under autocast the output, and so `grad`, has another dtype than `x`.
            grad_x = (grad @ ctx.dequantize(*weight, *ctx.sizes, ctx.k, grad.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return None, None, grad_x, grad_bias, None, *(None for _ in weight)
