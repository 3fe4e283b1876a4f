"""silu_mul_quantize: the gate of a gated MLP and quantization to 8 bits, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed
from aoq.ops.quantize_rows import check_like, quantized_rows_fake, quantized_rows_reference


@raises_typed
def silu_mul_quantize(
    gate: Tensor, up: Tensor, dtype: torch.dtype, mapping: str = "symmetric", sum_group: int = 0, permute: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantizes the rows of `gate / (1 + exp(-gate)) * up` as `int8_quantize` and `fp8_quantize` do, but without
    rounding them before.

    Args:
        gate, up: [..., k] bf16, fp16 or fp32, the same for both, any strides.
        dtype, mapping, sum_group, permute: as in `rmsnorm_quantize`.

    Returns:
        qdata, scale, zero_point, group_sum: as of `rmsnorm_quantize`.

    Raises:
        ValueError, TypeError: an operand has a wrong shape, device or dtype; the text names it.
    """
    parts = torch.ops.aoq.silu_mul_quantize.default(gate, up, dtype, mapping, sum_group, permute)
    qdata, scale, zero_point, group_sum = parts
    return qdata, scale, zero_point, group_sum


@torch.library.register_fake("aoq::silu_mul_quantize")  # type: ignore[untyped-decorator]
def _(
    gate: Tensor, up: Tensor, dtype: torch.dtype, mapping: str = "symmetric", sum_group: int = 0, permute: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check = Checks("silu_mul_quantize")
    check.rows(gate, "gate")
    check_like(check, up, "up", gate)
    return quantized_rows_fake(check, gate, dtype, mapping, sum_group, permute)


def silu_mul_quantize_reference(
    gate: Tensor, up: Tensor, dtype: torch.dtype, mapping: str = "symmetric", sum_group: int = 0, permute: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reference for `silu_mul_quantize`: fp64 PyTorch up to the quantizer. A code may differ by one step."""
    values = torch.nn.functional.silu(gate.double()) * up.double()
    return quantized_rows_reference(values.float(), dtype, mapping, sum_group, permute)
