"""fp8_weight_mm against fp64, under every ISA of the machine."""

import pytest
import torch
from packed_mm import FP8_DTYPES, ROW_SHAPES, PackedMmTests, PackedWeight

from aoq.ops import fp8_dequantize, fp8_quantize, int8_pack, tile_scale

BAD_DTYPES = (
    (dict(packed=torch.zeros(2, 16, 64).to(torch.float8_e4m3fn)), TypeError, "packed: expected uint8"),
    (dict(w_dtype=torch.int8), TypeError, "w_dtype: expected float8_e4m3fn or float8_e5m2, got int8"),
)


class Weight(PackedWeight):
    """variant: the dtype of the codes."""

    op = "fp8_weight_mm"

    def __init__(self, n, k, group, variant, scale_dtype=torch.float32, seed=0, qdata=None, **options):
        generator = torch.Generator().manual_seed(seed)
        # Wide enough a range for subnormal codes.
        w = torch.randn(n, k, generator=generator) * (torch.randn(n, k, generator=generator) * 3).exp()
        codes, scale = fp8_quantize(w, "row", variant)
        qdata, scale = codes if qdata is None else qdata, scale.to(scale_dtype)
        parts = dict(packed=int8_pack(qdata.view(torch.int8)), scale=tile_scale(scale), n=n, w_dtype=variant)
        super().__init__(fp8_dequantize(qdata, scale, torch.float64), **parts, **options)


class TestFp8WeightMm(PackedMmTests):
    weight = Weight
    variants = FP8_DTYPES
    shapes = ROW_SHAPES
    blocks = (((88, 3000, 3000), torch.float8_e4m3fn),)
    rows = (0, 1, 2, 3, 4, 5, 12, 13, 17, 50)
    bad = BAD_DTYPES


@pytest.mark.parametrize("fp8", FP8_DTYPES, ids=str)
def test_every_code(isa, fp8):
    """Each of the 256, in every place of a unit: rows of the identity pick them out."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(4, 1)
    codes = torch.stack([row.roll(i) for i, row in enumerate(codes)]).view(fp8)
    weight = Weight(4, 256, 256, fp8, qdata=codes)
    # 0 times NaN or infinity is NaN, so only finite codes can be told apart.
    finite = Weight(4, 256, 256, fp8, qdata=torch.where(codes.float().isfinite(), codes.float(), 0).to(fp8))
    for dtype in (torch.bfloat16, torch.float32):
        for m in (1, 60):  # fused, and from a decoded chunk
            for first in range(0, 256, m):
                x = torch.eye(256, dtype=dtype)[first : first + m]
                assert torch.equal(finite(x), finite.exact.t()[first : first + m].to(dtype))
                assert weight(x).isnan().all()
