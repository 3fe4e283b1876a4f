"""The CUDA kernels of x as given times weights of few bits, thread by thread, against fp64: every format, plan, dtype,
group and ragged edge."""

import math

import pytest
import torch
from kernel_args import NibbleSkinny, NibbleWgmma, NibbleWide, PackedMm, WgmmaPlan, WidePlan
from nibbles import BITS, Weight
from plan_library import Shape, skinny_plan, skinny_workspace, wgmma_workspace, wide_workspace

from rounding import check_rounding

KERNELS = pytest.mark.parametrize("sm", ("sm80", "sm90a"))
FORMATS = pytest.mark.parametrize("name", BITS)


def run(simt_kernel, sm, x, weight, bias=None, log_warps_k=0, log_split=0, chunk=None):
    """out of a kernel for few rows under the plan given, every byte of its memory poisoned first."""
    (m, k), n = x.shape, weight.n
    f32 = x.dtype == torch.float32
    shape = Shape(m=(3 if f32 else 1) * m, n=n, k=k, group=weight.group, w_bits=weight.bits, x_bytes=2)
    plan = skinny_plan(shape, log_warps_k, log_split, chunk)
    floats = skinny_workspace(Shape(m=m, n=n, k=k), log_split, sm == "sm90a", f32)
    return multiply(
        simt_kernel(f"{weight.name}_mm_{sm}", NibbleSkinny), x, weight, bias, plan, torch.full((floats,), math.nan)
    )


def many(x, weight):
    """What workspaces for many rows are asked for besides their plan."""
    (m, k), f32 = x.shape, x.dtype == torch.float32
    copies = f32 or k % 8 or x.stride(0) % 8 or x.stride(0) < k or x.data_ptr() % 16  # needs_copy's answer
    shape = Shape(m=m, n=weight.n, k=k, group=weight.group, w_bits=weight.bits, x_bytes=2)
    return shape, 3 if f32 else 1, bool(copies), weight.zero_point is not None


def run_wide(simt_kernel, x, weight, bias=None, tokens=64, split=1):
    """The same of the kernel for many rows."""
    shape, *rest = many(x, weight)
    workspace = torch.full((wide_workspace(shape, split, *rest),), math.nan)
    plan = WidePlan(tokens=tokens, split=split)
    return multiply(simt_kernel(f"{weight.name}_mm_wide_sm80", NibbleWide), x, weight, bias, plan, workspace)


def run_wgmma(simt_kernel, x, weight, bias=None, tokens=64, halves=1, split=1, stages=3):
    """The same of the kernel for many rows on Hopper."""
    shape, *rest = many(x, weight)
    workspace = torch.full((wgmma_workspace(shape, *rest),), math.nan)
    plan = WgmmaPlan(tokens=tokens, halves=halves, split=split, stages=stages)
    return multiply(simt_kernel(f"{weight.name}_mm_wgmma_sm90a", NibbleWgmma), x, weight, bias, plan, workspace)


def multiply(kernel, x, weight, bias, plan, workspace, experts=None):
    out = torch.full((len(x), weight.n), math.nan, dtype=x.dtype)
    of_w = weight.group, weight.packed, weight.scale
    mm = PackedMm.of(x, weight.k, *of_w, out, zero_point=weight.zero_point, bias=bias, experts=experts)
    kernel(mm=mm, plan=plan, workspace=workspace)
    return out


def check(out, x, weight, bias=None):
    """Sums of k fp32 addends, each rounded, then one rounding to out's dtype."""
    expected = x.double() @ weight.exact.t()
    rounding = (4 * math.sqrt(weight.k) + 16) * 2.0**-24 * (x.double().abs() @ weight.addends.t())
    check_rounding(out, expected, rounding, bias)


CASES = [  # n, k, group, mapping, scale dtype, x dtype, m, plan
    (128, 256, 128, "symmetric", torch.bfloat16, torch.bfloat16, 1, {}),
    (128, 512, 128, "asymmetric", torch.bfloat16, torch.bfloat16, 8, dict(log_warps_k=2)),
    (70, 640, 128, "hqq", torch.float16, torch.float16, 3, dict(log_warps_k=1, log_split=1)),
    (520, 256, 64, "asymmetric", torch.float32, torch.float16, 2, dict(log_warps_k=0, log_split=1)),
    (33, 576, 64, "symmetric", torch.float16, torch.bfloat16, 17, dict(log_warps_k=3)),
    (48, 384, 32, "asymmetric", torch.bfloat16, torch.bfloat16, 11, dict(log_warps_k=1)),
    (17, 300, 32, "symmetric", torch.bfloat16, torch.float16, 33, dict(log_warps_k=2, log_split=1)),
    (40, 200, 8, "asymmetric", torch.float32, torch.bfloat16, 4, dict(log_warps_k=1, log_split=1)),
    (24, 130, 24, "hqq", torch.bfloat16, torch.float16, 18, dict(log_warps_k=3)),
    (16, 96, 48, "symmetric", torch.float32, torch.bfloat16, 1, {}),
    (5, 7, 7, "asymmetric", torch.bfloat16, torch.bfloat16, 2, {}),
    (1, 1, 1, "symmetric", torch.float32, torch.float16, 1, {}),
    (31, 130, 4096, "asymmetric", torch.bfloat16, torch.bfloat16, 9, dict(log_split=1)),
    (20, 1100, 1100, "asymmetric", torch.float32, torch.bfloat16, 5, dict(log_warps_k=1, log_split=3)),
    (64, 1152, 128, "asymmetric", torch.bfloat16, torch.bfloat16, 20, dict(log_warps_k=1, chunk=256)),
    (64, 1000, 64, "symmetric", torch.bfloat16, torch.float16, 1, dict(log_warps_k=0, log_split=1, chunk=128)),
]


