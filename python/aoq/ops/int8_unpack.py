"""int8_unpack: a device's layout back to plain int8 codes."""

from __future__ import annotations

import torch
from torch import Tensor

from aoq.ops.checks import Checks
from aoq.ops.errors import raises_typed
from aoq.ops.int8_pack import packed_dtype, packed_shape
from aoq.ops.packed import TILE_N


@raises_typed
def int8_unpack(packed: Tensor, n: int, k: int) -> Tensor:
    """Inverts `int8_pack`, exactly.

    Args:
        packed: from `int8_pack`.
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
    check = Checks("int8_unpack")
    check.tensor(packed, "packed")
    check.dtype(packed.dtype, "packed", (packed_dtype(packed.device),))
    check.at_least_one(n, "n")
    check.at_least_one(k, "k")
    check.shape(packed, "packed", *packed_shape(n, k, packed.device))
    check.size(packed, "packed")
    return packed.new_empty((n, k), dtype=torch.int8)


def int8_unpack_reference(packed: Tensor, n: int, k: int) -> Tensor:
    """The reference for `int8_unpack` in PyTorch."""
    return int8_rows(packed, torch.arange(n, device=packed.device), k)


def int8_rows(packed: Tensor, rows: Tensor, k: int) -> Tensor:
    """The plain codes, int8 [*rows.shape, k], of some rows of a weight, packed for any device."""
    tile, row = rows // TILE_N, rows % TILE_N
    if packed.dtype == torch.int8:  # CUDA's
        codes = packed[tile, row]
    else:
        lanes = packed.unflatten(-1, (TILE_N, 4))[tile, :, row]  # [..., units, 4]
        codes = (lanes ^ 0x80).flatten(-2).view(torch.int8)
    plain: Tensor = codes[..., :k]
    return plain
