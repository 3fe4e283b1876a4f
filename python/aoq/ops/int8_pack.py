"""int8_pack: plain int8 codes to the layout that a device's kernels read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed
from aoq.ops.packed import TILE_N

TILE_K = 4  # k of a tile on the CPU
CUDA_ALIGN = 16  # bytes


def packed_shape(n: int, k: int, device: torch.device) -> tuple[int, int, int]:
    """The shape of what `int8_pack` makes on `device` of n rows of k codes."""
    tiles = (n + TILE_N - 1) // TILE_N
    if device.type == "cuda":
        return tiles, TILE_N, (k + CUDA_ALIGN - 1) // CUDA_ALIGN * CUDA_ALIGN
    return tiles, (k + TILE_K - 1) // TILE_K, 64


def packed_dtype(device: torch.device) -> torch.dtype:
    """The dtype of what `int8_pack` makes on `device`."""
    return torch.int8 if device.type == "cuda" else torch.uint8


@raises_typed
def int8_pack(qdata: Tensor) -> Tensor:
    """Packs plain int8 codes for the kernels of their device. `int8_unpack` is the exact inverse.

    On the CPU a 64-byte unit covers 16 rows and 4 k: byte 4i + j is code + 128 of row i, k = j. The offset makes
    the codes unsigned, as the instructions that multiply them want one side to be.

    On CUDA they stay as they are, signed and row by row, which is what its tensor cores read; rows and columns
    are padded to multiples of 16, as its bulk copies need them.

    Args:
        qdata: int8 [n, k].

    Returns:
        `packed_shape(n, k, device)`, contiguous, uint8 on the CPU and int8 on CUDA; codes beyond n and k are 0.

    Raises:
        ValueError, TypeError: `qdata` is not int8 [n, k].
    """
    packed: Tensor = torch.ops.aoq.int8_pack.default(qdata)
    return packed


@torch.library.register_fake("aoq::int8_pack")  # type: ignore[untyped-decorator]
def _(qdata: Tensor) -> Tensor:
    check = Checks("int8_pack")
    check.tensor(qdata, "qdata")
    device, shape = qdata.device, list(qdata.shape)
    check.dtype(qdata.dtype, "qdata", (torch.int8,))
    check.value(
        qdata.dim() == 2 and qdata.numel() > 0, "qdata", lambda: f"expected shape [n, k], neither 0, got {shape}"
    )
    check.size(qdata, "qdata")
    return qdata.new_empty(packed_shape(*qdata.shape, device), dtype=packed_dtype(device))  # type: ignore[call-arg]


def int8_pack_reference(qdata: Tensor, device: torch.device | None = None) -> Tensor:
    """The reference for `int8_pack` in PyTorch; `device` asks for another device's layout."""
    n, k = qdata.shape
    if (device or qdata.device).type == "cuda":
        rows: Tensor = pad(qdata, (0, -k % CUDA_ALIGN, 0, -n % TILE_N)).unflatten(0, (-1, TILE_N))
        return rows
    codes = pad(qdata, (0, -k % TILE_K, 0, -n % TILE_N)).view(torch.uint8) ^ 0x80
    packed: Tensor = codes.unflatten(1, (-1, TILE_K)).unflatten(0, (-1, TILE_N)).transpose(1, 2).flatten(2)
    return packed
