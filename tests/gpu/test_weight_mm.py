"""int8_weight_mm and fp8_weight_mm on CUDA against fp64, with the tolerance that their arithmetic allows."""

import math

import pytest
import torch
from operands import DEVICE, randn, registered

from aoq import _C
from aoq.ops import fp8_quantize, int8_pack, int8_quantize, int8_unpack, tile_scale
from rounding import check_rounding

FORMATS = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
AWKWARD = [(64, 256), (17, 40), (33, 200), (5, 7), (1, 1), (40, 1001), (520, 96)]
MODELS = [(4096, 4096), (28672, 4096), (4096, 14336)]


def op_of(code_dtype):
    return "int8_weight_mm" if code_dtype == torch.int8 else "fp8_weight_mm"


@pytest.fixture(params=FORMATS, ids=str)
def code_dtype(request):
    if not registered(op_of(request.param)):
        pytest.skip(f"{op_of(request.param)} has no CUDA kernel")
    return request.param


def check(x, w, code_dtype, bias=None, granularity="row", config=-1):
    n, k = w.shape
    if code_dtype == torch.int8:
        codes, scale, _ = int8_quantize(w, "symmetric", torch.float32)
        options = (n, config)
    else:
        codes, scale = fp8_quantize(w, granularity, code_dtype)
        options = (n, code_dtype, config)
    scale = scale.reshape(-1, 1).expand(n, 1).contiguous()
    call = getattr(torch.ops.aoq, op_of(code_dtype))
    out = call(x, int8_pack(codes.view(torch.int8)), tile_scale(scale), bias, *options)
    exact = codes.double() * scale.double()
    expected = x.double() @ exact.t()
    rounding = (4 * math.sqrt(k) + 16) * 2.0**-24 * (x.double().abs() @ exact.abs().t())
    assert out.dtype == x.dtype
    check_rounding(out, expected, rounding, bias, _C.last_kernel())


@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_awkward_shapes(sm, shape, code_dtype):
    n, k = shape
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for m in (0, 1, 3, 8, 9, 17, 33, 70):
            for granularity in ("row", "tensor"):
                bias = randn(n, seed=1) if m % 2 else None
                check(randn(m, k, dtype=dtype, seed=m), randn(n, k), code_dtype, bias, granularity)


@pytest.mark.parametrize("n, k", MODELS)
def test_shapes_of_models(sm, n, k, code_dtype):
    w = randn(n, k)
    for m in (1, 16, 64, 256, 1024):
        check(randn(m, k, seed=m), w, code_dtype)
        assert ("_wide_" in _C.last_kernel()) == (m >= 256) or m == 64


def test_every_plan(sm, code_dtype):
    """The first 16 configs are plans for few rows, the next 16 for many: any takes any number."""
    for n, k in ((136, 1032), (40, 200)):
        for config in range(32):
            for m in (1, 5, 16, 70, 200):
                check(randn(m, k, seed=m), randn(n, k), code_dtype, randn(n, seed=1), config=config)
            assert ("_wide_" in _C.last_kernel()) == (config >= 16)
    with pytest.raises(RuntimeError, match="config: expected -1 to 31"):
        check(randn(5, 64), randn(24, 64), code_dtype, config=32)


def test_any_stride(sm, code_dtype):
    rows = randn(66, 128)
    for x in (rows[:6, :64], rows[::2, 64:], rows[:, ::2], rows[:, 1:65]):
        check(x, randn(24, 64), code_dtype)


def test_codes_move_both_ways(code_dtype):
    """Packed on the device, unpacked on it: the same codes, to the bit."""
    codes = torch.arange(40 * 100, device=DEVICE).view(40, 100).to(torch.int8)
    assert torch.equal(int8_unpack(int8_pack(codes), 40, 100), codes)
