"""mm: activations times a packed weight of any format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aoq.ops import autocast
from aoq.ops.checks import Checks
from aoq.ops.errors import explained, typed
from aoq.ops.formats import FORMATS as FORMATS
from aoq.ops.mm_op import int8_mm_reference
from aoq.ops.packed import differentiable, packed_mm_fake
from aoq.ops.packed import mm_reference as exact_mm

PARTS = ("packed", "scale", "zero_point", "w_sum")

_op = torch.ops.aoq.mm.default
autocast.add_rule(_op)


def mm(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    w_sum: Tensor | None,
    bias: Tensor | None,
    n: int,
    format: str,
    x_as: str = "given",
    group_size: int | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Multiplies `x` with a packed weight of any of the library's formats.

    Differentiable once in `x` and `bias`, as if `x` had been used as given; not with `offsets`.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides; zero rows are fine. With `offsets` [m, k].
        packed: the codes as the device's kernels read them: from `intx_pack`, `int4_pack` or `int8_pack`.
        scale: [ceil(n / 16), G, 16] from `tile_scale`, G = ceil(k / group_size), or 1 where a row has one scale.
        zero_point: like `scale`, or None for the middle code; only where k comes in groups.
        w_sum: fp32 [n], the sum over k of the dequantized weight, to quantize `x` asymmetrically; only as "int8".
        bias: [n] bf16, fp16 or fp32, or None.
        n: rows of the weight.
        format: one of `FORMATS`.
        x_as: "given", or "int8" to quantize each row of `x` as `int8_quantize` does.
        group_size: columns that share a scale, where the format has groups; else None.
        offsets: int32 or int64 [experts], ascending: parts have one more dimension, of experts, and expert e multiplies
            rows offsets[e - 1] to offsets[e] of `x`; rows after the last offset become 0. On CUDA nothing waits for the
            device to look at them: an offset that descends is taken for the largest before it, one beyond m for m.

    Returns:
        [..., n] in the dtype of `x`.

    Raises:
        ValueError, TypeError: an operand has a wrong shape, device or dtype, or the format does not take it; the text
            names it.
    """
    sizes = (n, format, x_as, group_size, offsets)
    if offsets is None and torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return differentiable(_call, _dequantize, x, (packed, scale, zero_point, w_sum), bias, *sizes)
    return _call(x, packed, scale, zero_point, w_sum, bias, *sizes)


def _call(
    x: Tensor, packed: Tensor, scale: Tensor, zero_point: Tensor | None, w_sum: Tensor | None, *rest: Any
) -> Tensor:
    parts = [packed, scale]
    if zero_point is not None or w_sum is not None:
        parts.append(scale.new_empty(0) if zero_point is None else zero_point)
    if w_sum is not None:
        parts.append(w_sum)
    try:
        out: Tensor = _op(x, parts, *rest)
        return out
    except RuntimeError as error:
        found = typed(error)
        if found is error:  # the dispatcher's, which names no operand
            check = Checks("mm")
            for name, part in zip(PARTS, (packed, scale, zero_point, w_sum), strict=True):
                if part is not None:
                    check.same_device(part, name, x)
            names = (argument.name for argument in _op._schema.arguments[2:])
            found = explained(_op, {"x": x, **dict(zip(names, rest, strict=False))}, error)
        raise found from None


def _dequantize(*operands: Any) -> Tensor:
    """The weight [n, k] that `mm` multiplies with."""
    packed, scale, zero_point, _, n, format, _, group_size, _, k, dtype = operands
    return FORMATS[format].weight(packed, scale, zero_point, n, group_size, k, dtype)


@torch.library.register_fake("aoq::mm")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    parts: list[Tensor],
    bias: Tensor | None,
    n: int,
    format: str,
    x_as: str = "given",
    group_size: int | None = None,
    offsets: Tensor | None = None,
    config: int = -1,
) -> Tensor:
    check = Checks("mm")
    check.value(format in FORMATS, "format", lambda: f"expected one of {', '.join(FORMATS)}, got {format}")
    of = FORMATS[format]
    check.value(x_as in ("given", "int8"), "x_as", lambda: f"expected given or int8, got {x_as}")
    check.value(x_as in of.ops, "x_as", lambda: f"expected given for {format} weights, got {x_as}")
    numbers = "a number" if of.grouped else "None"
    check.value(
        (group_size is not None) == of.grouped, "group_size", lambda: f"expected {numbers} for {format} weights"
    )
    wanted = "expected packed, scale, zero_point and w_sum, got"
    check.value(2 <= len(parts) <= 4, "parts", lambda: f"{wanted} {len(parts)} tensors")
    if offsets is not None:
        check.value(x.dim() == 2, "x", lambda: f"expected shape [m, k] with offsets, got {list(x.shape)}")
        parts = [part[0] if part.numel() else part for part in parts]
        bias = None if bias is None else bias[0]
    zero_point, w_sum = ([*parts[2:], None, None])[:2]
    zero_point = zero_point if zero_point is not None and zero_point.numel() else None
    w_sum = w_sum if w_sum is not None and w_sum.numel() else None
    check.value(of.grouped or zero_point is None, "parts", lambda: f"expected no zero_point for {format} weights")
    check.value(x_as == "int8" or w_sum is None, "parts", lambda: "expected no w_sum unless x_as is int8")

    operands = (x, parts[0], parts[1], bias, n, group_size, zero_point, w_sum)
    return packed_mm_fake(check, of.packed_shape, of.packed_dtype, *operands)


def mm_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    w_sum: Tensor | None,
    bias: Tensor | None,
    n: int,
    format: str,
    x_as: str = "given",
    group_size: int | None = None,
) -> Tensor:
    """The reference for `mm` in PyTorch, without `offsets`: fp64 products and sums of exactly dequantized x and w."""
    sizes = (n, group_size, x.shape[-1], torch.float64)
    w = FORMATS[format].weight(packed, scale, zero_point, *sizes, reference=True)
    if x_as == "int8":
        return int8_mm_reference(x, w, w_sum, bias)
    return exact_mm(x.double(), w, bias, x.dtype)
