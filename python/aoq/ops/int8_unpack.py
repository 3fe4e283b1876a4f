"""int8_unpack: the CPU's tiled layout back to plain int8 codes."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.errors import raises_typed
from aoq.ops.packed import TILE_N


@raises_typed
def int8_unpack(packed: Tensor, n: int, k: int) -> Tensor:
    """Inverts `int8_pack`, exactly.

    Args:
        packed: uint8 [ceil(n / 16), ceil(k / 4), 64].
        n, k: the shape of the weight.

    Returns:
        int8 [n, k].

    Raises:
        ValueError, TypeError: `packed` is not of that shape or dtype.
    """
    qdata: Tensor = torch.ops.aoq.int8_unpack.default(packed, n, k)
    return qdata


@torch.library.register_fake("aoq::int8_unpack")  # type: ignore[untyped-decorator]
def _(packed: Tensor, n: int, k: int) -> Tensor:
    return packed.new_empty((n, k), dtype=torch.int8)


def int8_unpack_reference(packed: Tensor, n: int, k: int) -> Tensor:
    """The reference for `int8_unpack` in PyTorch."""
    lanes = packed.unflatten(2, (TILE_N, 4)).transpose(1, 2).flatten(0, 1)[:n]  # [n, ku, 4]
    return lane_codes(lanes)[:, :k]


def lane_codes(lanes: Tensor) -> Tensor:
    """The lanes of some rows, uint8 [..., ku, 4], as plain int8 codes [..., ku * 4]."""
    return (lanes ^ 0x80).flatten(-2).view(torch.int8)