@KERNELS
@FORMATS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_fp64(simt_kernel, sm, name, case):
    *weight, x_dtype, m, plan = case
    weight = Weight(name, *weight)
    x = torch.randn(m, weight.k).to(x_dtype)
    bias = torch.randn(weight.n).to(x_dtype) if m % 2 else None
    check(run(simt_kernel, sm, x, weight, bias, **plan), x, weight, bias)


@KERNELS
@FORMATS
def test_fp32_x_is_exact(simt_kernel, sm, name):
    """As three bf16 parts: to the rounding of fp32 sums, which bf16 x would miss by far."""
    weight = Weight(name, 24, 192, 64, "asymmetric", torch.float32)
    x, bias = torch.randn(3, 192) * torch.randn(3, 192).exp(), torch.randn(24)
    out = run(simt_kernel, sm, x, weight, bias, log_split=1)
    check(out, x, weight, bias)
    x[1, 5] = math.inf
    infinite = run(simt_kernel, sm, x, weight, bias, log_split=1)
    assert not infinite[1].isfinite().any() and torch.equal(infinite[::2], out[::2])


@KERNELS
@FORMATS
def test_every_plan_gives_the_same_up_to_the_order_of_sums(simt_kernel, sm, name):
    weight = Weight(name, 80, 512, 128, "asymmetric", torch.bfloat16)
    x = torch.randn(2, 512).bfloat16()
    for log_warps_k in range(4):
        for log_split in range(4):
            out = run(simt_kernel, sm, x, weight, None, log_warps_k, log_split)
            check(out, x, weight)
    assert torch.equal(run(simt_kernel, sm, x, weight, None, 3, 3), out)


@KERNELS
@FORMATS
def test_any_row_stride_and_alignment(simt_kernel, sm, name):
    weight = Weight(name, 16, 72, 24, "symmetric", torch.bfloat16)
    wide = torch.randn(3, 200).bfloat16()
    for x in (wide[:, 8:80], wide[:, 1:73], torch.randn(3, 75).bfloat16()[:, :72], wide[:1, 3:75].expand(3, 72)):
        check(run(simt_kernel, sm, x, weight), x, weight)


@KERNELS
@FORMATS
def test_nonfinite_x_stays_in_its_row(simt_kernel, sm, name):
    weight = Weight(name, 40, 130, 64, "asymmetric", torch.bfloat16)
    x = torch.randn(3, 130).bfloat16()
    clean = run(simt_kernel, sm, x, weight)
    x[1, 129] = math.nan
    out = run(simt_kernel, sm, x, weight)
    assert out[1].isnan().all() and torch.equal(out[::2], clean[::2])


WIDE_CASES = [  # n, k, group, mapping, scale dtype, x dtype, m, plan
    (128, 256, 128, "symmetric", torch.bfloat16, torch.bfloat16, 64, {}),
    (130, 320, 128, "asymmetric", torch.bfloat16, torch.bfloat16, 130, dict(tokens=128)),
    (36, 576, 64, "hqq", torch.float16, torch.float16, 65, dict(split=3)),
    (200, 384, 32, "asymmetric", torch.float32, torch.bfloat16, 33, dict(tokens=128, split=2)),
    (17, 300, 96, "symmetric", torch.bfloat16, torch.float16, 70, dict(split=2)),
    (40, 1001, 1001, "asymmetric", torch.bfloat16, torch.bfloat16, 34, dict(split=8)),
    (31, 130, 4096, "hqq", torch.float16, torch.bfloat16, 9, dict(tokens=128)),
    (5, 33, 32, "asymmetric", torch.bfloat16, torch.float16, 3, dict(split=3)),
    (1, 1, 1, "asymmetric", torch.float32, torch.bfloat16, 1, {}),
]


@FORMATS
@pytest.mark.parametrize("case", WIDE_CASES, ids=str)
def test_wide_matches_fp64(simt_kernel, name, case):
    *weight, x_dtype, m, plan = case
    weight = Weight(name, *weight)
    x = torch.randn(m, weight.k).to(x_dtype)
    bias = torch.randn(weight.n).to(x_dtype) if m % 2 else None
    check(run_wide(simt_kernel, x, weight, bias, **plan), x, weight, bias)


