"""The CUDA kernels of packing codes of few bits and of quantizing to them, thread by thread: the bits of the references
and of the CPU's."""

import faulthandler
import os
import signal

import pytest
import torch
from kernel_args import DTYPES, MAPPINGS, Int4Pack, Int4Quantize, Int4Unpack
from nibbles import BITS, packed_codes

from aoq.ops import int4_quantize, intx_quantize
from aoq.ops.bits import from_codes, row_bytes

SHAPES = [(16, 64), (1, 1), (17, 65), (33, 6), (48, 576), (20, 1001), (40, 128)]


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("n, k", SHAPES)
def test_pack_and_unpack(simt_kernel, name, n, k):
    """Bits after a row's last code are not packed, and are 0 when they are unpacked."""
    bits = BITS[name]
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    qdata, wanted = from_codes(codes, bits), packed_codes(codes, bits)
    dirty = qdata.clone()
    dirty[:, -1] |= (0xFF << (k * bits - 1) % 8 + 1) & 0xFF
    packed, back = torch.full_like(wanted, 0xA5), torch.full_like(qdata, 0xA5)
    simt_kernel(f"{name}_pack_sm80", Int4Pack)(n=n, k=k, qdata=dirty, packed=packed)
    assert torch.equal(packed, wanted)
    wide = torch.nn.functional.pad(codes, (0, -k % 64), value=1)  # as nobody packs it
    simt_kernel(f"{name}_unpack_sm80", Int4Unpack)(n=n, k=k, packed=packed_codes(wide, bits), qdata=back)
    assert torch.equal(back, qdata)


def test_memory_beyond_a_tensor_is_out_of_reach(simt_kernel):
    """What a device's memory checker would find crashes here."""
    kernel = simt_kernel("int4_pack_sm80", Int4Pack)
    codes, packed = torch.zeros(16, 32, dtype=torch.uint8), torch.zeros(1, 1, 512, dtype=torch.uint8)
    for n in (16, 17):
        child = os.fork()
        if child == 0:
            faulthandler.disable()
            kernel(n=n, k=64, qdata=codes, packed=packed)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if n == 16 else -signal.SIGSEGV)


def quantize(kernel, w, group, mapping, scale_dtype, bits=4):
    n, k = w.shape
    groups, group = -(-k // group), min(group, k)
    qdata = torch.full((n, row_bytes(k, bits)), 0xA5, dtype=torch.uint8)
    scale = torch.full((n, groups), -1, dtype=scale_dtype)
    zero_point = torch.full((n, 0 if mapping == "symmetric" else groups), -1, dtype=scale_dtype)
    given = {"w": w, "w_dtype": DTYPES[w.dtype], "w_stride": w.stride(0), "scale_dtype": DTYPES[scale_dtype]}
    out = {"qdata": qdata, "scale": scale, "zero_point": zero_point}
    kernel(n=n, k=k, group=group, bits=bits, mapping=MAPPINGS[mapping], bad_row=None, **given, **out)
    return qdata, scale, zero_point


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("n, k, group", [(3, 64, 32), (2, 100, 32), (1, 1, 8), (5, 71, 1000), (2, 40, 8)])
def test_quantize_gives_the_bits_of_the_cpu(simt_kernel, mapping, n, k, group):
    kernel = simt_kernel("int4_quantize_sm80", Int4Quantize)
    for w_dtype, scale_dtype in [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)]:
        w = torch.randn(n, k, generator=torch.Generator().manual_seed(k)).to(w_dtype)
        w[0, : k // 2] = 0  # a group of zeros, or a half of one
        for got, wanted in zip(
            quantize(kernel, w, group, mapping, scale_dtype), int4_quantize(w, group, mapping, scale_dtype), strict=True
        ):
            assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8)), (w_dtype, scale_dtype)


@pytest.mark.parametrize("bits", (1, 2, 3, 5, 6, 7, 8))
def test_quantize_to_other_widths(simt_kernel, bits):
    kernel = simt_kernel("int4_quantize_sm80", Int4Quantize)
    for n, k, group in ((3, 100, 32), (5, 71, 71)):
        w = torch.randn(n, k, generator=torch.Generator().manual_seed(k))
        got = quantize(kernel, w, group, "asymmetric", torch.float32, bits)
        assert all(map(torch.equal, got, intx_quantize(w, bits, group)))


def test_quantize_strided(simt_kernel):
    w = torch.randn(4, 96)[:, :64]
    for got, wanted in zip(
        quantize(simt_kernel("int4_quantize_sm80", Int4Quantize), w, 32, "asymmetric", torch.float32),
        int4_quantize(w, 32),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_quantize_marks_groups_that_are_not_finite(simt_kernel, bad):
    """A kernel cannot raise, and an op that waited for it could not be captured in a graph."""
    w = torch.ones(2, 64)
    w[1, 40] = bad
    scale = quantize(simt_kernel("int4_quantize_sm80", Int4Quantize), w, 32, "asymmetric", torch.float32)[1]
    assert scale.isfinite().tolist() == [[True, True], [True, False]]
