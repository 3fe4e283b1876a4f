"""fp8_mm against fp64 of the fp8 codes of x, under every ISA of the machine. Its kernels are fp8_weight_mm's."""

import math

import pytest
import torch
from fp8_weights import DTYPES, FP8_DTYPES, SHAPES, Fp8Weight, check
from hypothesis import given, settings
from hypothesis import strategies as st

from aoq import _C
from aoq.ops import fp8_mm, fp8_mm_reference, fp8_quantize

GRANULARITIES = ("row", "tensor")


class Weight(Fp8Weight):
    def __call__(self, x, bias=None, *act):
        return fp8_mm(x, self.packed, self.scale, bias, self.n, self.dtype, *act)


def quantized(x, granularity="row", dtype=torch.float8_e4m3fn, lb=None, ub=None):
    """What x becomes, exactly; that is `fp8_quantize`'s, which has its own tests."""
    if x.numel() == 0:
        return x.double()
    codes, scale = fp8_quantize(x, granularity, dtype, lb, ub)
    return codes.double() * scale.double()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fp8", FP8_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_fp64(isa, shape, fp8, granularity):
    weight = Weight(*shape, fp8)
    for dtype in DTYPES:
        for m in (0, 1, 3, 12, 17, 50):
            x = torch.randn(m, weight.k).to(dtype)
            out = weight(x, None, fp8, granularity)
            assert m == 0 or _C.last_kernel() == _C.kernels("fp8_mm")[0]
            check(out, x, quantized(x, granularity, fp8), weight)


@pytest.mark.parametrize("m", (1, 33, 300))
def test_many_rows_and_blocks(isa, m):
    if isa == "ref" and m == 300:
        pytest.skip("the reference kernel has no blocks")
    weight, bias = Weight(88, 3000), torch.randn(88)
    x = torch.randn(m, weight.k).bfloat16()
    check(weight(x, bias), x, quantized(x), weight, bias)


def test_bounds_and_mixed_formats(isa):
    weight, x = Weight(24, 64), torch.randn(5, 64)
    for lb, ub in ((5.0, None), (None, 1.0), (0.5, 2.0)):
        for dtype in FP8_DTYPES:
            out = weight(x, None, dtype, "row", lb, ub)
            check(out, x, quantized(x, "row", dtype, lb, ub), weight)


def test_any_rank_and_stride(isa):
    weight = Weight(24, 64)
    rows = torch.randn(6, 128).bfloat16()
    for x in (rows[0, :64], rows[:, :64], rows[::2, 64:], rows[:, ::2], rows.view(2, 3, 128)[..., 32:96]):
        out = weight(x)
        assert out.shape == (*x.shape[:-1], 24)
        check(out.reshape(-1, 24), x.reshape(-1, 64), quantized(x.reshape(-1, 64)), weight)
    for granularity in GRANULARITIES:
        assert weight(torch.empty(2, 0, 64), None, weight.dtype, granularity).shape == (2, 0, 24)


@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_nonfinite_x(isa, bad):
    weight = Weight(40, 64)
    for m in (3, 60):
        x = torch.randn(m, 64).bfloat16()
        clean = weight(x)
        x[1, 5] = bad
        out = weight(x)
        assert out[1].isnan().all()
        assert torch.equal(out[torch.arange(m) != 1], clean[torch.arange(m) != 1])
        assert weight(x, None, weight.dtype, "tensor").isnan().all()


def test_zeros(isa):
    weight = Weight(32, 64)
    for granularity in GRANULARITIES:
        assert torch.equal(weight(torch.zeros(2, 64), None, weight.dtype, granularity), torch.zeros(2, 32))


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 60),
    n=st.integers(1, 90),
    k=st.integers(1, 300),
    fp8=st.sampled_from(FP8_DTYPES),
    x_fp8=st.sampled_from(FP8_DTYPES),
    granularity=st.sampled_from(GRANULARITIES),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
def test_any_shape(m, n, k, fp8, x_fp8, granularity, dtype, seed):
    weight = Weight(n, k, fp8, seed=seed)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).to(dtype)
    for name in _C.isas():
        _C.set_isa(name)
        check(weight(x, None, x_fp8, granularity), x, quantized(x, granularity, x_fp8), weight)


def test_the_reference():
    weight, x, bias = Weight(40, 72), torch.randn(5, 72), torch.randn(40)
    for granularity in GRANULARITIES:
        out = fp8_mm_reference(x, weight.packed, weight.scale, bias, 40, granularity=granularity)
        check(out, x, quantized(x, granularity), weight, bias)


def test_gradients_pass_straight_through():
    weight = Weight(24, 64)
    x, bias = torch.randn(2, 3, 64, requires_grad=True), torch.randn(24, requires_grad=True)
    out = weight(x, bias)
    grad = torch.randn_like(out)
    out.backward(grad)
    torch.testing.assert_close(x.grad, grad @ weight.exact.float())
    torch.testing.assert_close(bias.grad, grad.sum((0, 1)))


def operands(**changed):
    weight = Weight(32, 64)
    args = dict(x=torch.randn(3, 64), packed=weight.packed, scale=weight.scale, bias=torch.randn(32), n=32)
    return {**args, "w_dtype": weight.dtype, "x_dtype": weight.dtype, "granularity": "row", **changed}


def test_opcheck():
    torch.library.opcheck(torch.ops.aoq.fp8_mm.default, tuple(operands().values()))
    args = operands(bias=None, x=torch.randn(2, 1, 64).bfloat16(), granularity="tensor")
    torch.library.opcheck(torch.ops.aoq.fp8_mm.default, tuple(args.values()))


@pytest.mark.parametrize(
    "changed, error, text",
    [
        (dict(x=torch.randn(3, 64).double()), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
        (dict(x=torch.randn(3, 80)), ValueError, r"packed: expected shape \[2, 20, 64\], got \[2, 16, 64\]"),
        (dict(scale=torch.ones(2, 2, 16)), ValueError, r"scale: expected shape \[2, 1, 16\], got \[2, 2, 16\]"),
        (dict(bias=torch.randn(31)), ValueError, r"bias: expected shape \[32\], got \[31\]"),
        (dict(x_dtype=torch.int8), TypeError, "x_dtype: expected float8_e4m3fn or float8_e5m2, got int8"),
        (dict(granularity="block"), ValueError, "granularity: expected row or tensor, got block"),
        (dict(lb=2.0, ub=1.0), ValueError, "lb: expected 0 <= lb <= ub, got lb 2 and ub 1"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:40],
)
def test_bad_operands_are_named(changed, error, text):
    with pytest.raises(error, match=f"aoq::fp8_mm: {text}"):
        fp8_mm(**operands(**changed))
