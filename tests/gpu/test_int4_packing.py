"""int4 and int8 packing and quantizing on CUDA, to the bit of the references and of the CPU."""

import pytest
import torch

import aoq
from aoq.ops import (
    int4_pack,
    int4_pack_reference,
    int4_quantize,
    int4_unpack,
    int8_pack,
    int8_pack_reference,
    int8_unpack,
)

AWKWARD = [(1, 1), (17, 65), (33, 6), (100, 1001), (16, 64)]
MODELS = [(4096, 4096), (6144, 4096), (4096, 14336)]  # n, k


@pytest.mark.parametrize("n, k", AWKWARD + MODELS)
def test_int4_round_trip(n, k):
    qdata = torch.randint(0, 256, (n, (k + 1) // 2), dtype=torch.uint8)
    if k % 2:
        qdata[:, -1] &= 15
    packed = int4_pack(qdata.cuda(), k)
    assert torch.equal(packed.cpu(), int4_pack_reference(qdata, k, torch.device("cuda")))
    assert torch.equal(int4_unpack(packed, n, k).cpu(), qdata)


@pytest.mark.parametrize("n, k", AWKWARD + MODELS[:1])
def test_int8_round_trip(n, k):
    qdata = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    packed = int8_pack(qdata.cuda())
    assert torch.equal(packed.cpu(), int8_pack_reference(qdata, torch.device("cuda")))
    assert torch.equal(int8_unpack(packed, n, k).cpu(), qdata)


def test_more_than_2_to_the_31_bytes():
    n, k = 65552, 65600  # 2.15 GB of codes: offsets need 64 bits
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB")
    qdata = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    packed = int4_pack(qdata, k)
    assert torch.equal(int4_unpack(packed, n, k), qdata)
    assert torch.equal(int4_pack(qdata[-16:].contiguous(), k), packed[-1:])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("mapping", ("symmetric", "asymmetric", "hqq"))
def test_int4_quantize_gives_the_bits_of_the_cpu(mapping, dtype):
    for n, k, group in [(16, 64, 32), (17, 40, 8), (3, 7, 7), (33, 200, 128), (5, 1001, 1001), (512, 4096, 128)]:
        w = (torch.randn(n, k) * 0.02).to(dtype)
        w[0, : k // 2] = 0
        for scale_dtype in (None, torch.float32):
            got, wanted = (int4_quantize(part, group, mapping, scale_dtype) for part in (w.cuda(), w))
            for a, b in zip(got, wanted, strict=True):
                assert torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8)), (n, k, group, scale_dtype)


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_weights_that_are_not_finite_are_refused(bad):
    w = torch.ones(32, 64, device="cuda")
    w[7, 9] = bad
    with pytest.raises(ValueError, match="w: expected finite values, got NaN or infinity"):
        aoq.Int4WeightOnlyConfig(32).quantize(w)
