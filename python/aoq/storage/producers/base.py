"""What readers of other producers' checkpoints have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from aoq.ops.bits import from_codes, to_codes
from aoq.ops.dtypes import FLOAT_DTYPES, dtype_name
from aoq.storage.checkpoint import StoredWeight, open_safetensors, tensor_headers
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.floatx import FloatxTensor
from aoq.tensors.int4 import Int4Tensor, Int8Int4Tensor
from aoq.tensors.int8 import Int8Tensor
from aoq.tensors.intx import BY_BITS, IntxTensor
from aoq.tensors.ordered import OrderedInt4Tensor, OrderedIntxTensor

Roles = Mapping[str, Tensor]  # the stored tensors of a weight by the last part of their names


@dataclass(frozen=True)
class ForeignWeight(StoredWeight):
    """A quantized weight as another producer's checkpoint holds it.

    file: where its codes are, for errors.
    make: its stored tensors, by the last part of their names -> the weight in the plain layout.
    """

    file: Path = Path()
    make: Callable[[Roles], QuantizedTensor] = field(kw_only=True)

    def read(self, tensors: Mapping[str, Tensor], *, pack: bool = True) -> QuantizedTensor:
        try:
            w = self.make({name.rpartition(".")[2]: tensors[name] for name in self.parts})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.file}: {self.name}: {error}") from error
        return w.pack() if pack else w


@dataclass
class ForeignCheckpoint:
    """All weights of a checkpoint by name, those that are quantized as `ForeignWeight`, and what is left of it.

    left: stored tensors that no weight is made of and no model loads -> why they are not needed.
    notes: what is not exact, in words.
    """

    weights: dict[str, StoredWeight] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def stored_tensors(files: Iterable[Path]) -> dict[str, tuple[Path, Tensor]]:
    """Every tensor in the files, without its data, and the file that it is in."""
    return {name: (file, tensor) for file in files for name, tensor in tensor_headers(file).items()}


class Reader(ABC):
    """One producer's checkpoints.

    settings: the checkpoint's quantization settings; file: which has them.
    stored: its tensors by name, on the meta device, each with its file.
    dtype: what weights dequantize to.
    """

    method: ClassVar[str]  # its name in errors and reports
    roles: ClassVar[frozenset[str]]  # the last parts of the names of tensors that belong to a quantized weight

    def __init__(
        self, settings: Mapping[str, Any], file: Path, stored: Mapping[str, tuple[Path, Tensor]], dtype: torch.dtype
    ) -> None:
        self.settings, self.file, self.stored = settings, file, stored
        self.dtype = dtype if dtype in FLOAT_DTYPES else torch.bfloat16
        self.notes: dict[str, None] = {}
        self.left: dict[str, str] = {}
        self._values: dict[str, dict[str, Tensor]] = {}
        self.check()

    # ---- what a producer defines

    @abstractmethod
    def check(self) -> None:
        """Takes what it needs from the settings. Raises ValueError for those that cannot be read here."""

    @abstractmethod
    def weight(self, module: str, roles: Mapping[str, str]) -> StoredWeight | None:
        """The quantized weight of a module.

        Args:
            roles: its stored tensors, the last part of the name -> the name.

        Returns:
            None if it is not quantized: then its tensors stay what they are.
        """

    def module_of(self, module: str) -> str:
        """The module that a stored tensor belongs to, whose name this is but for the last part."""
        return module

    # ---- what follows

    def read(self) -> ForeignCheckpoint:
        modules: dict[str, dict[str, str]] = {}
        for name in self.stored:
            module, _, role = name.rpartition(".")
            if role in self.roles:
                modules.setdefault(self.module_of(module), {})[role] = name
        found = ForeignCheckpoint()
        taken: set[str] = set()
        for module, roles in modules.items():
            weight = self.weight(module, roles)
            if weight is not None:
                found.weights[weight.name] = weight
                taken |= set(weight.parts)
        if not found.weights:
            raise ValueError(f"{self.file}: says that weights are quantized by {self.method}, but none is")
        for name, (_, tensor) in self.stored.items():
            if name in taken or name in self.left:
                continue
            kind = dtype_name(tensor.dtype)
            found.weights[name] = StoredWeight(
                name, kind, tuple(tensor.shape), tensor.dtype, tensor.nbytes, {name: tensor.dtype}
            )
        found.left, found.notes = self.left, list(self.notes)
        return found

    def error(self, name: str, text: str) -> ValueError:
        """What is wrong with a stored tensor, or with the settings if there is none of that name."""
        file = self.stored[name][0] if name in self.stored else self.file
        return ValueError(f"{file}: {name}: {text}")

    def setting(self, *names: str, default: Any = None) -> Any:
        """The first of the settings of these names that is stated."""
        return next((self.settings[name] for name in names if self.settings.get(name) is not None), default)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.stored[name][1].shape)

    def values(self, role: str) -> dict[str, Tensor]:
        """Every stored tensor of a role, with its data: small ones, that say what shape a weight has."""
        if role not in self._values:
            found: dict[str, Tensor] = {}
            for file in {file for file, _ in self.stored.values()}:
                with open_safetensors(file) as opened:
                    names = [name for name in opened.keys() if name.rpartition(".")[2] == role]  # noqa: SIM118
                    found |= {name: opened.get_tensor(name) for name in names}
            self._values[role] = found
        return self._values[role]

    def need(self, module: str, roles: Mapping[str, str], *names: str) -> None:
        """Raises ValueError if a weight lacks a stored tensor."""
        for name in names:
            if name not in roles:
                raise self.error(next(iter(roles.values())), f"its {module}.{name} is missing")

    def expect(self, name: str, dtype: torch.dtype | tuple[torch.dtype, ...], *shapes: tuple[int, ...]) -> None:
        """Raises ValueError unless a stored tensor has one of these dtypes and of these shapes."""
        tensor, dtypes = self.stored[name][1], dtype if isinstance(dtype, tuple) else (dtype,)
        if tensor.dtype not in dtypes:
            wanted = " or ".join(map(dtype_name, dtypes))
            raise self.error(name, f"expected {wanted}, got {dtype_name(tensor.dtype)}")
        if tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.error(name, f"expected shape {wanted} by {self.file.name}, got {list(tensor.shape)}")

    def found(
        self,
        module: str,
        roles: Mapping[str, str],
        label: str,
        shape: tuple[int, int],
        make: Callable[[Roles], QuantizedTensor],
    ) -> ForeignWeight:
        """The weight [n, k] of a module, whose codes are the first of `roles`."""
        parts = {name: self.stored[name][1].dtype for name in roles.values()}
        nbytes = sum(self.stored[name][1].nbytes for name in roles.values())
        file, format = self.stored[next(iter(parts))][0], f"{self.method} {label}"
        return ForeignWeight(f"{module}.weight", format, shape, self.dtype, nbytes, parts, format, file, make=make)

    def check_width(self, where: str, bits: Any, shape: tuple[int, int], group: int) -> None:
        """Raises ValueError for integers that aoq has no format for; `where` is a stored tensor's name."""
        if type(bits) is not int or (bits not in (4, 8) and bits not in BY_BITS):
            raise self.error(
                where, f"expected codes of {', '.join(map(str, sorted({4, 8, *BY_BITS})))} bits, got {bits!r}"
            )
        if group < 1 or (group % 8 and group < shape[1]):
            raise self.error(where, f"groups of {group}: expected a multiple of 8, or one group a row")


