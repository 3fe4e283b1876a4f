"""The parts of a quantized weight: what each is of a matrix [n, k] in groups along k, plain and packed, and its slices.

A part of a weight [..., n, k] has the weight's leading dimensions before those given here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aoq.ops.dtypes import FLOAT_DTYPES
from aoq.ops.packed import TILE_N, tile_scale, untile_scale

MOST_GROUP = 2**31 - 1  # columns that may share a scale: no weight has more


@dataclass(frozen=True)
class Part(ABC):
    """A tensor that a weight is made of, by the name under which it is stored."""

    name: str

    def wanted(self, w: Any, packed: bool) -> bool | None:
        """Whether the weight `w` has to have the part, plain or packed; None if it may."""
        return True

    @abstractmethod
    def shape(self, n: int, k: int, group: int) -> tuple[int, ...]:
        """That of the plain part."""

    @abstractmethod
    def packed_shape(self, n: int, k: int, group: int, device: torch.device) -> tuple[int, ...]:
        """That of the packed part."""

    @abstractmethod
    def dtypes(self, packed: bool, device: torch.device) -> tuple[torch.dtype, ...]:
        """Those that it may have."""

    def narrow_packed(self, part: Tensor, dim: int, start: int, length: int) -> Tensor:
        """Rows from `start` of the packed part, in whole tiles but for the last; `dim` is that of n in the weight."""
        return part.narrow(dim, start // TILE_N, -(-length // TILE_N))


@dataclass(frozen=True)
class StoredPart(Part):
    """A part that files have: [..., n, *] in its plain form, so that a slice of rows is one of it."""

    @abstractmethod
    def pack(self, part: Tensor, k: int) -> Tensor:
        """The plain part of a matrix as the device's kernels read it."""

    @abstractmethod
    def unpack(self, packed: Tensor, n: int, k: int) -> Tensor:
        """The inverse of `pack`."""

    @abstractmethod
    def packed_rows(self, packed: Tensor, ids: Tensor, k: int) -> Tensor:
        """The plain rows `ids` of the packed part of a matrix."""

    @abstractmethod
    def narrow_k(self, part: Tensor, start: int, length: int, group: int) -> Tensor:
        """What the plain part has of `length` columns from `start`; a whole group, or within one, if not at a start."""

    def step_k(self) -> int:
        """What the ends of a slice along k have to be a multiple of, but for that at the weight's own end."""
        return 1

    @property
    def shared_along_k(self) -> bool:
        """Whether a slice along k has all of it, so that nothing can be copied into the slice."""
        return False


