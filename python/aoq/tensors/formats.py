"""WeightFormat: what a weight is, apart from how activations meet it; and every format and config there is, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aoq.config import AOBaseConfig
from aoq.tensors.parts import Codes, Part

FORMATS: dict[str, WeightFormat] = {}  # every format by name, in the order of their definition


@dataclass(frozen=True, eq=False)
class WeightFormat:
    """What a weight is. Defining one makes it known to the command line, the benchmarks, the tests and the README.

    name: as ops name it, such as "int4".
    title: in a few words, for tables.
    parts: the codes first, then what is stored of scales, then what is derived.
    floats: (plain stored parts of some rows, group, k, dtype) -> what they stand for, [..., k] in `dtype`. A part that
        a weight does not have is None.
    configs: what makes such weights, by the name that each config has on the command line, with its defaults.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    floats: Callable[[Sequence[Any], int, int, torch.dtype], Tensor]
    configs: Mapping[str, AOBaseConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name in FORMATS:
            raise TypeError(f"a format named {self.name} already exists")
        if taken := self.configs.keys() & commands().keys():
            raise TypeError(f"{self.name}: a config named {min(taken)} already exists")
        if not isinstance(self.parts[0], Codes):
            raise TypeError(f"{self.name}: parts: expected codes first, got {self.parts[0]}")
        FORMATS[self.name] = self

    @property
    def codes(self) -> Codes:
        codes = self.parts[0]
        assert isinstance(codes, Codes)
        return codes

    @property
    def bits(self) -> int:
        """Of a code; scales come on top."""
        return self.codes.bits

    @functools.cached_property
    def named(self) -> dict[str, Part]:
        """The parts by name."""
        return {part.name: part for part in self.parts}


@dataclass(frozen=True)
class Way:
    """A weight format, and what becomes of the activations that it is multiplied with: a config's name, an op.

    command: the config's name on the command line.
    config: with its defaults.
    """

    command: str
    format: WeightFormat
    config: AOBaseConfig

    @functools.cached_property
    def op(self) -> str:
        """What multiplies."""
        op: str = self.config.quantize(torch.empty(16, 16, device="meta")).mm_op  # type: ignore[attr-defined]
        return op

    @property
    def x(self) -> str:
        """What activations become: "given", "int8" or "fp8"."""
        return self.config.ACTIVATIONS.removeprefix("as ").split()[0]

    @property
    def title(self) -> str:
        """For tables: "int4, x to int8"."""
        return f"{self.format.name.partition('_')[0]}, x {'as given' if self.x == 'given' else f'to {self.x}'}"


def ways() -> list[Way]:
    """Every way to multiply that has a name on the command line: integers first, the narrowest first."""
    order = sorted(FORMATS.values(), key=lambda form: (not form.name.startswith("int"), form.bits))
    return [Way(command, form, config) for form in order for command, config in form.configs.items()]


def commands() -> dict[str, AOBaseConfig]:
    """Every config that has a name on the command line, with its defaults."""
    return {way.command: way.config for way in ways()}


def takers(option: str) -> dict[str, AOBaseConfig]:
    """Those of `commands` that take an option, one of `AOBaseConfig.OPTIONS`."""
    return {name: config for name, config in commands().items() if option in config.OPTIONS}
