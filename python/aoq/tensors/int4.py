"""int4 weights, groupwise along k: `Int4WeightOnlyConfig` and the `Int4Tensor` that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from aoq import _C
from aoq.config import AOBaseConfig, Json, MappingType
from aoq.ops.int4_mm import int4_mm
from aoq.ops.int4_pack import TILE_K, int4_pack
from aoq.ops.int4_quantize import int4_dequantize, int4_quantize
from aoq.ops.int4_unpack import int4_unpack, lane_bytes
from aoq.ops.packed import TILE_N, tile_scale, untile_scale
from aoq.tensors.base import ACTIVATION_DTYPES, QuantizedTensor


@dataclass
class Int4WeightOnlyConfig(AOBaseConfig):
    """int4 weights with a scale and a zero point per group; activations are used as given.

    Args:
        group_size: neighbours along k that share a scale: a multiple of 8, or anything >= k for one group a
            row. It need not divide k: the last group may be shorter.
        use_hqq: optimize the zero points for the weights' heavy-tailed error (slower, better).
        mapping_type: symmetric around zero (no zero points) or over [min, max].
        scale_dtype: of scales and zero points; by default the weight's.
    """

    group_size: int = 128
    use_hqq: bool = False
    mapping_type: MappingType = MappingType.ASYMMETRIC
    scale_dtype: torch.dtype | None = None

    VERSION: ClassVar[int] = 2

    def __post_init__(self) -> None:
        for name, kind in (("group_size", int), ("use_hqq", bool), ("mapping_type", MappingType)):
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise TypeError(f"Int4WeightOnlyConfig.{name}: expected {kind.__name__}, got {value!r}")
        if self.group_size < 8:
            raise ValueError(f"Int4WeightOnlyConfig.group_size: expected 8 or more, got {self.group_size}")
        if self.scale_dtype not in (None, *ACTIVATION_DTYPES):
            raise TypeError(f"Int4WeightOnlyConfig.scale_dtype: expected a float dtype, got {self.scale_dtype}")
        if self.use_hqq and self.mapping_type is MappingType.SYMMETRIC:
            raise ValueError("Int4WeightOnlyConfig.use_hqq: HQQ optimizes zero points, which symmetric has none of")

    @classmethod
    def upgrade(cls, data: dict[str, Json]) -> dict[str, Json]:
        """torchao names the algorithm where this class has `use_hqq`."""
        algorithm = data.pop("int4_choose_qparams_algorithm", None)
        if isinstance(algorithm, dict):  # an enum member, by name
            algorithm = algorithm.get("_data")
        if isinstance(algorithm, str) and algorithm.lower() == "hqq":
            data["use_hqq"] = True
        return data

    def quantize(self, weight: Tensor) -> Int4Tensor:
        """The weight [..., n, k] as an `Int4Tensor` in its device's layout.

        Raises:
            ValueError: fewer than 2 dimensions, NaN or Inf, a group size that the kernels do not have.
            TypeError: the weight is not bf16, fp16 or fp32.
        """
        if weight.dim() < 2 or weight.numel() == 0:
            raise ValueError(f"w: expected 2 or more dimensions, none of them 0, got shape {tuple(weight.shape)}")
        lead, k = weight.shape[:-1], weight.shape[-1]
        mapping = "hqq" if self.use_hqq else self.mapping_type.name.lower()
        parts = int4_quantize(weight.detach().reshape(-1, k), self.group_size, mapping, self.scale_dtype)
        qdata, scale, zero_point = (part.unflatten(0, lead) for part in parts)
        may_overflow = scale.dtype is torch.float16 and weight.dtype is not torch.float16 and not weight.is_meta
        if may_overflow and not scale.isfinite().all():
            raise ValueError("w: expected values whose scale float16 holds; use another scale_dtype")
        symmetric = self.mapping_type is MappingType.SYMMETRIC
        w = Int4Tensor(
            qdata,
            scale,
            None if symmetric else zero_point,
            self.group_size,
            "plain",
            shape=weight.shape,
            dtype=weight.dtype,
        )
        return w.pack()


class Int4Tensor(QuantizedTensor):
    """A weight [..., n, k] of int4 codes: `w = (code - zero_point) * scale`; no zero point means 8.

    packing "plain" (checkpoints, slices, any device):
        qdata: uint8 [..., n, ceil(k / 2)], low nibble = even k.
        scale, zero_point: [..., n, G], G = ceil(k / group_size).
    packing "tiled" (what the CPU kernels read):
        qdata: uint8 [..., ceil(n / 16), ceil(k / 8), 64] from `int4_pack`.
        scale, zero_point: [..., ceil(n / 16), G, 16] from `tile_scale`.

    `F.linear` on a plain tensor packs it for that one call: `pack()` it once instead. Slices are views of
    the same storage. A slice along k that starts inside a group and goes on after it repeats scales to make smaller
    groups; these are copies, so nothing can be copied into such a slice. Tiled tensors slice along n, in whole tiles.

    Raises:
        ValueError, TypeError: a part has a wrong shape, dtype or device; the text names it.
    """

    tensors = ("qdata", "scale", "zero_point")
    attrs = ("group_size", "packing")

    qdata: Tensor
    scale: Tensor
    zero_point: Tensor | None
    group_size: int
    packing: str

    def check(self) -> None:
        *lead, k = self.weight_shape
        if not isinstance(self.group_size, int) or self.group_size < 1:
            raise ValueError(f"Int4Tensor: group_size: expected 1 or more, got {self.group_size!r}")
        groups = -(-k // self.group_size)
        if self.packing == "plain":
            shapes = (*lead, (k + 1) // 2), (*lead, groups)
        elif self.packing == "tiled" and lead:
            tiles = (*lead[:-1], -(-lead[-1] // TILE_N))
            shapes = (*tiles, -(-k // TILE_K), 64), (*tiles, groups, TILE_N)
        else:
            raise ValueError(f"Int4Tensor: packing: expected 'plain' or 'tiled', got {self.packing!r}")
        for name, part, shape in zip(self.tensors, self.parts(), (*shapes, shapes[1]), strict=True):
            if part is None and name == "zero_point":
                continue
            if part is None:
                raise ValueError(f"Int4Tensor: {name}: expected a tensor, got None")
            if tuple(part.shape) != shape:
                raise ValueError(f"Int4Tensor: {name}: expected shape {shape}, got {tuple(part.shape)}")
            if part.device != self.qdata.device:
                raise ValueError(f"Int4Tensor: {name}: expected device {self.qdata.device}, got {part.device}")
            if part.dtype not in ((torch.uint8,) if name == "qdata" else ACTIVATION_DTYPES):
                raise TypeError(f"Int4Tensor: {name}: expected uint8 codes and float scales, got {part.dtype}")

    @property
    def packed(self) -> bool:
        return self.packing != "plain"

    @property
    def kernel(self) -> str:
        return _C.kernels("int4_mm")[0] if self.packing == "tiled" else "none until packed"

    def pack(self) -> Self:
        if self.packed or self.qdata.device.type != "cpu" or len(self.weight_shape) < 2:
            return self
        k = self.weight_shape[-1]
        qdata = _each(lambda part: int4_pack(part.contiguous(), k), self.qdata, 2)
        scale, zero_point = (None if part is None else _each(tile_scale, part, 2) for part in self.parts()[1:])
        return self.rebuild((qdata, scale, zero_point), packing="tiled")

    def unpack(self) -> Self:
        if not self.packed:
            return self
        n, k = self.weight_shape[-2:]
        qdata = _each(lambda part: int4_unpack(part, n, k), self.qdata, 3)
        scale, zero_point = (
            None if part is None else _each(lambda tiled: untile_scale(tiled, n), part, 3) for part in self.parts()[1:]
        )
        return self.rebuild((qdata, scale, zero_point), packing="plain")

    def matching(self, other: Self) -> Self:
        w = self
        if w.group_size != other.group_size and min(w.group_size, other.group_size) >= w.weight_shape[-1]:
            w = w.rebuild(w.parts(), group_size=other.group_size)  # one group either way
        elif w.group_size != other.group_size and w.group_size % other.group_size == 0:
            w = w.unpack().regroup(other.group_size)
        return super(Int4Tensor, w).matching(other)

    def regroup(self, group_size: int) -> Self:
        """The same values in smaller groups, which repeat the scales; `group_size` divides the present one."""
        if self.packed or self.group_size % group_size or group_size % 8:
            raise ValueError(
                f"regroup: group_size: expected a multiple of 8 that divides {self.group_size}, and a plain tensor, "
                f"got {group_size} for {self}"
            )
        groups, repeats = -(-self.weight_shape[-1] // group_size), self.group_size // group_size
        scale, zero_point = (
            None if part is None else part.repeat_interleave(repeats, -1)[..., :groups] for part in self.parts()[1:]
        )
        return self.rebuild((self.qdata, scale, zero_point), group_size=group_size)

    def narrow_weight(self, dim: int, start: int, length: int) -> Self:
        shape, end = list(self.weight_shape), start + length
        size, shape[dim] = shape[dim], length
        along_k = dim == len(shape) - 1
        if self.packed:
            if along_k or start % TILE_N or (end % TILE_N and end != size):
                raise ValueError(f"slice: expected whole tiles of {TILE_N} rows (.unpack() to slice elsewhere): {self}")
            return self.map(lambda part: part.narrow(dim, start // TILE_N, -(-length // TILE_N)), shape=shape)
        if not along_k:
            return self.map(lambda part: part.narrow(dim, start, length), shape=shape)
        if start % 2 or (end % 2 and end != size):
            raise ValueError(f"slice: expected even bounds along k (two codes a byte), got {start}:{end} of {self}")
        w, last = self, max(end - 1, start)
        if start % w.group_size and start // w.group_size != last // w.group_size:
            if start % 8:
                raise ValueError(f"slice: expected a start along k that is a multiple of 8, got {start} of {self}")
            w = self.regroup(math.gcd(start, self.group_size))
        group = start // w.group_size
        groups = last // w.group_size + 1 - group
        scales = (None if part is None else part.narrow(-1, group, groups) for part in w.parts()[1:])
        view = w.rebuild((w.qdata.narrow(-1, start // 2, (length + 1) // 2), *scales), shape=shape)
        view.is_view = w is self
        return view

    def dequantize(self) -> Tensor:
        w, k = self.unpack(), self.weight_shape[-1]
        values = int4_dequantize(w.qdata, w.scale, w.zero_point, w.group_size, k, w.dtype)
        return values.transpose(-1, -2) if self.transposed else values

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        shape = self.weight_shape
        if self.packing != "tiled" or self.transposed or len(shape) != 2:
            return self._linear_unpacked(x, bias)
        x_shape = x.shape
        if not x_shape or x_shape[-1] != shape[1]:
            raise ValueError(f"linear: x: expected shape [..., {shape[1]}], got {tuple(x_shape)}")
        return int4_mm(x, self.qdata, self.scale, self.zero_point, bias, shape[0], self.group_size)

    def _linear_unpacked(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if len(self.weight_shape) != 2:
            raise ValueError(f"linear: w: expected 2 dimensions, got {self}")
        if x.device != self.device:
            raise ValueError(f"linear: x: expected the device of w, {self.device}, got {x.device}")
        if self.transposed or self.is_meta:
            return torch.nn.functional.linear(x, self.dequantize().to(x.dtype), bias)
        packed = self.pack()
        if not packed.packed:
            raise NotImplementedError(f"linear: w: there is no int4_mm kernel for device {self.device}")
        return packed.linear(x, bias)

    def rows(self, ids: Tensor) -> Tensor:
        if len(self.weight_shape) != 2 or self.transposed:
            raise ValueError(f"embedding: w: expected a 2-D weight, got {self}")
        n, k = self.weight_shape
        torch._assert_async(((ids >= 0) & (ids < n)).all(), f"embedding: ids: expected indices below {n}")
        if self.packed:
            tile, lane = ids // TILE_N, ids % TILE_N
            qdata = lane_bytes(self.qdata.unflatten(-1, (TILE_N, 4))[tile, :, lane])[..., : (k + 1) // 2]
            scale, zero_point = (None if part is None else part[tile, :, lane] for part in self.parts()[1:])
        else:
            qdata = self.qdata[ids]
            scale, zero_point = (None if part is None else part[ids] for part in self.parts()[1:])
        assert scale is not None
        return int4_dequantize(qdata, scale, zero_point, self.group_size, k, self.dtype)


def _each(fn: Callable[[Tensor], Tensor], part: Tensor, dims: int) -> Tensor:
    """`fn` of each of the matrices of a part, which have `dims` dimensions."""
    return fn(part) if part.dim() == dims else torch.stack([_each(fn, each, dims) for each in part])
