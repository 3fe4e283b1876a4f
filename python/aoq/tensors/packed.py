"""What all formats have in common that are plain in checkpoints and packed for a device's kernels.

`PackedWeight` is how they run: a mixin of `PackedTensor`, which does what tensors do, and of the modules that
`weight_module` makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self

from aoq.config import AOBaseConfig
from aoq.ops.dtypes import dtype_name
from aoq.ops.kernels import kernel, kernels, why_none
from aoq.ops.packed import TILE_N
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.formats import WeightFormat
from aoq.tensors.parts import MOST_GROUP, DerivedPart, Part, PerGroup, StoredPart

Parts: TypeAlias = Sequence[Tensor | None]


def layout(device: torch.device) -> str:
    """The name of the layout that `device`'s kernels read: of tiles of 16 rows, "cuda-n16" on CUDA, else "cpu-n16"."""
    return f"{'cuda' if device.type == 'cuda' else 'cpu'}-n{TILE_N}"


class PackedWeight:
    """How a weight [..., n, k] multiplies and is looked up, whose parts are attributes of those names.

    packing "plain" (checkpoints, slices, any device): each part in its plain form.
    packing `layout(device)`, by name (what the device's kernels read): each in its packed form, and what is derived.

    `F.linear` on a plain tensor packs it for that one call: `pack()` it once instead.
    """

    format: WeightFormat
    mm_op: str  # what multiplies, by the name that its kernels have
    tensors: ClassVar[tuple[str, ...]]  # the parts of the format that there are
    attrs: ClassVar[tuple[str, ...]]
    packing: str  # one of `attrs`
    weight_shape: tuple[int, ...]
    transposed: bool
    dtype: Any  # of what is dequantized
    device: Any

    # ---- what a format defines

    def linear_packed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` of a packed matrix and an `x` [..., k]."""
        raise NotImplementedError

    def config(self) -> AOBaseConfig:
        """The config that makes weights like this one."""
        raise NotImplementedError

    @property
    def torch_op(self) -> str:
        """The op of `torch.ops.aoq` that runs it."""
        return self.mm_op

    @property
    def command(self) -> str:
        """The name of that config on the command line."""
        return self.format.name

    @property
    def label(self) -> str:
        """The weight in a word or two: "int4 g64"."""
        return self.command

    @property
    def group(self) -> int:
        """How many neighbours along k share a scale."""
        return max(self.weight_shape[-1], 1)

    # ---- what follows

    @property
    def packed(self) -> bool:
        return self.packing != "plain"

    @property
    def kernel(self) -> str:
        """What multiplies one row of activations in the weight's dtype; several may run on another."""
        return kernel(self.mm_op, self.device, 1, self.dtype) if self.packed else "none until packed"

    def stored_parts(self) -> list[tuple[StoredPart, Any]]:
        """What is stored of the weight: what it is, and the tensor or None."""
        named = self.format.named
        parts = ((named[name], getattr(self, name)) for name in self.tensors)
        return [(part, tensor) for part, tensor in parts if isinstance(part, StoredPart)]

    def rows(self, ids: Tensor) -> Tensor:
        """The dequantized rows `ids` of a 2-D weight: [*ids.shape, k]."""
        if len(self.weight_shape) != 2 or self.transposed:
            raise ValueError(f"embedding: w: expected a 2-D weight, got {self}")
        n, k = self.weight_shape
        torch._assert_async(((ids >= 0) & (ids < n)).all(), f"embedding: ids: expected indices below {n}")
        packed = self.packed
        rows = [
            tensor if tensor is None else part.packed_rows(tensor, ids, k) if packed else tensor[ids]
            for part, tensor in self.stored_parts()
        ]
        return self.format.floats(rows, self.group, k, self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ w.T + bias` for a 2-D weight."""
        shape = self.weight_shape
        if self.packing == "plain" or self.transposed or len(shape) != 2:
            return self.linear_unpacked(x, bias)
        x_shape = x.shape
        if not x_shape or x_shape[-1] != shape[1]:
            raise ValueError(f"linear: x: expected shape [..., {shape[1]}], got {tuple(x_shape)}")
        return self.linear_packed(x, bias)

    def linear_unpacked(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` of what no kernel reads as it is."""
        text = f"there is no {self.mm_op} kernel for device {self.device}{why_none(self.device)}"
        raise NotImplementedError(f"linear: w: {text}")


