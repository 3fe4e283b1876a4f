"""int4_mm against fp64, under every ISA of the machine."""

import pytest
import torch
from packed_mm import GROUPED_SHAPES, PackedMmTests, PackedWeight, check

from aoq import _C
from aoq.ops import int4_dequantize, int4_mm, int4_pack, int4_quantize, tile_scale, untile_scale

BAD_GROUPS = (
    (dict(group_size=0), ValueError, "group_size: expected a multiple of 8"),
    (dict(group_size=12), ValueError, "group_size: expected a multiple of 8, or at least k = 64, got 12"),
    (dict(group_size=-(2**62)), ValueError, "group_size"),
    (dict(zero_point=torch.ones(2, 2, 16).half()), TypeError, "zero_point: expected scale's dtype bfloat16"),
    (dict(zero_point=torch.ones(2, 16).bfloat16()), ValueError, "zero_point: expected shape"),
)


class Int4Parts:
    """Random int4 codes, or `qdata`, of a weight that is quantized with `mapping`.

    parts: the op's operands that they make. exact: the weight's values, fp64. step: the scale of each, fp64.
    """

    def __init__(self, n, k, group, mapping, scale_dtype, seed, qdata):
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(n, k, generator=generator) * torch.rand(n, 1, generator=generator).exp()
        codes, scale, zero = int4_quantize(w.to(scale_dtype), group, mapping)
        qdata = codes if qdata is None else qdata
        zero_point = None if mapping == "symmetric" else tile_scale(zero)
        sizes = dict(n=n, group_size=group)
        self.parts = dict(packed=int4_pack(qdata, k), scale=tile_scale(scale), zero_point=zero_point, **sizes)
        self.exact = int4_dequantize(qdata, scale.double(), zero.double(), group, k, torch.float64)
        self.step = scale.double().repeat_interleave(min(group, k), 1)[:, :k]


class Weight(PackedWeight):
    op = "int4_mm"

    def __init__(self, n, k, group, variant, scale_dtype=torch.bfloat16, seed=0, qdata=None):
        made = Int4Parts(n, k, group, variant, scale_dtype, seed, qdata)
        super().__init__(made.exact, 15 * made.step + made.exact.abs(), **made.parts)

    def product(self, x):
        """With bf16 x of more than ten rows, int4_mm_avx512bf16 may round each weight to bf16 first."""
        expected, rounding = super().product(x)
        if x.dtype == torch.bfloat16 and len(x) > 10 and _C.last_kernel() == "int4_mm_avx512bf16":
            rounding = rounding + 2.0**-8 * (x.double().abs() @ self.exact.abs().t())
        return expected, rounding


class TestInt4Mm(PackedMmTests):
    weight = Weight
    variants = ("asymmetric", "hqq", "symmetric")
    shapes = GROUPED_SHAPES
    blocks = (((160, 512, 64), "asymmetric"), ((88, 3000, 1000), "asymmetric"))
    bad = BAD_GROUPS


def test_a_weight_of_zeros(isa):
    weight = Weight(16, 64, 32, "symmetric")
    qdata, scale, _ = int4_quantize(torch.zeros(16, 64), 32, "symmetric")
    weight.parts |= dict(packed=int4_pack(qdata, 64), scale=tile_scale(scale))
    assert torch.equal(weight(torch.randn(2, 64)), torch.zeros(2, 16))


@pytest.mark.parametrize("group", (2**31, 2**62, 2**63 - 17, 2**63 - 1))
def test_a_huge_group_is_one_group(isa, group):
    """Also where adding to it would wrap around."""
    weight, x = Weight(16, 24, group, "asymmetric"), torch.randn(2, 24)
    check(weight(x), x, weight)
    with pytest.raises(ValueError, match=r"scale: expected shape \[1, 1, 16\], got \[1, 0, 16\]"):
        int4_mm(x, bias=None, **weight.parts | {"scale": torch.empty(1, 0, 16), "zero_point": None})


def test_tile_scale_round_trip():
    scale = torch.randn(37, 5)
    assert torch.equal(untile_scale(tile_scale(scale), 37), scale)
