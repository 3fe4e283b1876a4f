"""int4_pack: plain int4 codes to the tiled layout that the CPU kernels read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from aoq.ops.errors import raises_typed
from aoq.ops.packed import TILE_N

TILE_K = 8  # k of a tile


@raises_typed
def int4_pack(qdata: Tensor, k: int) -> Tensor:
    """Tiles plain int4 codes. `int4_unpack` is the exact inverse.

    A 64-byte unit covers 16 rows and 8 k: 16 lanes of 32 bits, lane i for row i. As little-endian 16-bit
    words, lane i is words 2i (even k) and 2i + 1 (odd k), and nibble j of word 2i + p is k = 2j + p.

    Args:
        qdata: uint8 [n, ceil(k / 2)], low nibble = even k.
        k: codes in a row.

    Returns:
        uint8 [ceil(n / 16), ceil(k / 8), 64], contiguous; codes beyond n and k are 0.

    Raises:
        ValueError, TypeError: `qdata` is not uint8 [n, ceil(k / 2)].
    """
    packed: Tensor = torch.ops.aoq.int4_pack.default(qdata, k)
    return packed


@torch.library.register_fake("aoq::int4_pack")  # type: ignore[untyped-decorator]
def _(qdata: Tensor, k: int) -> Tensor:
    n = qdata.shape[0]
    return qdata.new_empty(((n + TILE_N - 1) // TILE_N, (k + TILE_K - 1) // TILE_K, 64))


def int4_pack_reference(qdata: Tensor, k: int) -> Tensor:
    """The reference for `int4_pack` in PyTorch."""
    codes = torch.stack((qdata & 0xF, qdata >> 4), dim=-1).flatten(-2)[:, :k]
    codes = pad(codes, (0, -k % TILE_K, 0, -len(qdata) % TILE_N))
    lanes = codes.unflatten(1, (-1, TILE_K)).unflatten(0, (-1, TILE_N)).transpose(1, 2)
    nibbles = lanes[..., [0, 4, 1, 5]] | lanes[..., [2, 6, 3, 7]] << 4
    packed: Tensor = nibbles.flatten(2)
    return packed
