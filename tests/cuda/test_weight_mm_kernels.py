"""The CUDA kernels of int8_weight_mm and fp8_weight_mm, thread by thread, against fp64: every format, plan, dtype and
ragged edge."""

import math

import pytest
import torch
from kernel_args import PackedMm, WeightMmSkinny, WeightMmWide, WidePlan
from plan_library import Shape, skinny_workspace, weight_plan, wide_workspace

from aoq.ops import int8_pack_reference, tile_scale
from rounding import check_rounding

CUDA = torch.device("cuda")
INT8, E4M3, E5M2 = torch.int8, torch.float8_e4m3fn, torch.float8_e5m2
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def run(simt_kernel, x, codes, scale, bias=None, log_warps_k=0, log_split=0, chunk=None):
    """out of the kernel for few rows under the plan given, every byte of its memory poisoned first."""
    (m, k), n, f32 = x.shape, codes.shape[0], x.dtype == FP32
    plan = weight_plan(
        Shape(m=(3 if f32 else 1) * m, n=n, k=k, group=k, w_bits=8, x_bytes=2), log_warps_k, log_split, chunk
    )
    floats = skinny_workspace(Shape(m=m, n=n, k=k), log_split, False, f32)
    return multiply(simt_kernel, "", WeightMmSkinny, x, codes, scale, bias, plan, floats)


def run_wide(simt_kernel, x, codes, scale, bias=None, tokens=64, split=1):
    """The same of the kernel for many rows."""
    (m, k), n, f32 = x.shape, codes.shape[0], x.dtype == FP32
    copies = f32 or k % 8 or x.stride(0) % 8 or x.stride(0) < k or x.data_ptr() % 16  # needs_copy's answer
    floats = wide_workspace(Shape(m=m, n=n, k=k, group=k), split, 3 if f32 else 1, bool(copies), False)
    plan = WidePlan(tokens=tokens, split=split)
    return multiply(simt_kernel, "wide_", WeightMmWide, x, codes, scale, bias, plan, floats)


def multiply(simt_kernel, which, struct, x, codes, scale, bias, plan, floats, packed=None, experts=None, **of_x):
    """packed, scale of all experts, if there are any, and codes of one."""
    (m, k), n = x.shape, codes.shape[0]
    kernel = simt_kernel(f"{'int8' if codes.dtype == INT8 else 'fp8'}_weight_mm_{which}sm80", struct)
    tiled = scale if experts else tile_scale(scale)
    packed = int8_pack_reference(codes.view(INT8), CUDA).contiguous() if packed is None else packed
    out = torch.full((m, n), math.nan, dtype=x.dtype)
    mm = PackedMm.of(x, k, k, packed, tiled, out, e5m2=codes.dtype == E5M2, bias=bias, experts=experts, **of_x)
    kernel(mm=mm, plan=plan, workspace=torch.full((floats,), math.nan))
    return out


RUNS = pytest.mark.parametrize("runs", (run, run_wide), ids=("few", "many"))
FORMATS = pytest.mark.parametrize("dtype", (INT8, E4M3, E5M2), ids=str)


def check(out, x, codes, scale, bias=None):
    """Products are exact; their fp32 sum and its scaling are rounded, then the result once to its dtype."""
    w = codes.double() * scale.double()
    expected = x.double() @ w.t()
    rounding = (4 * math.sqrt(x.shape[1]) + 16) * 2.0**-24 * (x.double().abs() @ w.abs().t())
    check_rounding(out, expected, rounding, bias)


def weight(n, k, dtype, scale_dtype):
    generator = torch.Generator().manual_seed(n + k)
    if dtype == INT8:
        codes = torch.randint(-128, 128, (n, k), generator=generator, dtype=INT8)
    else:
        codes = (torch.randn(n, k, generator=generator) * torch.randn(n, k, generator=generator).exp()).to(dtype)
    scale = torch.rand(n, 1, generator=generator) + 0.1
    return codes, (scale / 64 if dtype == INT8 else scale).to(scale_dtype)  # fp16 holds every sum


def matches(simt_kernel, runs, case):
    *sizes, x_dtype, m, plan = case
    codes, scale = weight(*sizes)
    x = torch.randn(m, codes.shape[1]).to(x_dtype)
    bias = torch.randn(codes.shape[0]).to(x_dtype) if m % 2 else None
    out = runs(simt_kernel, x, codes, scale, bias, **plan)
    check(out, x, codes, scale, bias)
    assert torch.equal(runs(simt_kernel, x, codes, scale, bias, **plan), out)


