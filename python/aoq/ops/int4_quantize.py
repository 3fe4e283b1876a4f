"""int4_quantize and intx_quantize: float weights to codes of a few bits with a scale and a zero point per group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from aoq.ops.bits import from_codes, row_bytes, to_codes
from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed

_HQQ_ITERATIONS = 20
_HQQ_P = 0.7
_HQQ_BETA = 10.0
_HQQ_KAPPA = 1.01
_HQQ_ERROR_NORM = 2.4
_HQQ_RANGES = (1, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 0.75)


@raises_typed
def int4_quantize(
    w: Tensor, group_size: int, mapping: str = "asymmetric", scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes `w` to int4 codes along its rows: `w ~= (code - zero_point) * scale`.

    Args:
        w: [n, k] bf16, fp16 or fp32, finite.
        group_size: how many neighbours along k share a scale; a multiple of 8, or anything >= k for one
            group a row. The last group may be shorter.
        mapping: "symmetric" (scale = absmax / 7.5, zero point 8), "asymmetric" (scale = (max - min) / 15
            over a range that includes 0, fractional zero point) or "hqq" (asymmetric, with zero point and
            range optimized for a heavy-tailed error).
        scale_dtype: dtype of `scale` and `zero_point`; by default that of `w`. Codes are chosen with the
            rounded values, so a narrow dtype costs little.

    Returns:
        qdata: uint8 [n, ceil(k / 2)], codes 0..15, even k in the low nibble.
        scale: [n, ceil(k / group_size)].
        zero_point: like `scale`, or [n, 0] when symmetric.

    Raises:
        ValueError: `w` is not 2-D or holds NaN or Inf, a bad `group_size` or `mapping`.
        TypeError: `w` or `scale_dtype` is not one of the three dtypes.

    Source: HQQ is Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023.
    """
    qdata, scale, zero_point = torch.ops.aoq.int4_quantize.default(w, group_size, mapping, scale_dtype)
    return qdata, scale, zero_point


