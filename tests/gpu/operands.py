"""Operands for each op, on any device: the same values everywhere."""

import functools
import os

import torch

import aoq
from aoq import _C
from aoq.bench.contenders.aoq import arguments
from aoq.ops import fp8_quantize, int4_pack, int4_quantize, int8_pack, int8_quantize, tile_scale

DEVICE = os.environ.get("AOQ_GPU_TESTS_ON", "cuda")  # conftest.py says why it may be another


def registered(op):
    """Whether `op` runs on DEVICE."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"aoq::{op}", DEVICE.upper())


def runs(op):
    """Whether `op` has a kernel for this device that AOQ_SM allows, or does with torch's own."""
    if DEVICE == "cpu":
        return True
    return registered(op) and (op in ("int8_pack", "int8_unpack") or bool(_C.cuda_kernels(op, capability())))


def capability():
    if DEVICE == "cpu":
        return 0
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def randn(*shape, dtype=torch.bfloat16, device=DEVICE, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


once = functools.lru_cache(maxsize=16)  # a model's weight takes the CPU seconds, and tests of each architecture ask


@once
def weight(n, k, group, device, mapping="asymmetric"):
    """What int4_mm takes of a weight: packed, scale, zero_point. Quantized on the CPU."""
    qdata, scale, zero = int4_quantize(randn(n, k, device="cpu"), group, mapping)
    zero = None if mapping == "symmetric" else tile_scale(zero).to(device)
    return int4_pack(qdata.to(device), k), tile_scale(scale).to(device), zero


# Of the other matmuls, a config whose weights run on it.
FORMATS = {
    "int8_mm": aoq.Int8DynamicActivationInt8WeightConfig(),
    "int8_weight_mm": aoq.Int8WeightOnlyConfig(),
    "int8_int4_mm": aoq.Int8DynamicActivationInt4WeightConfig(64, act_mapping_type=aoq.MappingType.SYMMETRIC),
    "fp8_mm": aoq.Float8DynamicActivationFloat8WeightConfig(granularity=aoq.PerRow()),
    "fp8_weight_mm": aoq.Float8WeightOnlyConfig(),
}


def of_format(op, w):
    """What the op takes of a packed weight, bias left out."""
    return arguments(getattr(torch.ops.aoq, op).default, w)


@once
def int8_weight(n, k, device, asymmetric=False):
    """What int8_mm takes of a weight: packed, scale, w_sum. Quantized on the CPU."""
    qdata, scale, _ = int8_quantize(randn(n, k, device="cpu"), "symmetric", torch.float32)
    w_sum = (qdata.sum(1) * scale[:, 0]).float().to(device) if asymmetric else None
    return int8_pack(qdata.to(device)), tile_scale(scale).to(device), w_sum


@once
def fp8_weight(n, k, device, dtype=torch.float8_e4m3fn):
    """What fp8_mm takes of a weight: packed, scale. Quantized on the CPU."""
    qdata, scale = fp8_quantize(randn(n, k, device="cpu"), "row", dtype)
    return int8_pack(qdata.view(torch.int8).to(device)), tile_scale(scale).to(device)


ROWS = (5, 300)  # few rows of x, and many, for which other kernels run


def operands(op, device, m=5):
    """Arguments for torch.ops.aoq.<op> on `device`, small and ragged, with `m` rows of x where the op has any."""
    x = randn(m, 200, device=device)
    codes = torch.arange(40 * 100).view(40, 100)
    if op == "int4_pack":
        return (codes.to(torch.uint8).to(device), 200)
    if op == "int4_unpack":
        return (int4_pack(codes.to(torch.uint8).to(device), 200), 40, 200)
    if op == "int8_pack":
        return (codes.to(torch.int8).to(device),)
    if op == "int8_unpack":
        return (int8_pack(codes.to(torch.int8).to(device)), 40, 100)
    if op == "int4_quantize":
        return (randn(40, 200, device=device), 64, "hqq", None)
    if op == "int4_mm":
        return (x, *weight(40, 200, 64, device), randn(40, device=device), 40, 64)
    if op in ("int8_quantize", "fp8_quantize"):
        return (x,)
    if op == "rmsnorm_quantize":
        return (x, randn(200, device=device), x + 1, 1e-6, torch.int8)
    if op == "silu_mul_quantize":
        return (x, x + 1, torch.int8)
    if op in FORMATS:
        w = FORMATS[op].quantize(randn(48, 208, device="cpu")).to(device)
        return (randn(m, 208, device=device), *of_format(op, w))
    raise NotImplementedError(f"tests/gpu/operands.py: no operands for {op}")


def has_rows(op):
    """Whether the op takes rows of x: packing and quantizing weights does not."""
    return (not op.startswith("int4_") and not op.endswith("pack")) or op == "int4_mm"


def run(op, device=DEVICE, arguments=None, m=5):
    """The results of the op, as a list."""
    out = getattr(torch.ops.aoq, op)(*(arguments or operands(op, device, m)))
    return [out] if isinstance(out, torch.Tensor) else list(out)
