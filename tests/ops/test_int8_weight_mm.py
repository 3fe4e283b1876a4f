"""int8_weight_mm against fp64, under every ISA of the machine."""

import pytest
import torch
from fp8_weights import DTYPES, SHAPES, check
from hypothesis import given, settings
from hypothesis import strategies as st

from aoq import _C
from aoq.ops import int8_dequantize, int8_pack, int8_weight_mm, int8_weight_mm_reference, tile_scale


class Weight:
    """A weight as the op takes it, and its exact values in fp64."""

    def __init__(self, n, k, scale_dtype=torch.float32, seed=0, qdata=None):
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator) if qdata is None else qdata
        scale = (torch.rand(n, 1, generator=generator) + 0.1).to(scale_dtype)
        self.n, self.k = n, k
        self.packed, self.scale = int8_pack(codes), tile_scale(scale)
        self.exact = int8_dequantize(codes, scale, None, torch.float64)

    def __call__(self, x, bias=None):
        return int8_weight_mm(x, self.packed, self.scale, bias, self.n)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_fp64(isa, shape):
    weight = Weight(*shape)
    for dtype in DTYPES:
        for m in (0, 1, 2, 3, 4, 5, 12, 13, 17, 50):
            x = torch.randn(m, weight.k).to(dtype)
            out = weight(x)
            assert m == 0 or _C.last_kernel() == _C.kernels("int8_weight_mm")[0]
            check(out, x, x.double(), weight)


@pytest.mark.parametrize("m", (1, 33, 64, 300))
def test_many_rows_and_blocks(isa, m):
    if isa == "ref" and m == 300:
        pytest.skip("the reference kernel has no blocks")
    weight = Weight(88, 3000)
    x = torch.randn(m, weight.k).bfloat16()
    check(weight(x), x, x.double(), weight)


def test_every_code(isa):
    """Each of the 256, in every place of a unit: rows of the identity pick them out."""
    codes = torch.arange(-128, 128, dtype=torch.int8).repeat(4, 1)
    codes = torch.stack([row.roll(i) for i, row in enumerate(codes)])
    weight = Weight(4, 256, qdata=codes)
    weight.scale = tile_scale(torch.ones(4, 1))
    for dtype in (torch.bfloat16, torch.float32):
        for m in (1, 60):  # fused, and from a decoded chunk
            for first in range(0, 256, m):
                x = torch.eye(256, dtype=dtype)[first : first + m]
                assert torch.equal(weight(x), codes.t()[first : first + m].to(dtype))


@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_dtype", DTYPES, ids=str)
def test_scale_and_bias_of_any_dtype(isa, scale_dtype, bias_dtype):
    weight = Weight(35, 72, scale_dtype)
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
    dtype=st.sampled_from(DTYPES),
    stride=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_any_shape(m, n, k, dtype, stride, seed):
    weight = Weight(n, k, seed=seed)
    x = torch.randn(m, k * stride, generator=torch.Generator().manual_seed(seed)).to(dtype)[:, ::stride]
    for name in _C.isas():
        _C.set_isa(name)
        check(weight(x), x, x.double(), weight)


def test_the_reference():
    weight, x, bias = Weight(40, 72), torch.randn(5, 72), torch.randn(40)
    out = int8_weight_mm_reference(x, weight.packed, weight.scale, bias, 40)
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
    return {**args, **changed}


def test_opcheck():
    torch.library.opcheck(torch.ops.aoq.int8_weight_mm.default, tuple(operands().values()))
    args = operands(bias=None, x=torch.randn(2, 1, 64).bfloat16())
    torch.library.opcheck(torch.ops.aoq.int8_weight_mm.default, tuple(args.values()))


@pytest.mark.parametrize(
    "changed, error, text",
    [
        (dict(x=torch.randn(3, 64).double()), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
        (dict(x=torch.randn(3, 80)), ValueError, r"packed: expected shape \[2, 20, 64\], got \[2, 16, 64\]"),
        (dict(packed=torch.zeros(2, 16, 64, dtype=torch.int8)), TypeError, "packed: expected uint8"),
        (dict(scale=torch.ones(2, 2, 16)), ValueError, r"scale: expected shape \[2, 1, 16\], got \[2, 2, 16\]"),
        (dict(bias=torch.randn(31)), ValueError, r"bias: expected shape \[32\], got \[31\]"),
        (dict(n=33), ValueError, "packed: expected shape"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:40],
)
def test_bad_operands_are_named(changed, error, text):
    with pytest.raises(error, match=f"aoq::int8_weight_mm: {text}"):
        int8_weight_mm(**operands(**changed))