@raises_typed
def intx_quantize(
    w: Tensor, bits: int, group_size: int, mapping: str = "asymmetric", scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`int4_quantize` for codes of `bits` bits, 1 to 8.

    Args:
        bits: of a code; codes are 0 .. 2^bits - 1. Symmetric means scale = absmax / ((2^bits - 1) / 2) and a zero
            point of 2^(bits - 1).

    Returns:
        qdata: uint8 [n, ceil(k * bits / 8)]: code i of a row is its bits [i * bits, (i + 1) * bits), lowest first.
        scale, zero_point: as of `int4_quantize`.
    """
    qdata, scale, zero_point = torch.ops.aoq.intx_quantize.default(w, bits, group_size, mapping, scale_dtype)
    return qdata, scale, zero_point


def _fake(
    op: str, w: Tensor, bits: int, group_size: int, mapping: str, scale_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    check = Checks(op)
    check.tensor(w, "w")
    check.floats(w.dtype, "w")
    two = w.dim() == 2 and w.shape[1] > 0
    check.value(two, "w", lambda: f"expected shape [n, k] with k > 0, got {list(w.shape)}")
    check.size(w, "w")
    check.value(1 <= bits <= 8, "bits", lambda: f"expected 1 to 8, got {bits}")
    n, k = w.shape
    groups = -(-k // check.group(group_size, k))
    known = mapping in ("symmetric", "asymmetric", "hqq")
    check.value(known, "mapping", lambda: f"expected symmetric, asymmetric or hqq, got {mapping}")
    check.floats(scale_dtype or w.dtype, "scale_dtype")
    scale = w.new_empty((n, groups), dtype=scale_dtype or w.dtype)
    zero_point = scale.new_empty((n, 0 if mapping == "symmetric" else groups))
    return w.new_empty((n, row_bytes(k, bits)), dtype=torch.uint8), scale, zero_point


@torch.library.register_fake("aoq::int4_quantize")  # type: ignore[untyped-decorator]
def _(
    w: Tensor, group_size: int, mapping: str = "asymmetric", scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake("int4_quantize", w, 4, group_size, mapping, scale_dtype)


@torch.library.register_fake("aoq::intx_quantize")  # type: ignore[untyped-decorator]
def _(
    w: Tensor, bits: int, group_size: int, mapping: str = "asymmetric", scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake("intx_quantize", w, bits, group_size, mapping, scale_dtype)


def int4_quantize_reference(
    w: Tensor, group_size: int, mapping: str = "asymmetric", scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference for `int4_quantize`, in fp32 PyTorch: the same arguments and results."""
    return intx_quantize_reference(w, 4, group_size, mapping, scale_dtype)


def intx_quantize_reference(
    w: Tensor, bits: int, group_size: int, mapping: str = "asymmetric", scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference for `intx_quantize`, in fp32 PyTorch: the same arguments and results."""
    qmax = (1 << bits) - 1
    n, k = w.shape
    dtype = scale_dtype or w.dtype
    group_size = min(group_size, max(k, 1))
    padding = -k % group_size
    # Zeros after a short last group do not change its range, which includes 0.
    groups = pad(w.float(), (0, padding)).view(n, -1, group_size)

    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    if mapping == "symmetric":
        high = torch.maximum(-low, high)
        low = -high
    scale = (high / qmax - low / qmax).to(dtype).float()  # halves first: high - low may overflow
    vanished = scale == 0  # all zeros, or too small for the stored dtype
    scale = torch.where(vanished, 1.0, scale)
    zero_point = torch.full_like(scale, 1 << (bits - 1))
    if mapping != "symmetric":
        zero_point = torch.where(vanished, 0.0, -low / scale).to(dtype).float()
    if mapping == "hqq":
        real = pad(torch.ones_like(groups[:1, 0, :1]).expand(1, k), (0, padding)).view(-1, group_size)
        fitted = _hqq(groups, real, scale, zero_point, dtype, qmax)
        scale, zero_point = (torch.where(vanished, a, b) for a, b in zip((scale, zero_point), fitted, strict=True))
    q = _codes(groups, scale, zero_point, qmax)
    qdata = from_codes(q.view(n, -1)[:, :k].to(torch.uint8), bits)
    zero_point = zero_point[:, :0] if mapping == "symmetric" else zero_point
    return qdata, scale.flatten(1).to(dtype), zero_point.flatten(1).to(dtype)


def _codes(groups: Tensor, scale: Tensor, zero_point: Tensor, qmax: int) -> Tensor:
    return (groups / scale + zero_point).round().clamp(0, qmax)


def _hqq(
    groups: Tensor, real: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype, qmax: int
) -> tuple[Tensor, Tensor]:
    """The scale and zero point of each group with the least error that HQQ's iteration meets over several ranges.

    groups [n, G, group_size] fp32, real [G, group_size] 1 where groups is not padding, scale and
    zero_point [n, G, 1] fp32. A group stops, in each range, at its first iteration that does not lower its error.
    """
    count = real.sum(-1, keepdim=True)
    best_scale, best_zero, best_error = scale, zero_point, torch.full_like(zero_point, torch.inf)
    for shrink in _HQQ_RANGES:
        narrow, zero = (scale * shrink).to(dtype).float(), zero_point
        last_error, active, beta = torch.full_like(zero, torch.inf), narrow > 0, _HQQ_BETA
        narrow = torch.where(active, narrow, 1.0)
        for _ in range(_HQQ_ITERATIONS):
            q = _codes(groups, narrow, zero, qmax)
            error = groups - (q - zero) * narrow
            magnitude = error.abs().clamp(min=1e-12)
            size = (((error.abs() / scale).clamp(min=1e-12) ** _HQQ_ERROR_NORM) * real).sum(-1, keepdim=True)
            better = active & (size < best_error)
            best_scale, best_zero = torch.where(better, narrow, best_scale), torch.where(better, zero, best_zero)
            best_error = torch.where(better, size, best_error)
            active = active & (size < last_error)
            if not active.any():
                break
            last_error = size
            # Proximal step for |error|^p: what is left of the error after shrinking counts as an outlier.
            outlier = error.sign() * (error.abs() - magnitude.pow(_HQQ_P - 1) / beta).relu()
            zero = ((q - (groups - outlier) / narrow) * real).sum(-1, keepdim=True) / count
            beta *= _HQQ_KAPPA
    return best_scale, best_zero.to(dtype).float()


def int4_dequantize(
    qdata: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, k: int, dtype: torch.dtype
) -> Tensor:
    """Plain int4 as floats: `(code - zero_point) * scale`, computed in fp32 (in fp64 for `dtype` fp64).

    Args:
        qdata: uint8 [..., ceil(k / 2)], low nibble = even k.
        scale: [..., ceil(k / group_size)].
        zero_point: like `scale`; None or an empty last dimension means 8.
        dtype: of the result.

    Returns:
        [..., k] in `dtype`.
    """
    return intx_dequantize(qdata, scale, zero_point, 4, group_size, k, dtype)


def intx_dequantize(
    qdata: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group_size: int, k: int, dtype: torch.dtype
) -> Tensor:
    """`int4_dequantize` of codes of `bits` bits; no zero point means 2^(bits - 1).

    Args:
        qdata: uint8 [..., ceil(k * bits / 8)], as `intx_quantize` makes it.
    """
    codes = to_codes(qdata, k, bits)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    if zero_point is None or zero_point.shape[-1] == 0:
        centered = codes.to(compute) - (1 << (bits - 1))
    else:
        centered = codes - per_column(zero_point.to(compute), group_size, k)
    return (centered * per_column(scale.to(compute), group_size, k)).to(dtype)


def per_column(per_group: Tensor, group_size: int, k: int) -> Tensor:
    """[..., G] -> [..., k]: each group's value at each of its elements."""
    return per_group.repeat_interleave(min(group_size, max(k, 1)), dim=-1)[..., :k]
