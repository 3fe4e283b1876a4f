"""QuantizedTensor: a weight stored as packed integers and their scales, that passes for a float tensor.

A format declares its stored parts in `tensors` and `attrs` and defines `linear`, `rows`, `dequantize` and
`narrow_weight`; moving, copying, slicing, saving, sharing and tracing follow from the names.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import Self

from aoq.config import AOBaseConfig
from aoq.ops.dtypes import FLOAT_DTYPES, FP8_DTYPES, dtype_name
from aoq.version import producer, written_by_newer

logger = logging.getLogger("aoq")

Fn = TypeVar("Fn", bound=Callable[..., Any])


def check_weight(w: Tensor) -> None:
    """Raises ValueError or TypeError unless `w` is a float weight [..., n, k] that configs quantize."""
    if w.dim() < 2 or w.numel() == 0:
        raise ValueError(f"w: expected 2 or more dimensions, none of them 0, got shape {tuple(w.shape)}")
    if w.dtype not in FLOAT_DTYPES:
        raise TypeError(f"w: expected bfloat16, float16 or float32, got {dtype_name(w.dtype)}")


def check_scale_dtype(config: object, dtype: torch.dtype | None) -> None:
    """Raises TypeError unless `config` may store scales in `dtype`."""
    if dtype not in (None, *FLOAT_DTYPES):
        raise TypeError(f"{type(config).__name__}.scale_dtype: expected a float dtype, got {dtype}")


def check_act_mapping(w: object, act_mapping: str) -> None:
    """Raises ValueError unless activations can be quantized as `w` says."""
    if act_mapping not in ("symmetric", "asymmetric"):
        raise ValueError(f"{type(w).__name__}: act_mapping: expected 'symmetric' or 'asymmetric', got {act_mapping!r}")


HOW_TO_SAVE = (
    "model.save_pretrained of a model that aoq.quantize_ or from_pretrained quantized as a whole, "
    "aoq.storage.safetensors.save_file and torch.save can save them"
)


class QuantizedTensor(torch.Tensor):
    """Base of all formats: a weight [..., n, k] made of parts.

    Every part's leading dimensions are the weight's own. `shape` in the constructor is the weight's; a
    transposed tensor shows its last two dimensions swapped. `dtype` is what `dequantize` returns.
    """

    tensors: ClassVar[tuple[str, ...]]  # stored tensors, in constructor order; all but the first may be None
    attrs: ClassVar[tuple[str, ...]]  # hashable metadata, in constructor order
    defaults: ClassVar[Mapping[str, Any]] = {}  # what attributes are that a file does not have
    VERSION: ClassVar[int] = 1  # of the parts and attributes; a file states that of its writer
    ops: ClassVar[dict[Any, Callable[..., Any]]] = {}  # what torch functions and aten ops do
    formats: ClassVar[dict[str, type[QuantizedTensor]]] = {}  # every format by name

    weight_shape: tuple[int, ...]
    transposed: bool
    writable = True  # of a slice: whether its parts alias the whole's and no other slice needs them

    @staticmethod
    def __new__(cls, *parts: Any, requires_grad: bool | None = None, **fields: Any) -> Self:
        if requires_grad is not None:  # type(param)(value, requires_grad=...), as accelerate makes parameters anew
            return torch.nn.Parameter(parts[0], requires_grad=False)  # type: ignore[return-value]
        size, dtype, transposed = list(fields["shape"]), fields["dtype"], fields.get("transposed", False)
        strides = [math.prod(size[i + 1 :]) for i in range(len(size))]
        if transposed:
            size[-2:], strides[-2:] = size[:-3:-1], strides[:-3:-1]
        made: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, size, strides=strides, dtype=dtype, device=parts[0].device
        )
        return made

    def __init__(
        self,
        *parts: Any,
        shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        transposed: bool = False,
        requires_grad: bool | None = None,
    ) -> None:
        if requires_grad is not None:  # is a tensor already
            return
        for name, part in zip(self.tensors + self.attrs, parts, strict=True):
            setattr(self, name, part)
        self.weight_shape = tuple(shape)
        self.transposed = transposed
        if dtype not in FLOAT_DTYPES:
            raise TypeError(f"{type(self).__name__}: dtype: expected bfloat16, float16 or float32, got {dtype}")
        self.check()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.ops = dict(cls.ops)
        if not hasattr(cls, "tensors"):
            return  # what formats share
        QuantizedTensor.formats[cls.__name__] = cls
        torch.serialization.add_safe_globals([cls])
        ForkingPickler.register(cls, _reduce_shared)

    # ---- what a format defines

    @classmethod
    def upgrade(cls, fields: dict[str, Any], version: int) -> dict[str, Any]:
        """Parts and attributes by name, as an older `version` of the format wrote them, as this one's."""
        return fields

    def check(self) -> None:
        """Raises if the parts do not fit each other."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ w.T + bias` for a 2-D weight."""
        raise NotImplementedError(f"{type(self).__name__} does not multiply")

    def rows(self, ids: Tensor) -> Tensor:
        """The dequantized rows `ids` of a 2-D weight: [*ids.shape, k]."""
        raise NotImplementedError(f"{type(self).__name__} does not look up rows")

    def dequantize(self) -> Tensor:
        """The weight's values as a plain tensor of this tensor's shape and `dtype`."""
        raise NotImplementedError

    def config(self) -> AOBaseConfig:
        """The config that makes weights like this one."""
        raise NotImplementedError(f"{type(self).__name__} is not made by a config")

    def narrow_weight(self, dim: int, start: int, length: int) -> Self:
        """The weight's `length` indices of `dim`, which is that of n or of k, from `start`."""
        raise NotImplementedError

    @property
    def packed(self) -> bool:
        """Whether the parts are in a device's own layout; checkpoints and slices are of plain ones."""
        return False

    @property
    def packs_elsewhere(self) -> bool:
        """Whether a copy on another device is packed there."""
        return self.packed

    def pack(self) -> Self:
        """In the layout that the device's kernels read."""
        return self

    def unpack(self) -> Self:
        """In the plain layout."""
        return self

    def matching(self, other: Self) -> Self:
        """The same values laid out as `other`'s parts are."""
        return self.pack() if other.packed else self.unpack()

    @property
    def kernel(self) -> str:
        """The kernel that multiplies by this tensor."""
        return "none"

    @property
    def label(self) -> str:
        """The format in a word or two, for tables."""
        return type(self).__name__.removesuffix("Tensor").lower()

    # ---- what follows

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` of this tensor or, if it is transposed, `x @ w + bias`: what is stored times x either way."""
        w: Any = self.t() if self.transposed else self
        out: Tensor = w.linear(x, bias)
        return out

    def requantize(self, values: Tensor) -> Self:
        """`values`, of any shape, quantized as this tensor is: its format, groups and dtype of scales.

        Raises ValueError or TypeError for values that the format cannot hold.
        """
        values = values.detach()
        quantized: Any
        if self.transposed:
            quantized = self.config().quantize(values.transpose(-1, -2).contiguous()).transpose(-1, -2)
        else:
            quantized = self.config().quantize(values)
        made: Self = quantized
        return made

    def parts(self) -> list[Tensor | None]:
        return [getattr(self, name) for name in self.tensors]

    def rebuild(self, parts: Iterable[Tensor | None], **changes: Any) -> Self:
        """Other parts with this tensor's attributes, shape and dtype, but for `changes`."""
        attrs = [changes.pop(name, getattr(self, name)) for name in self.attrs]
        own: dict[str, Any] = {"shape": self.weight_shape, "dtype": self.dtype, "transposed": self.transposed}
        return type(self)(*parts, *attrs, **(own | changes))

    def map(self, fn: Callable[[Tensor], Tensor], **changes: Any) -> Self:
        """This tensor with `fn` applied to every part."""
        return self.rebuild([None if part is None else fn(part) for part in self.parts()], **changes)

    @classmethod
    def implements(cls, *ops: Any) -> Callable[[Fn], Fn]:
        """Decorates what the torch functions or aten ops `ops` do on this format, with their arguments."""

        def register(fn: Fn) -> Fn:
            cls.ops.update(dict.fromkeys(ops, fn))
            return fn

        return register

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # F.linear must be caught here: below this level it has become t() and addmm().
        fn = cls.ops.get(func)
        if fn is not None:
            return fn(*args, **kwargs) if kwargs else fn(*args)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        fn = cls.ops.get(func)
        if fn is None:
            out = func.decompose(*args, **kwargs)
            return run_dequantized(func, args, kwargs) if out is NotImplemented else out
        # A view must be an inference tensor just when its base is one, whatever the mode.
        with torch.inference_mode(args[0].is_inference()) if func.is_view else nullcontext():
            out = fn(*args, **kwargs)
        if out is NotImplemented:  # not with these arguments
            return run_dequantized(func, args, kwargs)
        if func.is_view:
            views = out if isinstance(out, list) else [out]
            if not all(isinstance(view, QuantizedTensor) for view in views):
                return out  # which aliases nothing
            for view in views:
                view.writable = view.writable and args[0].writable
        return return_and_correct_aliasing(func, args, kwargs, out)

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        names = [name for name in self.tensors if getattr(self, name) is not None]
        attrs = tuple(getattr(self, name) for name in self.attrs)
        return names, (attrs, self.weight_shape, self.dtype, self.transposed)

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], meta: Any, size: Any, stride: Any) -> Self:
        attrs, shape, dtype, transposed = meta
        return cls(*map(parts.get, cls.tensors), *attrs, shape=shape, dtype=dtype, transposed=transposed)

    def _stable_hash_for_caching(self) -> str:
        """What compiled code may depend on, for the cache of torch.compile."""
        parts = [part is not None and (part.dtype, part.device, part.shape, part.stride()) for part in self.parts()]
        return repr((type(self).__qualname__, self.__tensor_flatten__()[1], parts))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduce(self, plain=True)  # files hold the plain layout, the same on every device

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        state = copy.deepcopy(self.__dict__, memo)
        new = self.rebuild(state[name] for name in self.tensors)
        new.requires_grad_(self.requires_grad)
        new.__dict__.update(state)  # what others set on it, and that it is a parameter
        memo[id(self)] = new
        return new

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        fields = {"shape": tuple(self.shape), "dtype": self.dtype, "device": str(self.device)}
        fields |= {name: getattr(self, name) for name in self.attrs}
        text = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        return f"{type(self).__name__}({text}, bits_per_weight={self.bits_per_weight:.2f}, kernel={self.kernel})"

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes stored, scales and padding included."""
        return sum(part.nbytes for part in self.parts() if part is not None)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / max(math.prod(self.weight_shape), 1)

    def element_size(self) -> float:  # type: ignore[override]
        """Bytes stored for a weight, which numel() times this is the sum of: a fraction as a rule."""
        return self.nbytes / max(math.prod(self.weight_shape), 1)

    def data_ptr(self) -> int:
        """Where the first part is, which tells tensors apart."""
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("safetensors."):  # it would write numel() values from there on
            raise TypeError(f"safetensors holds no quantized weights, only their parts, got {self}; {HOW_TO_SAVE}")
        first: Tensor = getattr(self, self.tensors[0])
        return first.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """A storage over the memory of the first part."""
        first: Tensor = getattr(self, self.tensors[0])
        if type(first) is not Tensor or first.device.type == "meta" or torch._guards.detect_fake_mode():
            return super().untyped_storage()
        return torch.utils.dlpack.from_dlpack(first).untyped_storage()

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: Any, outer_stride: Any, module: Any, mp_policy: Any
    ) -> tuple[tuple[Tensor, ...], Any]:
        """What FSDP2 gathers of a shard, which is plain and has some of the rows: their bytes, of all parts in one."""
        parts = [part.contiguous().view(torch.uint8).flatten(1) for part in self.parts() if part is not None]
        return (torch.cat(parts, 1),), None

    def fsdp_post_all_gather(
        self, gathered: tuple[Tensor, ...], metadata: Any, param_dtype: torch.dtype, *, out: Any = None
    ) -> Any:
        """The whole weight, packed, and the memory that FSDP2 may free until the next time; or nothing, in `out`."""
        (rows,), parts, start = gathered, list[Tensor | None](), 0
        for part in self.parts():
            if part is None:
                parts.append(None)
                continue
            length = part[0].numel() * part.itemsize
            whole = rows[:, start : start + length].contiguous().view(part.dtype)
            parts.append(whole.view(-1, *part.shape[1:]))
            start += length
        w = self.rebuild(parts, shape=(len(rows), *self.weight_shape[1:]), dtype=param_dtype).pack()
        if out is None:
            return w, tuple(part for part in w.parts() if part is not None)
        out.copy_(w)
        return None

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Self:
        return self.map(lambda part: part.contiguous())

    def pin_memory(self, device: Any = None) -> Self:
        return self.map(lambda part: part.pin_memory())

    def is_pinned(self, device: Any = None) -> bool:
        return all(part.is_pinned() for part in self.parts() if part is not None)

    def share_memory_(self) -> Self:
        for part in self.parts():
            if part is not None:
                part.share_memory_()
        return self

    def is_shared(self) -> bool:
        return all(part.is_shared() for part in self.parts() if part is not None)


# ---- what no format has a way of its own for

_warned: set[str] = set()


def run_dequantized(func: Any, args: Any, kwargs: Any) -> Any:
    """`func` on the values of quantized tensors; those that it writes to are quantized again.

    What it returns is plain, and a view is one of a copy. The first time that an op does so, the log says it.
    """
    name = str(func)
    if name not in _warned:
        _warned.add(name)
        kinds = {type(w).__name__ for w in tree_leaves((args, kwargs)) if isinstance(w, QuantizedTensor)}
        logger.warning(
            "%s has no kernel for a quantized weight (%s): it runs on a dequantized copy, each time it is called",
            name,
            ", ".join(sorted(kinds)),
        )
    values: dict[int, Tensor] = {}

    def plain(w: Any) -> Any:
        if not isinstance(w, QuantizedTensor):
            return w
        if id(w) not in values:
            values[id(w)] = w.dequantize()
        return values[id(w)]

    written = [
        w
        for argument, given in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
        for w in tree_leaves(given)
        if isinstance(w, QuantizedTensor)
    ]
    written += [w for w in tree_leaves(kwargs.get("out")) if isinstance(w, QuantizedTensor)]
    for w in written:
        if not w.writable:
            raise ValueError(f"{name}: expected whole groups along k, or a .clone(), got a slice within scales: {w}")
    out = func(*tree_map(plain, args), **tree_map(plain, kwargs))
    for w in written:
        w.copy_(w.requantize(values[id(w)]))
    return return_and_correct_aliasing(func, args, kwargs, out) if written else out


# ---- saving and sharing


def tensor_from_fields(
    name: str,
    fields: Mapping[str, Any],
    *,
    shape: Sequence[int],
    dtype: torch.dtype,
    version: int = 1,
    writer: str = "",
    transposed: bool = False,
) -> QuantizedTensor:
    """The tensor that a file, of this or any older release, has taken apart.

    Args:
        name: of the format, a key of `QuantizedTensor.formats`.
        fields: parts and attributes by name.
        version: of the format, as the file states it.
        writer: what wrote the file, as in `aoq.version.producer`; nothing if it is not stated.

    Raises:
        ValueError, TypeError: the fields are not those of the format, or do not fit each other. The text names the
            field and, if a newer aoq than this one wrote the file, both versions.
    """
    newer = written_by_newer(writer)
    kind = QuantizedTensor.formats.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"unknown _type {name!r}; known: {', '.join(sorted(QuantizedTensor.formats))}{newer}")
    if version > kind.VERSION:
        newer = newer or f"; it was written by {writer or 'a newer aoq'} and this is {producer()}"
        raise ValueError(f"{name}: version: expected at most {kind.VERSION}, got {version}{newer}")
    try:
        found = {**kind.defaults, **kind.upgrade(dict(fields), version)}
        if unknown := found.keys() - {*kind.tensors, *kind.attrs}:
            raise ValueError(f"{name}: expected no field named {min(unknown)}, only {kind.tensors + kind.attrs}")
        if missing := [attr for attr in kind.attrs if attr not in found]:
            raise ValueError(f"{name}: {missing[0]}: expected a value, got none")
        if found.get(kind.tensors[0]) is None:
            raise ValueError(f"{name}: {kind.tensors[0]}: expected a tensor, got None")
        values = [found.get(field) for field in (*kind.tensors, *kind.attrs)]
        return kind(*values, shape=shape, dtype=dtype, transposed=transposed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}{newer}") from None


def _reduce(w: QuantizedTensor, plain: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    stored = w.unpack() if plain else w
    parts = {name: part for name, part in zip(w.tensors, stored.parts(), strict=True) if part is not None}
    # As bytes where torch's own pickling loses the dtype.
    views = {name: part.dtype for name, part in parts.items() if part.dtype in FP8_DTYPES}
    saved = {
        "type": type(w).__name__,
        "version": w.VERSION,
        "producer": producer(),
        "parts": {name: part.view(torch.uint8) if name in views else part for name, part in parts.items()},
        "views": views,
        "attrs": {name: getattr(stored, name) for name in w.attrs},
        "shape": w.weight_shape,
        "dtype": w.dtype,
        "transposed": w.transposed,
        "requires_grad": w.requires_grad,
        "is_parameter": isinstance(w, torch.nn.Parameter),
        "pack": plain and w.packed,
    }
    return _load, (saved,)


def _reduce_shared(w: QuantizedTensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return _reduce(w, plain=False)  # another process maps the same parts


def _load(saved: dict[str, Any]) -> QuantizedTensor:
    """What `_reduce` took apart. Pickles name this function, which therefore stays where it is."""
    views = saved["views"]
    parts = {name: part.view(views[name]) if name in views else part for name, part in saved["parts"].items()}
    w = tensor_from_fields(
        saved["type"],
        {**parts, **saved["attrs"]},
        shape=saved["shape"],
        dtype=saved["dtype"],
        version=saved["version"],
        writer=saved["producer"],
        transposed=saved["transposed"],
    )
    w = w.pack() if saved["pack"] else w
    requires_grad = saved["requires_grad"]
    param: Any = torch.nn.Parameter(w, requires_grad) if saved["is_parameter"] else w.requires_grad_(requires_grad)
    return param  # type: ignore[no-any-return]


# The order in which pickles of aoq 0.1, which do not name them, have parts and attributes.
_POSITIONS = {
    "Int4Tensor": (("qdata", "scale", "zero_point"), ("group_size", "packing")),
    "Int8Tensor": (("qdata", "scale", "w_sum"), ("act_mapping", "packing")),
    "Int8Int4Tensor": (("qdata", "scale", "zero_point", "w_sum"), ("group_size", "packing", "act_mapping")),
    "Float8Tensor": (
        ("qdata", "scale"),
        ("code_dtype", "act_dtype", "act_granularity", "act_lb", "act_ub", "packing"),
    ),
}


def _rebuild(
    cls: type[QuantizedTensor],
    parts: Sequence[Tensor | None],
    attrs: Sequence[Any],
    shape: Sequence[int],
    dtype: torch.dtype,
    transposed: bool,
    requires_grad: bool,
    is_param: bool,
    pack: bool,
    views: Sequence[torch.dtype | None] | None = None,
) -> QuantizedTensor:
    """As pickles of aoq 0.1 have tensors: by position."""
    part_names, attr_names = _POSITIONS[cls.__name__]
    found = {name: part for name, part in zip(part_names, parts, strict=True) if part is not None}
    return _load(
        {
            "type": cls.__name__,
            "version": 1,
            "producer": "aoq 0.1",
            "parts": found,
            "views": {name: view for name, view in zip(part_names, views or (), strict=False) if view},
            "attrs": dict(zip(attr_names, attrs, strict=True)),
            "shape": shape,
            "dtype": dtype,
            "transposed": transposed,
            "requires_grad": requires_grad,
            "is_parameter": is_param,
            "pack": pack,
        }
    )


torch.serialization.add_safe_globals([_load, _rebuild])