# ---- integers in groups, whoever packed them


def stream(words: Tensor) -> Tensor:
    """Words [n, *], which codes fill one after the other from the lowest bit on, as bytes [n, *]."""
    return words.contiguous().view(torch.uint8)


def integers(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    bits: int,
    group: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    act_mapping: str | None = None,
    g_idx: Tensor | None = None,
) -> QuantizedTensor:
    """A weight [n, k] of unsigned codes, in the format that aoq has for their width.

    Args:
        codes: uint8 [n, ceil(k * bits / 8)], as aoq has them.
        scale: [n, G].
        zero_point: [n, G], of any dtype; None is 2^(bits - 1).
        act_mapping: how activations are quantized to int8; None for those as given.
        g_idx: the group of each column, where they are not simply one after the other.

    Raises ValueError for what no format holds.
    """
    if scale.dtype not in FLOAT_DTYPES:
        raise ValueError(f"scale: expected bfloat16, float16 or float32, got {dtype_name(scale.dtype)}")
    scale = scale.contiguous()
    if zero_point is not None and bool((zero_point == 1 << (bits - 1)).all()):
        zero_point = None  # which stands for the same
    elif zero_point is not None and zero_point.is_floating_point():
        common = torch.promote_types(scale.dtype, zero_point.dtype)
        scale, zero_point = scale.to(common), zero_point.to(common).contiguous()
    elif zero_point is not None:
        # Integers of up to 8 bits are exact in each of the dtypes that scales have.
        zero_point = zero_point.to(scale.dtype).contiguous()
    if bits == 8 and zero_point is None and scale.shape[1] == 1:
        signed = (codes ^ 128).view(torch.int8)
        return Int8Tensor(signed, scale, None, act_mapping, "plain", shape=shape, dtype=dtype)
    order = None if g_idx is None or scale.shape[1] == 1 else column_order(g_idx, group)
    if order is not None:
        if act_mapping is not None:
            raise ValueError("g_idx: aoq has an order of columns only for activations as given")
        # Some rows at a time: as codes they take several times the memory.
        runs = [to_codes(rows, shape[1], bits).index_select(1, order.long()) for rows in codes.split(256)]
        codes = torch.cat([from_codes(rows, bits) for rows in runs])
        if bits == 4:
            return OrderedInt4Tensor(codes, scale, zero_point, order, group, "plain", shape=shape, dtype=dtype)
        attrs = (group, "plain", bits, None)
        return OrderedIntxTensor(codes, scale, zero_point, None, order, *attrs, shape=shape, dtype=dtype)
    codes = codes.contiguous()
    if bits != 4:
        return IntxTensor(codes, scale, zero_point, None, group, "plain", bits, act_mapping, shape=shape, dtype=dtype)
    if act_mapping is None:
        return Int4Tensor(codes, scale, zero_point, group, "plain", shape=shape, dtype=dtype)
    return Int8Int4Tensor(codes, scale, zero_point, None, group, "plain", act_mapping, shape=shape, dtype=dtype)


