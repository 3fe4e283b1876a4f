"""rmsnorm_quantize: a residual added, root-mean-square normalization and quantization to 8 bits, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.errors import raises_typed
from aoq.ops.fp8_quantize import check_floats, fp8_quantize_reference
from aoq.ops.int8_quantize import int8_quantize_reference


@raises_typed
def rmsnorm_quantize(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    mapping: str = "symmetric",
    sum_group: int = 0,
    permute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Quantizes the rows of `h / sqrt(mean(h^2) + eps) * weight`, where `h = x + residual`, as `int8_quantize` and
    `fp8_quantize` do, but without rounding them before.

    Args:
        x: [..., k] bf16, fp16 or fp32, any strides.
        weight: [k] of any of these dtypes.
        residual: like `x`, or None for 0.
        eps: 0 or more.
        dtype: of the codes: torch.int8, torch.float8_e4m3fn or torch.float8_e5m2.
        mapping: "symmetric", or for int8 "asymmetric".
        sum_group: how many neighbours along k `group_sum` adds up; 0 for no sums.
        permute: lay each 16 codes out as CUDA's int4 weights want them: position p holds
            k = 2 * (p // 4) + p % 4 // 2 + 8 * (p % 2), and k is padded with zeros to a multiple of 16.

    Returns:
        qdata: [..., k] in `dtype`.
        scale: fp32 [..., 1]; NaN for a row with NaN or Inf.
        zero_point: fp32 [..., 1], or [..., 0] when symmetric.
        group_sum: fp32 [..., ceil(k / sum_group)], sums of codes, or [..., 0].
        residual_out: [..., k], h in the dtype of `x`, to which it is rounded first; or [..., 0] without `residual`.

    Raises:
        ValueError, TypeError: an operand has a wrong shape, device or dtype; the text names it.
    """
    parts = torch.ops.aoq.rmsnorm_quantize.default(x, weight, residual, eps, dtype, mapping, sum_group, permute)
    qdata, scale, zero_point, group_sum, residual_out = parts
    return qdata, scale, zero_point, group_sum, residual_out


@torch.library.register_fake("aoq::rmsnorm_quantize")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    mapping: str = "symmetric",
    sum_group: int = 0,
    permute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_floats("rmsnorm_quantize", x=x)
    residual_out = x.new_empty((*x.shape[:-1], 0 if residual is None else x.shape[-1]))
    return *quantized_fake(x, dtype, mapping, sum_group, permute), residual_out


def quantized_fake(
    x: Tensor, dtype: torch.dtype, mapping: str, sum_group: int, permute: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qdata, scale, zero_point and group_sum for rows like those of `x`, without values."""
    *rows, k = x.shape
    floats = x.new_empty((*rows, 1), dtype=torch.float32)
    return (
        x.new_empty((*rows, -(-k // 16) * 16 if permute else k), dtype=dtype),
        floats,
        floats.new_empty((*rows, 0 if mapping == "symmetric" else 1)),
        floats.new_empty((*rows, -(-k // sum_group) if sum_group else 0)),
    )


def rmsnorm_quantize_reference(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    mapping: str = "symmetric",
    sum_group: int = 0,
    permute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The reference for `rmsnorm_quantize`: fp64 PyTorch up to the quantizer. A code may differ by one step."""
    h = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    values = h.double() / (h.double().square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    parts = quantized_reference(values.float(), dtype, mapping, sum_group, permute)
    return *parts, h[..., :0] if residual is None else h


def quantized_reference(
    values: Tensor, dtype: torch.dtype, mapping: str, sum_group: int, permute: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qdata, scale, zero_point and group_sum of the rows of `values`, fp32."""
    if dtype == torch.int8:
        codes, scale, zero_point = int8_quantize_reference(values, mapping)
    else:
        codes, scale = fp8_quantize_reference(values, "row", dtype)
        zero_point = scale[..., :0]
    pad = torch.nn.functional.pad
    group_sum = scale[..., :0]
    if sum_group:
        padded = pad(codes.double(), (0, -codes.shape[-1] % sum_group))
        group_sum = padded.unflatten(-1, (-1, sum_group)).sum(-1).float()
    if permute:
        order = torch.tensor([2 * (p // 4) + p % 4 // 2 + 8 * (p % 2) for p in range(16)])
        sixteens = pad(codes.view(torch.uint8), (0, -codes.shape[-1] % 16)).unflatten(-1, (-1, 16))
        codes = sixteens[..., order].flatten(-2).view(dtype)
    return codes, scale, zero_point, group_sum
