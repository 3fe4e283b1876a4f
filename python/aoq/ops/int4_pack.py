"""int4_pack: plain int4 codes to the tiled layout that a device's kernels read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed
from aoq.ops.packed import TILE_N

TILE_K = 8  # k of a tile on the CPU
CUDA_TILE_K, CUDA_TILE_BYTES = 64, 512


def packed_shape(n: int, k: int, device: torch.device) -> tuple[int, int, int]:
    """The shape of what `int4_pack` makes on `device` of n rows of k codes."""
    tile_k, tile_bytes = (CUDA_TILE_K, CUDA_TILE_BYTES) if device.type == "cuda" else (TILE_K, 64)
    return (n + TILE_N - 1) // TILE_N, (k + tile_k - 1) // tile_k, tile_bytes


def packed_dtype(device: torch.device) -> torch.dtype:
    """The dtype of what `int4_pack` makes on any device."""
    return torch.uint8


@raises_typed
def int4_pack(qdata: Tensor, k: int) -> Tensor:
    """Tiles plain int4 codes for the kernels of their device. `int4_unpack` is the exact inverse.

    On the CPU a 64-byte unit covers 16 rows and 8 k: 16 lanes of 32 bits, lane i for row i. As little-endian
    16-bit words, lane i is words 2i (even k) and 2i + 1 (odd k), and nibble j of word 2i + p is k = 2j + p.

    On CUDA a 512-byte tile covers 16 rows and 64 k: 16 bytes for each lane of a warp, in the order of the tensor
    cores' fragments. csrc/formats/nibbles_cuda.h has the picture.

    Args:
        qdata: uint8 [n, ceil(k / 2)], low nibble = even k.
        k: codes in a row.

    Returns:
        uint8 `packed_shape(n, k, device)`, contiguous; codes beyond n and k are 0.

    Raises:
        ValueError, TypeError: `qdata` is not uint8 [n, ceil(k / 2)].
    """
    packed: Tensor = torch.ops.aoq.int4_pack.default(qdata, k)
    return packed


@torch.library.register_fake("aoq::int4_pack")  # type: ignore[untyped-decorator]
def _(qdata: Tensor, k: int) -> Tensor:
    check = Checks("int4_pack")
    check.tensor(qdata, "qdata")
    check.dtype(qdata.dtype, "qdata", (torch.uint8,))
    check.value(qdata.dim() == 2, "qdata", lambda: f"expected shape [n, ceil(k/2)], got {list(qdata.shape)}")
    check.at_least_one(k, "k")
    check.shape(qdata, "qdata", qdata.shape[0], (k + 1) // 2)
    check.value(qdata.shape[0] > 0, "qdata", lambda: f"expected at least one row, got {list(qdata.shape)}")
    check.size(qdata, "qdata")
    return qdata.new_empty(packed_shape(qdata.shape[0], k, qdata.device))


def int4_pack_reference(qdata: Tensor, k: int, device: torch.device | None = None) -> Tensor:
    """The reference for `int4_pack` in PyTorch; `device` asks for another device's layout."""
    cuda = (device or qdata.device).type == "cuda"
    codes = torch.stack((qdata & 0xF, qdata >> 4), dim=-1).flatten(-2)[:, :k]
    codes = pad(codes, (0, -k % (CUDA_TILE_K if cuda else TILE_K), 0, -len(qdata) % TILE_N))
    if cuda:
        # row = 8r + g, k = 64T + 16w + 8h + 2c + odd: lane 4g + c, word w, nibble 4 odd + 2h + r
        tiles = codes.view(len(codes) // TILE_N, 2, 8, -1, 4, 2, 4, 2)  # [N, r, g, T, w, h, c, odd]
        nibbles = tiles.permute(0, 3, 2, 6, 4, 7, 5, 1).flatten(2)
        pairs = nibbles.unflatten(2, (-1, 2))
        tiled: Tensor = pairs[..., 0] | pairs[..., 1] << 4
        return tiled
    lanes = codes.unflatten(1, (-1, TILE_K)).unflatten(0, (-1, TILE_N)).transpose(1, 2)
    nibbles = lanes[..., [0, 4, 1, 5]] | lanes[..., [2, 6, 3, 7]] << 4
    packed: Tensor = nibbles.flatten(2)
    return packed