@dataclass(frozen=True)
class Codes(StoredPart):
    """Codes of `bits` each: code i of a row is bits [i * bits, (i + 1) * bits) of the row's little-endian bit stream.

    The stream ends with a whole byte. Codes of 8 bits are of `dtype`, others uint8 [n, ceil(k * bits / 8)]. The packed
    layout is the device's own.

    to_packed: (plain codes of a matrix, k) -> packed.
    from_packed: (packed, n, k) -> plain.
    rows: (packed, ids, k) -> plain rows.
    shape_packed: (n, k, device) -> that of the packed codes.
    dtype_packed: (device) -> theirs.
    """

    bits: int
    to_packed: Callable[[Tensor, int], Tensor]
    from_packed: Callable[[Tensor, int, int], Tensor]
    rows: Callable[[Tensor, Tensor, int], Tensor]
    shape_packed: Callable[[int, int, torch.device], tuple[int, ...]]
    dtype: torch.dtype = torch.uint8
    dtype_packed: Callable[[torch.device], torch.dtype] = lambda device: torch.uint8

    def shape(self, n: int, k: int, group: int) -> tuple[int, ...]:
        return n, (k * self.bits + 7) // 8

    def packed_shape(self, n: int, k: int, group: int, device: torch.device) -> tuple[int, ...]:
        return self.shape_packed(n, k, device)

    def dtypes(self, packed: bool, device: torch.device) -> tuple[torch.dtype, ...]:
        return (self.dtype_packed(device) if packed else self.dtype,)

    def pack(self, part: Tensor, k: int) -> Tensor:
        return self.to_packed(part, k)

    def unpack(self, packed: Tensor, n: int, k: int) -> Tensor:
        return self.from_packed(packed, n, k)

    def packed_rows(self, packed: Tensor, ids: Tensor, k: int) -> Tensor:
        return self.rows(packed, ids, k)

    def narrow_k(self, part: Tensor, start: int, length: int, group: int) -> Tensor:
        return part.narrow(-1, start * self.bits // 8, (length * self.bits + 7) // 8)

    def step_k(self) -> int:
        return 8 // math.gcd(self.bits, 8)


@dataclass(frozen=True)
class Tiled(StoredPart):
    """A few floats for each row: plain [n, *], packed [ceil(n / 16), *, 16] from `tile_scale`."""

    def pack(self, part: Tensor, k: int) -> Tensor:
        return tile_scale(part)

    def unpack(self, packed: Tensor, n: int, k: int) -> Tensor:
        return untile_scale(packed, n)

    def packed_rows(self, packed: Tensor, ids: Tensor, k: int) -> Tensor:
        return packed[ids // TILE_N, :, ids % TILE_N]


@dataclass(frozen=True)
class PerGroup(Tiled):
    """A float for each group along k, or, if the group is the row, for each row.

    Plain [n, G], G = ceil(k / group); packed [ceil(n / 16), G, 16] from `tile_scale`.
    """

    optional: bool = False

    def wanted(self, w: Any, packed: bool) -> bool | None:
        return None if self.optional else True

    def shape(self, n: int, k: int, group: int) -> tuple[int, ...]:
        return n, max(-(-k // group), 1)

    def packed_shape(self, n: int, k: int, group: int, device: torch.device) -> tuple[int, ...]:
        return -(-n // TILE_N), max(-(-k // group), 1), TILE_N

    def dtypes(self, packed: bool, device: torch.device) -> tuple[torch.dtype, ...]:
        return FLOAT_DTYPES

    def narrow_k(self, part: Tensor, start: int, length: int, group: int) -> Tensor:
        first, last = start // group, max(start + length - 1, start) // group
        return part.narrow(-1, first, last + 1 - first)


SMALL_SCALES: tuple[torch.dtype, ...] = (torch.float8_e4m3fn, torch.float8_e8m0fnu)  # of 8 bits, in files


@dataclass(frozen=True)
class SmallScales(PerGroup):
    """A scale for each group that may be a float of 8 bits: kernels then read `KernelScales`."""

    def dtypes(self, packed: bool, device: torch.device) -> tuple[torch.dtype, ...]:
        return FLOAT_DTYPES + SMALL_SCALES

    def pack(self, part: Tensor, k: int) -> Tensor:
        return tile_scale(_bytes(part)).view(part.dtype)

    def unpack(self, packed: Tensor, n: int, k: int) -> Tensor:
        return untile_scale(_bytes(packed), n).view(packed.dtype)

    def packed_rows(self, packed: Tensor, ids: Tensor, k: int) -> Tensor:
        return super().packed_rows(_bytes(packed), ids, k).view(packed.dtype)


def _bytes(part: Tensor) -> Tensor:
    """A part that PyTorch has few functions for, as integers; others as they are."""
    return part.view(torch.uint8) if part.dtype in SMALL_SCALES else part


@dataclass(frozen=True)
class RowScale(Tiled):
    """fp32 for each row, whatever groups there are, or none: plain [n, 1], packed [ceil(n / 16), 1, 16]."""

    def wanted(self, w: Any, packed: bool) -> bool | None:
        return None

    def shape(self, n: int, k: int, group: int) -> tuple[int, ...]:
        return n, 1

    def packed_shape(self, n: int, k: int, group: int, device: torch.device) -> tuple[int, ...]:
        return -(-n // TILE_N), 1, TILE_N

    def dtypes(self, packed: bool, device: torch.device) -> tuple[torch.dtype, ...]:
        return (torch.float32,)

    def narrow_k(self, part: Tensor, start: int, length: int, group: int) -> Tensor:
        return part

    @property
    def shared_along_k(self) -> bool:
        return True


@dataclass(frozen=True)
class ColumnOrder(StoredPart):
    """int32 [k], of a matrix: which column of the weight each column of the other parts is. All rows share it."""

    def shape(self, n: int, k: int, group: int) -> tuple[int, ...]:
        return (k,)

    def packed_shape(self, n: int, k: int, group: int, device: torch.device) -> tuple[int, ...]:
        return (k,)

    def dtypes(self, packed: bool, device: torch.device) -> tuple[torch.dtype, ...]:
        return (torch.int32,)

    def narrow_packed(self, part: Tensor, dim: int, start: int, length: int) -> Tensor:
        return part

    def pack(self, part: Tensor, k: int) -> Tensor:
        return part

    def unpack(self, packed: Tensor, n: int, k: int) -> Tensor:
        return packed

    def packed_rows(self, packed: Tensor, ids: Tensor, k: int) -> Tensor:
        return packed

    def narrow_k(self, part: Tensor, start: int, length: int, group: int) -> Tensor:
        raise ValueError("slice: columns that are neighbours in the weight are not in its parts")


@dataclass(frozen=True)
class DerivedPart(Part):
    """A part that is made when a weight is packed; plain weights, and files, do not have it."""

    def shape(self, n: int, k: int, group: int) -> tuple[int, ...]:
        raise TypeError(f"{self.name}: is no part of a plain weight")

    @abstractmethod
    def derive(self, plain: Sequence[Any], packed: Sequence[Any], k: int, group: int) -> Tensor:
        """The part of a matrix, from the plain and the packed form of those before it."""


@dataclass(frozen=True)
class KernelScales(DerivedPart):
    """The scales of groups in a dtype that kernels read, [ceil(n / 16), G, 16], where those that are stored are not.

    Exact: powers of two become bf16, e4m3 too; with a second scale a row they are fp32, rounded once.
    """

    def wanted(self, w: Any, packed: bool) -> bool | None:
        return packed and (w.scale.dtype in SMALL_SCALES or w.row_scale is not None)

    def packed_shape(self, n: int, k: int, group: int, device: torch.device) -> tuple[int, ...]:
        return -(-n // TILE_N), max(-(-k // group), 1), TILE_N

    def dtypes(self, packed: bool, device: torch.device) -> tuple[torch.dtype, ...]:
        return FLOAT_DTYPES

    def derive(self, plain: Sequence[Any], packed: Sequence[Any], k: int, group: int) -> Tensor:
        _, scale, row_scale = packed
        wide: Tensor = scale.float()
        return wide.bfloat16() if row_scale is None else wide * row_scale.float()


@dataclass(frozen=True)
class RowSums(DerivedPart):
    """fp32 [n], the sums of the rows of w: what kernels need beside a packed weight for asymmetric int8 activations.

    sums: (plain parts before it, packed ones, k, group) -> the part of a matrix.
    """

    sums: Callable[[Sequence[Any], Sequence[Any], int, int], Tensor]

    def wanted(self, w: Any, packed: bool) -> bool | None:
        return packed and w.act_mapping == "asymmetric"

    def packed_shape(self, n: int, k: int, group: int, device: torch.device) -> tuple[int, ...]:
        return (n,)

    def dtypes(self, packed: bool, device: torch.device) -> tuple[torch.dtype, ...]:
        return (torch.float32,)

    def narrow_packed(self, part: Tensor, dim: int, start: int, length: int) -> Tensor:
        return part.narrow(dim, start, length)

    def derive(self, plain: Sequence[Any], packed: Sequence[Any], k: int, group: int) -> Tensor:
        return self.sums(plain, packed, k, group)
