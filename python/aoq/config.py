"""Configs: what to quantize and how, as data. `config_to_dict` and `config_from_dict` are their JSON.

Reading a config never imports or runs anything that it names: `_type` is looked up among the classes that
are already defined, dtypes and enum members in tables.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from typing_extensions import Self

if TYPE_CHECKING:
    from aoq.tensors.base import QuantizedTensor

logger = logging.getLogger("aoq")

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_TYPES: dict[str, type] = {}  # every `_type` that can be read
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class AOBaseConfig:
    """Base of all configs. A subclass is a dataclass; defining it makes it known to `config_from_dict`."""

    VERSION: ClassVar[int] = 1
    OPTIONS: ClassVar[tuple[str, ...]] = ()  # of the command line, by the names of `with_options`
    ACTIVATIONS: ClassVar[str] = "as given"  # what becomes of activations, in words

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _register(cls)

    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        """The weight [..., n, k] in this config's format."""
        raise NotImplementedError(f"this version of aoq reads {type(self).__name__} but cannot quantize with it")

    def options(self) -> dict[str, Any]:
        """The values of `OPTIONS`."""
        return {name: getattr(self, name) for name in self.OPTIONS}

    def with_options(self, **options: Any) -> Self:
        """This config with other values for some of `OPTIONS`: group_size, use_hqq, mapping_type."""
        return dataclasses.replace(self, **options)  # type: ignore[type-var]

    def check_types(self, **fields: type) -> None:
        """Raises TypeError if a field, by name, is not of its type."""
        for name, kind in fields.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise TypeError(f"{type(self).__name__}.{name}: expected {kind.__name__}, got {value!r}")

    @classmethod
    def upgrade(cls, data: dict[str, Json]) -> dict[str, Json]:
        """JSON fields written under older or torchao's names, as this class's fields."""
        return data