CASES = [  # n, k, w dtype, scale dtype, x dtype, m, plan
    (128, 256, E4M3, FP32, BF16, 1, {}),
    (70, 640, E5M2, FP16, FP16, 3, dict(log_warps_k=1, log_split=1)),
    (33, 576, INT8, BF16, FP16, 17, dict(log_warps_k=3)),
    (48, 1152, E5M2, FP32, BF16, 11, dict(log_warps_k=1, chunk=256)),
    (48, 1152, INT8, FP32, BF16, 18, dict(log_warps_k=1, log_split=1, chunk=128)),
    (17, 300, E4M3, FP32, FP16, 33, dict(log_warps_k=2, log_split=1)),
    (24, 130, INT8, BF16, FP32, 3, dict(log_warps_k=3)),
    (520, 64, E5M2, FP32, BF16, 2, {}),
    (5, 7, INT8, FP32, BF16, 2, {}),
    (1, 1, E5M2, FP32, FP16, 1, {}),
    (20, 1001, E4M3, FP32, BF16, 5, dict(log_warps_k=1, log_split=3)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_few_rows_match_fp64(simt_kernel, case):
    matches(simt_kernel, run, case)


WIDE_CASES = [  # the same
    (128, 256, INT8, FP32, BF16, 64, {}),
    (130, 320, E4M3, BF16, BF16, 130, dict(tokens=128)),
    (36, 576, E5M2, FP16, FP16, 65, dict(split=3)),
    (260, 200, INT8, FP32, FP16, 33, dict(tokens=128, split=2)),
    (17, 300, E4M3, BF16, FP16, 70, dict(split=2)),
    (40, 1001, INT8, FP32, BF16, 34, dict(split=8)),
    (31, 130, E5M2, FP16, BF16, 9, dict(tokens=128)),
    (24, 192, INT8, FP32, FP32, 35, dict(split=2)),
    (5, 33, E4M3, FP32, FP32, 3, dict(tokens=128)),
    (1, 1, INT8, FP32, BF16, 1, dict(split=16)),
]


@pytest.mark.parametrize("case", WIDE_CASES, ids=str)
def test_many_rows_match_fp64(simt_kernel, case):
    matches(simt_kernel, run_wide, case)


@pytest.mark.parametrize("x_dtype", (BF16, FP16), ids=str)
@FORMATS
@RUNS
def test_every_finite_code_is_exact(simt_kernel, runs, dtype, x_dtype):
    """Times one: what comes out is the code, subnormal or not, wherever it stands."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    codes = codes[codes.float().isfinite()].view(INT8)
    column = torch.arange(len(codes)) % 80
    w = torch.zeros(len(codes), 80, dtype=INT8)
    w[torch.arange(len(codes)), column] = codes
    out = runs(simt_kernel, torch.ones(1, 80, dtype=x_dtype), w.view(dtype), torch.ones(len(codes), 1))
    assert torch.equal(out[0].float(), codes.view(dtype).float())


def test_every_plan_gives_the_same_up_to_the_order_of_sums(simt_kernel):
    codes, scale = weight(80, 384, INT8, BF16)
    x = torch.randn(2, 384).bfloat16()
    for log_warps_k in range(4):
        for log_split in range(4):
            check(run(simt_kernel, x, codes, scale, None, log_warps_k, log_split), x, codes, scale)
    for tokens in (64, 128):
        for split in (1, 2, 3, 4, 6, 8, 12, 16):
            check(run_wide(simt_kernel, x, codes, scale, None, tokens, split), x, codes, scale)


@RUNS
def test_any_row_stride_and_alignment(simt_kernel, runs):
    codes, scale = weight(16, 72, E4M3, FP32)
    wide = torch.randn(3, 200).bfloat16()
    for x in (wide[:, 8:80], wide[:, 1:73], torch.randn(3, 75).bfloat16()[:, :72], wide[:1, 3:75].expand(3, 72)):
        check(runs(simt_kernel, x, codes, scale), x, codes, scale)


@RUNS
def test_nonfinite_x_stays_in_its_row(simt_kernel, runs):
    codes, scale = weight(40, 136, INT8, FP32)
    codes[codes == 0] = 1
    x = torch.randn(35, 136).bfloat16()
    clean = runs(simt_kernel, x, codes, scale)
    x[1, 129] = math.nan
    out = runs(simt_kernel, x, codes, scale)
    assert out[1].isnan().all() and torch.equal(out[2:], clean[2:]) and torch.equal(out[0], clean[0])
