"""What every matmul with a packed weight must do: a `PackedWeight` for its op and `class TestMyMm(PackedMmTests)`."""

import math
import multiprocessing
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aoq.ops
from aoq import _C
from aoq.ops import int8_quantize
from rounding import check_rounding

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)

GROUPED_SHAPES = [  # n, k, group
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
ROW_SHAPES = [  # the same of weights with a scale per row
    (64, 256, 256),  # whole panels
    (17, 40, 40),
    (33, 200, 200),  # ragged n
    (5, 7, 7),  # odd k, within two units
    (1, 1, 1),
    (40, 1000, 1000),  # many chunks, the last one short
    (48, 576, 576),  # a small model's layer
    (31, 130, 130),  # a chunk of 128 and half a unit
    (16, 3, 3),
]


class PackedWeight:
    """A weight as an op takes it, and its exact values.

    A subclass sets `op`, the op's name, and is made from (n, k, group, variant, scale_dtype=, seed=, qdata=), where
    codes are random but for a `qdata`.

    exact: fp64 [n, k].
    addends: fp64 [n, k], bounds what a unit of x adds to a sum before codes, zero points and offsets cancel.
    parts: the op's operands but x and bias, by name.
    """

    op: str
    kernels_of = None  # the op whose name its kernels have, if not op
    unit_bytes = 64

    def __init__(self, exact, addends=None, **parts):
        self.exact, self.addends, self.parts = exact, exact.abs() if addends is None else addends, parts
        self.n, self.k = exact.shape

    def __call__(self, x, bias=None):
        return getattr(aoq.ops, self.op)(x, bias=bias, **self.parts)

    def reference(self, x, bias=None):
        return getattr(aoq.ops, f"{self.op}_reference")(x, bias=bias, **self.parts)

    def x_exact(self, x):
        """What x is multiplied as, fp64."""
        return x.double()

    def product(self, x):
        """x @ w.T in fp64, and its allowed error: sums of k fp32 addends, each rounded."""
        x = self.x_exact(x)
        return x @ self.exact.t(), (4 * math.sqrt(self.k) + 16) * 2.0**-24 * (x.abs() @ self.addends.t())


class Int8XWeight(PackedWeight):
    """Of an op that quantizes x to int8, as `mapping` says."""

    def __init__(self, exact, addends, group, mapping, **parts):
        self.group, self.mapping = group, mapping
        super().__init__(exact, addends, w_sum=exact.sum(1).float() if mapping == "asymmetric" else None, **parts)

    def product(self, x):
        """Sums of each chunk of k are exact integers; chunks and zero points are added up in fp32, then scaled.

        The integers of x are those of `int8_quantize`, which has its own tests.
        """
        codes, x_scale, x_zero = (part.double() for part in int8_quantize(x, self.mapping))
        x_zero = x_zero if x_zero.shape[-1] else torch.zeros_like(x_scale)
        groups = -(-self.k // self.group)
        sums = groups * (1 + -(-min(self.group, self.k) // 128))  # a zero point and the chunks, for each group
        shifts = x_zero.abs() * self.exact.sum(1).abs()
        rounding = (2 * math.sqrt(sums) + 8) * 2.0**-24 * (codes.abs() @ self.addends.t() + shifts) * x_scale
        return (codes - x_zero) @ self.exact.t() * x_scale, rounding


def check(out, x, weight, bias=None):
    """The op's own roundings, that of the bias, then out's."""
    expected, rounding = weight.product(x)
    assert out.dtype == x.dtype
    check_rounding(out, expected, rounding, bias, overflows=True)


def _in_child(queue, weight, x):
    torch.set_num_threads(1)
    queue.put(weight(x).tolist())


class PackedMmTests:
    """A subclass says what its op is tested on.

    weight: the subclass of `PackedWeight`.
    variants: what its constructor takes as `variant`; the first has every optional operand, the last has none.
    shapes: n, k and group for `test_matches_fp64`. blocks: (n, k, group), variant for many rows.
    rows: of x. bad: (changed operands, error, text) besides those that all ops refuse.
    quantizes_x: whether it does. mixes_rows: whether a variant does that for all rows at once.
    """

    weight: type[PackedWeight]
    rows = (0, 1, 2, 3, 4, 5, 12, 13, 17, 40)
    bad = ()
    quantizes_x = False

    @staticmethod
    def mixes_rows(variant):
        return False

    def sample(self, n, k, group):
        return self.weight(n, k, group, self.variants[0])

    def test_matches_fp64(self, isa, shape, variant):
        weight = self.weight(*shape, variant)
        for dtype in DTYPES:
            for m in self.rows:
                x = torch.randn(m, weight.k).to(dtype)
                out = weight(x)
                assert m == 0 or _C.last_kernel() == _C.kernel(weight.kernels_of or weight.op, m, str(dtype)[6:])
                check(out, x, weight)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        data=st.data(),
        m=st.integers(0, 60),
        n=st.integers(1, 90),
        k=st.integers(1, 300),
        group=st.integers(1, 20),
        dtype=st.sampled_from(DTYPES),
        stride=st.integers(1, 3),
        shift=st.sampled_from((-3, 0, 3)),
        seed=st.integers(0, 2**20),
    )
    def test_any_shape(self, isas, data, m, n, k, group, dtype, stride, shift, seed):
        weight = self.weight(n, k, 8 * group, data.draw(st.sampled_from(self.variants)), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(m, k * stride, generator=generator) + shift).to(dtype)[:, ::stride]
        for name in isas:
            _C.set_isa(name)
            check(weight(x), x, weight)

    @pytest.mark.parametrize("m", (1, 3, 33, 64, 300))
    def test_many_rows_and_blocks(self, isa, m):
        if isa == "ref" and m == 300:
            pytest.skip("the reference kernel has no blocks")
        for shape, variant in self.blocks:
            weight = self.weight(*shape, variant)
            x, bias = torch.randn(m, weight.k).bfloat16(), torch.randn(weight.n)
            check(weight(x, bias), x, weight, bias)

    def test_rows_so_long_that_they_come_in_pieces(self, isa, variant):
        if isa == "ref":
            pytest.skip("the reference kernel has no pieces")
        for group in (96, 16_504):  # groups that pieces cut
            weight, x = self.weight(40, 16_500, group, variant), torch.randn(136, 16_500).bfloat16()
            check(weight(x), x, weight)

    def test_blocks_and_runs_of_panels_in_pieces(self, isa):
        if isa == "ref":
            pytest.skip("the reference kernel has no pieces")
        weight, x = self.sample(296, 4_200, 96), torch.randn(272, 4_200).bfloat16()
        check(weight(x), x, weight)

    def test_scale_and_bias_of_any_dtype(self, isa, variant):
        for scale_dtype in DTYPES:
            weight = self.weight(35, 72, 24, variant, scale_dtype=scale_dtype)
            for bias_dtype in DTYPES:
                bias = torch.randn(35).to(bias_dtype)
                for m in (1, 20):
                    x = torch.randn(m, 72).bfloat16()
                    check(weight(x, bias), x, weight, bias)

    def test_the_reference(self, variant):
        weight, x, bias = self.weight(40, 72, 24, variant), torch.randn(5, 72), torch.randn(40)
        check(weight.reference(x, bias), x, weight, bias)
        check(weight.reference(x[0]), x[0], weight)

    def test_any_rank_and_stride(self, isa):
        weight = self.sample(24, 64, 32)
        rows = torch.randn(6, 128).bfloat16()
        for x in (rows[0, :64], rows[:, :64], rows[::2, 64:], rows[:, ::2], rows.view(2, 3, 128)[..., 32:96]):
            out = weight(x)
            assert out.shape == (*x.shape[:-1], 24) and out.is_contiguous()
            check(out.reshape(-1, 24), x.reshape(-1, 64), weight)
        columns = torch.randn(64, 9).bfloat16().t()
        check(weight(columns), columns, weight)
        assert torch.equal(weight(rows[:1, :64].expand(5, 64))[4], weight(rows[0, :64]))
        for variant in self.variants:
            assert self.weight(24, 64, 32, variant)(torch.empty(2, 0, 64)).shape == (2, 0, 24)

    def test_noncontiguous_operands(self, isa):
        def spaced(part):
            return torch.stack((part, part), -1)[..., 0] if isinstance(part, torch.Tensor) else part

        weight, x, bias = self.sample(32, 64, 32), torch.randn(3, 64).bfloat16(), torch.randn(32)
        expected = weight(x, bias)
        weight.parts = {name: spaced(part) for name, part in weight.parts.items()}
        assert torch.equal(weight(x, spaced(bias)), expected)

    @pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
    def test_nonfinite_x_stays_in_its_row(self, isa, variant, bad):
        weight = self.weight(40, 64, 32, variant)
        for m in (3, 20, 60):
            x = torch.randn(m, 64).bfloat16()
            clean = weight(x)
            x[1, 5] = bad
            out, others = weight(x), torch.arange(m) != 1
            if self.mixes_rows(variant):
                assert out.isnan().all()
                continue
            assert (out[1].isnan() if self.quantizes_x else ~out[1].isfinite()).all()
            assert torch.equal(out[others], clean[others])

    def test_zeros_and_constants(self, isa, variant):
        weight = self.weight(32, 64, 32, variant)
        assert torch.equal(weight(torch.zeros(2, 64)), torch.zeros(2, 32))
        for value in (-3.0, 0.5, 2.0**-40):
            x = torch.full((6, 64), value)
            check(weight(x), x, weight)

    def test_every_isa_multiplies_the_same_packed_weight(self, isas):
        weight, x = self.sample(64, 256, 64), torch.randn(7, 256)
        for name in isas:
            _C.set_isa(name)
            check(weight(x), x, weight)

    def test_threads_agree(self, isa):
        weight, x = self.sample(512, 256, 64), torch.randn(70, 256).bfloat16()
        torch.set_num_threads(1)
        alone = weight(x)
        torch.set_num_threads(4)
        assert torch.equal(weight(x), alone)

    def test_two_python_threads_at_once(self, isa):
        weight = self.sample(256, 256, 64)
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

    def test_works_after_fork(self, isa):
        weight, x = self.sample(64, 64, 32), torch.randn(2, 64)
        expected = weight(x).tolist()
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_in_child, args=(queue, weight, x))
        child.start()
        assert queue.get(timeout=60) == expected
        child.join()

    def test_gradients_pass_straight_through(self, variant):
        weight = self.weight(24, 64, 32, variant)
        x, bias = torch.randn(2, 3, 64, requires_grad=True), torch.randn(24, requires_grad=True)
        out = weight(x, bias)
        assert torch.equal(out, weight(x.detach(), bias.detach()))
        grad = torch.randn_like(out)
        out.backward(grad)
        torch.testing.assert_close(x.grad, grad @ weight.exact.float())
        torch.testing.assert_close(bias.grad, grad.sum((0, 1)))
        (slope,) = torch.autograd.grad(weight(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()

    def test_opcheck(self):
        x = torch.randn(2, 3, 64)
        for variant, bias in ((self.variants[0], torch.randn(32)), (self.variants[-1], None)):
            weight = self.weight(32, 64, 32, variant)
            for rows in (x, x[:, :1].bfloat16()):
                torch.library.opcheck(
                    getattr(torch.ops.aoq, weight.op).default, (rows,), {"bias": bias, **weight.parts}
                )

    def test_bad_operands_are_named(self):
        weight, x, bias = self.sample(32, 64, 32), torch.randn(3, 64), torch.randn(32)
        packed, scale = weight.parts["packed"], weight.parts["scale"]
        (_, units, _), (_, groups, _) = packed.shape, scale.shape
        for changed, error, text in (
            (dict(x=x.double()), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
            (dict(x=x.int()), TypeError, "x: .*int32"),
            (dict(x=x.char()), TypeError, "x: .*int8"),
            (dict(x=torch.tensor(1.0)), ValueError, "x: .*scalar"),
            (
                dict(x=torch.randn(3, 80)),
                ValueError,
                rf"packed: expected shape \[2, {-(-units * 80 // 64)}, {weight.unit_bytes}\], got \[2, {units}, ",
            ),
            (dict(x=x[:, :0]), ValueError, "x: expected k > 0|group_size"),
            (dict(x=x.to("meta")), ValueError, "packed: expected the device of x, meta, got cpu"),
            (dict(packed=packed.view(torch.int8)), TypeError, "packed: expected uint8, got int8"),
            (dict(packed=packed[:, 1:]), ValueError, "packed: expected shape"),
            (dict(packed=packed[..., :32]), ValueError, "packed: expected shape"),
            (
                dict(scale=torch.ones(2, groups + 1, 16)),
                ValueError,
                rf"scale: expected shape \[2, {groups}, 16\], got \[2, {groups + 1}, 16\]",
            ),
            (dict(scale=scale.int()), TypeError, "scale: .*int32"),
            (dict(bias=bias[1:]), ValueError, r"bias: expected shape \[32\], got \[31\]"),
            (dict(bias=bias.long()), TypeError, "bias: .*int64"),
            (dict(bias=bias.to("meta")), ValueError, "bias: expected the device of x, cpu, got meta"),
            (dict(n=0), ValueError, "n: expected at least 1"),
            (dict(n=33), ValueError, "packed: expected shape"),
            *self.bad,
        ):
            with pytest.raises(error, match=f"aoq::{weight.op}: ({text})"):
                getattr(aoq.ops, weight.op)(**({"x": x, "bias": bias} | weight.parts | changed))


class Int8XTests(PackedMmTests):
    """Of an op that quantizes x to int8. extremes: codes [33, 4100] that make products as large as they get."""

    quantizes_x = True
    bad = (
        (dict(w_sum=torch.randn(31)), ValueError, r"w_sum: expected shape \[32\], got \[31\]"),
        (dict(w_sum=torch.randn(2, 16)), ValueError, r"w_sum: expected shape \[32\], got \[2, 16\]"),
        (dict(w_sum=torch.randn(32).bfloat16()), TypeError, "w_sum: expected float32, got bfloat16"),
        (dict(w_sum=torch.randn(32).to("meta")), ValueError, "w_sum: expected the device of x, cpu, got meta"),
    )

    def test_extreme_codes(self, isa, variant):
        """Nothing saturates."""
        for codes in self.extremes:
            weight = self.weight(33, 4100, 4100, variant, qdata=codes)
            for m in (1, 3, 17):
                for x in (torch.ones(m, 4100), -torch.ones(m, 4100), torch.tensor([1.0, -1]).repeat(m, 2050)):
                    check(weight(x), x, weight)
