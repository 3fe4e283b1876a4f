"""int8_pack and int8_unpack: exact inverses, and the layout of csrc/formats/int8.h byte by byte."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aoq import _C
from aoq.ops import int8_pack, int8_pack_reference, int8_unpack, int8_unpack_reference


def random_codes(n, k, seed=0):
    return torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n, k", [(16, 4), (1, 1), (17, 40), (33, 6), (48, 576), (100, 1001), (256, 64)])
def test_round_trip_and_reference(isa, n, k):
    qdata = random_codes(n, k)
    packed = int8_pack(qdata)
    assert _C.last_kernel().startswith("int8_pack_")
    assert torch.equal(packed, int8_pack_reference(qdata))
    assert torch.equal(int8_unpack(packed, n, k), qdata)
    assert torch.equal(int8_unpack_reference(packed, n, k), qdata)


def test_one_unit_by_hand(isa):
    """Row 3 of a unit holds its four codes, 128 added to each, in bytes 12 to 15."""
    qdata = torch.zeros(16, 4, dtype=torch.int8)
    qdata[3] = torch.tensor([-128, -1, 1, 127])
    expected = torch.full((64,), 128, dtype=torch.uint8)
    expected[12:16] = torch.tensor([0, 127, 129, 255])
    assert torch.equal(int8_pack(qdata).flatten(), expected)


def test_strided_codes(isa):
    qdata = random_codes(20, 64)
    wide = torch.cat((qdata, qdata), 1)
    assert torch.equal(int8_pack(wide[:, :64]), int8_pack(qdata))
    assert torch.equal(int8_pack(qdata.t().contiguous().t()), int8_pack(qdata))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 200), st.integers(0, 2**20))
def test_any_shape(isas, n, k, seed):
    qdata = random_codes(n, k, seed)
    for name in isas:
        _C.set_isa(name)
        packed = int8_pack(qdata)
        assert torch.equal(packed, int8_pack_reference(qdata))
        assert torch.equal(int8_unpack(packed, n, k), qdata)


def test_opcheck():
    qdata = random_codes(20, 30)
    torch.library.opcheck(torch.ops.aoq.int8_pack.default, (qdata,))
    torch.library.opcheck(torch.ops.aoq.int8_unpack.default, (int8_pack(qdata), 20, 30))


def test_bad_operands_are_named():
    qdata = random_codes(16, 8)
    for bad, error, text in [
        (qdata.view(torch.uint8), TypeError, "qdata: expected int8, got uint8"),
        (qdata[0], ValueError, r"qdata: expected shape \[n, k\], neither 0, got \[8\]"),
        (qdata[:0], ValueError, r"qdata: expected shape \[n, k\], neither 0, got \[0, 8\]"),
        (qdata[:, :0], ValueError, "qdata: expected shape"),
    ]:
        with pytest.raises(error, match=text):
            int8_pack(bad)
    packed = int8_pack(qdata)
    for args, error, text in [
        ((packed, 17, 8), ValueError, r"packed: expected shape \[2, 2, 64\], got \[1, 2, 64\]"),
        ((packed, 16, 9), ValueError, "packed: expected shape"),
        ((packed, 0, 8), ValueError, "n: expected at least 1"),
        ((packed, 16, 0), ValueError, "k: expected at least 1"),
        ((packed.int(), 16, 8), TypeError, "packed: expected uint8, got int32"),
    ]:
        with pytest.raises(error, match=text):
            int8_unpack(*args)
