"""fp8_quantize: the same bits from every ISA and from the PyTorch reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aoq import _C
from aoq.ops import fp8_dequantize, fp8_quantize, fp8_quantize_reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CODES = (torch.float8_e4m3fn, torch.float8_e5m2)
SHAPES = [(16, 64), (17, 40), (3, 7), (1, 1), (33, 200), (5, 1001), (2, 3, 15), (64,)]


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(got, wanted):
    (a, a_scale), (b, b_scale) = got, wanted
    assert a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    assert a_scale.dtype == torch.float32 and torch.equal(a_scale, b_scale)


@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("granularity", ("row", "tensor"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference_to_the_bit(isa, shape, granularity, codes):
    for dtype in DTYPES:
        x = (floats(*shape) * floats(*shape, seed=1).exp()).to(dtype)
        for bounds in ({}, {"lb": 5.0}, {"ub": 0.5}, {"lb": 0.25, "ub": 1.0}):
            got = fp8_quantize(x, granularity, codes, **bounds)
            assert_same(got, fp8_quantize_reference(x, granularity, codes, **bounds))
            assert got[1].shape == (() if granularity == "tensor" else (*shape[:-1], 1))
    assert _C.last_kernel().startswith("fp8_quantize_")


@pytest.mark.parametrize("codes", CODES, ids=str)
def test_every_code_and_every_tie(isa, codes):
    """All codes come back as themselves; halfway between two, the even one is taken."""
    every = torch.arange(256, dtype=torch.uint8).view(codes)
    every = every[every.float().isfinite()]
    largest = torch.finfo(codes).max
    lb = ub = largest  # scale 1
    got, scale = fp8_quantize(every.float(), "row", codes, lb, ub)
    assert scale.item() == 1 and torch.equal(got.view(torch.uint8), every.view(torch.uint8))
    values = every.float().unique()
    ties = (values[1:] + values[:-1]) / 2
    for x in (ties, ties * (1 + 2.0**-20), ties * (1 - 2.0**-20), torch.tensor([-0.0, 0.0, 1e-30, -1e-30])):
        assert_same(fp8_quantize(x, "row", codes, lb, ub), fp8_quantize_reference(x, "row", codes, lb, ub))
    got, _ = fp8_quantize(torch.tensor([1e30, -1e30, 2 * largest]), "row", codes, lb, ub)
    assert got.tolist() == [largest, -largest, largest]


def test_error_is_at_most_half_a_step(isa):
    x = floats(32, 256) * floats(32, 256, seed=1).exp()
    for codes in CODES:
        for granularity in ("row", "tensor"):
            got, scale = fp8_quantize(x, granularity, codes)
            error = (fp8_dequantize(got, scale, torch.float32) - x).abs()
            info = torch.finfo(codes)
            step = torch.maximum(x.abs() * info.eps, scale * info.tiny * info.eps)
            assert (error <= 0.5 * step * (1 + 1e-5)).all()


def test_zeros_give_zeros(isa):
    for granularity in ("row", "tensor"):
        got, scale = fp8_quantize(torch.zeros(3, 20), granularity)
        assert (scale > 0).all() and not fp8_dequantize(got, scale, torch.float32).any()
    x = torch.stack((torch.zeros(20), floats(20)))
    got, scale = fp8_quantize(x)
    assert not fp8_dequantize(got, scale, torch.bfloat16)[0].any()


@pytest.mark.parametrize("magnitude", (1e-45, 1e-38, 1e-13, 1e-10, 1e20, 3e38))
def test_extreme_magnitudes(isa, magnitude):
    x = floats(4, 64).sign() * magnitude
    for codes in CODES:
        got = fp8_quantize(x, "row", codes)
        assert_same(got, fp8_quantize_reference(x, "row", codes))
        assert torch.allclose(fp8_dequantize(*got, torch.float32), x, rtol=0.13, atol=1e-12)


@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_a_nonfinite_row_has_scale_nan_and_no_other(isa, bad):
    for k, at in ((64, 0), (64, 63), (37, 36), (1, 0)):
        x = floats(9, k)
        expected = fp8_quantize(x)
        x[7, at] = bad
        got = fp8_quantize(x)
        assert got[1][7].isnan().all() and fp8_quantize_reference(x)[1][7].isnan().all()
        others = torch.arange(9) != 7
        assert_same([part[others] for part in got], [part[others] for part in expected])
        assert fp8_quantize(x, "tensor")[1].isnan()


def test_empty_and_strided(isa):
    got, scale = fp8_quantize(torch.empty(2, 0, 16))
    assert got.shape == (2, 0, 16) and scale.shape == (2, 0, 1)
    x = floats(20, 128)
    expected = fp8_quantize(x[:, 64:].contiguous())
    for view in (x[:, 64:], x.t().contiguous().t()[:, 64:], x.view(2, 10, 128)[..., 64:].flatten(0, 1)):
        assert_same(fp8_quantize(view), expected)


def test_threads_agree(isa):
    x = floats(300, 2000)
    for granularity in ("row", "tensor"):
        torch.set_num_threads(1)
        alone = fp8_quantize(x, granularity)
        torch.set_num_threads(4)
        assert_same(fp8_quantize(x, granularity), alone)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 20),
    k=st.integers(1, 200),
    granularity=st.sampled_from(["row", "tensor"]),
    codes=st.sampled_from(CODES),
    dtype=st.sampled_from(DTYPES),
    log_size=st.integers(-30, 12),
    seed=st.integers(0, 2**20),
)
def test_any_x(isas, m, k, granularity, codes, dtype, log_size, seed):
    x = (floats(m, k, seed=seed) * 2.0**log_size).to(dtype)
    expected = fp8_quantize_reference(x, granularity, codes)
    for name in isas:
        _C.set_isa(name)
        assert_same(fp8_quantize(x, granularity, codes), expected)


def test_bad_operands_are_named():
    x = floats(4, 64)
    for args, error, text in [
        ((x.double(),), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
        ((torch.tensor(1.0),), ValueError, r"x: expected shape \[..., k\], got a scalar"),
        ((x[:, :0],), ValueError, "x: expected k > 0"),
        ((x[:0], "tensor"), ValueError, "x: expected at least one row"),
        ((x, "block"), ValueError, "granularity: expected row or tensor, got block"),
        ((x, "row", torch.int8), TypeError, "dtype: expected float8_e4m3fn or float8_e5m2, got int8"),
        ((x, "row", torch.float8_e4m3fn, 2.0, 1.0), ValueError, "lb: expected 0 <= lb <= ub, got lb 2 and ub 1"),
        ((x, "row", torch.float8_e4m3fn, math.nan), ValueError, "lb: "),
    ]:
        with pytest.raises(error, match=f"aoq::fp8_quantize: {text}"):
            fp8_quantize(*args)


def test_opcheck():
    for granularity in ("row", "tensor"):
        for codes in CODES:
            args = (floats(2, 3, 40).bfloat16(), granularity, codes, None, 3.0)
            torch.library.opcheck(torch.ops.aoq.fp8_quantize.default, args)
