"""int4_quantize: the same bits from every ISA and from the PyTorch reference; HQQ beats rounding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aoq import _C
from aoq.ops import int4_dequantize, int4_quantize, int4_quantize_reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = [(16, 64, 32), (17, 40, 8), (3, 7, 7), (33, 200, 128), (5, 1001, 1001), (2, 5, 4096), (8, 576, 128)]


def weights(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mapping", ("symmetric", "asymmetric"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference_to_the_bit(isa, shape, mapping, dtype):
    n, k, group = shape
    w = weights(n, k).to(dtype)
    for scale_dtype in (None, torch.float32):
        for got, wanted in zip(
            int4_quantize(w, group, mapping, scale_dtype),
            int4_quantize_reference(w, group, mapping, scale_dtype),
            strict=True,
        ):
            assert got.dtype == wanted.dtype and torch.equal(got, wanted)
    assert _C.last_kernel().startswith("int4_quantize_")


@pytest.mark.parametrize("mapping", ("symmetric", "asymmetric", "hqq"))
def test_every_isa_gives_the_same_bits(isas, mapping):
    for dtype in DTYPES:
        for n, k, group in SHAPES:
            w = weights(n, k, seed=n).to(dtype)
            results = []
            for name in isas:
                _C.set_isa(name)
                results.append(int4_quantize(w, group, mapping))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def dequantized(w, group, mapping):
    return int4_dequantize(*int4_quantize(w, group, mapping), group, w.shape[1], torch.float32)


@pytest.mark.parametrize("group", (32, 128))
def test_hqq_beats_rounding_in_output_error(isa, group):
    w = torch.distributions.StudentT(4.0).sample((256, 512)) * 0.02
    x = torch.randn(64, 512)
    errors = {m: (x @ (dequantized(w, group, m) - w).t()).pow(2).mean().item() for m in ("asymmetric", "hqq")}
    assert errors["hqq"] < 0.99 * errors["asymmetric"]


def test_hqq_agrees_with_the_reference(isa):
    w = weights(64, 256)
    ours, theirs = int4_quantize(w, 64, "hqq"), int4_quantize_reference(w, 64, "hqq")
    # The order of sums and a polynomial power may tip the choice between two pairs that are as good.
    same = (ours[1] == theirs[1]) & ((ours[2] - theirs[2]).abs() < 1e-3)
    assert same.float().mean() > 0.9
    errors = [(int4_dequantize(*r, 64, 256, torch.float32) - w).abs().mean().item() for r in (ours, theirs)]
    assert math.isclose(*errors, rel_tol=2e-3)


def test_error_is_at_most_half_a_step(isa):
    w = weights(32, 256)
    for mapping in ("symmetric", "asymmetric"):
        _, scale, _ = int4_quantize(w, 32, mapping)
        step = scale.repeat_interleave(32, 1)
        # Symmetric: the largest positive weight is clamped from 7.5 to 7.
        assert ((dequantized(w, 32, mapping) - w).abs() <= 0.5 * step * (1 + 1e-5)).all()


def test_groups_of_zeros_and_constants(isa):
    w = torch.zeros(3, 64)
    w[1] = 0.25
    w[2] = -3.0
    for mapping in ("symmetric", "asymmetric", "hqq"):
        out = dequantized(w, 32, mapping)
        assert torch.equal(out[0], w[0])
        assert torch.allclose(out, w, rtol=0.07)


@pytest.mark.parametrize("magnitude", (1e-38, 1e-20, 1e20, 3e38))
def test_extreme_magnitudes(isa, magnitude):
    w = weights(4, 64).sign() * magnitude
    for mapping in ("symmetric", "asymmetric", "hqq"):
        qdata, scale, zero_point = int4_quantize(w, 32, mapping)
        assert scale.isfinite().all() and zero_point.isfinite().all() and (scale > 0).all()
        out = int4_dequantize(qdata, scale, zero_point, 32, 64, torch.float32)
        assert torch.allclose(out, w, rtol=0.08)


def test_scales_too_small_for_their_dtype(isa):
    w = torch.tensor([[-1.8e-7, 1.2e-7], [0, 0]], dtype=torch.float16)
    for mapping in ("symmetric", "asymmetric", "hqq"):
        got, wanted = int4_quantize(w, 8, mapping), int4_quantize_reference(w, 8, mapping)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert torch.equal(got[1], torch.ones_like(got[1]))


def test_strides(isa):
    w = weights(20, 128)
    expected = int4_quantize(w[:, 64:].contiguous(), 32)
    for view in (w[:, 64:], w.t().contiguous().t()[:, 64:]):
        assert all(torch.equal(a, b) for a, b in zip(int4_quantize(view, 32), expected, strict=True))
    qdata, scale, zero_point = int4_quantize(w[:0], 32)
    assert qdata.shape == (0, 64) and scale.shape == zero_point.shape == (0, 4)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20),
    k=st.integers(1, 200),
    group=st.integers(1, 16),
    mapping=st.sampled_from(("symmetric", "asymmetric")),
    dtype=st.sampled_from(DTYPES),
    log_size=st.integers(-20, 15),
    seed=st.integers(0, 2**20),
)
def test_any_weight(isas, n, k, group, mapping, dtype, log_size, seed):
    w = (weights(n, k, seed) * 2.0**log_size).clamp(-60000, 60000).to(dtype)
    expected = int4_quantize_reference(w, group * 8, mapping)
    for name in isas:
        _C.set_isa(name)
        got = int4_quantize(w, group * 8, mapping)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_nonfinite_weights_are_refused(isa, bad):
    for k, at in ((64, 0), (64, 63), (37, 36)):
        w = weights(9, k)
        w[7, at] = bad
        with pytest.raises(ValueError, match="w: expected finite values, got NaN or infinity in row 7"):
            int4_quantize(w, 32)


@pytest.mark.parametrize("mapping", ("symmetric", "asymmetric", "hqq"))
def test_a_huge_group_is_one_group(isa, mapping):
    """Also where adding to it would wrap around."""
    w = weights(64, 72)
    wanted = int4_quantize(w, 72, mapping)
    for group in (2**31, 2**62, 2**63 - 72, 2**63 - 1):
        assert all(map(torch.equal, int4_quantize(w, group, mapping), wanted))


def test_bad_operands_are_named():
    w = weights(4, 64)
    for args, error, text in [
        ((w.double(), 32), TypeError, "w: expected bfloat16, float16 or float32, got float64"),
        ((w[0], 32), ValueError, r"w: expected shape \[n, k\]"),
        ((w[:, :0], 32), ValueError, "w: expected shape"),
        ((w, 12), ValueError, "group_size: expected a multiple of 8, or at least k = 64, got 12"),
        ((w, 32, "tinygemm"), ValueError, "mapping: expected symmetric, asymmetric or hqq, got tinygemm"),
        ((w, 32, "hqq", torch.int8), TypeError, "scale_dtype: .*int8"),
    ]:
        with pytest.raises(error, match=text):
            int4_quantize(*args)


def test_opcheck():
    for mapping in ("symmetric", "asymmetric", "hqq"):
        torch.library.opcheck(torch.ops.aoq.int4_quantize.default, (weights(6, 40).bfloat16(), 16, mapping, None))
