"""int8_weight_mm: activations as given times int8 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.int8_pack import packed_dtype, packed_shape
from aoq.ops.int8_quantize import int8_dequantize
from aoq.ops.int8_unpack import int8_unpack, int8_unpack_reference
from aoq.ops.packed import check_config, mm_reference, packed_mm, packed_mm_fake, untile_scale

_op = torch.ops.aoq.int8_weight_mm.default


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
    return packed_mm(_op, _dequantize, x, (packed, scale), bias, n)


def _dequantize(packed: Tensor, scale: Tensor, n: int, k: int, dtype: torch.dtype) -> Tensor:
    return int8_dequantize(int8_unpack(packed, n, k), untile_scale(scale, n), None, dtype)


@torch.library.register_fake("aoq::int8_weight_mm")  # type: ignore[untyped-decorator]
def _(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, n: int, config: int = -1) -> Tensor:
    check = Checks("int8_weight_mm")
    check_config(check, config, x)
    return packed_mm_fake(check, packed_shape, packed_dtype, x, packed, scale, bias, n)


def int8_weight_mm_reference(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """The reference for `int8_weight_mm` in PyTorch: fp64 products and sums."""
    qdata = int8_unpack_reference(packed, n, x.shape[-1])
    w = int8_dequantize(qdata, untile_scale(scale, n), None, torch.float64)
    return mm_reference(x.double(), w, bias, x.dtype)