def _register(cls: type) -> type:
    known = _TYPES.setdefault(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(f"a config type named {cls.__name__} already exists: {known.__module__}.{known.__qualname__}")
    _TYPES[cls.__name__] = cls  # a reloaded module defines its classes anew
    return cls


# ---- granularities: which elements share a scale -------------------------------------------------------


@_register
@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@_register
@dataclass(frozen=True)
class PerRow:
    """One scale for each row along `dim`."""

    dim: int = -1


@_register
@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of `axis`."""

    axis: int


@_register
@dataclass(frozen=True)
class PerGroup:
    """One scale for each `group_size` neighbours of the last dimension."""

    group_size: int


@_register
@dataclass(frozen=True)
class PerBlock:
    """One scale for each block of shape `block_size`."""

    block_size: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_size", tuple(self.block_size))


@_register
@dataclass(frozen=True)
class PerToken:
    """One scale for each token of an activation."""


Granularity: TypeAlias = PerTensor | PerRow | PerAxis | PerGroup | PerBlock | PerToken


@_register
class MappingType(enum.Enum):
    """How floats map to integers: around zero, or over [min, max] with a zero point."""

    SYMMETRIC = enum.auto()
    ASYMMETRIC = enum.auto()


# ---- a config of configs ------------------------------------------------------------------------------


Rules: TypeAlias = "dict[str, AOBaseConfig | None]"


@dataclass
class FqnToConfig(AOBaseConfig):
    """A config for each module or parameter, by fully qualified name.

    The first of these that matches decides: the exact name of the parameter, the exact name of the module,
    the first `re:` pattern that matches the whole name of the parameter, the first that matches that of the
    module, and for linears `_default`. None leaves the weight as it is.
    """

    fqn_to_config: Rules = field(default_factory=dict)
    module_fqn_to_config: Rules = field(default_factory=dict, repr=False, metadata={"alias": True})  # older name

    def __post_init__(self) -> None:
        rules = self.fqn_to_config or self.module_fqn_to_config
        if not isinstance(rules, Mapping):
            raise TypeError(f"FqnToConfig: expected a dict of names to configs, got {rules!r}")
        if self.module_fqn_to_config and self.module_fqn_to_config != rules:
            raise ValueError("FqnToConfig: fqn_to_config and module_fqn_to_config differ; they are one thing, give one")
        for key, config in rules.items():
            if config is not None and (not isinstance(config, AOBaseConfig) or isinstance(config, FqnToConfig)):
                raise TypeError(f"FqnToConfig: {key}: expected None or the config of one weight, got {config!r}")
            if key.startswith("re:"):
                try:
                    re.compile(key[3:])
                except re.error as error:
                    raise ValueError(f"FqnToConfig: {key}: bad pattern: {error}") from None
        self.fqn_to_config = self.module_fqn_to_config = dict(rules)

    def find(self, module_fqn: str, param: str, is_linear: bool) -> str | None:
        """The key that decides about a module's parameter, or None if none does.

        `is_linear`: whether `_default` applies, that is whether this is the weight of a linear.
        """
        name = f"{module_fqn}.{param}" if module_fqn else param
        for exact in (name, module_fqn):
            if exact in self.fqn_to_config:
                return exact
        for target in (name, module_fqn):
            for key in self.fqn_to_config:
                if key.startswith("re:") and re.fullmatch(key[3:], target):
                    return key
        return "_default" if is_linear and "_default" in self.fqn_to_config else None


ModuleFqnToConfig = FqnToConfig
_TYPES["ModuleFqnToConfig"] = FqnToConfig


# ---- JSON ----------------------------------------------------------------------------------------------


def config_to_dict(config: AOBaseConfig) -> dict[str, Json]:
    """`config` as JSON: `{"_type": ..., "_version": ..., "_data": {field: value}}`."""
    if not isinstance(config, AOBaseConfig):
        raise TypeError(f"config: expected a config, got {config!r}")
    encoded = encode(config, type(config).__name__)
    assert isinstance(encoded, dict)
    return encoded


def config_from_dict(data: Mapping[str, Json]) -> AOBaseConfig:
    """The config that `config_to_dict`, another version of aoq or torchao wrote as `data`.

    Fields that this version does not know are left out, with a note in the log "aoq".

    Raises:
        ValueError: not such a dict, an unknown `_type` (the text lists the known ones), a bad value.
        TypeError: a field has a value of the wrong type.
    """
    config = decode(data, "config")
    if not isinstance(config, AOBaseConfig):
        raise ValueError(f"config: expected a config, got {data!r}; known: {_known(AOBaseConfig)}")
    return config


def encode(value: Any, where: str) -> Json:
    """A config, or a value that a config may hold, as JSON; `where` names it in errors."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value  # type: ignore[no-any-return]
    if isinstance(value, torch.dtype):
        return {"_type": "torch.dtype", "_data": str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return [encode(item, where) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item, f"{where}: {key}") for key, item in value.items()}
    if _TYPES.get(kind.__name__) is kind:
        if isinstance(value, enum.Enum):
            return {"_type": kind.__name__, "_data": value.name}
        fields = [f.name for f in dataclasses.fields(value) if not f.metadata.get("alias")]
        data = {name: encode(getattr(value, name), f"{where}.{name}") for name in fields}
        return {"_type": kind.__name__, "_version": getattr(kind, "VERSION", 1), "_data": data}
    raise TypeError(f"{where}: cannot be written as JSON: {value!r}")


def decode(value: Any, where: str) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item, where) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "_type" not in value:
        return {key: decode(item, f"{where}: {key}") for key, item in value.items()}
    name, data = value["_type"], value.get("_data", {})
    if name == "torch.dtype":
        return _member(_DTYPES, data, f"{where}: torch.dtype")
    kind = _TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"{where}: unknown _type {name!r}; known: {_known()}")
    if issubclass(kind, enum.Enum):
        return _member(kind.__members__, data, f"{where}: {name}")
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: {name}: expected _data to be a dict of fields, got {data!r}")
    data = dict(data)
    if issubclass(kind, AOBaseConfig):
        data = kind.upgrade(data)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(data.keys() - known):
        logger.warning("%s: no effect here: %s", name, ", ".join(unknown))
    fields = {key: decode(item, f"{where}: {name}.{key}") for key, item in data.items() if key in known}
    try:
        return kind(**fields)
    except TypeError as error:  # a required field is missing; a value's own check says where already
        raise type(error)(f"{where}: {error}") from None


def _member(table: Mapping[str, Any], name: Any, where: str) -> Any:
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{where}: unknown name {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


def _known(base: type = object) -> str:
    return ", ".join(sorted(name for name, kind in _TYPES.items() if issubclass(kind, base)))


def near(name: str, names: Iterable[str]) -> str:
    """' (did you mean a, b?)' with the nearest of `names`, or nothing."""
    matches = difflib.get_close_matches(name, names, n=3)
    return f" (did you mean {', '.join(matches)}?)" if matches else ""
