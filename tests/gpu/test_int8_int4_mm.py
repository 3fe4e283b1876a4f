"""int8_int4_mm on CUDA against fp64 of x as int8_quantize quantizes it."""

import math

import pytest
import torch
from operands import DEVICE, randn, registered, weight

from aoq import _C
from aoq.ops import int4_dequantize, int4_unpack_reference, int8_int4_mm, int8_quantize, untile_scale
from rounding import check_rounding

pytestmark = pytest.mark.skipif(not registered("int8_int4_mm"), reason="int8_int4_mm has no CUDA kernel")

AWKWARD = [
    *((64, 256, 128), (17, 40, 8), (33, 200, 128), (5, 7, 7), (1, 1, 1)),
    *((40, 1000, 1000), (48, 576, 64), (80, 96, 48), (136, 1032, 32)),
]
MODELS = [(4096, 4096), (28672, 4096), (4096, 14336)]


def check(x, parts, n, group, mapping, bias=None, config=None):
    packed, scale, zero = parts
    k = x.shape[-1]
    scales = [None if part is None else untile_scale(part, n).double() for part in (scale, zero)]
    w = int4_dequantize(int4_unpack_reference(packed, n, k), *scales, group, k, torch.float64)
    w_sum = w.sum(1).float() if mapping == "asymmetric" else None
    if config is None:
        out = int8_int4_mm(x, packed, scale, zero, w_sum, bias, n, group)
    else:
        out = torch.ops.aoq.int8_int4_mm(x, packed, scale, zero, w_sum, bias, n, group, config)
    kernel = _C.last_kernel()  # before the quantizer below
    codes, x_scale, x_zero = (part.double() for part in int8_quantize(x, mapping))
    x_zero = x_zero if mapping == "asymmetric" else torch.zeros_like(x_scale)
    expected = ((codes - x_zero) * x_scale) @ w.t()
    spread = scales[0].repeat_interleave(min(group, k), 1)[:, :k]
    terms = codes.abs() @ (15 * spread + w.abs()).t() + x_zero.abs() * w.abs().sum(1)
    rounding = (4 * math.sqrt(k / 8) + 16) * 2.0**-24 * terms * x_scale
    assert out.dtype == x.dtype
    check_rounding(out, expected, rounding, bias, kernel)
    return kernel


@pytest.mark.parametrize("mapping", ("symmetric", "asymmetric"))
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_awkward_shapes(sm, shape, mapping):
    n, k, group = shape
    for weights in ("symmetric", "asymmetric"):
        parts = weight(n, k, group, DEVICE, weights)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for m in (0, 1, 3, 8, 9, 17, 33, 70):
                check(randn(m, k, dtype=dtype, seed=m) + 0.5, parts, n, group, mapping, randn(n) if m % 2 else None)


@pytest.mark.parametrize("n, k", MODELS)
def test_shapes_of_models(sm, n, k):
    parts = weight(n, k, 128, DEVICE)
    for m in (1, 16, 64, 256, 1000):
        kernel = check(randn(m, k, seed=m), parts, n, 128, "asymmetric")
    assert ("_wgmma_" if sm == "sm90a" else "_wide_") in kernel


@pytest.mark.parametrize("n, k, group", [(136, 1032, 128), (272, 640, 32)])
def test_every_plan(sm, n, k, group):
    """The first 16 configs are plans for few rows, the next 16 for many, 24 more on Hopper: any takes any number."""
    parts = weight(n, k, group, DEVICE)
    hopper = sm == "sm90a"
    for config in range(56 if hopper else 32):
        for m in (5, 70, 200):
            kernel = check(randn(m, k, seed=m), parts, n, group, "asymmetric", randn(n, seed=1), config)
    assert ("_wgmma_" if hopper else "_wide_") in kernel
    if not hopper:
        with pytest.raises(RuntimeError, match="config: expected -1 to 31"):
            check(randn(5, k), parts, n, group, "asymmetric", config=32)


def test_any_stride(sm):
    parts = weight(24, 64, 32, DEVICE)
    rows = randn(6, 128)
    for x in (rows[:, :64], rows[::2, 64:], rows[:, ::2], rows[:, 1:65]):
        check(x, parts, 24, 32, "asymmetric")


def test_a_row_with_infinity_is_nan_and_no_other(sm):
    parts = weight(40, 192, 64, DEVICE)
    x = randn(70, 192)
    clean = int8_int4_mm(x, *parts, None, None, 40, 64)
    x[1, 5] = math.inf
    out = int8_int4_mm(x, *parts, None, None, 40, 64)
    assert out[1].isnan().all() and torch.equal(out[2:], clean[2:])
