"""The CUDA kernels that quantize rows to 8 bits, thread by thread: the bits of the CPU's, fused forms and all."""

import math

import pytest
import torch
from kernel_args import CODES, DTYPES, SOURCES, QuantizeRows

from aoq.ops import fp8_quantize, int8_quantize, rmsnorm_quantize, silu_mul_quantize

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FORMATS = ((torch.int8, "symmetric"), (torch.int8, "asymmetric"), (E4M3, "symmetric"), (E5M2, "symmetric"))
EPS = 1e-6
# k: ragged, one step of a block, several, and rows too long for registers
LENGTHS = (1, 40, 63, 576, 2048, 2056, 5000, 20000)


def poisoned(shape, dtype):
    return torch.full((math.prod(shape) * dtype.itemsize,), 0xA5, dtype=torch.uint8).view(dtype).view(shape)


def run(kernel, source, x, other, weight, codes, mapping, sum_group=0, permute=False, per_tensor=False, **bounds):
    (m, k), asymmetric = x.shape, mapping == "asymmetric"
    qdata = poisoned((m, -(-k // 16) * 16 if permute else k), codes)
    scale = poisoned(() if per_tensor else (m, 1), torch.float32)
    zero_point = poisoned((m, int(asymmetric)), torch.float32)
    group = min(sum_group, k)
    group_sum = poisoned((m, -(-k // group) if group else 0), torch.float32)
    residual_out = poisoned((m, k if source == "rmsnorm" and other is not None else 0), x.dtype)
    workspace = poisoned((1024,), torch.float32)
    kernel(
        **dict(m=m, k=k, source=SOURCES[source], x=x, x_dtype=DTYPES[x.dtype], x_stride=x.stride(0)),
        **dict(other=other, other_stride=0 if other is None else other.stride(0), weight=weight),
        **dict(weight_dtype=0 if weight is None else DTYPES[weight.dtype], eps=EPS, residual_out=residual_out),
        **dict(codes=CODES[codes], asymmetric=asymmetric, per_tensor=per_tensor, qdata=qdata, scale=scale),
        **dict(lb=bounds.get("lb", 0), ub=bounds.get("ub", math.inf), zero_point=zero_point, scale_dtype=0),
        **dict(permute=permute, group_sum=group_sum if group else None, sum_group=group, workspace=workspace),
    )
    return qdata, scale, zero_point, group_sum, residual_out


def assert_same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def floats(m, k, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed + k)
    return (torch.randn(m, k, generator=generator) * torch.randn(m, 1, generator=generator).exp()).to(dtype)


@pytest.mark.parametrize("k", LENGTHS)
def test_int8_gives_the_bits_of_the_cpu(simt_kernel, k):
    kernel = simt_kernel("int8_quantize_sm80", QuantizeRows)
    for dtype in DTYPES:
        x = floats(2, k, dtype)
        for mapping in ("symmetric", "asymmetric"):
            wanted = int8_quantize(x, mapping)
            assert_same(run(kernel, "given", x, None, None, torch.int8, mapping)[:3], wanted)


@pytest.mark.parametrize("codes", (E4M3, E5M2), ids=str)
@pytest.mark.parametrize("k", LENGTHS)
def test_fp8_gives_the_bits_of_the_cpu(simt_kernel, k, codes):
    kernel = simt_kernel("fp8_quantize_sm80", QuantizeRows)
    for dtype in DTYPES:
        x = floats(3, k, dtype)
        for granularity in ("row", "tensor"):
            for bounds in ({}, {"lb": 0.5, "ub": 2.0}):
                got = run(kernel, "given", x, None, None, codes, "", per_tensor=granularity == "tensor", **bounds)
                assert_same(got[:2], fp8_quantize(x, granularity, codes, **bounds))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("k", LENGTHS)
def test_fused_forms_give_the_bits_of_the_cpu(simt_kernel, k, format):
    norm, gate = (simt_kernel(f"{name}_quantize_sm80", QuantizeRows) for name in ("rmsnorm", "silu_mul"))
    for i, dtype in enumerate(DTYPES):
        x, other, weight = floats(2, k, dtype), floats(2, k, dtype, 1), 1 + 0.2 * floats(1, k, dtype, 2)[0]
        layout = ((0, False), (16, True), (24, False))[i]
        got = run(norm, "rmsnorm", x, other, weight, *format, *layout)
        assert_same(got, rmsnorm_quantize(x, weight, other, EPS, *format, *layout))
        got = run(norm, "rmsnorm", x, None, weight, *format, *layout)
        assert_same(got, rmsnorm_quantize(x, weight, None, EPS, *format, *layout))
        got = run(gate, "silu_mul", x, other, None, *format, *layout)
        assert_same(got[:4], silu_mul_quantize(x, other, *format, *layout))


def test_strides_and_alignment(simt_kernel):
    kernel = simt_kernel("int8_quantize_sm80", QuantizeRows)
    wide = floats(3, 200, torch.bfloat16)
    for x in (wide[:, 8:136], wide[:, 3:131], wide[:, 1:42], wide[:1, :64].expand(3, 64)):
        assert_same(run(kernel, "given", x, None, None, torch.int8, "asymmetric")[:3], int8_quantize(x, "asymmetric"))


def test_a_nonfinite_row_has_scale_nan_and_no_other(simt_kernel):
    for bad in (math.nan, math.inf, -math.inf):
        x = floats(3, 576, torch.float32)
        x[1, 300] = bad
        scale = run(simt_kernel("int8_quantize_sm80", QuantizeRows), "given", x, None, None, torch.int8, "symmetric")[1]
        assert scale.isnan().flatten().tolist() == [False, True, False]
        kernel = simt_kernel("fp8_quantize_sm80", QuantizeRows)
        assert run(kernel, "given", x, None, None, E4M3, "", per_tensor=True)[1].isnan()
        x[1] = 0
        qdata, scale, *_ = run(kernel, "given", x, None, None, E4M3, "")
        assert scale.isfinite().all() and not qdata[1].float().any()
