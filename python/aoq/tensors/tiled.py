"""TiledTensor: what the formats have in common that are plain in checkpoints and tiled for a device's kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self

from aoq.ops.dtypes import FLOAT_DTYPES, dtype_name
from aoq.ops.int8_pack import packed_dtype, packed_shape
from aoq.ops.int8_unpack import int8_rows
from aoq.ops.kernels import kernel, kernels, why_none
from aoq.ops.packed import TILE_N
from aoq.tensors.base import QuantizedTensor

Part: TypeAlias = "tuple[tuple[int, ...] | None, tuple[torch.dtype, ...]]"  # shape, or None for no part; dtypes
Parts: TypeAlias = Sequence[Tensor | None]


def layout(device: torch.device) -> str:
    """The name of the layout that `device`'s kernels read: of tiles of 16 rows, "cuda-n16" on CUDA, else "cpu-n16"."""
    return f"{'cuda' if device.type == 'cuda' else 'cpu'}-n{TILE_N}"


class TiledTensor(QuantizedTensor):
    """A weight [..., n, k] whose first parts are `qdata`, the codes, and scales and the like for each row.

    packing "plain" (checkpoints, slices, any device): parts [..., n, *].
    packing `layout(device)`, by name (what the device's kernels read): parts [..., ceil(n / 16), *]. A part `w_sum`,
        where a format has one, is fp32 [..., n]: the sums of the rows, made by `tiled_parts` and never stored.

    `F.linear` on a plain tensor packs it for that one call: `pack()` it once instead. Slices are views of the same
    storage. Tiled tensors slice along n, in whole tiles.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"packing": "plain"}
    mm_op: ClassVar[str]  # what multiplies
    qdata: Tensor
    packing: str  # one of `attrs`

    # ---- what a format defines

    def expected_parts(self) -> dict[str, Part]:
        """What each part has to be in this packing, by name."""
        raise NotImplementedError

    def tiled_parts(self, qdata: Tensor, *scales: Tensor | None) -> list[Tensor | None]:
        """The tiled parts of a matrix from its plain ones."""
        raise NotImplementedError

    def plain_parts(self, qdata: Tensor, *scales: Tensor | None) -> list[Tensor | None]:
        """The inverse of `tiled_parts`."""
        raise NotImplementedError

    def tiled_rows(self, ids: Tensor) -> Tensor:
        """The plain codes of the rows `ids` of a tiled matrix."""
        raise NotImplementedError

    def floats(self, qdata: Tensor, *scales: Any) -> Tensor:
        """What rows of plain parts stand for, in this tensor's dtype."""
        raise NotImplementedError

    def linear_tiled(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` of a tiled matrix and an `x` [..., k]."""
        raise NotImplementedError

    def narrow_k(self, start: int, length: int) -> Self:
        """`length` columns of a plain tensor from `start`."""
        raise NotImplementedError

    # ---- what follows

    def check(self) -> None:
        kind = type(self).__name__
        own = layout(self.device)
        if self.packing == "tiled":  # aoq 0.1's name for every device's
            self.packing = own
        if self.packing not in ("plain", own) or (self.packed and len(self.weight_shape) < 2):
            raise ValueError(f"{kind}: packing: expected 'plain' or '{own}', got {self.packing!r}")
        for name, (shape, dtypes) in self.expected_parts().items():
            part = getattr(self, name)
            if (part is None) != (shape is None):
                wanted, got = ("None", "a tensor") if shape is None else ("a tensor", "None")
                raise ValueError(f"{kind}: {name}: expected {wanted}, got {got}")
            if part is None:
                continue
            if tuple(part.shape) != shape:
                raise ValueError(f"{kind}: {name}: expected shape {shape}, got {tuple(part.shape)}")
            if part.device != self.device:
                raise ValueError(f"{kind}: {name}: expected device {self.device}, got {part.device}")
            if part.dtype not in dtypes:
                wanted = " or ".join(map(dtype_name, dtypes))
                raise TypeError(f"{kind}: {name}: expected {wanted}, got {dtype_name(part.dtype)}")

    @property
    def packed(self) -> bool:
        return self.packing != "plain"

    @property
    def packs_elsewhere(self) -> bool:
        # Plain by choice, or for want of kernels on this device? What is on meta has yet to choose.
        return self.packed or (self.device.type != "meta" and not kernels(self.mm_op, self.device))

    @property
    def kernel(self) -> str:
        """What multiplies one row of activations in the weight's dtype; several may run on another."""
        return kernel(self.mm_op, self.device, 1, self.dtype) if self.packed else "none until packed"

    def pack(self) -> Self:
        if self.packed or len(self.weight_shape) < 2 or not kernels(self.mm_op, self.device):
            return self
        return self.rebuild(_each(self.tiled_parts, self.parts(), len(self.weight_shape)), packing=layout(self.device))

    def unpack(self) -> Self:
        if not self.packed:
            return self
        return self.rebuild(_each(self.plain_parts, self.parts(), len(self.weight_shape)), packing="plain")

    def narrow_weight(self, dim: int, start: int, length: int) -> Self:
        shape, end = list(self.weight_shape), start + length
        size, shape[dim] = shape[dim], length
        along_k = dim == len(shape) - 1
        if not self.packed:
            if along_k:
                return self.narrow_k(start, length)
            return self.map(lambda part: part.narrow(dim, start, length), shape=shape)
        if along_k or start % TILE_N or (end % TILE_N and end != size):
            raise ValueError(f"slice: expected whole tiles of {TILE_N} rows (.unpack() to slice elsewhere): {self}")
        rows, tiles = (start, length), (start // TILE_N, -(-length // TILE_N))
        parts = zip(self.tensors, self.parts(), strict=True)
        return self.rebuild(
            [part if part is None else part.narrow(dim, *(rows if name == "w_sum" else tiles)) for name, part in parts],
            shape=shape,
        )

    def dequantize(self) -> Tensor:
        w = self.unpack()
        values = self.floats(w.qdata, *w.parts()[1:])
        return values.transpose(-1, -2) if self.transposed else values

    def rows(self, ids: Tensor) -> Tensor:
        if len(self.weight_shape) != 2 or self.transposed:
            raise ValueError(f"embedding: w: expected a 2-D weight, got {self}")
        n = self.weight_shape[0]
        torch._assert_async(((ids >= 0) & (ids < n)).all(), f"embedding: ids: expected indices below {n}")
        scales = [None if name == "w_sum" else getattr(self, name) for name in self.tensors[1:]]
        if not self.packed:
            return self.floats(self.qdata[ids], *map_parts(lambda part: part[ids], scales))
        tile, lane = ids // TILE_N, ids % TILE_N
        return self.floats(self.tiled_rows(ids), *map_parts(lambda part: part[tile, :, lane], scales))

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        shape = self.weight_shape
        if self.packing == "plain" or self.transposed or len(shape) != 2:
            return self._linear_unpacked(x, bias)
        x_shape = x.shape
        if not x_shape or x_shape[-1] != shape[1]:
            raise ValueError(f"linear: x: expected shape [..., {shape[1]}], got {tuple(x_shape)}")
        return self.linear_tiled(x, bias)

    def _linear_unpacked(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if len(self.weight_shape) != 2:
            raise ValueError(f"linear: w: expected 2 dimensions, got {self}")
        if x.device != self.device:
            raise ValueError(f"linear: x: expected the device of w, {self.device}, got {x.device}")
        if self.transposed or self.is_meta:
            return torch.nn.functional.linear(x, self.dequantize().to(x.dtype), bias)
        packed = self.pack()
        if not packed.packed:
            text = f"there is no {self.mm_op} kernel for device {self.device}{why_none(self.device)}"
            raise NotImplementedError(f"linear: w: {text}")
        return packed.linear(x, bias)


class RowScaledTensor(TiledTensor):
    """What formats of 8-bit codes with a scale per row have in common.

    packing "plain": qdata `code_dtype` [..., n, k], scale [..., n, 1].
    packing "tiled": qdata [..., *packed_shape(n, k, device)], `int8_pack` of the codes as int8; scale
        [..., ceil(n / 16), 1, 16] from `tile_scale`.

    Slices along k share the scales of the whole rows, so nothing can be copied into them.
    """

    code_dtype: torch.dtype  # of plain codes
    scale: Tensor

    def expected_parts(self) -> dict[str, Part]:
        *lead, k = self.weight_shape
        if self.packed:
            packed = packed_shape(lead[-1], k, self.device)
            qdata, scale = (*lead[:-1], *packed), (*lead[:-1], packed[0], 1, TILE_N)
        else:
            qdata, scale = (*lead, k), (*lead, 1)
        return {
            "qdata": (qdata, (packed_dtype(self.device) if self.packed else self.code_dtype,)),
            "scale": (scale, FLOAT_DTYPES),
        }

    def tiled_rows(self, ids: Tensor) -> Tensor:
        return int8_rows(self.qdata, ids, self.weight_shape[-1]).view(self.code_dtype)

    def narrow_k(self, start: int, length: int) -> Self:
        others = (None for _ in self.tensors[2:])
        parts = (self.qdata.narrow(-1, start, length), self.scale.detach(), *others)
        view = self.rebuild(parts, shape=(*self.weight_shape[:-1], length))
        view.writable = False
        return view


def map_parts(fn: Callable[[Tensor], Tensor], parts: Parts) -> list[Tensor | None]:
    """`fn` of each of the parts that are there."""
    return [None if part is None else fn(part) for part in parts]


def _each(fn: Callable[..., Parts], parts: Parts, dims: int) -> Parts:
    """`fn` of the parts of each matrix in a tensor of `dims` dimensions, stacked."""
    if dims == 2:
        return fn(*parts)
    count = next(len(part) for part in parts if part is not None)
    each = [_each(fn, [part if part is None else part[i] for part in parts], dims - 1) for i in range(count)]
    return [None if column[0] is None else torch.stack(column) for column in zip(*each, strict=True)]
