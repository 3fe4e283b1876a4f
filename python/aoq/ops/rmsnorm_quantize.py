"""rmsnorm_quantize: a residual added, root-mean-square normalization and quantization to 8 bits, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed
from aoq.ops.quantize_rows import check_like, quantized_rows_fake, quantized_rows_reference


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
    check = Checks("rmsnorm_quantize")
    k = check.rows(x, "x")
    check.tensor(weight, "weight")
    check.floats(weight.dtype, "weight")
    check.shape(weight, "weight", k)
    check.same_device(weight, "weight", x)
    if residual is not None:
        check_like(check, residual, "residual", x)
    check.value(eps >= 0, "eps", lambda: f"expected 0 or more, got {eps}")
    residual_out = x.new_empty((*x.shape[:-1], 0 if residual is None else k))
    return *quantized_rows_fake(check, x, dtype, mapping, sum_group, permute), residual_out


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
    parts = quantized_rows_reference(values.float(), dtype, mapping, sum_group, permute)
    return *parts, h[..., :0] if residual is None else h
