"""fp8_mm against fp64 of the fp8 codes of x, under every ISA of the machine. Its kernels are fp8_weight_mm's."""

import itertools

import torch
from packed_mm import FP8_DTYPES, ROW_SHAPES, PackedMmTests, check
from test_fp8_weight_mm import BAD_DTYPES
from test_fp8_weight_mm import Weight as Fp8Weight

from aoq.ops import fp8_quantize


class Weight(Fp8Weight):
    """variant: the dtype of its codes, that of x's, and how many rows of x share a scale."""

    op = "fp8_mm"

    def __init__(self, n, k, group, variant, lb=None, ub=None, **options):
        dtype, x_dtype, granularity = variant
        self.x_options = dict(x_dtype=x_dtype, granularity=granularity, lb=lb, ub=ub)
        super().__init__(n, k, group, dtype, **options, **self.x_options)

    def x_exact(self, x):
        """Its codes are those of `fp8_quantize`, which has its own tests."""
        if x.numel() == 0:
            return x.double()
        codes, scale = fp8_quantize(x, *(self.x_options[name] for name in ("granularity", "x_dtype", "lb", "ub")))
        return codes.double() * scale.double()


class TestFp8Mm(PackedMmTests):
    weight = Weight
    variants = tuple(itertools.product(FP8_DTYPES, FP8_DTYPES, ("row", "tensor")))
    shapes = ROW_SHAPES
    blocks = (((88, 3000, 3000), variants[0]),)
    rows = (0, 1, 3, 12, 17, 50)
    quantizes_x = True
    bad = (
        *BAD_DTYPES,
        (dict(x_dtype=torch.int8), TypeError, "x_dtype: expected float8_e4m3fn or float8_e5m2, got int8"),
        (dict(granularity="block"), ValueError, "granularity: expected row or tensor, got block"),
        (dict(lb=2.0, ub=1.0), ValueError, "lb: expected 0 <= lb <= ub, got lb 2 and ub 1"),
    )

    @staticmethod
    def mixes_rows(variant):
        return variant[-1] == "tensor"


def test_bounds(isa):
    x = torch.randn(5, 64)
    for dtype in FP8_DTYPES:
        for lb, ub in ((5.0, None), (None, 1.0), (0.5, 2.0)):
            weight = Weight(24, 64, 64, (torch.float8_e4m3fn, dtype, "row"), lb, ub)
            check(weight(x), x, weight)
