"""Weights of one to four bits a code, and their packed layout on CUDA (csrc/formats/nibbles_cuda.h) once more."""

import torch
from instances import nibble_formats
from torch.nn.functional import pad

from aoq.ops import tile_scale

BITS = {name: bits for name, _, bits, *_ in nibble_formats()}


def packed_codes(codes, bits):
    """uint8 [n, k] to what kernels read, by the picture in the header."""
    codes = pad(codes, (0, -codes.shape[1] % 64, 0, -codes.shape[0] % 16)).long()
    # row = 8r + g, k = 64T + 16w + 8h + 2c + odd: lane 4g + c, word w, nibble 4 odd + 2h + r
    tiles = codes.view(len(codes) // 16, 2, 8, -1, 4, 2, 4, 2)  # [N, r, g, T, w, h, c, odd]
    nibbles = tiles.permute(0, 3, 2, 6, 4, 7, 5, 1).flatten(5).flatten(2, 3)  # [N, T, lane, w, nibble]
    planes, low = [], 0
    for width in (4, 2, 1):
        if bits & width:
            part = (nibbles >> low & (1 << width) - 1).unflatten(3, (-1, 4 // width))  # [..., word, phase, nibble]
            shift = width * torch.arange(4 // width)[:, None] + 4 * torch.arange(8)
            words = (part << shift).sum((-2, -1))
            planes.append((words[..., None] >> 8 * torch.arange(4) & 255).flatten(2))
            low += width
    return torch.cat(planes, -1).to(torch.uint8)


class Weight:
    """Random codes with scales and, but for "symmetric", zero points: whole ones, or of "hqq" any."""

    def __init__(self, name, n, k, group, mapping, scale_dtype, seed=0):
        generator = torch.Generator().manual_seed(n + k + 1000 * seed)
        self.name, self.bits, self.n, self.k, self.group = name, BITS[name], n, k, group
        most, groups = (1 << self.bits) - 1, -(-k // group)
        codes = torch.randint(0, most + 1, (n, k), generator=generator, dtype=torch.uint8)
        scale = torch.rand(n, groups, generator=generator).add(0.1).div(most).to(scale_dtype)
        zero = torch.rand(n, groups, generator=generator) * most
        if mapping == "asymmetric":
            zero = zero.round()
        zero = torch.full_like(zero, (most + 1) // 2) if mapping == "symmetric" else zero
        zero = zero.to(scale_dtype)
        self.packed, self.scale = packed_codes(codes, self.bits), tile_scale(scale)
        self.zero_point = None if mapping == "symmetric" else tile_scale(zero)
        scale, zero = (part.double().repeat_interleave(min(group, k), 1)[:, :k] for part in (scale, zero))
        self.exact = (codes.double() - zero) * scale
        self.addends = most * scale + self.exact.abs()
