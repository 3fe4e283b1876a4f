"""AoqConfig: what a checkpoint's `quantization_config` says. One class, which every framework reads."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import json
import logging
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from typing_extensions import Self

from aoq.config import AOBaseConfig, FqnToConfig, config_from_dict, config_to_dict, near
from aoq.quantize import LEFT_OUT, SkippedWeight, check_rules, is_linear, plan

logger = logging.getLogger("aoq")


class QuantizationMethod(str, enum.Enum):
    """The `quant_method` by which frameworks know aoq: equal to "aoq", and an enum as theirs are."""

    AOQ = "aoq"

    __str__ = str.__str__


class AoqConfig:
    """How a framework quantizes a model with aoq.

    Args:
        quant_type: a config such as `Int4WeightOnlyConfig()`, its dict, or {"default": its dict}.
        modules_to_not_convert: modules to leave as they are: `s` stands for every module whose dotted name
            has `s` in it. None leaves what the framework says, such as the output layer and tied weights. What a
            `FqnToConfig` names is quantized all the same.
        include_embedding: quantize the embedding and the output layer too.

    Raises ValueError or TypeError for a `quant_type` that is not a config.
    """

    def __init__(
        self,
        quant_type: AOBaseConfig | Mapping[str, Any],
        modules_to_not_convert: list[str] | None = None,
        include_embedding: bool = False,
        **ignored: Any,
    ) -> None:
        if isinstance(quant_type, Mapping):
            quant_type = config_from_dict(dict(quant_type.get("default", quant_type)))
        if not isinstance(quant_type, AOBaseConfig):
            raise TypeError(f"quant_type: expected a config such as Int4WeightOnlyConfig(), got {quant_type!r}")
        ignored.pop("quant_method", None)
        if ignored:
            logger.warning("AoqConfig: no effect here: %s", ", ".join(sorted(ignored)))
        self.quant_method = QuantizationMethod.AOQ
        self.quant_type = quant_type
        self.modules_to_not_convert = modules_to_not_convert
        self.include_embedding = include_embedding

    def __repr__(self) -> str:
        return f"AoqConfig {self.to_json_string()}"

    # ---- JSON, by the names that transformers and diffusers call

    def to_dict(self) -> dict[str, Any]:
        """The JSON of config.json's `quantization_config`."""
        return {
            "quant_method": self.quant_method.value,
            "quant_type": {"default": config_to_dict(self.quant_type)},
            "modules_to_not_convert": self.modules_to_not_convert,
            "include_embedding": self.include_embedding,
        }

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Self | tuple[Self, dict[str, Any]]:
        """The config that `to_dict` wrote, with the attributes in `kwargs`; on request, what it has no use for too."""
        config = cls(**config_dict)
        unused = config.update(**kwargs)
        return (config, unused) if return_unused_kwargs else config

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Sets the attributes there are; returns the rest of `kwargs`."""
        unused = {name: value for name, value in kwargs.items() if not hasattr(self, name)}
        vars(self).update((name, value) for name, value in kwargs.items() if name not in unused)
        return unused

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    # ---- what it says about a model

    def skips(self, module_fqn: str) -> bool:
        """Whether `modules_to_not_convert` leaves this module as it is."""
        return any(f".{skip}." in f".{module_fqn}." for skip in self.modules_to_not_convert or ())

    def names(self, module_fqn: str) -> bool:
        """Whether a rule, other than its default, decides about the weight of this module."""
        rules = self.quant_type
        return isinstance(rules, FqnToConfig) and rules.find(module_fqn, "weight", False) is not None

    def choose(self, model: nn.Module) -> tuple[dict[str, AOBaseConfig], list[SkippedWeight]]:
        """How to quantize parameters of `model`, which may be empty, and the others with why they stay as they are.

        Raises ValueError or NotImplementedError when a rule matches nothing or there are no kernels for a config.
        """

        def selects(module: nn.Module, fqn: str) -> bool:
            embedding = self.include_embedding and isinstance(module, nn.Embedding)
            return (embedding or is_linear(module)) and not self.skips(fqn)

        if isinstance(self.quant_type, FqnToConfig):
            check_rules(model, self.quant_type)
        configs: dict[str, AOBaseConfig] = {}
        steps, skipped = plan(model, self.quant_type, selects)
        for step in steps:
            if type(step.config).quantize is AOBaseConfig.quantize:
                raise NotImplementedError(f"this version of aoq has no kernels for {type(step.config).__name__}")
            for owner in step.owners:
                if owner.named or not self.skips(owner.module_fqn):
                    configs[owner.fqn] = step.config

        def reason(weight: SkippedWeight) -> str:
            if self.skips(weight.fqn.rpartition(".")[0]):
                return "in modules_to_not_convert"
            return "an embedding (include_embedding is off)" if weight.reason == LEFT_OUT else weight.reason

        return configs, [dataclasses.replace(weight, reason=reason(weight)) for weight in skipped]

    def unmatched_skips(self, model: nn.Module) -> list[str]:
        """What is wrong with the names in `modules_to_not_convert` that stand for no module of `model`."""
        names = [name for name, _ in model.named_modules() if name]  # not the model itself, which "" would stand for
        known = dict.fromkeys(part for name in names for part in (name, name.rpartition(".")[2]))
        return [
            f"{skip!r} matches no module{near(skip, known)}"
            for skip in self.modules_to_not_convert or ()
            if not any(f".{skip}." in f".{name}." for name in names)
        ]


def register(table: ModuleType) -> None:
    """Adds quant_method "aoq" to `transformers.quantizers.auto`, or its twin in diffusers.

    The integration is imported when the first model is quantized or read, and raises ImportError there if the
    framework's version is not among those that the extra in pyproject.toml asks for.
    """
    framework = table.__name__.partition(".")[0]

    def quantizer(*args: Any, **kwargs: Any) -> Any:
        check_version(framework)
        return importlib.import_module(f"aoq.integrations.{framework}").AoqQuantizer(*args, **kwargs)

    table.AUTO_QUANTIZATION_CONFIG_MAPPING["aoq"] = AoqConfig
    table.AUTO_QUANTIZER_MAPPING["aoq"] = quantizer


def check_version(framework: str) -> None:
    """Raises ImportError unless the framework is installed in a version that aoq's extra asks for."""
    try:
        installed = metadata.version(framework)
    except metadata.PackageNotFoundError:
        raise ImportError(f"this needs {framework}: pip install 'aoq[{framework}]'") from None
    from packaging.requirements import Requirement  # every framework has it

    for text in metadata.requires("aoq") or ():
        wanted = Requirement(text)
        if wanted.name == framework and not wanted.specifier.contains(installed, prereleases=True):
            raise ImportError(
                f"aoq works with {framework}{wanted.specifier}, got {installed}: pip install -U 'aoq[{framework}]'"
            )
