"""mm on CUDA: the formats' own ops to the bit, and grouped matmuls of experts against fp64."""

import math

import pytest
import torch
from operands import DEVICE, capability, randn

import aoq.ops
from aoq import _C
from aoq.ops import int8_pack, int8_quantize, intx_pack, intx_quantize, mm, tile_scale
from aoq.ops.mm import FORMATS, _dequantize
from rounding import check_rounding

N, K, GROUP = 72, 208, 64
ENDS, M = (3, 3, 73, 82), 90  # an expert without rows, one of several tiles, and 8 rows that are no one's
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Tables, and groups of 8-bit codes, have no kernels there yet.
ON_CUDA = [format for format in FORMATS.values() if not format.values and not (format.bits == 8 and format.grouped)]
WAYS = [(format, x_as) for format in ON_CUDA for x_as in format.ops]
ways = pytest.mark.parametrize("format, x_as", WAYS, ids=[f"{format.name}-{x_as}" for format, x_as in WAYS])


def parts_of(format, x_as, seed=0):
    """A weight's (packed, scale, zero_point, w_sum), as mm takes them."""
    w, zero, w_sum = randn(N, K, dtype=torch.float32, device="cpu", seed=seed), None, None
    if format.grouped:
        qdata, scale, zero = intx_quantize(w, format.bits, GROUP, "asymmetric")
        packed, zero = intx_pack(qdata.to(DEVICE), K, format.bits), tile_scale(zero).to(DEVICE)
    elif format.fp8:
        dtype = torch.float8_e5m2 if "e5m2" in format.name else torch.float8_e4m3fn
        codes, scale = aoq.ops.fp8_quantize(w, "row", dtype)
        packed = int8_pack(codes.view(torch.int8).to(DEVICE))
    else:
        codes, scale, _ = int8_quantize(w, "symmetric", torch.float32)
        packed = int8_pack(codes.to(DEVICE))
    scale = tile_scale(scale).to(DEVICE)
    if x_as == "int8":
        w_sum = exact(format, x_as, (packed, scale, zero, None)).sum(1).float()
    return packed, scale, zero, w_sum


def exact(format, x_as, parts):
    return _dequantize(*parts, N, format.name, x_as, GROUP if format.grouped else None, None, K, torch.float64)


def call(format, x_as, x, parts, bias=None, offsets=None, config=-1):
    given = [part for part in parts if part is not None]
    if parts[2] is None and parts[3] is not None:
        given = [*parts[:2], x.new_empty(0), parts[3]]
    group = GROUP if format.grouped else None
    return torch.ops.aoq.mm(x, given, bias, N, format.name, x_as, group, offsets, config)


def check(out, format, x_as, x, parts, bias):
    """Sums of k fp32 addends, each rounded, then one rounding to out's dtype."""
    w, kernel = exact(format, x_as, parts), _C.last_kernel()
    scale = parts[1].double().amax((1, 2)).repeat_interleave(16)[:N, None]
    addends = w.abs() + scale * (1 << format.bits if format.bits < 8 else 0)
    if x_as == "given":
        expected, magnitude = x.double() @ w.t(), x.double().abs() @ addends.t()
    else:
        codes, x_scale, x_zero = (part.double() for part in int8_quantize(x, "asymmetric", torch.float32))
        expected = x_scale * ((codes - x_zero) @ w.t())
        magnitude = x_scale * (codes.abs() @ addends.t() + x_zero.abs() * w.abs().sum(1))
    check_rounding(out, expected, (4 * math.sqrt(K) + 16) * 2.0**-24 * magnitude, bias, kernel)


@ways
def test_mm_is_the_formats_own_op(sm, format, x_as):
    """Bit for bit, on whatever the op's own test has proven."""
    op = format.ops[x_as]
    if not hasattr(torch.ops.aoq, op) or (DEVICE == "cuda" and not _C.cuda_kernels(op, capability())):
        pytest.skip(f"no {op} for this device")
    parts = packed, scale, zero, w_sum = parts_of(format, x_as)
    for m in (5, 300):
        x, bias = randn(m, K, seed=m), randn(N, seed=1)
        if format.grouped:
            more = (zero, w_sum) if x_as == "int8" else (zero,)
            wanted = getattr(aoq.ops, op)(x, packed, scale, *more, bias, N, GROUP)
        elif format.fp8:
            dtype = torch.float8_e5m2 if "e5m2" in format.name else torch.float8_e4m3fn
            wanted = aoq.ops.fp8_weight_mm(x, packed, scale, bias, N, dtype)
        else:
            wanted = getattr(aoq.ops, op)(x, packed, scale, *((w_sum,) if x_as == "int8" else ()), bias, N)
        assert torch.equal(call(format, x_as, x, parts, bias), wanted)


