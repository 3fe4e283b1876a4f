"""int8_mm against fp64 of the integers of x, under every ISA of the machine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_x import DTYPES, QuantizedWeight, QuantizedXTests, check

from aoq import _C
from aoq.ops import int8_dequantize, int8_mm, int8_mm_reference, int8_pack, int8_quantize, tile_scale

MAPPINGS = ("symmetric", "asymmetric")


class Weight(QuantizedWeight):
    def __init__(self, n, k, mapping="symmetric", scale_dtype=torch.bfloat16, seed=0, qdata=None):
        super().__init__(n, k, k, mapping)
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(n, k, generator=generator) * torch.rand(n, 1, generator=generator).exp()
        codes, scale, _ = int8_quantize(w, "symmetric", scale_dtype)
        qdata = codes if qdata is None else qdata
        self.packed, self.scale = int8_pack(qdata), tile_scale(scale)
        # Codes are multiplied as code + 128, and 128 * scale * sum(x) is subtracted.
        stored = (qdata.double() + 128 + 128) * scale.double()
        self.set_exact(int8_dequantize(qdata, scale, None, torch.float64), stored)

    def __call__(self, x, bias=None):
        return int8_mm(x, self.packed, self.scale, self.w_sum, bias, self.n)


class TestInt8Mm(QuantizedXTests):
    @staticmethod
    def weight(n, k, group, mapping, scale_dtype=torch.bfloat16):
        return Weight(n, k, mapping, scale_dtype)

    @staticmethod
    def reference(weight, x, bias):
        return int8_mm_reference(x, weight.packed, weight.scale, weight.w_sum, bias, weight.n)


SHAPES = [  # n, k
    (64, 256),  # whole panels
    (17, 40),
    (33, 200),  # ragged n
    (5, 7),  # odd k, within two units
    (1, 1),
    (40, 1000),  # many chunks, the last one short
    (48, 576),  # a small model's layer
    (31, 130),  # a chunk of 128 and half a unit
    (16, 3),
]


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_fp64(isa, shape, mapping):
    weight = Weight(*shape, mapping)
    for dtype in DTYPES:
        for m in (0, 1, 2, 3, 4, 5, 12, 13, 17, 40):
            x = torch.randn(m, weight.k).to(dtype)
            out = weight(x)
            assert m == 0 or _C.last_kernel() == _C.kernels("int8_mm")[0]
            check(out, x, weight)


@pytest.mark.parametrize("code", (-128, 127))
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_extreme_codes(isa, code, mapping):
    """Products and sums as large as they get: nothing saturates."""
    weight = Weight(33, 4100, mapping, qdata=torch.full((33, 4100), code, dtype=torch.int8))
    for m in (1, 3, 17):
        for x in (torch.ones(m, 4100), -torch.ones(m, 4100), torch.tensor([1.0, -1]).repeat(m, 2050)):
            check(weight(x), x, weight)


def test_long_rows_do_not_overflow():
    weight = Weight(16, 70000, qdata=torch.full((16, 70000), 127, dtype=torch.int8))
    for name in _C.isas():
        _C.set_isa(name)
        for m in (5, 1):
            x = torch.ones(m, 70000)
            check(weight(x), x, weight)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(0, 40),
    n=st.integers(1, 90),
    k=st.integers(1, 300),
    mapping=st.sampled_from(MAPPINGS),
    dtype=st.sampled_from(DTYPES),
    stride=st.integers(1, 3),
    shift=st.sampled_from([-3, 0, 3]),
    seed=st.integers(0, 2**20),
)
def test_any_shape(m, n, k, mapping, dtype, stride, shift, seed):
    weight = Weight(n, k, mapping, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(m, k * stride, generator=generator) + shift).to(dtype)[:, ::stride]
    for name in _C.isas():
        _C.set_isa(name)
        check(weight(x), x, weight)


def operands(**changed):
    weight = Weight(32, 64, "asymmetric")
    args = dict(
        x=torch.randn(3, 64), packed=weight.packed, scale=weight.scale, w_sum=weight.w_sum, bias=torch.randn(32), n=32
    )
    return {**args, **changed}


def test_opcheck():
    args = operands()
    torch.library.opcheck(torch.ops.aoq.int8_mm.default, tuple(args.values()))
    args.update(w_sum=None, bias=None, x=torch.randn(2, 1, 64).bfloat16())
    torch.library.opcheck(torch.ops.aoq.int8_mm.default, tuple(args.values()))


@pytest.mark.parametrize(
    "changed, error, text",
    [
        (dict(x=torch.randn(3, 64).double()), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
        (dict(x=torch.ones(3, 64, dtype=torch.int8)), TypeError, "x: .*int8"),
        (dict(x=torch.tensor(1.0)), ValueError, "x: .*scalar"),
        (dict(x=torch.randn(3, 80)), ValueError, r"packed: expected shape \[2, 20, 64\], got \[2, 16, 64\]"),
        (dict(x=torch.randn(3, 0)), ValueError, "x: expected k > 0"),
        (dict(x=torch.randn(3, 64).to("meta")), ValueError, "packed: expected the device of x, meta, got cpu"),
        (dict(packed=torch.zeros(2, 16, 64, dtype=torch.int8)), TypeError, "packed: expected uint8, got int8"),
        (dict(packed=torch.zeros(2, 8, 64, dtype=torch.uint8)), ValueError, "packed: expected shape"),
        (dict(scale=torch.ones(2, 2, 16)), ValueError, r"scale: expected shape \[2, 1, 16\], got \[2, 2, 16\]"),
        (dict(scale=torch.ones(2, 1, 16, dtype=torch.int32)), TypeError, "scale: .*int32"),
        (dict(w_sum=torch.randn(31)), ValueError, r"w_sum: expected shape \[32\], got \[31\]"),
        (dict(w_sum=torch.randn(32).bfloat16()), TypeError, "w_sum: expected float32, got bfloat16"),
        (dict(w_sum=torch.randn(32).to("meta")), ValueError, "w_sum: expected the device of x, cpu, got meta"),
        (dict(bias=torch.randn(31)), ValueError, r"bias: expected shape \[32\], got \[31\]"),
        (dict(bias=torch.ones(32, dtype=torch.int64)), TypeError, "bias: .*int64"),
        (dict(n=0), ValueError, "n: expected at least 1"),
        (dict(n=33), ValueError, "packed: expected shape"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:40],
)
def test_bad_operands_are_named(changed, error, text):
    with pytest.raises(error, match=f"aoq::int8_mm: {text}"):
        int8_mm(**operands(**changed))
