"""fp8_weight_mm on CUDA against fp64, with the tolerance that its arithmetic allows."""

import math

import pytest
import torch
from operands import randn, registered

from aoq import _C
from aoq.ops import fp8_quantize, fp8_weight_mm, int8_pack, tile_scale

pytestmark = pytest.mark.skipif(not registered("fp8_weight_mm"), reason="fp8_weight_mm has no CUDA kernel")

FORMATS = (torch.float8_e4m3fn, torch.float8_e5m2)
AWKWARD = [(64, 256), (17, 40), (33, 200), (5, 7), (1, 1), (40, 1001), (520, 96)]
MODELS = [(4096, 4096), (28672, 4096), (4096, 14336)]


def check(x, w, bias=None, granularity="row", code_dtype=torch.float8_e4m3fn, config=None):
    n, k = w.shape
    codes, scale = fp8_quantize(w, granularity, code_dtype)
    scale = scale.reshape(-1, 1).expand(n, 1).contiguous()
    call, chosen = (fp8_weight_mm, ()) if config is None else (torch.ops.aoq.fp8_weight_mm, (config,))
    out = call(x, int8_pack(codes.view(torch.int8)), tile_scale(scale), bias, n, code_dtype, *chosen)
    exact = codes.double() * scale.double()
    expected = x.double() @ exact.t()
    rounding = (4 * math.sqrt(k) + 16) * 2.0**-24 * (x.double().abs() @ exact.abs().t())
    if bias is not None:
        expected = expected + bias.double()
        rounding = rounding + 2.0**-23 * (expected.abs() + bias.double().abs())
    info = torch.finfo(out.dtype)
    allowed = rounding + info.eps / 2 * (expected.abs() + rounding) + info.tiny
    assert out.dtype == x.dtype and out.shape == expected.shape
    worst = ((out.double() - expected).abs() / allowed).max().item() if out.numel() else 0
    assert worst <= 1, f"{_C.last_kernel()}: {worst:.2f} times the rounding that the arithmetic allows"


@pytest.mark.parametrize("code_dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_awkward_shapes(sm, shape, code_dtype):
    n, k = shape
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for m in (0, 1, 3, 8, 9, 17, 33, 70):
            for granularity in ("row", "tensor"):
                bias = randn(n, seed=1) if m % 2 else None
                check(randn(m, k, dtype=dtype, seed=m), randn(n, k), bias, granularity, code_dtype)


@pytest.mark.parametrize("n, k", MODELS)
def test_shapes_of_models(sm, n, k):
    w = randn(n, k)
    for m in (1, 16, 64, 256):
        check(randn(m, k, seed=m), w)


def test_every_plan(sm):
    for n, k in ((136, 1032), (40, 200)):
        for config in range(16):
            for m in (1, 5, 16, 70):
                check(randn(m, k, seed=m), randn(n, k), randn(n, seed=1), config=config)
    with pytest.raises(RuntimeError, match="config: expected -1 to 15"):
        check(randn(5, 64), randn(24, 64), config=16)


def test_any_stride(sm):
    rows = randn(6, 128)
    for x in (rows[:, :64], rows[::2, 64:], rows[:, ::2], rows[:, 1:65]):
        check(x, randn(24, 64))
