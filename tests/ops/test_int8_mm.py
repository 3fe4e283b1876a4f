"""int8_mm against fp64 of the integers of x, under every ISA of the machine."""

import torch
from packed_mm import ROW_SHAPES, Int8XTests, Int8XWeight, check

from aoq import _C
from aoq.ops import int8_dequantize, int8_pack, int8_quantize, tile_scale


class Weight(Int8XWeight):
    """variant: the mapping of x; the weight's is symmetric."""

    op = "int8_mm"

    def __init__(self, n, k, group, variant, scale_dtype=torch.bfloat16, seed=0, qdata=None):
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(n, k, generator=generator) * torch.rand(n, 1, generator=generator).exp()
        codes, scale, _ = int8_quantize(w, "symmetric", scale_dtype)
        qdata = codes if qdata is None else qdata
        # Codes are multiplied as code + 128, and 128 * scale * sum(x) is subtracted.
        stored = (qdata.double() + 128 + 128) * scale.double()
        exact = int8_dequantize(qdata, scale, None, torch.float64)
        super().__init__(exact, stored, k, variant, packed=int8_pack(qdata), scale=tile_scale(scale), n=n)


class TestInt8Mm(Int8XTests):
    weight = Weight
    variants = ("asymmetric", "symmetric")
    shapes = ROW_SHAPES
    blocks = (((160, 512, 512), "asymmetric"), ((88, 5000, 5000), "symmetric"))
    extremes = tuple(torch.full((33, 4100), code, dtype=torch.int8) for code in (-128, 127))


def test_long_rows_do_not_overflow(isas):
    weight = Weight(16, 70000, 70000, "symmetric", qdata=torch.full((16, 70000), 127, dtype=torch.int8))
    for name in isas:
        _C.set_isa(name)
        for m in (5, 1):
            x = torch.ones(m, 70000)
            check(weight(x), x, weight)