class PackedTensor(PackedWeight, QuantizedTensor):
    """Base of the formats' tensors. Slices are views of the same storage; packed tensors slice along n, in whole tiles.

    A slice along k that starts inside a group and goes on after it repeats scales to make smaller groups. Nothing can
    be copied into such a slice, nor into one that ends inside a group.

    Raises:
        ValueError, TypeError: a part has a wrong shape, dtype or device; the text names it.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"packing": "plain"}

    def check_attrs(self) -> None:
        """Raises ValueError if an attribute cannot be."""

    def check(self) -> None:
        kind = type(self).__name__
        self.check_attrs()
        own = layout(self.device)
        if self.packing == "tiled":  # aoq 0.1's name for every device's
            self.packing = own
        if self.packing not in ("plain", own) or (self.packed and len(self.weight_shape) < 2):
            raise ValueError(f"{kind}: packing: expected 'plain' or '{own}', got {self.packing!r}")
        for name in self.tensors:
            part, tensor = self.format.named[name], getattr(self, name)
            wanted = part.wanted(self, self.packed)
            if wanted is not None and wanted != (tensor is not None):
                expected, got = ("a tensor", "None") if wanted else ("None", "a tensor")
                raise ValueError(f"{kind}: {name}: expected {expected}, got {got}")
            if tensor is None:
                continue
            shape = self._shape(part)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{kind}: {name}: expected shape {shape}, got {tuple(tensor.shape)}")
            if tensor.device != self.device:
                raise ValueError(f"{kind}: {name}: expected device {self.device}, got {tensor.device}")
            dtypes = part.dtypes(self.packed, self.device)
            if tensor.dtype not in dtypes:
                expected = " or ".join(map(dtype_name, dtypes))
                raise TypeError(f"{kind}: {name}: expected {expected}, got {dtype_name(tensor.dtype)}")

    def _shape(self, part: Part) -> tuple[int, ...]:
        """What the part's has to be in this packing."""
        *lead, k = self.weight_shape
        if self.packed:
            return (*lead[:-1], *part.packed_shape(lead[-1], k, self.group, self.device))
        return (*lead[:-1], *part.shape(lead[-1], k, self.group)) if lead else part.shape(1, k, self.group)[1:]

    @property
    def packs_elsewhere(self) -> bool:
        # Plain by choice, or for want of kernels on this device? What is on meta has yet to choose.
        return self.packed or (self.device.type != "meta" and not kernels(self.mm_op, self.device))

    def pack(self) -> Self:
        if self.packed or len(self.weight_shape) < 2 or not kernels(self.mm_op, self.device):
            return self
        parts = _each(self._packed_parts, self.parts(), len(self.weight_shape))
        return self.rebuild(parts, packing=layout(self.device))

    def _packed_parts(self, *plain: Tensor | None) -> Parts:
        """The packed parts of a matrix from its plain ones."""
        k, parts = self.weight_shape[-1], list[Tensor | None]()
        for name, tensor in zip(self.tensors, plain, strict=True):
            part = self.format.named[name]
            if isinstance(part, DerivedPart):
                parts.append(part.derive(plain, parts, k, self.group) if part.wanted(self, True) else None)
            else:
                assert isinstance(part, StoredPart)
                parts.append(None if tensor is None else part.pack(tensor, k))
        return parts

    def unpack(self) -> Self:
        if not self.packed:
            return self
        return self.rebuild(_each(self._plain_parts, self.parts(), len(self.weight_shape)), packing="plain")

    def _plain_parts(self, *packed: Tensor | None) -> Parts:
        """The inverse of `_packed_parts`."""
        n, k = self.weight_shape[-2:]
        parts = [(self.format.named[name], tensor) for name, tensor in zip(self.tensors, packed, strict=True)]
        return [
            part.unpack(tensor, n, k) if tensor is not None and isinstance(part, StoredPart) else None
            for part, tensor in parts
        ]

    def dequantize(self) -> Tensor:
        w = self.unpack()
        stored = [tensor for _, tensor in w.stored_parts()]
        values = w.format.floats(stored, w.group, w.weight_shape[-1], w.dtype)
        return values.transpose(-1, -2) if w.transposed else values

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not self.packed or not self.transposed or len(self.weight_shape) != 2:
            return super().product(x, bias)
        if x.shape[-1:] != self.weight_shape[-1:]:
            raise ValueError(f"linear: x: expected shape [..., {self.weight_shape[1]}], got {tuple(x.shape)}")
        return self.linear_packed(x, bias)

    def linear_unpacked(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if len(self.weight_shape) != 2:
            raise ValueError(f"linear: w: expected 2 dimensions, got {self}")
        if x.device != self.device:
            raise ValueError(f"linear: x: expected the device of w, {self.device}, got {x.device}")
        if self.transposed or self.is_meta:
            return torch.nn.functional.linear(x, self.dequantize().to(x.dtype), bias)
        packed = self.pack()
        return packed.linear(x, bias) if packed.packed else super().linear_unpacked(x, bias)

    # ---- slices

    def narrow_weight(self, dim: int, start: int, length: int) -> Self:
        shape, end = list(self.weight_shape), start + length
        size, shape[dim] = shape[dim], length
        along_k = dim == len(shape) - 1
        if not self.packed:
            if along_k:
                return self._narrow_k(start, length)
            return self.map(lambda part: part.narrow(dim, start, length), shape=shape)
        if along_k or start % TILE_N or (end % TILE_N and end != size):
            raise ValueError(f"slice: expected whole tiles of {TILE_N} rows (.unpack() to slice elsewhere): {self}")
        parts = ((self.format.named[name], getattr(self, name)) for name in self.tensors)
        sliced = [
            tensor if tensor is None else part.narrow_packed(tensor, dim, start, length) for part, tensor in parts
        ]
        return self.rebuild(sliced, shape=shape)

    def _narrow_k(self, start: int, length: int) -> Self:
        """`length` columns of a plain tensor from `start`."""
        *lead, size = self.weight_shape
        end, last, step = start + length, max(start + length - 1, start), self.format.codes.step_k()
        if start % step or (end % step and end != size):
            raise ValueError(
                f"slice: expected bounds along k at whole bytes of codes, multiples of {step}, got {start}:{end} of "
                f"{self}"
            )
        w = self
        if start % w.group and start // w.group != last // w.group:
            if start % 8:
                raise ValueError(f"slice: expected a start along k that is a multiple of 8, got {start} of {self}")
            w = w.regroup(math.gcd(start, w.group))
        stored = {part.name: part.narrow_k(t, start, length, w.group) for part, t in w.stored_parts() if t is not None}
        view = w.rebuild([stored.get(name) for name in w.tensors], shape=(*lead, length))
        shared = any(part.shared_along_k and t is not None for part, t in w.stored_parts())
        view.writable = not shared and not start % self.group and (end == size or not end % self.group)
        return view

    def regroup(self, group_size: int) -> Self:
        """The same values in smaller groups, which repeat the scales; `group_size` divides the present one."""
        raise ValueError(f"regroup: group_size: expected a tensor with groups, got {group_size} for {self}")


class GroupedWeight(PackedWeight):
    """A weight whose scales are for groups of `group_size` neighbours along k, of which the last may be shorter."""

    group_size: int

    @property
    def label(self) -> str:
        return f"{self.command} g{self.group_size}"

    @property
    def group(self) -> int:
        return self.group_size


class GroupedTensor(GroupedWeight, PackedTensor):
    """Base of the tensors of such formats."""

    def check_attrs(self) -> None:
        super().check_attrs()
        if not isinstance(self.group_size, int) or self.group_size < 1:
            raise ValueError(f"{type(self).__name__}: group_size: expected 1 or more, got {self.group_size!r}")
        if self.group_size > MOST_GROUP:
            raise ValueError(f"{type(self).__name__}: group_size: expected at most {MOST_GROUP}, got {self.group_size}")

    def matching(self, other: Self) -> Self:
        w = self
        if w.group_size != other.group_size and min(w.group_size, other.group_size) >= w.weight_shape[-1]:
            w = w.rebuild(w.parts(), group_size=other.group_size)  # one group either way
        elif w.group_size != other.group_size and w.group_size % other.group_size == 0:
            w = w.unpack().regroup(other.group_size)
        return super(GroupedTensor, w).matching(other)

    def regroup(self, group_size: int) -> Self:
        if self.packed or self.group_size % group_size or group_size % 8:
            raise ValueError(
                f"regroup: group_size: expected a multiple of 8 that divides {self.group_size}, and a plain tensor, "
                f"got {group_size} for {self}"
            )
        groups, repeats = -(-self.weight_shape[-1] // group_size), self.group_size // group_size
        parts = [
            tensor.repeat_interleave(repeats, -1)[..., :groups]
            if tensor is not None and isinstance(self.format.named[name], PerGroup)
            else tensor
            for name, tensor in zip(self.tensors, self.parts(), strict=True)
        ]
        return self.rebuild(parts, group_size=group_size)


def _each(fn: Callable[..., Parts], parts: Parts, dims: int) -> Parts:
    """`fn` of the parts of each matrix in a tensor of `dims` dimensions, stacked."""
    if dims == 2:
        return fn(*parts)
    count = next(len(part) for part in parts if part is not None)
    each = [_each(fn, [part if part is None else part[i] for part in parts], dims - 1) for i in range(count)]
    return [None if column[0] is None else torch.stack(column) for column in zip(*each, strict=True)]
