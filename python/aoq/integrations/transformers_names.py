"""What transformers renames between checkpoints and models, for quantized weights and their parts.

transformers keeps, for many architectures, a list of conversions that it applies to the tensors of a checkpoint when it
loads and undoes when it saves: renamings, which are patterns, and converters, which split, merge or transpose. Patterns
are made for the names of weights, not for those of their parts (`q_proj._weight_qdata` of `q_proj.weight`), and the
description of a quantized weight is in the file's metadata, of which transformers knows nothing. So:

- Loading, parts go by name to the weight that they make (`part_converter`), whatever patterns say.
- Saving, renamings apply to parts, and the descriptions follow; converters do not (`keep_quantized`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from aoq.storage.safetensors import HASHES, stored_hashes

_KEPT = "aoq: kept"  # takes the place of a pattern


def model_names(
    model: PreTrainedModel, stored: Iterable[str], conversions: list[Any] | None = None
) -> dict[str, str | None]:
    """The parameter of `model` that each name in a checkpoint stands for.

    None where transformers makes a parameter of several stored tensors, or has none for it.
    """
    if conversions is None:
        conversions = get_model_conversion_mapping(model)
    conversions = copy.deepcopy(conversions)  # matching leaves marks on them
    renamings, converters = _split(conversions)
    params = model.state_dict()
    names: dict[str, str | None] = {}
    for name in sorted(stored, key=dot_natural_key):  # some renamings depend on the order
        renamed, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, params)
        if converter is None and renamed in params:
            names[name] = renamed
        else:
            names[name] = name if name in params else None
    return names


def first_targets(params: Iterable[str], conversions: list[Any]) -> set[str]:
    """Of parameters that are split from one tensor with one of `params`, the first: the one that transformers names."""
    firsts = set()
    for converter in _split(copy.deepcopy(conversions))[1]:
        if len(converter.target_patterns) > 1:
            undo = converter.reverse_transform()
            sources = (undo.rename_source_key(param) for param in params)
            firsts |= {converter.rename_source_key(source)[0] for source, found in sources if found is not None}
    return firsts


def part_converter(
    tensors: Iterable[str], parts: Mapping[str, str], operation: ConversionOps, conversions: list[Any]
) -> WeightConverter:
    """What makes quantized weights of their parts with `operation`; it goes before all `conversions`.

    Args:
        tensors: all that the checkpoint holds.
        parts: part -> the parameter of the model that it belongs to.
    """
    renamings, _ = _split(copy.deepcopy(conversions))
    # By the time that converters see a tensor, it has been renamed.
    renamed = _rename(tensors, renamings)
    places = {renamed[part]: (param, part.rpartition(".")[2]) for part, param in parts.items()}
    return _Parts(sorted({last for _, last in places.values()}), ["weight"], [_Places(places), operation])


class _Fixed(ConversionOps):
    """Does nothing. Holds what converters share: transformers copies them for each tensor, in quadratic time."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Fixed:
        return self

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        return input_dict


class _Places(_Fixed):
    def __init__(self, places: dict[str, tuple[str, str]]) -> None:
        self.places = places  # part -> parameter, and the part's name in its module


class _Parts(WeightConverter):  # type: ignore[misc]
    __slots__ = ()

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        places: Any = self.operations[0]
        found: tuple[str, str] | None = places.places.get(source_key)
        self._was_used = self._was_used or found is not None
        return found or (source_key, None)


def without_parts(conversions: list[Any]) -> list[Any]:
    """`conversions` without that of `part_converter`: whole weights are what there is to undo it for."""
    return [entry for entry in conversions if not isinstance(entry, _Parts)]


def keep_quantized(
    model: PreTrainedModel, parts: Mapping[str, Iterable[str]], tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Prepares `model` for transformers to undo its conversions, which it is about to do, or not, on `tensors`.

    Args:
        parts: the quantized parameters of `model`, and what each is in `tensors`.
        metadata: what will be written. When conversions are undone its descriptions are renamed as the parts are.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:  # not from `from_pretrained`: as transformers goes about it
        conversions = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [entry for entry in conversions if not isinstance(entry, PrefixChange)]
    conversions = [entry for entry in conversions if not isinstance(entry, _Kept)]
    saved = _Saved(conversions, parts, list(tensors), metadata)
    model._weight_conversions = [*conversions, _Kept([_KEPT], [_KEPT], [saved])]  # type: ignore[assignment]


class _Saved(_Fixed):
    """Which tensors only renamings apply to: the parts of quantized weights, and what those would be merged with."""

    def __init__(
        self, conversions: list[Any], parts: Mapping[str, Iterable[str]], tensors: list[str], metadata: dict[str, str]
    ) -> None:
        self.conversions = conversions
        self.parts = {name: list(of) for name, of in parts.items()}
        self.tensors = tensors
        self.metadata = metadata
        self.described = {name: name for name in parts}  # parameter -> its name in the metadata, so far
        self.kept: set[str] = set()
        self.hashes = stored_hashes(metadata)

    def undo(self) -> None:
        renamings, converters = _split([entry.reverse_transform() for entry in reversed(self.conversions)])
        of_parts = {part for parts in self.parts.values() for part in parts}
        merged: dict[str, list[str]] = {}
        for name in [*self.parts, *(name for name in self.tensors if name not in of_parts)]:
            for converter in converters:
                into, pattern = converter.rename_source_key(name)
                if pattern is not None:
                    merged.setdefault(into, []).append(name)
                    break
        apart = {name for names in merged.values() if not self.parts.keys().isdisjoint(names) for name in names}
        self.kept = of_parts | (apart - self.parts.keys())
        renamed = _rename(self.tensors, renamings)
        texts = {name: self.metadata.pop(described) for name, described in self.described.items()}
        for name, (part, *_) in self.parts.items():
            own, param = part.rpartition(".")[2], name.rpartition(".")[2]
            if not renamed[part].endswith(own):
                raise ValueError(
                    f"{name}: transformers renames its part {part} to {renamed[part]}, which cannot be read"
                )
            self.described[name] = renamed[part].removesuffix(own) + param
            self.metadata[self.described[name]] = texts[name]
        if self.hashes:  # of what is merged or split, nobody has taken one
            changed = {name for names in merged.values() for name in names} - self.kept
            same = {renamed[name]: text for name, text in self.hashes.items() if name not in changed}
            self.metadata[HASHES] = json.dumps(same)

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        return {kwargs["full_layer_name"]: input_dict[_KEPT]}


class _Kept(WeightConverter):  # type: ignore[misc]
    __slots__ = ()

    def reverse_transform(self) -> _Kept:
        saved: Any = self.operations[0]
        saved.undo()
        return self

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        saved: Any = self.operations[0]
        return source_key, _KEPT if source_key in saved.kept else None


def _split(conversions: list[Any]) -> tuple[list[Any], list[Any]]:
    """Renamings and converters."""
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    return renamings, [entry for entry in conversions if isinstance(entry, WeightConverter)]


def _rename(names: Iterable[str], renamings: list[Any]) -> dict[str, str]:
    """What renamings make of each name, in the order that transformers takes, on which some of them depend."""
    renamed: dict[str, str] = {}
    for name in sorted(names, key=dot_natural_key):
        renamed[name] = name
        for renaming in renamings:
            renamed[name], _ = renaming.rename_source_key(renamed[name])
    return renamed
