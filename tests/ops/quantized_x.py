"""What every matmul that quantizes x to int8 must do, whatever its weight: `class TestMyMm(QuantizedXTests)`."""

import math
import multiprocessing
import threading

import pytest
import torch

from aoq import _C
from aoq.ops import int8_quantize

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class QuantizedWeight:
    """A weight as an op takes it, and its exact values in fp64. A subclass sets these and calls its op.

    n, k, group, mapping: of x; what its name says.
    exact: [n, k] fp64.
    addends: [n, k] fp64, bounds what a unit of x adds to a sum before zero points and offsets cancel.
    w_sum: fp32 [n] or None.
    """

    def __init__(self, n, k, group, mapping):
        self.n, self.k, self.group, self.mapping = n, k, group, mapping

    def set_exact(self, exact, addends):
        self.exact, self.addends = exact, addends
        self.w_sum = exact.sum(1).float() if self.mapping == "asymmetric" else None


def check(out, x, weight, bias=None):
    """Exact integer sums of each chunk of k; then fp32: chunks and zero points added up, scaled; out's rounding.

    The integers of x are those of `int8_quantize`, which has its own tests.
    """
    codes, x_scale, x_zero = (part.double() for part in int8_quantize(x, weight.mapping))
    x_zero = x_zero if x_zero.shape[-1] else torch.zeros_like(x_scale)
    expected = (codes - x_zero) @ weight.exact.t() * x_scale
    groups = -(-weight.k // weight.group)
    sums = groups * (1 + -(-min(weight.group, weight.k) // 128))  # a zero point and the chunks, for each group
    shifts = x_zero.abs() * weight.exact.sum(1).abs()
    rounding = (2 * math.sqrt(sums) + 8) * 2.0**-24 * (codes.abs() @ weight.addends.t() + shifts) * x_scale
    if bias is not None:
        expected = expected + bias.double()
        rounding = rounding + 2.0**-23 * (expected.abs() + bias.double().abs())
    info = torch.finfo(out.dtype)
    allowed = rounding + info.eps / 2 * (expected.abs() + rounding) + info.tiny
    assert out.dtype == x.dtype and out.shape == expected.shape
    error = (out.double() - expected).abs()
    worst = (error / allowed).max().item() if error.numel() else 0
    assert worst <= 1, f"{worst:.2f} times the rounding that the arithmetic allows"


def _in_child(queue, weight, x):
    torch.set_num_threads(1)
    queue.put(weight(x).tolist())


class QuantizedXTests:
    """Sets `op`, `reference` and `weight(n, k, group, mapping, scale_dtype=...)`."""

    op: str

    @pytest.mark.parametrize("mapping", ("symmetric", "asymmetric"))
    def test_scale_and_bias_of_any_dtype(self, isa, mapping):
        for scale_dtype in DTYPES:
            weight = self.weight(35, 72, 24, mapping, scale_dtype)
            for bias_dtype in DTYPES:
                bias = torch.randn(35).to(bias_dtype)
                for m in (1, 20):
                    x = torch.randn(m, 72).bfloat16()
                    check(weight(x, bias), x, weight, bias)

    @pytest.mark.parametrize("m", (1, 3, 33, 64, 300))
    def test_many_rows_and_blocks(self, isa, m):
        if isa == "ref" and m == 300:
            pytest.skip("the reference kernel has no blocks")
        for mapping, n, k, group in (("asymmetric", 160, 512, 64), ("symmetric", 88, 5000, 1000)):
            weight = self.weight(n, k, group, mapping)
            x = torch.randn(m, weight.k).bfloat16()
            check(weight(x), x, weight)

    def test_the_reference(self):
        for mapping in ("symmetric", "asymmetric"):
            weight, x, bias = self.weight(40, 72, 24, mapping), torch.randn(5, 72), torch.randn(40)
            check(self.reference(weight, x, bias), x, weight, bias)
            check(self.reference(weight, x[0], None), x[0], weight)

    def test_any_rank_and_stride(self, isa):
        weight = self.weight(24, 64, 32, "asymmetric")
        rows = torch.randn(6, 128).bfloat16()
        for x in (rows[0, :64], rows[:, :64], rows[::2, 64:], rows[:, ::2], rows.view(2, 3, 128)[..., 32:96]):
            out = weight(x)
            assert out.shape == (*x.shape[:-1], 24) and out.is_contiguous()
            check(out.reshape(-1, 24), x.reshape(-1, 64), weight)
        columns = torch.randn(64, 9).bfloat16().t()
        check(weight(columns), columns, weight)
        assert torch.equal(weight(rows[:1, :64].expand(5, 64))[4], weight(rows[0, :64]))
        assert weight(torch.empty(2, 0, 64)).shape == (2, 0, 24)

    def test_noncontiguous_operands(self, isa):
        weight, x, bias = self.weight(32, 64, 32, "asymmetric"), torch.randn(3, 64).bfloat16(), torch.zeros(32)
        expected = weight(x, bias)
        for name in ("packed", "scale", "zero_point", "w_sum"):
            part = getattr(weight, name, None)
            if part is not None:
                setattr(weight, name, torch.stack((part, part), -1)[..., 0])
        assert torch.equal(weight(x, torch.stack((bias, bias), -1)[..., 0]), expected)

    @pytest.mark.parametrize("mapping", ("symmetric", "asymmetric"))
    @pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
    def test_nonfinite_x_stays_in_its_row(self, isa, mapping, bad):
        weight = self.weight(40, 64, 32, mapping)
        for m in (3, 20):
            x = torch.randn(m, 64).bfloat16()
            clean = weight(x)
            x[1, 5] = bad
            out = weight(x)
            assert out[1].isnan().all()
            assert torch.equal(out[torch.arange(m) != 1], clean[torch.arange(m) != 1])

    def test_zeros_and_constants(self, isa):
        for mapping in ("symmetric", "asymmetric"):
            weight = self.weight(32, 64, 32, mapping)
            assert torch.equal(weight(torch.zeros(2, 64)), torch.zeros(2, 32))
            for value in (-3.0, 0.5, 2.0**-40):
                x = torch.full((6, 64), value)
                check(weight(x), x, weight)

    def test_every_isa_multiplies_the_same_packed_weight(self):
        weight, x = self.weight(64, 256, 64, "asymmetric"), torch.randn(7, 256)
        for name in _C.isas():
            _C.set_isa(name)
            check(weight(x), x, weight)

    def test_threads_agree(self, isa):
        weight, x = self.weight(512, 256, 64, "asymmetric"), torch.randn(70, 256).bfloat16()
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            alone = weight(x)
            torch.set_num_threads(4)
            assert torch.equal(weight(x), alone)
        finally:
            torch.set_num_threads(before)

    def test_two_python_threads_at_once(self, isa):
        weight = self.weight(256, 256, 64, "asymmetric")
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
        weight, x = self.weight(64, 64, 32, "asymmetric"), torch.randn(2, 64)
        expected = weight(x).tolist()
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_in_child, args=(queue, weight, x))
        child.start()
        assert queue.get(timeout=60) == expected
        child.join()

    @pytest.mark.parametrize("mapping", ("symmetric", "asymmetric"))
    def test_gradients_pass_straight_through(self, mapping):
        weight = self.weight(24, 64, 32, mapping)
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
