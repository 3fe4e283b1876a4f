"""int8_int4_mm against fp64 of the integers of x, under every ISA of the machine."""

import itertools

import torch
from packed_mm import GROUPED_SHAPES, Int8XTests, Int8XWeight, check
from test_int4_mm import BAD_GROUPS, Int4Parts


class Weight(Int8XWeight):
    """variant: the weight's mapping, then that of x."""

    op = "int8_int4_mm"

    def __init__(self, n, k, group, variant, scale_dtype=torch.bfloat16, seed=0, qdata=None):
        mapping, x_mapping = variant
        made = Int4Parts(n, k, group, mapping, scale_dtype, seed, qdata)
        # Codes are multiplied as they are stored, and zero_point * scale * sum(x) is subtracted.
        super().__init__(made.exact, 2 * 15 * made.step + made.exact.abs(), group, x_mapping, **made.parts)


class TestInt8Int4Mm(Int8XTests):
    weight = Weight
    variants = tuple(itertools.product(("asymmetric", "hqq", "symmetric"), ("asymmetric", "symmetric")))
    shapes = GROUPED_SHAPES
    blocks = (((160, 512, 64), variants[0]), ((88, 5000, 1000), ("asymmetric", "symmetric")))
    extremes = tuple(torch.full((33, 2050), code * 17, dtype=torch.uint8) for code in (0, 15))
    bad = Int8XTests.bad + BAD_GROUPS


def test_a_huge_group_is_one_group():
    weight, x = Weight(16, 24, 2**62, ("asymmetric", "symmetric")), torch.randn(2, 24)
    check(weight(x), x, weight)
