"""int4_pack and int4_unpack: exact inverses, and the layout of csrc/formats/int4.h bit by bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aoq import _C
from aoq.ops import int4_pack, int4_pack_reference, int4_unpack, int4_unpack_reference


def random_codes(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    qdata = torch.randint(0, 256, (n, (k + 1) // 2), dtype=torch.uint8, generator=generator)
    if k % 2:
        qdata[:, -1] &= 15
    return qdata


@pytest.mark.parametrize("n, k", [(16, 8), (1, 1), (17, 40), (33, 6), (48, 576), (100, 1001), (256, 64)])
def test_round_trip_and_reference(isa, n, k):
    qdata = random_codes(n, k)
    packed = int4_pack(qdata, k)
    assert _C.last_kernel().startswith("int4_pack_")
    assert torch.equal(packed, int4_pack_reference(qdata, k))
    assert torch.equal(int4_unpack(packed, n, k), qdata)
    assert torch.equal(int4_unpack_reference(packed, n, k), qdata)


def test_one_unit_by_hand(isa):
    """Row 3 of a unit holds codes 0..7 at k = 0..7: even k in the low half of its lane, odd k in the high half."""
    qdata = torch.zeros(16, 4, dtype=torch.uint8)
    qdata[3] = torch.tensor([0x10, 0x32, 0x54, 0x76])
    lanes = int4_pack(qdata, 8).view(torch.int32).flatten()
    assert lanes[3].item() == 0x75316420 and lanes.count_nonzero() == 1


def test_strided_codes(isa):
    qdata = random_codes(20, 64)
    wide = torch.cat((qdata, qdata), 1)
    assert torch.equal(int4_pack(wide[:, :32], 64), int4_pack(qdata, 64))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 200), st.integers(0, 2**20))
def test_any_shape(isas, n, k, seed):
    qdata = random_codes(n, k, seed)
    for name in isas:
        _C.set_isa(name)
        packed = int4_pack(qdata, k)
        assert torch.equal(packed, int4_pack_reference(qdata, k))
        assert torch.equal(int4_unpack(packed, n, k), qdata)


def test_opcheck():
    qdata = random_codes(20, 30)
    torch.library.opcheck(torch.ops.aoq.int4_pack.default, (qdata, 30))
    torch.library.opcheck(torch.ops.aoq.int4_unpack.default, (int4_pack(qdata, 30), 20, 30))


def test_bad_operands_are_named():
    qdata = random_codes(16, 8)
    for args, error, text in [
        ((qdata.char(), 8), TypeError, "qdata: expected uint8, got int8"),
        ((qdata, 10), ValueError, r"qdata: expected shape \[16, 5\], got \[16, 4\]"),
        ((qdata, 0), ValueError, "k: expected at least 1"),
        ((qdata[0], 8), ValueError, "qdata: expected shape"),
        ((qdata[:0], 8), ValueError, "qdata: expected at least one row"),
    ]:
        with pytest.raises(error, match=text):
            int4_pack(*args)
    packed = int4_pack(qdata, 8)
    for args, error, text in [
        ((packed, 17, 8), ValueError, r"packed: expected shape \[2, 1, 64\], got \[1, 1, 64\]"),
        ((packed, 16, 9), ValueError, "packed: expected shape"),
        ((packed, 0, 8), ValueError, "n: expected at least 1"),
        ((packed.int(), 16, 8), TypeError, "packed: expected uint8, got int32"),
    ]:
        with pytest.raises(error, match=text):
            int4_unpack(*args)