def small_floats(
    weight_format: str,
    qdata: Tensor,
    scale: Tensor,
    *,
    group: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    rows: int = 1,
    row_scale: Tensor | None = None,
) -> QuantizedTensor:
    """A weight [n, k] of fp4 or fp8 codes in groups.

    Args:
        weight_format: of `FloatxTensor`.
        qdata: uint8 [n, k / 2], or e4m3 [n, k].
        scale: [ceil(n / rows), G]: neighbours along n may share theirs.
        row_scale: fp32, one for all.
    """
    n = shape[0]
    if rows > 1:
        one_byte = scale.itemsize == 1  # what PyTorch has few functions for
        spread = (scale.view(torch.uint8) if one_byte else scale).repeat_interleave(rows, 0)[:n]
        scale = spread.view(scale.dtype)
    if row_scale is not None:
        row_scale = row_scale.float().reshape(1, 1).expand(n, 1).contiguous()
    parts = (qdata.contiguous(), scale.contiguous(), row_scale, None)
    return FloatxTensor(*parts, group, "plain", weight_format, shape=shape, dtype=dtype)


def column_order(g_idx: Tensor, group: int) -> Tensor | None:
    """The order of columns, int32, in which those of a group are neighbours; None if they are already.

    Args:
        g_idx: the group of each column. Raises ValueError unless each group but the last has `group` of them.
    """
    wanted = torch.arange(len(g_idx), device=g_idx.device) // group
    if torch.equal(g_idx.long(), wanted):
        return None
    order = torch.argsort(g_idx.long(), stable=True)
    if not torch.equal(g_idx.long()[order], wanted):
        raise ValueError(f"g_idx: expected {group} columns in every group but the last")
    return order.int()
