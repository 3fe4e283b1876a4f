"""Every code of every format, decoded by every kernel: a row of x that is 1 in one column gives a column of w back.

So nothing rounds, and a code whose value is lost, as a subnormal one that is flushed to zero would be, is seen.
"""

import pytest
import torch
from operands import DEVICE, capability, runs

from aoq import _C
from aoq.ops import tile_scale
from aoq.ops.bits import from_codes
from aoq.ops.mm import FORMATS

K, GROUP = 256, 64
ROWS = (1, 5, 16, 32, K)  # few rows, many
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def of_all_codes(format):
    """Codes that are finite numbers, each in each place of a row in turn: plain [n, K], and what they stand for."""
    codes = torch.arange(1 << format.bits, dtype=torch.uint8)
    if format.fp8:
        codes = codes[codes.view(E5M2 if "e5m2" in format.name else E4M3).float().isfinite()]
    n = max(len(codes), 16)
    codes = codes[(torch.arange(n)[:, None] + torch.arange(K)) % len(codes)]
    if format.bits == 8 and format.plain_dtype != torch.uint8:
        return codes, codes.view(format.plain_dtype).float()
    return codes, torch.tensor(format.values or range(-(1 << format.bits - 1), 1 << format.bits - 1))[
        codes.int()
    ].float()


def parts_of(format, codes, zero=None):
    """What mm takes: scales of one, and zero points of `zero`."""
    n, groups = len(codes), K // GROUP if format.grouped else 1
    plain = codes.view(format.plain_dtype) if format.bits == 8 else from_codes(codes, format.bits)
    packed = format.pack(plain.to(DEVICE), K)
    filled = [torch.full((n, groups), value, device=DEVICE) for value in ((1.0,) if zero is None else (1.0, zero))]
    return [packed, *(tile_scale(part) for part in filled)]


def configs_of(op, sm):
    """Plans of each kernel, by the numbers that docs/kernels/selection_cuda.md gives them."""
    if DEVICE == "cpu":
        return (-1,)
    names = _C.cuda_kernels(op, capability())
    if any("_cutlass_" in name for name in names):
        return range(len(names))
    return range(0, 56 if any("_wgmma_" in name for name in names) else 32, 4)


def takes(op, config, x, n):
    """Whether a kernel that is made with CUTLASS takes these: csrc/mm/cuda/dense_mm_plan.h."""
    name = _C.cuda_kernels(op, capability())[config] if DEVICE == "cuda" else ""
    return "_cutlass_" not in name or not name.endswith("sm90a") or (x.dtype != torch.float32 and n % 8 == 0)


def one_hot(dtype, value):
    return (value * torch.eye(K)).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("x_as", ("given", "int8"))
@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_every_code_is_exact(sm, format, x_as, dtype):
    if x_as not in format.ops:
        pytest.skip(f"{format.name} weights have no int8 x")
    op = format.ops[x_as]
    if DEVICE == "cuda" and not _C.cuda_kernels(op, capability()):
        pytest.skip(f"{op} has no kernel for this device")
    codes, values = of_all_codes(format)
    # A scale of int8 x is absmax / 127.5: that of 127.5 is 1, and its code the largest.
    one, code = (1, 1) if x_as == "given" else (127.5, 127)
    for zero in (None, 3.0) if format.grouped and "int8" in format.ops else (None,):
        parts = parts_of(format, codes, zero)
        shift = 0 if zero is None else (1 << (format.bits - 1)) - zero
        expected = (code * (values + shift)).t().to(dtype).to(DEVICE)
        eye = one_hot(dtype, one)
        for config in configs_of(op, sm):
            for m in ROWS:
                x = eye[:m]
                if not takes(op, config, x, len(codes)):
                    continue
                group = GROUP if format.grouped else None
                out = torch.ops.aoq.mm(x, parts, None, len(codes), format.name, x_as, group, None, config)
                assert torch.equal(out, expected[:m]), (config, m, zero, _C.last_kernel())


@pytest.mark.parametrize("w_dtype", (E4M3, E5M2), ids=str)
def test_every_code_of_fp8_is_exact_times_an_fp8_x(sm, w_dtype):
    if not runs("fp8_mm"):
        pytest.skip("fp8_mm has no kernel for this device")
    format = FORMATS["fp8_e5m2" if w_dtype == E5M2 else "fp8_e4m3"]
    codes, values = of_all_codes(format)
    packed, scale = parts_of(format, codes)
    n = len(codes)
    # The largest e4m3, whose code is itself: products of significands have eight bits, which bf16 holds.
    eye, expected = one_hot(torch.bfloat16, 448), (448 * values).t().bfloat16().to(DEVICE)
    for config in configs_of("fp8_mm", sm):
        name = _C.cuda_kernels("fp8_mm", capability())[config] if DEVICE == "cuda" else ""
        if any(part in name for part in ("e4m3", "e5m2")) and not name.endswith(f"e4m3_{format.name[4:]}_sm89"):
            continue
        for m in ROWS:
            x = eye[:m]
            if ((w_dtype == E5M2) != ("_e5m2_sm" in name) and DEVICE == "cuda") or not takes("fp8_mm", config, x, n):
                continue
            out = torch.ops.aoq.fp8_mm(x, packed, scale, None, n, w_dtype, E4M3, "row", None, None, config)
            assert torch.equal(out, expected[:m]), (config, m, _C.last_kernel())
