"""int4_unpack: a device's tiled layout back to plain int4 codes."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.errors import raises_typed
from aoq.ops.int4_pack import CUDA_TILE_BYTES
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
    return packed.new_empty((n, (k + 1) // 2))


def int4_unpack_reference(packed: Tensor, n: int, k: int) -> Tensor:
    """The reference for `int4_unpack` in PyTorch, of either layout: their tiles differ in size."""
    if packed.shape[-1] == CUDA_TILE_BYTES:
        nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).view(*packed.shape[:2], 8, 4, 4, 2, 2, 2)
        codes = nibbles.permute(0, 7, 2, 1, 4, 6, 3, 5).reshape(TILE_N * len(packed), -1)[:n]
        return (codes[:, 0 : k + k % 2 : 2] | codes[:, 1 : k + k % 2 : 2] << 4).contiguous()
    lanes = packed.unflatten(2, (TILE_N, 4)).transpose(1, 2).flatten(0, 1)[:n]  # [n, ku, 4]
    return lane_bytes(lanes)[:, : (k + 1) // 2]


def lane_bytes(lanes: Tensor) -> Tensor:
    """The lanes of some rows, uint8 [..., ku, 4], as plain bytes [..., ku * 4].

    A lane's bytes hold codes 0|2, 4|6, 1|3, 5|7 (low|high nibble); plain ones 0|1, 2|3, 4|5, 6|7.
    """
    even, odd = lanes[..., :2], lanes[..., 2:]
    low, high = even & 0xF | odd << 4, even >> 4 | odd & 0xF0
    return torch.stack((low, high), dim=-1).flatten(-3)
