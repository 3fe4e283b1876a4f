"""intx_pack and intx_unpack: codes of 1 to 7 bits to the layout that the CPU's kernels read, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.bits import from_codes, pack_codes, packed_shape, row_bytes, to_codes, unpack_codes
from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed


@raises_typed
def intx_pack(qdata: Tensor, k: int, bits: int) -> Tensor:
    """Packs plain codes for the CPU's kernels, in units of 16 rows whose bits are split into planes of 4, 2 and 1.

    `intx_unpack` is the exact inverse. csrc/formats/format.h has the picture.

    Args:
        qdata: uint8 [n, ceil(k * bits / 8)], as `intx_quantize` makes it.
        k: codes in a row.
        bits: of a code, 1 to 7.

    Returns:
        uint8 `packed_shape(n, k, bits)`, contiguous; codes beyond n and k are 0.

    Raises:
        ValueError, TypeError: `qdata` is not uint8 of that shape, or `bits` is something else.
    """
    packed: Tensor = torch.ops.aoq.intx_pack.default(qdata, k, bits)
    return packed


@raises_typed
def intx_unpack(packed: Tensor, n: int, k: int, bits: int) -> Tensor:
    """Inverts `intx_pack`, exactly.

    Args:
        packed: uint8 `packed_shape(n, k, bits)`.
        n, k: the shape of the weight.

    Returns:
        uint8 [n, ceil(k * bits / 8)]; a row's last bits are 0.
    """
    qdata: Tensor = torch.ops.aoq.intx_unpack.default(packed, n, k, bits)
    return qdata


def _check_sizes(check: Checks, k: int, bits: int) -> None:
    check.value(1 <= bits <= 7, "bits", lambda: f"expected 1 to 7 (int8_pack takes 8), got {bits}")
    check.at_least_one(k, "k")
    check.size(k, "k")


@torch.library.register_fake("aoq::intx_pack")  # type: ignore[untyped-decorator]
def _(qdata: Tensor, k: int, bits: int) -> Tensor:
    check = Checks("intx_pack")
    check.tensor(qdata, "qdata")
    check.dtype(qdata.dtype, "qdata", (torch.uint8,))
    rows = qdata.dim() == 2 and qdata.shape[0] > 0
    check.value(rows, "qdata", lambda: f"expected shape [n, ceil(k * bits / 8)] with n > 0, got {list(qdata.shape)}")
    _check_sizes(check, k, bits)
    check.shape(qdata, "qdata", qdata.shape[0], row_bytes(k, bits))
    check.size(qdata, "qdata")
    return qdata.new_empty(packed_shape(qdata.shape[0], k, bits, qdata.device))


@torch.library.register_fake("aoq::intx_unpack")  # type: ignore[untyped-decorator]
def _(packed: Tensor, n: int, k: int, bits: int) -> Tensor:
    check = Checks("intx_unpack")
    check.tensor(packed, "packed")
    check.dtype(packed.dtype, "packed", (torch.uint8,))
    check.at_least_one(n, "n")
    check.size(n, "n")
    _check_sizes(check, k, bits)
    check.shape(packed, "packed", *packed_shape(n, k, bits, packed.device))
    check.size(packed, "packed")
    return packed.new_empty((n, row_bytes(k, bits)))


def intx_pack_reference(qdata: Tensor, k: int, bits: int) -> Tensor:
    """The reference for `intx_pack` in PyTorch."""
    return pack_codes(to_codes(qdata, k, bits), bits)


def intx_unpack_reference(packed: Tensor, n: int, k: int, bits: int) -> Tensor:
    """The reference for `intx_unpack` in PyTorch."""
    return from_codes(unpack_codes(packed, torch.arange(n), k, bits), bits)
