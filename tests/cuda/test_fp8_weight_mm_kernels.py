"""The CUDA kernel of fp8_weight_mm, thread by thread, against fp64: both formats, every plan, ragged edges."""

import math

import pytest
import torch
from kernel_args import DTYPES, Int4MmCuda, PackedMm
from plan_library import Shape, skinny_plan, skinny_workspace

from aoq.ops import int8_pack_reference, tile_scale

CUDA = torch.device("cuda")
KERNEL = "fp8_weight_mm_sm80"
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def run(simt_kernel, x, codes, scale, bias=None, log_warps_k=0, log_split=0, chunk=None):
    (m, k), n = x.shape, codes.shape[0]
    f32 = x.dtype == torch.float32
    shape = Shape(m=(3 if f32 else 1) * m, n=n, k=k, group=k, x_bytes=2)
    plan = skinny_plan(shape, log_warps_k, log_split, chunk)
    packed, tiled = int8_pack_reference(codes.view(torch.int8), CUDA).contiguous(), tile_scale(scale)
    out = torch.full((m, n), math.nan, dtype=x.dtype)
    workspace = torch.full((skinny_workspace(Shape(m=m, n=n, k=k), log_split, False, f32),), math.nan)
    mm = PackedMm(
        **dict(m=m, n=n, k=k, group=k, x=x, x_dtype=DTYPES[x.dtype], x_stride=x.stride(0), packed=packed, scale=tiled),
        **dict(scale_dtype=DTYPES[scale.dtype], bias=bias, bias_dtype=0 if bias is None else DTYPES[bias.dtype]),
        **dict(out=out, out_dtype=DTYPES[out.dtype], w_e5m2=codes.dtype == E5M2),
    )
    simt_kernel(KERNEL, Int4MmCuda)(mm=mm, plan=plan, workspace=workspace)
    return out


def check(out, x, codes, scale, bias=None):
    """Products are exact; their fp32 sum and its scaling are rounded, then the result once to its dtype."""
    w = codes.double() * scale.double()
    expected = x.double() @ w.t()
    rounding = (4 * math.sqrt(x.shape[1]) + 16) * 2.0**-24 * (x.double().abs() @ w.abs().t())
    if bias is not None:
        expected = expected + bias.double()
        rounding = rounding + 2.0**-23 * (expected.abs() + bias.double().abs())
    info = torch.finfo(out.dtype)
    allowed = rounding + info.eps / 2 * (expected.abs() + rounding) + info.tiny
    assert (((out.double() - expected).abs() / allowed) <= 1).all()


def weight(n, k, dtype, scale_dtype):
    generator = torch.Generator().manual_seed(n + k)
    codes = (torch.randn(n, k, generator=generator) * torch.randn(n, k, generator=generator).exp()).to(dtype)
    return codes, (torch.rand(n, 1, generator=generator) + 0.1).to(scale_dtype)


CASES = [  # n, k, w dtype, scale dtype, x dtype, m, plan
    (128, 256, E4M3, torch.float32, torch.bfloat16, 1, {}),
    (70, 640, E5M2, torch.float16, torch.float16, 3, dict(log_warps_k=1, log_split=1)),
    (33, 576, E4M3, torch.bfloat16, torch.float16, 17, dict(log_warps_k=3)),
    (48, 1152, E5M2, torch.float32, torch.bfloat16, 11, dict(log_warps_k=1, chunk=256)),
    (17, 300, E4M3, torch.float32, torch.bfloat16, 33, dict(log_warps_k=2, log_split=1)),
    (24, 130, E4M3, torch.bfloat16, torch.float32, 3, dict(log_warps_k=3)),
    (520, 64, E5M2, torch.float32, torch.bfloat16, 2, {}),
    (5, 7, E4M3, torch.float32, torch.bfloat16, 2, {}),
    (1, 1, E5M2, torch.float32, torch.float16, 1, {}),
    (20, 1001, E4M3, torch.float32, torch.bfloat16, 5, dict(log_warps_k=1, log_split=3)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_fp64(simt_kernel, case):
    *sizes, x_dtype, m, plan = case
    codes, scale = weight(*sizes)
    x = torch.randn(m, codes.shape[1]).to(x_dtype)
    bias = torch.randn(codes.shape[0]).to(x_dtype) if m % 2 else None
    check(run(simt_kernel, x, codes, scale, bias, **plan), x, codes, scale, bias)


@pytest.mark.parametrize("x_dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("dtype", (E4M3, E5M2), ids=str)
def test_every_finite_code_is_exact(simt_kernel, dtype, x_dtype):
    """Times one: what comes out is the code, subnormal or not."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    codes = codes[codes.float().isfinite()].view(torch.int8)
    w = torch.zeros(len(codes), 16, dtype=torch.int8)
    w[:, 5] = codes
    x = torch.zeros(1, 16, dtype=x_dtype)
    x[0, 5] = 1
    out = run(simt_kernel, x, w.view(dtype), torch.ones(len(codes), 1))
    assert torch.equal(out[0].float(), codes.view(dtype).float())


def test_any_row_stride_and_alignment(simt_kernel):
    codes, scale = weight(16, 72, E4M3, torch.float32)
    wide = torch.randn(3, 200).bfloat16()
    for x in (wide[:, 8:80], wide[:, 1:73], torch.randn(3, 75).bfloat16()[:, :72], wide[:1, 3:75].expand(3, 72)):
        check(run(simt_kernel, x, codes, scale), x, codes, scale)
