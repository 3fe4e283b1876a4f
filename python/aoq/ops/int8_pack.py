"""int8_pack: plain int8 codes to the tiled layout that the CPU kernels read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from aoq.ops.errors import raises_typed
from aoq.ops.packed import TILE_N

TILE_K = 4  # k of a tile


@raises_typed
def int8_pack(qdata: Tensor) -> Tensor:
    """Tiles plain int8 codes. `int8_unpack` is the exact inverse.

    A 64-byte unit covers 16 rows and 4 k: byte 4i + j is code + 128 of row i, k = j. The offset makes the codes
    unsigned, as the instructions that multiply them want one side to be.

    Args:
        qdata: int8 [n, k].

    Returns:
        uint8 [ceil(n / 16), ceil(k / 4), 64], contiguous; codes beyond n and k are 0.

    Raises:
        ValueError, TypeError: `qdata` is not int8 [n, k].
    """
    packed: Tensor = torch.ops.aoq.int8_pack.default(qdata)
    return packed


@torch.library.register_fake("aoq::int8_pack")  # type: ignore[untyped-decorator]
def _(qdata: Tensor) -> Tensor:
    n, k = qdata.shape
    return qdata.new_empty(((n + TILE_N - 1) // TILE_N, (k + TILE_K - 1) // TILE_K, 64), dtype=torch.uint8)


def int8_pack_reference(qdata: Tensor) -> Tensor:
    """The reference for `int8_pack` in PyTorch."""
    n, k = qdata.shape
    codes = pad(qdata, (0, -k % TILE_K, 0, -n % TILE_N)).view(torch.uint8) ^ 0x80
    packed: Tensor = codes.unflatten(1, (-1, TILE_K)).unflatten(0, (-1, TILE_N)).transpose(1, 2).flatten(2)
    return packed
