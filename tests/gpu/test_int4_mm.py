"""int4_mm on CUDA against fp64, with the tolerance that its arithmetic allows."""

import math

import pytest
import torch
from operands import DEVICE, randn, registered, weight

from aoq import _C
from aoq.ops import int4_dequantize, int4_mm, int4_unpack, int4_unpack_reference, int8_int4_mm, untile_scale
from rounding import check_rounding

pytestmark = pytest.mark.skipif(not registered("int4_mm"), reason="int4_mm has no CUDA kernel")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
AWKWARD = [
    *((64, 256, 128), (17, 40, 8), (33, 200, 128), (5, 7, 7), (1, 1, 1)),
    *((40, 1000, 1000), (48, 576, 64), (80, 96, 48)),
]
MODELS = [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (8192, 8192)]


def check(x, parts, n, group, bias=None, config=None):
    packed, scale, zero = parts
    k = x.shape[-1]
    qdata = int4_unpack_reference(packed, n, k)
    scales = [None if part is None else untile_scale(part, n).double() for part in (scale, zero)]
    exact = int4_dequantize(qdata, *scales, group, k, torch.float64)
    poison = torch.full((*x.shape[:-1], n), float("nan"), dtype=x.dtype, device=x.device)
    del poison  # the next allocation of this size is likely this memory
    if config is None:
        out = int4_mm(x, packed, scale, zero, bias, n, group)
    else:
        out = torch.ops.aoq.int4_mm(x, packed, scale, zero, bias, n, group, config)
    kernel = _C.last_kernel()
    expected = x.double() @ exact.t()
    spread = scales[0].repeat_interleave(min(group, k), 1)[:, :k]
    rounding = (4 * math.sqrt(k) + 16) * 2.0**-24 * (x.double().abs() @ (15 * spread + exact.abs()).t())
    assert out.dtype == x.dtype
    check_rounding(out, expected, rounding, bias, kernel)
    return kernel


@pytest.mark.parametrize("mapping", ("symmetric", "asymmetric"))
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_awkward_shapes(sm, shape, mapping):
    n, k, group = shape
    parts = weight(n, k, group, DEVICE, mapping)
    for dtype in DTYPES:
        for m in (0, 1, 2, 3, 8, 9, 17, 32, 33, 70):
            check(randn(m, k, dtype=dtype, seed=m), parts, n, group, randn(n, seed=1) if m % 2 else None)


@pytest.mark.parametrize("n, k", MODELS)
def test_shapes_of_models(sm, n, k):
    parts = weight(n, k, 128, DEVICE)
    for m in (1, 4, 16, 32, 64, 256, 1000):
        check(randn(m, k, seed=m), parts, n, 128)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k, group", [(136, 1032, 128), (272, 640, 32)])
def test_every_plan(sm, n, k, group, dtype):
    """The first 16 configs are plans for few rows, the next 16 for many, 24 more on Hopper: any takes any number."""
    parts = weight(n, k, group, DEVICE)
    hopper = sm == "sm90a"
    for config in range(56 if hopper else 32):
        for m in (5, 70, 200):
            kernel = check(randn(m, k, dtype=dtype, seed=m), parts, n, group, randn(n, seed=1), config)
    assert ("_wgmma_" if hopper else "_wide_") in kernel
    if not hopper:
        with pytest.raises(RuntimeError, match="config: expected -1 to 31"):
            check(randn(5, k, dtype=dtype), parts, n, group, config=32)


@pytest.mark.parametrize("n, k, group", [(1, 1, 1), (5, 33, 32), (17, 200, 128), (130, 96, 32)])
def test_tiles_larger_than_the_matrix(sm, n, k, group):
    """Every tile of every plan is larger than x and w: the copy engine's boxes reach beyond both."""
    parts = weight(n, k, group, DEVICE)
    for config in range(16, 56 if sm == "sm90a" else 32):
        for m in (1, 3, 33):
            check(randn(m, k, seed=m), parts, n, group, randn(n, seed=1), config)


@pytest.mark.parametrize("group, mapping", [(128, "symmetric"), (64, "asymmetric"), (32, "hqq"), (8192, "asymmetric")])
def test_many_rows(sm, group, mapping):
    """Whole tiles and ragged ones, several waves of blocks, all scales' dtypes."""
    n, k = 1552, 2048
    packed, scale, zero = weight(n, k, group, DEVICE, mapping)
    for dtype in DTYPES:
        parts = [packed, scale.to(dtype), None if zero is None else zero.to(dtype)]
        for m in (256, 1027, 4096):
            check(randn(m, k, seed=m), parts, n, group)


def test_any_rank_and_stride(sm):
    parts = weight(24, 64, 32, DEVICE)
    rows = randn(6, 128)
    for x in (rows[0, :64], rows[:, :64], rows[::2, 64:], rows[:, ::2], rows.view(2, 3, 128)[..., 32:96]):
        check(x, parts, 24, 32)


def test_bad_operands_are_named():
    packed, scale, zero = weight(24, 64, 32, DEVICE)
    x = randn(3, 64)
    for changed, text in [
        ((x[:, :32], packed, scale, zero, None), "packed"),
        ((x, packed, scale[:1], zero, None), "scale"),
        ((x, packed, scale.cpu(), zero, None), "scale"),
        ((x, packed, scale, zero, randn(23)), "bias"),
    ]:
        with pytest.raises((ValueError, TypeError), match=text):
            int4_mm(*changed, 24, 32)


def test_views_that_are_not_aligned_are_refused():
    """Kernels read scales four bytes and codes sixteen at a time: else it would be the device's error, and its last."""
    packed, scale, zero = weight(24, 64, 32, DEVICE)

    def shifted(tensor):
        return torch.cat((tensor.flatten()[:1], tensor.flatten()))[1:].view_as(tensor)

    x = randn(3, 64)
    for name, changed in [
        ("packed", (shifted(packed), scale, zero)),
        ("scale", (packed, shifted(scale), zero)),
        ("zero_point", (packed, scale, shifted(zero))),
    ]:
        for op in (lambda *parts: int4_mm(x, *parts, None, 24, 32), lambda *p: int8_int4_mm(x, *p, None, None, 24, 32)):
            with pytest.raises(ValueError, match=f"{name}: expected memory aligned to"):
                op(*changed)
    with pytest.raises(ValueError, match="packed: expected memory aligned to 16 bytes"):
        int4_unpack(shifted(packed), 24, 64)
    assert torch.equal(int4_mm(x, packed, scale, zero, None, 24, 32), int4_mm(x, packed, scale, zero, None, 24, 32))
