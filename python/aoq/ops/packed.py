"""What the packed layouts, and the matmuls with weights in them, have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from aoq.ops.checks import Checks
from aoq.ops.dtypes import dtype_name
from aoq.ops.errors import explained

TILE_N = 16  # rows of a tile

Operands: TypeAlias = "tuple[Tensor | None, ...]"
Dequantize: TypeAlias = Callable[..., Tensor]
PackedShape: TypeAlias = Callable[[int, int, torch.device], tuple[int, ...]]
PackedDtype: TypeAlias = Callable[[torch.device], torch.dtype]


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
    if torch.is_grad_enabled() and any(isinstance(part, Tensor) and part.requires_grad for part in (x, bias)):
        count = len(weight)

        def call(x: Tensor, *rest: Any) -> Tensor:
            return packed_mm(op, dequantize, x, rest[:count], *rest[count:])

        return differentiable(call, dequantize, x, weight, bias, *sizes)
    operands = (x, *weight, bias, *sizes)
    try:
        out: Tensor = op(*operands)
        return out
    except RuntimeError as error:
        names = (argument.name for argument in op._schema.arguments)
        raise explained(op, dict(zip(names, operands, strict=False)), error) from None


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
    check: Checks,
    packed_shape: PackedShape,
    packed_dtype: PackedDtype,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    n: int,
    group_size: int | None = None,
    zero_point: Tensor | None = None,
    w_sum: Tensor | None = None,
) -> Tensor:
    """What the op that `check` is of returns, without values: csrc/mm/packed_mm_entry.h.

    packed_shape, packed_dtype: (n, k, device) and (device) -> those of the packed codes there.
    """
    for name, operand in (("x", x), ("packed", packed), ("scale", scale)):
        check.tensor(operand, name)
    check.value(x.dim() >= 1, "x", lambda: "expected shape [..., k], got a scalar")
    check.value(n > 0, "n", lambda: f"expected at least 1 row of w, got {n}")
    check.size(n, "n")
    check.value(x.shape[-1] > 0, "x", lambda: f"expected k > 0 in shape [..., k], got {list(x.shape)}")
    check.size(x, "x")
    k = x.shape[-1]
    group = k if group_size is None else check.group(group_size, k)
    check.floats(x.dtype, "x")
    check.floats(scale.dtype, "scale")
    check.dtype(packed.dtype, "packed", (packed_dtype(x.device),))
    check.shape(packed, "packed", *packed_shape(n, k, x.device))
    check.size(packed, "packed")
    tiled = (-(-n // TILE_N), -(-k // group), TILE_N)
    check.shape(scale, "scale", *tiled)
    check.same_device(packed, "packed", x)
    check.same_device(scale, "scale", x)
    if zero_point is not None:
        same = zero_point.dtype == scale.dtype
        names = (dtype_name(scale.dtype), dtype_name(zero_point.dtype))
        check.type(same, "zero_point", lambda: f"expected scale's dtype {names[0]}, got {names[1]}")
        check.shape(zero_point, "zero_point", *tiled)
        check.same_device(zero_point, "zero_point", x)
    if w_sum is not None:
        check.dtype(w_sum.dtype, "w_sum", (torch.float32,))
        check.shape(w_sum, "w_sum", n)
        check.same_device(w_sum, "w_sum", x)
    if bias is not None:
        check.floats(bias.dtype, "bias")
        check.shape(bias, "bias", n)
        check.same_device(bias, "bias", x)
    return x.new_empty((*x.shape[:-1], n))


def check_config(check: Checks, config: int, x: Tensor) -> None:
    """On CUDA how many there are depends on the device, and on all operands."""
    check.tensor(x, "x")
    on_cpu = x.device.type != "cuda"
    text = "-1, as the CPU's kernels have none" if on_cpu else "-1 or more"
    check.value(config == -1 or (config > -1 and not on_cpu), "config", lambda: f"expected {text}, got {config}")


def mm_reference(x: Tensor, w: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ w.T + bias` of fp64 `x` [..., k] and `w` [n, k], rounded once, to `dtype`."""
    out = x @ w.t()
    return (out if bias is None else out + bias.double()).to(dtype)


class _PackedMm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Callable[..., Tensor], dequantize: Dequantize, *operands: Any) -> Tensor:
        x, bias, sizes, *weight = operands
        with torch.no_grad():
            out: Tensor = call(x, *weight, bias, *sizes)
        ctx.save_for_backward(*weight)
        ctx.dequantize, ctx.sizes, ctx.k, ctx.dtype = dequantize, sizes, x.shape[-1], x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return out

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
