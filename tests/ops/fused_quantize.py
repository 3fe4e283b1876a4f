"""What every op must do that computes rows and quantizes them: `class TestMyQuantize(FusedQuantizeTests)`."""

import pytest
import torch

from aoq import _C

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FORMATS = ((torch.int8, "symmetric"), (torch.int8, "asymmetric"), (E4M3, "symmetric"), (E5M2, "symmetric"))
SHAPES = [(16, 64), (17, 40), (3, 7), (1, 1), (5, 1001), (2, 3, 15), (64,), (3, 2048), (2, 5000), (0, 8), (2, 0, 16)]
ORDER = [2 * (p // 4) + p % 4 // 2 + 8 * (p % 2) for p in range(16)]


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


def check_codes(qdata, scale, zero_point, values):
    """A code is within half a step of values / scale, give or take what fp32 leaves of values, fp64."""
    codes, scale = qdata.double(), scale.double()
    if qdata.dtype == torch.int8:
        zero = zero_point.double() if zero_point.shape[-1] else 0
        wanted = (values / scale + zero).clamp(-128, 127)
        step = torch.ones_like(wanted)
        # The end of the range falls on a tie, and an asymmetric zero point is rounded too.
    else:
        info = torch.finfo(qdata.dtype)
        wanted = (values / scale).clamp(-info.max, info.max)
        step = torch.maximum(wanted.abs() * info.eps, torch.tensor(info.tiny * info.eps, dtype=torch.float64))
    assert ((codes - wanted).abs() <= step / 2 + 1e-5 * (wanted.abs() + 1)).all()


class FusedQuantizeTests:
    """Sets `operands(shape, dtype, seed)`, `op(*operands, dtype, mapping, sum_group, permute)` and `values(*operands)`:
    fp64."""

    @pytest.mark.parametrize("format", FORMATS, ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_matches_fp64(self, isa, shape, format):
        for dtype in DTYPES:
            operands = self.operands(shape, dtype, 0)
            qdata, scale, zero_point, group_sum, *_ = self.op(*operands, *format)
            values = self.values(*operands)
            assert qdata.shape == values.shape and qdata.dtype == format[0] and scale.dtype == torch.float32
            assert scale.shape == (*values.shape[:-1], 1) and group_sum.shape == (*values.shape[:-1], 0)
            assert zero_point.shape == (*values.shape[:-1], int(format[1] == "asymmetric"))
            check_codes(qdata, scale, zero_point, values)

    def test_the_reference(self):
        for format in FORMATS:
            operands = self.operands((5, 72), torch.bfloat16, 0)
            parts = self.reference(*operands, *format, 24, True)
            got = self.op(*operands, *format, 24, True)
            assert [(a.shape, a.dtype) for a in parts] == [(b.shape, b.dtype) for b in got]
            plain = self.reference(*operands, *format)
            check_codes(*plain[:3], self.values(*operands))

    def test_every_isa_gives_the_same_bits(self, isas):
        for shape in SHAPES:
            for format in FORMATS:
                for dtype in DTYPES:
                    operands = self.operands(shape, dtype, 1)
                    each = []
                    for name in isas:
                        _C.set_isa(name)
                        each.append(self.op(*operands, *format, 16, True))
                    assert all(same(parts, each[0]) for parts in each)

    @pytest.mark.parametrize("k", (1, 15, 16, 40, 130))
    @pytest.mark.parametrize("format", FORMATS, ids=str)
    def test_sums_and_order(self, isa, k, format):
        operands = self.operands((3, k), torch.bfloat16, 0)
        plain = self.op(*operands, *format)[0]
        for group in (1, 16, 24, 10**12):
            qdata, _, _, sums, *_ = self.op(*operands, *format, group, True)
            rows = torch.zeros(3, -(-k // 16) * 16).to(format[0])
            rows.view(torch.uint8)[:, :k] = plain.view(torch.uint8)
            sixteens = rows.view(torch.uint8).unflatten(-1, (-1, 16))[..., ORDER]
            assert torch.equal(qdata.view(torch.uint8), sixteens.flatten(-2))
            pieces = plain.double().split(min(group, k), -1)
            assert torch.equal(sums, torch.stack([piece.sum(-1) for piece in pieces], -1).float())

    def test_nonfinite_x_stays_in_its_row(self, isa):
        for bad in (float("nan"), float("inf"), -float("inf")):
            for format in FORMATS:
                operands = self.operands((3, 40), torch.float32, 0)
                clean = self.op(*operands, *format)
                operands[0][1, 7] = bad
                got = self.op(*operands, *format)
                assert got[1][1].isnan().all()
                assert same([part[::2].clone() for part in got], [part[::2].clone() for part in clean])

    def test_zeros_give_zeros(self, isa):
        for format in FORMATS:
            first, *others = self.operands((2, 40), torch.bfloat16, 0)
            zeros = [other * 0 if isinstance(other, torch.Tensor) and other.dim() == 2 else other for other in others]
            qdata, scale, zero_point, *_ = self.op(first * 0, *zeros, *format)
            zero = zero_point if zero_point.shape[-1] else 0
            assert (scale > 0).all() and not ((qdata.float() - zero) * scale).any()

    def test_strides(self, isa):
        first, *others = self.operands((6, 64), torch.bfloat16, 0)
        expected = self.op(first, *others, torch.int8)

        def spaced(x):
            return torch.stack((x, x), -1)[..., 0] if isinstance(x, torch.Tensor) else x

        def wide(x):
            return torch.cat((x, x), -1)[..., : x.shape[-1]] if isinstance(x, torch.Tensor) and x.dim() == 2 else x

        for view in (spaced, wide):
            assert same(self.op(view(first), *map(view, others), torch.int8), expected)

    def test_threads_agree(self, isa):
        operands = self.operands((300, 500), torch.bfloat16, 0)
        torch.set_num_threads(1)
        alone = self.op(*operands, E4M3)
        torch.set_num_threads(4)
        assert same(self.op(*operands, E4M3), alone)
