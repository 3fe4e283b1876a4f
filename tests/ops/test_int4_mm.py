"""int4_mm against fp64, under every ISA of the machine."""

import math
import multiprocessing
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aoq import _C
from aoq.ops import int4_dequantize, int4_mm, int4_pack, int4_quantize, tile_scale, untile_scale

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAPPINGS = ("symmetric", "asymmetric", "hqq")


class Weight:
    """A random quantized weight: what int4_mm takes, and its exact values in fp64."""

    def __init__(self, n, k, group, mapping="symmetric", dtype=torch.bfloat16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(n, k, generator=generator) * torch.rand(n, 1, generator=generator).exp()
        qdata, scale, zero = int4_quantize(w.to(dtype), group, mapping)
        self.n, self.k, self.group = n, k, group
        self.packed, self.scale = int4_pack(qdata, k), tile_scale(scale)
        self.zero_point = None if mapping == "symmetric" else tile_scale(zero)
        self.exact = int4_dequantize(qdata, scale.double(), zero.double(), group, k, torch.float64)
        # What the sums are made of, before codes and zero points cancel: bounds the rounding of each addend.
        spread = scale.double().repeat_interleave(min(group, k), 1)[:, :k]
        self.addends = 15 * spread + self.exact.abs()

    def __call__(self, x, bias=None):
        return int4_mm(x, self.packed, self.scale, self.zero_point, bias, self.n, self.group)


def check(out, x, weight, bias=None):
    """Sums of k fp32 addends, each rounded, then one rounding to out's dtype.

    With bf16 x of more than ten rows, int4_mm_avx512bf16 may round each weight to bf16 first.
    """
    expected = x.double() @ weight.exact.t()
    rounding = (4 * math.sqrt(weight.k) + 16) * 2.0**-24 * (x.double().abs() @ weight.addends.t())
    if x.dtype == torch.bfloat16 and len(x) > 10 and _C.last_kernel() == "int4_mm_avx512bf16":
        rounding = rounding + 2.0**-8 * (x.double().abs() @ weight.exact.abs().t())
    if bias is not None:
        expected = expected + bias.double()
        rounding = rounding + 2.0**-23 * (expected.abs() + bias.double().abs())
    info = torch.finfo(out.dtype)
    allowed = rounding + info.eps / 2 * (expected.abs() + rounding) + info.tiny
    assert out.dtype == x.dtype and out.shape == expected.shape
    error = (out.double() - expected).abs()
    worst = (error / allowed).max().item() if error.numel() else 0
    assert worst <= 1, f"{worst:.2f} times the rounding that the arithmetic allows"


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
]


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_fp64(isa, shape, mapping):
    weight = Weight(*shape, mapping)
    for dtype in DTYPES:
        for m in (0, 1, 2, 3, 4, 5, 12, 13, 17, 40):
            x = torch.randn(m, weight.k).to(dtype)
            check(weight(x), x, weight)
            assert m == 0 or _C.last_kernel() == _C.kernels("int4_mm")[0]


@pytest.mark.parametrize("m", (1, 3, 33, 64, 300))
def test_many_rows_and_blocks(isa, m):
    if isa == "ref" and m == 300:
        pytest.skip("the reference kernel has no blocks")
    for n, k, group in ((160, 512, 64), (88, 3000, 1000)):
        weight = Weight(n, k, group, "asymmetric")
        x = torch.randn(m, weight.k).bfloat16()
        check(weight(x), x, weight)


@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_dtype", DTYPES, ids=str)
def test_scale_and_bias_of_any_dtype(isa, scale_dtype, bias_dtype):
    weight = Weight(35, 72, 24, "asymmetric", scale_dtype)
    bias = torch.randn(35).to(bias_dtype)
    for m in (1, 20):
        x = torch.randn(m, 72).bfloat16()
        check(weight(x, bias), x, weight, bias)


def test_any_rank_and_stride(isa):
    weight = Weight(24, 64, 32)
    rows = torch.randn(6, 128).bfloat16()
    for x in (rows[0, :64], rows[:, :64], rows[::2, 64:], rows[:, ::2], rows.view(2, 3, 128)[..., 32:96]):
        out = weight(x)
        assert out.shape == (*x.shape[:-1], 24) and out.is_contiguous()
        check(out.reshape(-1, 24), x.reshape(-1, 64), weight)
    columns = torch.randn(64, 9).bfloat16().t()
    check(weight(columns), columns, weight)
    assert torch.equal(weight(rows[:1, :64].expand(5, 64))[4], weight(rows[0, :64]))
    assert weight(torch.empty(2, 0, 64)).shape == (2, 0, 24)


def test_noncontiguous_operands(isa):
    weight = Weight(32, 64, 32, "asymmetric")
    x = torch.randn(3, 64).bfloat16()
    expected = weight(x)

    def spaced(tensor):
        return torch.stack((tensor, tensor), -1)[..., 0]

    bias = torch.zeros(32)
    out = int4_mm(x, spaced(weight.packed), spaced(weight.scale), spaced(weight.zero_point), spaced(bias), 32, 32)
    assert torch.equal(out, expected)