@FORMATS
def test_wide_fp32_x_is_exact(simt_kernel, name):
    weight = Weight(name, 24, 192, 64, "asymmetric", torch.float32)
    x, bias = torch.randn(35, 192) * torch.randn(35, 192).exp(), torch.randn(24)
    for split in (1, 2):
        out = run_wide(simt_kernel, x, weight, bias, split=split)
        check(out, x, weight, bias)
    assert torch.equal(run_wide(simt_kernel, x, weight, bias, split=2), out)


@FORMATS
def test_wide_any_row_stride_and_alignment(simt_kernel, name):
    weight = Weight(name, 16, 72, 72, "asymmetric", torch.bfloat16)
    wide = torch.randn(3, 200).bfloat16()
    for x in (wide[:, 8:80], wide[:, 1:73], torch.randn(3, 75).bfloat16()[:, :72], wide[:1, 8:80].expand(3, 72)):
        check(run_wide(simt_kernel, x, weight), x, weight)


@FORMATS
def test_wide_nonfinite_x_stays_in_its_row(simt_kernel, name):
    weight = Weight(name, 40, 136, 64, "asymmetric", torch.bfloat16)
    x = torch.randn(70, 136).bfloat16()
    clean = run_wide(simt_kernel, x, weight)
    x[1, 129] = math.nan
    out = run_wide(simt_kernel, x, weight)
    assert out[1].isnan().all() and torch.equal(out[2:], clean[2:]) and torch.equal(out[0], clean[0])


WGMMA_CASES = [  # n, k, group, mapping, scale dtype, x dtype, m, plan
    (128, 256, 128, "symmetric", torch.bfloat16, torch.bfloat16, 64, {}),
    (300, 520, 128, "asymmetric", torch.bfloat16, torch.bfloat16, 70, dict(halves=2)),
    (520, 1096, 64, "symmetric", torch.float16, torch.float16, 130, dict(tokens=128, halves=2, stages=2)),
    (260, 1000, 64, "hqq", torch.float32, torch.float16, 130, dict(tokens=128, halves=2, split=2)),
    (17, 904, 256, "asymmetric", torch.bfloat16, torch.bfloat16, 140, dict(tokens=128, split=4, stages=5)),
    (530, 416, 32, "asymmetric", torch.bfloat16, torch.bfloat16, 100, dict(halves=4, split=2)),
    (40, 1001, 1001, "asymmetric", torch.float32, torch.bfloat16, 34, dict(split=8)),
    (31, 130, 4096, "hqq", torch.float16, torch.bfloat16, 9, dict(tokens=32, halves=2)),
    (5, 33, 32, "asymmetric", torch.bfloat16, torch.float16, 3, dict(tokens=32, halves=2)),
    (1, 1, 1, "asymmetric", torch.float32, torch.bfloat16, 1, {}),
]


@FORMATS
@pytest.mark.parametrize("case", WGMMA_CASES, ids=str)
def test_wgmma_matches_fp64(simt_kernel, name, case):
    *weight, x_dtype, m, plan = case
    weight = Weight(name, *weight)
    x = torch.randn(m, weight.k).to(x_dtype)
    bias = torch.randn(weight.n).to(x_dtype) if m % 2 else None
    out = run_wgmma(simt_kernel, x, weight, bias, **plan)
    check(out, x, weight, bias)
    assert torch.equal(run_wgmma(simt_kernel, x, weight, bias, **plan), out)


@FORMATS
def test_wgmma_takes_tiles_in_turn(simt_kernel, name):
    """More tiles of tokens than are taken in turn, and several of rows."""
    weight = Weight(name, 272, 136, 136, "symmetric", torch.bfloat16)
    x = torch.randn(32 * 9 + 1, 136).bfloat16()
    check(run_wgmma(simt_kernel, x, weight, tokens=32, halves=2), x, weight)


@FORMATS
def test_wgmma_fp32_x_is_exact(simt_kernel, name):
    weight = Weight(name, 24, 192, 64, "asymmetric", torch.float32)
    x, bias = torch.randn(35, 192) * torch.randn(35, 192).exp(), torch.randn(24)
    for split in (1, 2):
        check(run_wgmma(simt_kernel, x, weight, bias, split=split), x, weight, bias)


@FORMATS
def test_wgmma_any_row_stride_and_alignment(simt_kernel, name):
    weight = Weight(name, 16, 72, 72, "asymmetric", torch.bfloat16)
    wide = torch.randn(3, 200).bfloat16()
    for x in (wide[:, 8:80], wide[:, 1:73], torch.randn(3, 75).bfloat16()[:, :72], wide[:1, 8:80].expand(3, 72)):
        check(run_wgmma(simt_kernel, x, weight), x, weight)


@FORMATS
def test_wgmma_nonfinite_x_stays_in_its_row(simt_kernel, name):
    weight = Weight(name, 40, 136, 64, "asymmetric", torch.bfloat16)
    x = torch.randn(70, 136).bfloat16()
    clean = run_wgmma(simt_kernel, x, weight)
    x[1, 129] = math.nan
    out = run_wgmma(simt_kernel, x, weight)
    assert out[1].isnan().all() and torch.equal(out[2:], clean[2:]) and torch.equal(out[0], clean[0])
