"""fp8_weight_mm against fp64, under every ISA of the machine."""

import pytest
import torch
from fp8_weights import DTYPES, FP8_DTYPES, SHAPES, Fp8Weight, check
from hypothesis import given, settings
from hypothesis import strategies as st

from aoq import _C
from aoq.ops import fp8_weight_mm, fp8_weight_mm_reference, int8_pack


class Weight(Fp8Weight):
    def __call__(self, x, bias=None):
        return fp8_weight_mm(x, self.packed, self.scale, bias, self.n, self.dtype)


@pytest.mark.parametrize("fp8", FP8_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_fp64(isa, shape, fp8):
    weight = Weight(*shape, fp8)
    for dtype in DTYPES:
        for m in (0, 1, 2, 3, 4, 5, 12, 13, 17, 50):
            x = torch.randn(m, weight.k).to(dtype)
            out = weight(x)
            assert m == 0 or _C.last_kernel() == _C.kernels("fp8_weight_mm")[0]
            check(out, x, x.double(), weight)


@pytest.mark.parametrize("m", (1, 33, 64, 300))
def test_many_rows_and_blocks(isa, m):
    if isa == "ref" and m == 300:
        pytest.skip("the reference kernel has no blocks")
    weight = Weight(88, 3000)
    x = torch.randn(m, weight.k).bfloat16()
    check(weight(x), x, x.double(), weight)


@pytest.mark.parametrize("fp8", FP8_DTYPES, ids=str)
def test_every_code(isa, fp8):
    """Each of the 256, in every place of a unit: rows of the identity pick them out."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(4, 1)
    codes = torch.stack([row.roll(i) for i, row in enumerate(codes)]).view(fp8)
    weight = Weight(4, 256, fp8, qdata=codes)
    for dtype in (torch.bfloat16, torch.float32):
        for m in (1, 60):  # fused, and from a decoded chunk
            for first in range(0, 256, m):
                x = torch.eye(256, dtype=dtype)[first : first + m]
                # 0 times NaN or infinity is NaN, so only finite codes can be told apart.
                clean = torch.where(weight.exact.isfinite(), weight.exact, 0)
                finite = Weight(4, 256, fp8, qdata=torch.where(codes.float().isfinite(), codes.float(), 0).to(fp8))
                expected = clean.t()[first : first + m].to(dtype)
                assert torch.equal(finite(x), expected)
                assert weight(x).isnan().all()


@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_dtype", DTYPES, ids=str)
def test_scale_and_bias_of_any_dtype(isa, scale_dtype, bias_dtype):
    weight = Weight(35, 72, scale_dtype=scale_dtype)
    bias = torch.randn(35).to(bias_dtype)
    for m in (1, 20):
        x = torch.randn(m, 72).bfloat16()
        check(weight(x, bias), x, x.double(), weight, bias)


def test_any_rank_and_stride(isa):
    weight = Weight(24, 64)
    rows = torch.randn(6, 128).bfloat16()
    for x in (rows[0, :64], rows[:, :64], rows[::2, 64:], rows[:, ::2], rows.view(2, 3, 128)[..., 32:96]):
        out = weight(x)
        assert out.shape == (*x.shape[:-1], 24) and out.is_contiguous()
        check(out.reshape(-1, 24), x.reshape(-1, 64), x.reshape(-1, 64).double(), weight)
    assert weight(torch.empty(2, 0, 64)).shape == (2, 0, 24)


def test_threads_agree(isa):
    weight, x = Weight(512, 256), torch.randn(70, 256).bfloat16()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = weight(x)
        torch.set_num_threads(4)
        assert torch.equal(weight(x), alone)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(0, 60),
    n=st.integers(1, 90),
    k=st.integers(1, 300),
    fp8=st.sampled_from(FP8_DTYPES),
    dtype=st.sampled_from(DTYPES),
    stride=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_any_shape(m, n, k, fp8, dtype, stride, seed):
    weight = Weight(n, k, fp8, seed=seed)
    x = torch.randn(m, k * stride, generator=torch.Generator().manual_seed(seed)).to(dtype)[:, ::stride]
    for name in _C.isas():
        _C.set_isa(name)
        check(weight(x), x, x.double(), weight)


def test_the_reference():
    weight, x, bias = Weight(40, 72), torch.randn(5, 72), torch.randn(40)
    out = fp8_weight_mm_reference(x, weight.packed, weight.scale, bias, 40)
    check(out, x, x.double(), weight, bias)


def test_gradients():
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
    return {**args, "w_dtype": weight.dtype, **changed}


def test_opcheck():
    torch.library.opcheck(torch.ops.aoq.fp8_weight_mm.default, tuple(operands().values()))
    args = operands(bias=None, x=torch.randn(2, 1, 64).bfloat16())
    torch.library.opcheck(torch.ops.aoq.fp8_weight_mm.default, tuple(args.values()))


@pytest.mark.parametrize(
    "changed, error, text",
    [
        (dict(x=torch.randn(3, 64).double()), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
        (dict(x=torch.randn(3, 80)), ValueError, r"packed: expected shape \[2, 20, 64\], got \[2, 16, 64\]"),
        (dict(packed=torch.zeros(2, 16, 64).to(torch.float8_e4m3fn)), TypeError, "packed: expected uint8"),
        (dict(scale=torch.ones(2, 2, 16)), ValueError, r"scale: expected shape \[2, 1, 16\], got \[2, 2, 16\]"),
        (dict(bias=torch.randn(31)), ValueError, r"bias: expected shape \[32\], got \[31\]"),
        (dict(n=33), ValueError, "packed: expected shape"),
        (dict(w_dtype=torch.int8), TypeError, "w_dtype: expected float8_e4m3fn or float8_e5m2, got int8"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:40],
)
def test_bad_operands_are_named(changed, error, text):
    with pytest.raises(error, match=f"aoq::fp8_weight_mm: {text}"):
        fp8_weight_mm(**operands(**changed))


def test_the_packed_codes_are_int8s():
    codes = torch.randn(20, 10).to(torch.float8_e4m3fn)
    assert torch.equal(Weight(20, 10, qdata=codes).packed, int8_pack(codes.view(torch.int8)))