def test_nonfinite_x_stays_in_its_row(isa):
    weight = Weight(40, 64, 32, "asymmetric")
    for m in (3, 20):
        x = torch.randn(m, 64).bfloat16()
        clean = weight(x)
        x[1, 5] = math.inf
        out = weight(x)
        assert not out[1].isfinite().any()
        assert torch.equal(out[torch.arange(m) != 1], clean[torch.arange(m) != 1])


def test_zeros(isa):
    weight = Weight(32, 64, 32)
    assert torch.equal(weight(torch.zeros(2, 64)), torch.zeros(2, 32))
    qdata, scale, _ = int4_quantize(torch.zeros(16, 64), 32, "symmetric")
    assert torch.equal(
        int4_mm(torch.randn(2, 64), int4_pack(qdata, 64), tile_scale(scale), None, None, 16, 32), torch.zeros(2, 16)
    )


def test_every_isa_multiplies_the_same_packed_weight():
    weight = Weight(64, 256, 64, "asymmetric")
    x = torch.randn(7, 256)
    for name in _C.isas():
        _C.set_isa(name)
        check(weight(x), x, weight)


def test_threads_agree(isa):
    weight = Weight(512, 256, 64)
    x = torch.randn(70, 256).bfloat16()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = weight(x)
        torch.set_num_threads(4)
        assert torch.equal(weight(x), alone)
    finally:
        torch.set_num_threads(before)


def test_two_python_threads_at_once(isa):
    weight = Weight(256, 256, 64)
    inputs = [torch.randn(m, 256).bfloat16() for m in (1, 20)]
    expected = [weight(x) for x in inputs]
    wrong = []

    def run(i):
        wrong.extend(i for _ in range(50) if not torch.equal(weight(inputs[i]), expected[i]))

    threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_child(queue, weight, x):
    torch.set_num_threads(1)
    queue.put(weight(x).tolist())


def test_works_after_fork(isa):
    weight = Weight(64, 64, 32)
    x = torch.randn(2, 64)
    expected = weight(x).tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, weight, x))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(0, 40),
    n=st.integers(1, 90),
    k=st.integers(1, 300),
    group=st.integers(1, 20),
    mapping=st.sampled_from(MAPPINGS),
    dtype=st.sampled_from(DTYPES),
    stride=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_any_shape(m, n, k, group, mapping, dtype, stride, seed):
    weight = Weight(n, k, group * 8, mapping, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k * stride, generator=generator).to(dtype)[:, ::stride]
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
        bias=torch.randn(32),
        n=32,
        group_size=32,
    )
    return {**args, **changed}


@pytest.mark.parametrize("isa_name", ["best"])
def test_opcheck(isa_name):
    args = operands()
    torch.library.opcheck(torch.ops.aoq.int4_mm.default, tuple(args.values()))
    args.update(zero_point=None, bias=None, x=torch.randn(2, 1, 64).bfloat16())
    torch.library.opcheck(torch.ops.aoq.int4_mm.default, tuple(args.values()))


@pytest.mark.parametrize(
    "changed, error, text",
    [
        (dict(x=torch.randn(3, 64).double()), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
        (dict(x=torch.ones(3, 64, dtype=torch.int32)), TypeError, "x: .*int32"),
        (dict(x=torch.tensor(1.0)), ValueError, "x: .*scalar"),
        (dict(x=torch.randn(3, 80)), ValueError, r"packed: expected shape \[2, 10, 64\], got \[2, 8, 64\]"),
        (dict(x=torch.randn(3, 0)), ValueError, "x: expected k > 0"),
        (dict(packed=torch.zeros(2, 8, 64, dtype=torch.int8)), TypeError, "packed: expected uint8, got int8"),
        (dict(packed=torch.zeros(2, 8, 32, dtype=torch.uint8)), ValueError, "packed: expected shape"),
        (dict(scale=torch.ones(2, 3, 16)), ValueError, r"scale: expected shape \[2, 2, 16\], got \[2, 3, 16\]"),
        (dict(scale=torch.ones(2, 2, 16, dtype=torch.int32)), TypeError, "scale: .*int32"),
        (
            dict(zero_point=torch.ones(2, 2, 16).half()),
            TypeError,
            "zero_point: expected scale's dtype bfloat16|zero_point: expected scale's dtype float",
        ),
        (dict(zero_point=torch.ones(2, 16).bfloat16()), (ValueError, TypeError), "zero_point"),
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
    with pytest.raises(error, match=text):
        int4_mm(**operands(**changed))


def test_a_huge_group_is_one_group():
    weight = Weight(16, 24, 2**62)
    x = torch.randn(2, 24)
    check(weight(x), x, weight)


def test_tile_scale_round_trip():
    scale = torch.randn(37, 5)
    assert torch.equal(untile_scale(tile_scale(scale), 37), scale)
