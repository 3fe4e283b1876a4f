"""int8_int4_mm against fp64 of the integers of x, under every ISA of the machine."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_x import DTYPES, QuantizedWeight, QuantizedXTests, check

from aoq import _C
from aoq.ops import (
    int4_dequantize,
    int4_pack,
    int4_quantize,
    int8_int4_mm,
    int8_int4_mm_reference,
    tile_scale,
)

X_MAPPINGS = ("symmetric", "asymmetric")
MAPPINGS = ("symmetric", "asymmetric", "hqq")


class Weight(QuantizedWeight):
    def __init__(
        self, n, k, group, x_mapping="symmetric", mapping="asymmetric", dtype=torch.bfloat16, seed=0, qdata=None
    ):
        super().__init__(n, k, group, x_mapping)
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(n, k, generator=generator) * torch.rand(n, 1, generator=generator).exp()
        codes, scale, zero = int4_quantize(w.to(dtype), group, mapping)
        qdata = codes if qdata is None else qdata
        self.packed, self.scale = int4_pack(qdata, k), tile_scale(scale)
        self.zero_point = None if mapping == "symmetric" else tile_scale(zero)
        exact = int4_dequantize(qdata, scale.double(), zero.double(), group, k, torch.float64)
        # Codes are multiplied as they are stored, and zero_point * scale * sum(x) is subtracted.
        step = scale.double().repeat_interleave(min(group, k), 1)[:, :k]
        self.set_exact(exact, 2 * 15 * step + exact.abs())

    def __call__(self, x, bias=None):
        return int8_int4_mm(x, self.packed, self.scale, self.zero_point, self.w_sum, bias, self.n, self.group)


class TestInt8Int4Mm(QuantizedXTests):
    @staticmethod
    def weight(n, k, group, mapping, scale_dtype=torch.bfloat16):
        return Weight(n, k, group, mapping, dtype=scale_dtype)

    @staticmethod
    def reference(weight, x, bias):
        parts = (weight.packed, weight.scale, weight.zero_point, weight.w_sum)
        return int8_int4_mm_reference(x, *parts, bias, weight.n, weight.group)


SHAPES = [  # n, k, group
    (64, 256, 128),  # whole panels
    (17, 40, 8),  # ragged n, the smallest group
    (33, 200, 128),  # ragged n, ragged last group
    (16, 16, 16),  # k is one group
    (5, 7, 7),  # below one unit; odd k
    (1, 1, 1),
    (40, 1000, 1000),  # one group a row, longer than a chunk
    (48, 576, 128),  # a small model's layer
    (31, 130, 4096),  # a group far beyond k
    (80, 96, 48),  # a group that is no multiple of 32
    (20, 4300, 4096),  # a long group and a short one
    (24, 400, 136),  # a group of a chunk and a unit
]


@pytest.mark.parametrize(("mapping", "x_mapping"), itertools.product(MAPPINGS, X_MAPPINGS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_fp64(isa, shape, mapping, x_mapping):
    weight = Weight(*shape, x_mapping, mapping)
    for dtype in DTYPES:
        for m in (0, 1, 2, 3, 4, 5, 12, 13, 17, 40):
            x = torch.randn(m, weight.k).to(dtype)
            out = weight(x)
            assert m == 0 or _C.last_kernel() == _C.kernels("int8_int4_mm")[0]
            check(out, x, weight)


@pytest.mark.parametrize("code", (0, 15))
@pytest.mark.parametrize("mapping", X_MAPPINGS)
def test_extreme_codes(isa, code, mapping):
    """Products and sums as large as they get: nothing saturates."""
    weight = Weight(33, 4100, 4100, mapping, qdata=torch.full((33, 2050), code * 17, dtype=torch.uint8))
    for m in (1, 3, 17):
        for x in (torch.ones(m, 4100), -torch.ones(m, 4100), torch.tensor([1.0, -1]).repeat(m, 2050)):
            check(weight(x), x, weight)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(0, 40),
    n=st.integers(1, 90),
    k=st.integers(1, 300),
    group=st.integers(1, 20),
    mapping=st.sampled_from(MAPPINGS),
    x_mapping=st.sampled_from(X_MAPPINGS),
    dtype=st.sampled_from(DTYPES),
    stride=st.integers(1, 3),
    shift=st.sampled_from([-3, 0, 3]),
    seed=st.integers(0, 2**20),
)
def test_any_shape(m, n, k, group, mapping, x_mapping, dtype, stride, shift, seed):
    weight = Weight(n, k, group * 8, x_mapping, mapping, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(m, k * stride, generator=generator) + shift).to(dtype)[:, ::stride]
    for name in _C.isas():
        _C.set_isa(name)
        check(weight(x), x, weight)


def operands(**changed):
    weight = Weight(32, 64, 32, "asymmetric")
    args = dict(
        x=torch.randn(3, 64),
        packed=weight.packed,
        scale=weight.scale,
        zero_point=weight.zero_point,
        w_sum=weight.w_sum,
        bias=torch.randn(32),
        n=32,
        group_size=32,
    )
    return {**args, **changed}


def test_opcheck():
    args = operands()
    torch.library.opcheck(torch.ops.aoq.int8_int4_mm.default, tuple(args.values()))
    args.update(zero_point=None, w_sum=None, bias=None, x=torch.randn(2, 1, 64).bfloat16())
    torch.library.opcheck(torch.ops.aoq.int8_int4_mm.default, tuple(args.values()))


@pytest.mark.parametrize(
    "changed, error, text",
    [
        (dict(x=torch.randn(3, 64).double()), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
        (dict(x=torch.tensor(1.0)), ValueError, "x: .*scalar"),
        (dict(x=torch.randn(3, 80)), ValueError, r"packed: expected shape \[2, 10, 64\], got \[2, 8, 64\]"),
        (dict(x=torch.randn(3, 0)), ValueError, "x: expected k > 0|group_size"),
        (dict(packed=torch.zeros(2, 8, 64, dtype=torch.int8)), TypeError, "packed: expected uint8, got int8"),
        (dict(scale=torch.ones(2, 3, 16)), ValueError, r"scale: expected shape \[2, 2, 16\], got \[2, 3, 16\]"),
        (dict(scale=torch.ones(2, 2, 16, dtype=torch.int32)), TypeError, "scale: .*int32"),
        (dict(zero_point=torch.ones(2, 2, 16).half()), TypeError, "zero_point: expected scale's dtype bfloat16"),
        (dict(zero_point=torch.ones(2, 16).bfloat16()), ValueError, "zero_point: expected shape"),
        (dict(w_sum=torch.randn(2, 16)), ValueError, r"w_sum: expected shape \[32\], got \[2, 16\]"),
        (dict(w_sum=torch.randn(32).half()), TypeError, "w_sum: expected float32, got float16"),
        (dict(w_sum=torch.randn(32).to("meta")), ValueError, "w_sum: expected the device of x, cpu, got meta"),
        (dict(bias=torch.randn(31)), ValueError, r"bias: expected shape \[32\], got \[31\]"),
        (dict(bias=torch.ones(32, dtype=torch.int64)), TypeError, "bias: .*int64"),
        (dict(n=0), ValueError, "n: expected at least 1"),
        (dict(n=33), ValueError, "packed: expected shape"),
        (dict(group_size=0), ValueError, "group_size: expected a multiple of 8"),
        (dict(group_size=12), ValueError, "group_size: expected a multiple of 8, or at least k = 64, got 12"),
        (dict(group_size=-(2**62)), ValueError, "group_size"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:40],
)
def test_bad_operands_are_named(changed, error, text):
    with pytest.raises(error, match=f"aoq::int8_int4_mm: ({text})"):
        int8_int4_mm(**operands(**changed))


def test_a_huge_group_is_one_group():
    weight = Weight(16, 24, 2**62)
    x = torch.randn(2, 24)
    check(weight(x), x, weight)
