"""What the ops have in common that compute rows and quantize them to 8 bits: csrc/rows/quantize_rows.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from aoq.ops.checks import Checks
from aoq.ops.dtypes import FP8_DTYPES
from aoq.ops.fp8_quantize import fp8_quantize_reference
from aoq.ops.int8_quantize import int8_quantize_reference

# Position p of each sixteen permuted codes holds k = PERMUTED_K[p].
PERMUTED_K = [2 * (p // 4) + p % 4 // 2 + 8 * (p % 2) for p in range(16)]


def check_like(check: Checks, other: Tensor, operand: str, x: Tensor) -> None:
    """Raises unless `other` is a tensor like `x`, the op's first operand."""
    check.tensor(other, operand)
    names, shapes = (str(x.dtype)[6:], str(other.dtype)[6:]), (list(x.shape), list(other.shape))
    check.type(
        other.dtype == x.dtype, operand, lambda: f"expected the first operand's dtype {names[0]}, got {names[1]}"
    )
    same = other.dim() == x.dim() and all(a == b for a, b in zip(other.shape, x.shape, strict=True))
    check.value(same, operand, lambda: f"expected the first operand's shape {shapes[0]}, got {shapes[1]}")
    check.same_device(other, operand, x)


def quantized_rows_fake(
    check: Checks, x: Tensor, dtype: torch.dtype, mapping: str, sum_group: int, permute: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qdata, scale, zero_point and group_sum for rows like those of `x`, without values."""
    check.dtype(dtype, "dtype", (torch.int8, *FP8_DTYPES), "int8, float8_e4m3fn or float8_e5m2")
    check.value(sum_group >= 0, "sum_group", lambda: f"expected 0 (no sums) or more, got {sum_group}")
    check.mapping(mapping, dtype)
    *rows, k = x.shape
    scale = x.new_empty((*rows, 1), dtype=torch.float32)
    return (
        x.new_empty((*rows, -(-k // 16) * 16 if permute else k), dtype=dtype),
        scale,
        scale.new_empty((*rows, 0 if mapping == "symmetric" else 1)),
        scale.new_empty((*rows, -(-k // sum_group) if sum_group else 0)),
    )


def quantized_rows_reference(
    values: Tensor, dtype: torch.dtype, mapping: str, sum_group: int, permute: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qdata, scale, zero_point and group_sum of the rows of `values`, fp32."""
    if dtype == torch.int8:
        codes, scale, zero_point = int8_quantize_reference(values, mapping)
    else:
        codes, scale = fp8_quantize_reference(values, "row", dtype)
        zero_point = scale[..., :0]
    group_sum = scale[..., :0]
    if sum_group:
        sum_group = min(sum_group, codes.shape[-1])
        padded = pad(codes.double(), (0, -codes.shape[-1] % sum_group))
        group_sum = padded.unflatten(-1, (-1, sum_group)).sum(-1).float()
    if permute:
        sixteens = pad(codes.view(torch.uint8), (0, -codes.shape[-1] % 16)).unflatten(-1, (-1, 16))
        codes = sixteens[..., PERMUTED_K].flatten(-2).view(dtype)
    return codes, scale, zero_point, group_sum
