"""int8_weight_mm against fp64, under every ISA of the machine."""

import torch
from packed_mm import ROW_SHAPES, PackedMmTests, PackedWeight

from aoq.ops import int8_dequantize, int8_pack, tile_scale


class Weight(PackedWeight):
    op = "int8_weight_mm"

    def __init__(self, n, k, group, variant, scale_dtype=torch.float32, seed=0, qdata=None):
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator) if qdata is None else qdata
        scale = (torch.rand(n, 1, generator=generator) + 0.1).to(scale_dtype)
        exact = int8_dequantize(codes, scale, None, torch.float64)
        super().__init__(exact, packed=int8_pack(codes), scale=tile_scale(scale), n=n)


class TestInt8WeightMm(PackedMmTests):
    weight = Weight
    variants = ("symmetric",)
    shapes = ROW_SHAPES
    blocks = (((88, 3000, 3000), "symmetric"),)
    rows = (0, 1, 2, 3, 4, 5, 12, 13, 17, 50)


def test_every_code(isa):
    """Each of the 256, in every place of a unit: rows of the identity pick them out."""
    codes = torch.arange(-128, 128, dtype=torch.int8).repeat(4, 1)
    codes = torch.stack([row.roll(i) for i, row in enumerate(codes)])
    weight = Weight(4, 256, 256, "symmetric", qdata=codes)
    weight.parts["scale"] = tile_scale(torch.ones(4, 1))
    for dtype in (torch.bfloat16, torch.float32):
        for m in (1, 60):  # fused, and from a decoded chunk
            for first in range(0, 256, m):
                x = torch.eye(256, dtype=dtype)[first : first + m]
                assert torch.equal(weight(x), codes.t()[first : first + m].to(dtype))
