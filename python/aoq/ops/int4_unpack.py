"""int4_unpack: a device's tiled layout back to plain int4 codes."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed
from aoq.ops.int4_pack import CUDA_TILE_BYTES, packed_shape
from aoq.ops.packed import TILE_N


@raises_typed
def int4_unpack(packed: Tensor, n: int, k: int) -> Tensor:
    """Inverts `int4_pack`, exactly.

    Args:
        packed: uint8 `packed_shape(n, k, device)`.
        n, k: the shape of the weight.

    Returns:
        uint8 [n, ceil(k / 2)], low nibble = even k; when k is odd the last high nibbles are 0.

    Raises:
        ValueError, TypeError: `packed` is not of that shape or dtype.
    """
    qdata: Tensor = torch.ops.aoq.int4_unpack.default(packed, n, k)
    return qdata


@torch.library.register_fake("aoq::int4_unpack")  # type: ignore[untyped-decorator]
def _(packed: Tensor, n: int, k: int) -> Tensor:
    check = Checks("int4_unpack")
    check.tensor(packed, "packed")
    check.dtype(packed.dtype, "packed", (torch.uint8,))
    check.at_least_one(n, "n")
    check.at_least_one(k, "k")
    check.shape(packed, "packed", *packed_shape(n, k, packed.device))
    check.size(packed, "packed")
    return packed.new_empty((n, (k + 1) // 2))


def int4_unpack_reference(packed: Tensor, n: int, k: int) -> Tensor:
    """The reference for `int4_unpack` in PyTorch."""
    return int4_rows(packed, torch.arange(n, device=packed.device), k)


def int4_rows(packed: Tensor, rows: Tensor, k: int) -> Tensor:
    """The plain codes, uint8 [*rows.shape, ceil(k / 2)], of some rows of a weight, packed for any device."""
    tile, row = rows // TILE_N, rows % TILE_N
    if packed.shape[-1] == CUDA_TILE_BYTES:  # layouts differ in the size of their tiles
        # lane 4g + c, word w, byte 2 odd + h: row g in the low nibble, g + 8 in the high one; k = 16w + 8h + 2c + odd
        owned = packed.unflatten(-1, (8, 4, 4, 2, 2))[tile, :, row % 8]  # [..., T, c, w, odd, h]
        codes = owned >> (row // 8 * 4).view(*row.shape, 1, 1, 1, 1, 1) & 0xF
        plain: Tensor = (codes[..., 0, :] | codes[..., 1, :] << 4).movedim(-3, -1).flatten(-4)
    else:
        # Bytes hold codes 0|2, 4|6, 1|3, 5|7 (low|high nibble); plain ones 0|1, 2|3, 4|5, 6|7.
        lanes = packed.unflatten(-1, (TILE_N, 4))[tile, :, row]
        even, odd = lanes[..., :2], lanes[..., 2:]
        plain = torch.stack((even & 0xF | odd << 4, even >> 4 | odd & 0xF0), dim=-1).flatten(-3)
    qdata: Tensor = plain[..., : (k + 1) // 2]
    if k % 2:
        qdata[..., -1] &= 0xF  # the upper nibble is beyond k
    return qdata
