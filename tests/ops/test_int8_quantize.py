"""int8_quantize: the same bits from every ISA and from the PyTorch reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aoq import _C
from aoq.ops import int8_dequantize, int8_quantize, int8_quantize_reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAPPINGS = ("symmetric", "asymmetric")
SHAPES = [(16, 64), (17, 40), (3, 7), (1, 1), (33, 200), (5, 1001), (2, 3, 15), (64,), (0, 8), (2, 0, 16)]


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference_to_the_bit(isa, shape, mapping, dtype):
    for shift in (0, -2, 7):
        x = (floats(*shape) + shift).to(dtype)
        for scale_dtype in (None, *DTYPES):
            got = int8_quantize(x, mapping, scale_dtype)
            assert_same(got, int8_quantize_reference(x, mapping, scale_dtype))
            assert [part.dtype for part in got] == [torch.int8, *[scale_dtype or torch.float32] * 2]
    assert _C.last_kernel().startswith("int8_quantize_")


def test_shapes_of_the_parts():
    for mapping, width in (("symmetric", 0), ("asymmetric", 1)):
        parts = int8_quantize(floats(2, 3, 15), mapping)
        assert [tuple(part.shape) for part in parts] == [(2, 3, 15), (2, 3, 1), (2, 3, width)]


def test_one_row_by_hand(isa):
    x = torch.tensor([[-1.0, 0.0, 0.5, 2.0]])
    codes, scale, _ = int8_quantize(x)
    assert scale.item() == torch.tensor(2 / 127.5).item()
    assert codes.tolist() == [[-64, 0, 32, 127]]  # -63.75, 0, 31.875, 127.5 clamped
    codes, scale, zero_point = int8_quantize(x, "asymmetric")
    assert scale.item() == pytest.approx(3 / 255) and zero_point.item() == -43
    assert codes.tolist() == [[-128, -43, -1, 127]]  # 42.5 rounds to the even 42


def test_error_is_at_most_half_a_step(isa):
    for shift in (0, 5, -5):
        x = floats(32, 256) + shift
        for mapping in MAPPINGS:
            codes, scale, zero_point = int8_quantize(x, mapping)
            error = (int8_dequantize(codes, scale, zero_point, torch.float32) - x).abs()
            # Asymmetric: the zero point is rounded too, so an end of the range may be clamped by half a step.
            assert (error <= (0.5 if mapping == "symmetric" else 1) * scale * (1 + 1e-4)).all()


def test_zeros_give_zeros(isa):
    for mapping in MAPPINGS:
        codes, scale, zero_point = int8_quantize(torch.zeros(3, 20), mapping)
        assert (scale == 2.0**-126).all()
        assert not int8_dequantize(codes, scale, zero_point, torch.float32).any()


@pytest.mark.parametrize("magnitude", (1e-45, 1e-38, 1e-10, 1e20, 3e38))
def test_extreme_magnitudes(isa, magnitude):
    x = floats(4, 64).sign() * magnitude
    for mapping in MAPPINGS:
        got = int8_quantize(x, mapping)
        assert_same(got, int8_quantize_reference(x, mapping))
        codes, scale, zero_point = got
        assert scale.isfinite().all() and (scale > 0).all()
        assert torch.allclose(int8_dequantize(codes, scale, zero_point, torch.float32), x, rtol=0.01, atol=2.0**-126)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_a_nonfinite_row_has_scale_nan_and_no_other(isa, mapping, bad):
    for k, at in ((64, 0), (64, 63), (37, 36), (1, 0)):
        x = floats(9, k)
        expected = int8_quantize(x, mapping)
        x[7, at] = bad
        got = int8_quantize(x, mapping)
        assert got[1][7].isnan().all() and int8_quantize_reference(x, mapping)[1][7].isnan().all()
        others = torch.arange(9) != 7
        assert_same([part[others] for part in got], [part[others] for part in expected])


def test_strides(isa):
    x = floats(20, 128)
    for mapping in MAPPINGS:
        expected = int8_quantize(x[:, 64:].contiguous(), mapping)
        for view in (x[:, 64:], x.t().contiguous().t()[:, 64:], x.view(2, 10, 128)[..., 64:].flatten(0, 1)):
            assert_same(int8_quantize(view, mapping), expected)
        assert_same([part[::2] for part in int8_quantize(x, mapping)], int8_quantize(x[::2], mapping))


def test_threads_agree(isa):
    x = floats(300, 2000)
    torch.set_num_threads(1)
    alone = int8_quantize(x)
    torch.set_num_threads(4)
    assert_same(int8_quantize(x), alone)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 20),
    k=st.integers(1, 200),
    mapping=st.sampled_from(MAPPINGS),
    dtype=st.sampled_from(DTYPES),
    scale_dtype=st.sampled_from([None, *DTYPES]),
    log_size=st.integers(-30, 14),
    shift=st.sampled_from([-4, 0, 4]),
    seed=st.integers(0, 2**20),
)
def test_any_x(isas, m, k, mapping, dtype, scale_dtype, log_size, shift, seed):
    x = ((floats(m, k, seed=seed) + shift) * 2.0**log_size).clamp(-60000, 60000).to(dtype)
    expected = int8_quantize_reference(x, mapping, scale_dtype)
    for name in isas:
        _C.set_isa(name)
        assert_same(int8_quantize(x, mapping, scale_dtype), expected)


def test_bad_operands_are_named():
    x = floats(4, 64)
    for args, error, text in [
        ((x.double(),), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
        ((x.char(),), TypeError, "x: .*int8"),
        ((torch.tensor(1.0),), ValueError, r"x: expected shape \[..., k\], got a scalar"),
        ((x[:, :0],), ValueError, "x: expected k > 0"),
        ((x, "hqq"), ValueError, "mapping: expected symmetric or asymmetric, got hqq"),
        ((x, "symmetric", torch.int8), TypeError, "scale_dtype: .*int8"),
    ]:
        with pytest.raises(error, match=f"aoq::int8_quantize: {text}"):
            int8_quantize(*args)


def test_opcheck():
    for mapping in MAPPINGS:
        torch.library.opcheck(torch.ops.aoq.int8_quantize.default, (floats(2, 3, 40).bfloat16(), mapping, None))


@pytest.mark.parametrize("mapping", ("symmetric", "asymmetric"))
def test_small_rows_keep_their_precision(isa, mapping):
    """No floor of the scale: activations near 1e-6, and much smaller ones, are as exact as others."""
    x = torch.randn(4, 64)
    for size in (1e-6, 1e-12, 1e-30):
        codes, scale, zero_point = int8_quantize(x * size, mapping)
        values = int8_dequantize(codes, scale, zero_point, torch.float64)
        assert ((values - (x * size).double()).abs() <= 0.501 * scale).all()
        assert (scale <= (2 if mapping == "symmetric" else 1) * (x * size).abs().amax(-1, keepdim=True) / 100).all()
