"""fp8 weights to test matmuls with, and what their arithmetic allows."""

import math

import torch

from aoq.ops import fp8_dequantize, fp8_quantize, int8_pack, tile_scale

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
SHAPES = [  # n, k
    (64, 256),  # whole panels
    (17, 40),
    (33, 200),  # ragged n
    (5, 7),  # odd k, within two units
    (1, 1),
    (40, 1000),  # many chunks, the last one short
    (48, 576),  # a small model's layer
    (31, 130),  # a chunk of 128 and half a unit
    (16, 3),
]


class Fp8Weight:
    """A weight as the ops take it, and its exact values in fp64."""

    def __init__(self, n, k, dtype=torch.float8_e4m3fn, scale_dtype=torch.float32, seed=0, qdata=None):
        generator = torch.Generator().manual_seed(seed)
        # Wide enough a range for subnormal codes.
        w = torch.randn(n, k, generator=generator) * (torch.randn(n, k, generator=generator) * 3).exp()
        codes, scale = fp8_quantize(w, "row", dtype)
        qdata, scale = codes if qdata is None else qdata, scale.to(scale_dtype)
        self.n, self.k, self.dtype = n, k, dtype
        self.packed, self.scale = int8_pack(qdata.view(torch.int8)), tile_scale(scale)
        self.exact = fp8_dequantize(qdata, scale, torch.float64)


def check(out, x, values, weight, bias=None):
    """`values`, what x becomes in fp64, times the weight: sums of k fp32 addends, each rounded, then out's rounding."""
    expected = values @ weight.exact.t()
    rounding = (4 * math.sqrt(weight.k) + 16) * 2.0**-24 * (values.abs() @ weight.exact.abs().t())
    if bias is not None:
        expected = expected + bias.double()
        rounding = rounding + 2.0**-23 * (expected.abs() + bias.double().abs())
    info = torch.finfo(out.dtype)
    allowed = rounding + info.eps / 2 * (expected.abs() + rounding) + info.tiny
    assert out.dtype == x.dtype and out.shape == expected.shape
    inside = expected.abs() < info.max / 2  # fp16 overflows
    error = (out.double() - expected).abs()[inside]
    worst = (error / allowed[inside]).max().item() if error.numel() else 0
    assert worst <= 1, f"{worst:.2f} times the rounding that the arithmetic allows"