def stacked(format, x_as):
    each = [parts_of(format, x_as, seed) for seed in range(len(ENDS))]
    whole = [None if part[0] is None else torch.stack(part) for part in zip(*each, strict=True)]
    return each, whole


def check_experts(out, format, x_as, x, each, bias, ends=ENDS):
    for i, (begin, end) in enumerate(zip((0, *ends), ends, strict=False)):
        if end > begin:
            check(out[begin:end], format, x_as, x[begin:end], each[i], None if bias is None else bias[i])
    assert out[ends[-1] :].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@ways
def test_experts(sm, format, x_as, dtype):
    """Every plan that takes them: those without a split along k, for few rows and for many."""
    each, whole = stacked(format, x_as)
    x, bias = randn(M, K, dtype=dtype), randn(len(ENDS), N, seed=1)
    for config in (-1, 0, 4, 8, 12, 16, 24) if DEVICE == "cuda" else (-1,):
        for offsets in (torch.tensor(ENDS), torch.tensor(ENDS, dtype=torch.int32)):
            poison = torch.full((M, N), float("nan"), dtype=dtype, device=DEVICE)
            del poison  # the next allocation of this size is likely this memory
            out = call(format, x_as, x, whole, bias, offsets.to(DEVICE), config)
            check_experts(out, format, x_as, x, each, bias)


def test_experts_of_any_number_of_rows(sm):
    format = FORMATS["int4"]
    each, whole = stacked(format, "given")
    for ends in ((1, 2, 3, 4), (0, 0, 0, 0), (0, 0, 0, 7), (512, 512, 1024, 1500)):
        x = randn(ends[-1] + 2, K)
        out = call(format, "given", x, whole, None, torch.tensor(ends, device=DEVICE))
        check_experts(out, format, "given", x, each, None, ends)
    none = [part[:0] for part in whole if part is not None]
    empty = torch.ops.aoq.mm(x, none, None, N, "int4", "given", GROUP, torch.empty(0, dtype=torch.int64, device=DEVICE))
    assert empty.shape == (len(x), N) and empty.eq(0).all()
    assert call(format, "given", x[:0], whole, None, torch.tensor((0,) * 4, device=DEVICE)).shape == (0, N)


@pytest.mark.queued
@ways
def test_offsets_are_read_on_the_device(format, x_as):
    """A graph's replay sees offsets that were written after it was captured: the host has not looked."""
    each, whole = stacked(format, x_as)
    x, offsets = randn(M, K), torch.tensor(ENDS, device="cuda")
    out = call(format, x_as, x, whole, None, offsets)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(format, x_as, x, whole, None, offsets)
    for ends in (ENDS, (90, 90, 90, 90), (0, 1, 2, 50), (20, 40, 60, 80)):
        offsets.copy_(torch.tensor(ends))
        graph.replay()
        check_experts(out, format, x_as, x, each, None, ends)


def test_what_offsets_may_be():
    _, whole = stacked(FORMATS["int4"], "given")
    x = randn(M, K)
    with pytest.raises(RuntimeError, match="offsets: expected int32 or int64"):
        call(FORMATS["int4"], "given", x, whole, None, torch.tensor(ENDS, device=DEVICE).float())
    with pytest.raises(RuntimeError, match="3 experts"):
        call(FORMATS["int4"], "given", x, whole, None, torch.tensor(ENDS[:3], device=DEVICE))
    with pytest.raises(RuntimeError, match="config: expected -1"):
        call(FORMATS["int4"], "given", x, whole, None, torch.tensor(ENDS, device=DEVICE), 1)
    if DEVICE == "cuda":  # where nothing waits for the device to raise
        odd = call(FORMATS["int4"], "given", x, whole, None, torch.tensor((9, 4, 200, -3), device=DEVICE))
        taken = call(FORMATS["int4"], "given", x, whole, None, torch.tensor((9, 9, M, M), device=DEVICE))
        assert torch.equal(odd, taken)


def test_wrapper_takes_experts():
    each, whole = stacked(FORMATS["int4"], "given")
    x = randn(M, K)
    offsets = torch.tensor(ENDS, device=DEVICE)
    out = mm(x, *whole, None, N, "int4", group_size=GROUP, offsets=offsets)
    check_experts(out, FORMATS["int4"], "given", x, each, None)
