"""The CUDA kernels of int8 x times weights of few bits, thread by thread, against fp64 of the quantized x: formats,
plans, groups, ragged edges."""

import math

import pytest
import torch
from kernel_args import NibbleSkinny, NibbleWgmma, NibbleWide, PackedMm, Plan, WgmmaPlan, WidePlan
from nibbles import BITS, Weight
from plan_library import Shape, skinny_plan, skinny_workspace, wgmma_workspace, wide_workspace

from aoq.ops import int8_quantize
from rounding import check_rounding

KERNELS = ("sm80", "sm90a")
WIDE, WGMMA = "wide_sm80", "wgmma_sm90a"
FORMATS = pytest.mark.parametrize("name", BITS)
# Position p of each sixteen codes holds k of this: rows/quantize_rows.h
ORDER = torch.tensor([2 * (p // 4) + p % 4 // 2 + 8 * (p % 2) for p in range(16)])


def run(simt_kernel, kernel, x, weight, bias, mapping, plan, checked=True):
    (m, k), n = x.shape, weight.n
    codes, scale, zero = int8_quantize(x, mapping)
    permuted = torch.nn.functional.pad(codes, (0, -k % 16)).unflatten(1, (-1, 16))[..., ORDER].flatten(1).contiguous()
    w_sum = weight.exact.sum(1).float()
    out = torch.full((m, n), math.nan, dtype=x.dtype)
    shape = Shape(m=m, n=n, k=k, group=weight.group, w_bits=weight.bits, x_bytes=1)
    zero_points = weight.zero_point is not None
    if kernel == WGMMA:
        floats = wgmma_workspace(shape, 1, False, zero_points)
    elif kernel == WIDE:
        floats = wide_workspace(shape, plan.split, 1, False, zero_points)
    else:
        floats = skinny_workspace(shape, plan.log_split, kernel == "sm90a", False)
    workspace = torch.full((floats,), math.nan)
    asymmetric = mapping == "asymmetric"
    mm = PackedMm.of(
        *(permuted, k, weight.group, weight.packed, weight.scale, out),
        **dict(zero_point=weight.zero_point, w_sum=w_sum, bias=bias),
        **dict(row_scale=scale, row_zero=zero if asymmetric else None),
    )
    struct = {WIDE: NibbleWide, WGMMA: NibbleWgmma}.get(kernel, NibbleSkinny)
    simt_kernel(f"int8_{weight.name}_mm_{kernel}", struct)(mm=mm, plan=plan, workspace=workspace)
    if checked:
        check(out, codes, scale, zero if asymmetric else torch.zeros_like(scale), weight, w_sum, bias)
    return out


def check(out, codes, scale, zero, weight, w_sum, bias):
    """Sums of a span are exact; at most k / 8 of them are scaled and added in fp32, then the row's own terms."""
    x = (codes.double() - zero.double()) * scale.double()
    expected = x @ weight.exact.t()
    terms = (codes.double().abs() @ weight.addends.t() + zero.double().abs() * w_sum.double().abs()) * scale.double()
    rounding = (4 * math.sqrt(weight.k / 8) + 16) * 2.0**-24 * terms
    # w_sum is fp32
    rounding = rounding + 2.0**-24 * (zero.double() * scale.double()).abs() * weight.exact.abs().sum(1)
    check_rounding(out, expected, rounding, bias)


CASES = [  # n, k, group, mapping, scale dtype, x dtype, mapping of x, m, warps_k, split, chunk
    (128, 256, 128, "symmetric", torch.bfloat16, torch.bfloat16, "asymmetric", 1, 0, 0, None),
    (70, 640, 128, "hqq", torch.float16, torch.float16, "symmetric", 3, 1, 1, None),
    (33, 576, 64, "asymmetric", torch.bfloat16, torch.float32, "asymmetric", 17, 3, 0, 256),
    (48, 384, 32, "symmetric", torch.bfloat16, torch.bfloat16, "asymmetric", 11, 1, 0, None),
    (17, 300, 96, "asymmetric", torch.float32, torch.float16, "asymmetric", 33, 2, 1, 128),
    (40, 200, 8, "asymmetric", torch.float32, torch.bfloat16, "symmetric", 4, 1, 1, None),
    (24, 130, 24, "hqq", torch.bfloat16, torch.float16, "asymmetric", 18, 3, 0, None),
    (5, 7, 7, "asymmetric", torch.bfloat16, torch.bfloat16, "asymmetric", 2, 0, 0, None),
    (1, 1, 1, "symmetric", torch.float32, torch.float16, "symmetric", 1, 0, 0, None),
    (20, 1001, 1001, "asymmetric", torch.float32, torch.bfloat16, "asymmetric", 5, 1, 3, None),
]


@pytest.mark.parametrize("kernel", KERNELS)
@FORMATS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_fp64(simt_kernel, kernel, name, case):
    *weight, x_dtype, mapping, m, log_warps_k, log_split, chunk = case
    weight = Weight(name, *weight)
    x = (torch.randn(m, weight.k) + 0.5).to(x_dtype)
    bias = torch.randn(weight.n).to(x_dtype) if m % 2 else None
    shape = Shape(m=m, n=weight.n, k=weight.k, group=weight.group, w_bits=weight.bits, x_bytes=1)
    run(simt_kernel, kernel, x, weight, bias, mapping, skinny_plan(shape, log_warps_k, log_split, chunk))


WIDE_CASES = [  # n, k, group, mapping, scale dtype, x dtype, mapping of x, m, tokens, split
    (128, 256, 128, "symmetric", torch.bfloat16, torch.bfloat16, "asymmetric", 64, 64, 1),
    (130, 320, 128, "asymmetric", torch.bfloat16, torch.bfloat16, "asymmetric", 130, 128, 1),
    (36, 576, 64, "hqq", torch.float16, torch.float16, "symmetric", 65, 64, 3),
    (200, 384, 32, "asymmetric", torch.float32, torch.float32, "asymmetric", 33, 128, 2),
    (17, 300, 96, "symmetric", torch.bfloat16, torch.float16, "asymmetric", 70, 64, 2),
    (40, 1001, 1001, "asymmetric", torch.bfloat16, torch.bfloat16, "symmetric", 34, 64, 8),
    (5, 33, 32, "asymmetric", torch.bfloat16, torch.float16, "asymmetric", 3, 64, 2),
    (1, 1, 1, "asymmetric", torch.float32, torch.bfloat16, "asymmetric", 1, 64, 1),
]


@FORMATS
@pytest.mark.parametrize("case", WIDE_CASES, ids=str)
def test_wide_matches_fp64(simt_kernel, name, case):
    *weight, x_dtype, mapping, m, tokens, split = case
    weight = Weight(name, *weight)
    x = (torch.randn(m, weight.k) + 0.5).to(x_dtype)
    bias = torch.randn(weight.n).to(x_dtype) if m % 2 else None
    run(simt_kernel, WIDE, x, weight, bias, mapping, WidePlan(tokens=tokens, split=split))


WGMMA_CASES = [  # n, k, group, mapping, scale dtype, x dtype, mapping of x, m, tokens, halves, split
    (128, 256, 128, "symmetric", torch.bfloat16, torch.bfloat16, "asymmetric", 64, 64, 1, 1),
    (300, 520, 128, "asymmetric", torch.bfloat16, torch.bfloat16, "asymmetric", 70, 64, 2, 1),
    (260, 1000, 64, "hqq", torch.float32, torch.float16, "symmetric", 130, 128, 2, 2),
    (530, 416, 32, "asymmetric", torch.bfloat16, torch.float32, "asymmetric", 100, 64, 4, 2),
    (40, 1001, 1001, "asymmetric", torch.float16, torch.bfloat16, "symmetric", 34, 128, 1, 8),
    (5, 33, 32, "asymmetric", torch.bfloat16, torch.float16, "asymmetric", 3, 32, 2, 1),
    (1, 1, 1, "asymmetric", torch.float32, torch.bfloat16, "asymmetric", 1, 64, 1, 1),
]


@FORMATS
@pytest.mark.parametrize("case", WGMMA_CASES, ids=str)
def test_wgmma_matches_fp64(simt_kernel, name, case):
    *weight, x_dtype, mapping, m, tokens, halves, split = case
    weight = Weight(name, *weight)
    x = (torch.randn(m, weight.k) + 0.5).to(x_dtype)
    bias = torch.randn(weight.n).to(x_dtype) if m % 2 else None
    plan = WgmmaPlan(tokens=tokens, halves=halves, split=split, stages=3)
    run(simt_kernel, WGMMA, x, weight, bias, mapping, plan)


@pytest.mark.parametrize("kernel", (*KERNELS, WIDE, WGMMA))
@FORMATS
def test_nonfinite_x_stays_in_its_row(simt_kernel, kernel, name):
    weight = Weight(name, 40, 130, 64, "asymmetric", torch.bfloat16)
    plan = {
        WIDE: WidePlan(tokens=64, split=1),
        WGMMA: WgmmaPlan(tokens=64, halves=1, split=1, stages=3),
    }.get(kernel, Plan(tokens=8, log_warps_k=0, log_split=0, chunk=256))
    x = torch.randn(3, 130).bfloat16()
    clean = run(simt_kernel, kernel, x, weight, None, "symmetric", plan)
    x[1, 129] = math.inf
    out = run(simt_kernel, kernel, x, weight, None, "symmetric", plan, checked=False)
    assert out[1].isnan().all() and torch.equal(out[::2], clean[::2])
