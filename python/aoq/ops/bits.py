"""Codes of 1 to 8 bits: the bit stream that checkpoints hold, and the planes that the CPU's kernels read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE_N = 16  # rows of a unit


def row_bytes(k: int, bits: int) -> int:
    """Bytes of a plain row of `k` codes: code i is its bits [i * bits, (i + 1) * bits), lowest first."""
    return -(-k * bits // 8)


def unit_k(bits: int) -> int:
    """Columns of a unit of the packed layout, whose planes are whole 32-bit words: csrc/formats/format.h."""
    return 32 // (8 if bits == 8 else bits & -bits)


def packed_shape(n: int, k: int, bits: int, device: torch.device | None = None) -> tuple[int, int, int]:
    """The shape of a weight's [n, k] packed codes: on the CPU units of 16 rows by `unit_k(bits)` columns, on CUDA
    tiles of 16 rows by 64 columns (csrc/formats/nibbles_cuda.h)."""
    columns = 64 if device is not None and device.type == "cuda" else unit_k(bits)
    return -(-n // TILE_N), -(-k // columns), 2 * columns * bits


def to_codes(qdata: Tensor, k: int, bits: int) -> Tensor:
    """Plain rows, uint8 [..., row_bytes(k, bits)], as codes, uint8 [..., k]."""
    if bits == 8:
        return qdata
    # Eight codes are `bits` bytes: each has its low bits in one of them and maybe its high bits in the next.
    eights = pad(qdata, (0, -qdata.shape[-1] % bits)).unflatten(-1, (-1, bits)).int()
    eights = pad(eights, (0, 1))
    places = [(i * bits // 8, i * bits % 8) for i in range(8)]
    codes = [(eights[..., at] | eights[..., at + 1] << 8) >> shift for at, shift in places]
    stacked: Tensor = (torch.stack(codes, -1) & ((1 << bits) - 1)).to(torch.uint8)
    return stacked.flatten(-2)[..., :k]


def from_codes(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `to_codes`; a row's last bits are 0."""
    if bits == 8:
        return codes
    k = codes.shape[-1]
    eights = pad(codes, (0, -k % 8)).unflatten(-1, (-1, 8)).long()
    word = sum(eights[..., i] << bits * i for i in range(8))
    assert isinstance(word, Tensor)
    stream = torch.stack([word >> 8 * byte & 255 for byte in range(bits)], -1).to(torch.uint8)
    return stream.flatten(-2)[..., : row_bytes(k, bits)]


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """The reference for `intx_pack`, from codes [n, k]: uint8 `packed_shape(n, k, bits)`, zeros beyond n and k."""
    columns = unit_k(bits)
    padded = pad(codes, (0, -codes.shape[1] % columns, 0, -len(codes) % TILE_N)).int()
    units = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, TILE_N)).transpose(1, 2)  # [N, units, 16, columns]
    words, low = [], 0
    for plane in [4, 2, 1]:
        if not bits & plane:
            continue
        part = units >> low & ((1 << plane) - 1)
        # Column k of a word is bits of nibble 4 (k % 8 / 2) + 16 (k % 2) of the row's lane: columns 8j .. 8j + 7 at j.
        of_words = part.unflatten(-1, (-1, 4 // plane, 4, 2))  # [..., word, eight, half, odd]
        shifts = torch.tensor(
            [
                [[plane * eight + 4 * half + 16 * odd for odd in (0, 1)] for half in range(4)]
                for eight in range(4 // plane)
            ]
        )
        lanes = (of_words.long() << shifts).sum((-3, -2, -1))  # [N, units, 16, word]
        words.append(lanes.transpose(-1, -2))
        low += plane
    lanes = torch.cat(words, -2)  # [N, units, words, 16]
    stream = torch.stack([lanes >> 8 * byte & 255 for byte in range(4)], -1).to(torch.uint8)
    packed: Tensor = stream.flatten(2)
    return packed


def unpack_codes(packed: Tensor, rows: Tensor, k: int, bits: int) -> Tensor:
    """The codes, uint8 [*rows.shape, k], of some rows of a packed weight; `pack_codes` backwards for all of them."""
    columns, tile, row = unit_k(bits), rows // TILE_N, rows % TILE_N
    lanes = packed.unflatten(-1, (-1, TILE_N, 4))[tile, :, :, row]  # [*rows, units, words, 4]
    word = sum(lanes[..., byte].long() << 8 * byte for byte in range(4))
    assert isinstance(word, Tensor)
    codes, first, low = None, 0, 0
    for plane in [4, 2, 1]:
        if not bits & plane:
            continue
        count = columns * plane // 32
        shifts = torch.tensor(
            [plane * eight + 4 * half + 16 * odd for eight in range(4 // plane) for half in range(4) for odd in (0, 1)],
            device=packed.device,
        )
        part = (word[..., first : first + count, None] >> shifts & ((1 << plane) - 1)).flatten(-2) << low
        codes = part if codes is None else codes | part
        first, low = first + count, low + plane
    assert codes is not None
    return codes.flatten(-2)[..., :k].to(torch.uint8)
