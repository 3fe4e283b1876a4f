"""Checkpoints of other producers in transformers: what their weights are in a model, and loading them as they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aoq.integrations.transformers import AoqQuantizer, attach
from aoq.integrations.transformers_names import model_names
from aoq.quantize import is_conv1d
from aoq.storage.checkpoint import StoredWeight
from aoq.storage.producers import foreign_checkpoint
from aoq.storage.producers.base import ForeignWeight
from aoq.tensors.base import QuantizedTensor

logger = logging.getLogger("aoq")

METHOD = "aoq_foreign"  # by which transformers knows the quantizer below


def check_weights(
    model: PreTrainedModel, stored: Mapping[str, StoredWeight], conversions: list[Any] | None = None
) -> dict[str, str | None]:
    """The parameter of `model` that each stored weight stands for, as `model_names`.

    Raises ValueError for a quantized weight that has another shape there, or none.
    """
    names = model_names(model, stored, conversions)
    params = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in stored.items():
        if not isinstance(weight, ForeignWeight):
            continue
        param = params.get(names[name] or "")
        if param is None:
            reason = f"{type(model).__name__} has no such weight, or one that is merged of several"
            raise ValueError(f"{weight.file}: {name}: is quantized, but {reason}")
        shape = weight.shape[::-1] if is_conv1d(_owner(model, str(names[name]))) else weight.shape
        if tuple(param.shape) != tuple(shape):
            raise ValueError(
                f"{weight.file}: {name}: expected shape {list(param.shape)} by config.json, got {list(shape)} by "
                "quantization_config"
            )
    return names


def fitted(w: QuantizedTensor, model: PreTrainedModel, param: str) -> QuantizedTensor:
    """A weight [n, k] as the parameter of `model`: GPT-2's are [k, n]."""
    return w.t() if is_conv1d(_owner(model, param)) else w  # type: ignore[return-value]


def _owner(model: PreTrainedModel, param: str) -> torch.nn.Module:
    return model.get_submodule(param.rpartition(".")[0])


class ForeignConfig:
    """Another producer's quantization settings, as transformers hands configs around."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.quant_method = METHOD

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        config = cls(**config_dict)
        return (config, kwargs) if return_unused_kwargs else config

    def update(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str) + "\n"


class ForeignQuantizer(AoqQuantizer):
    """Reads each weight of another producer's checkpoint onto aoq's kernels. What is saved then is aoq's."""

    quantization_config: ForeignConfig  # type: ignore[assignment]

    def __init__(self, quantization_config: ForeignConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)  # type: ignore[arg-type]
        self.transposed: set[str] = set()  # parameters that are stored as their transposes
        if not self.pre_quantized:
            method = quantization_config.settings.get("quant_method")
            raise ValueError(f"aoq reads checkpoints of {method} but does not quantize as it does; use AoqConfig")

    def read_stored(self, model: PreTrainedModel) -> dict[str, StoredWeight]:
        config = self.files[0].parent / "config.json" if self.files else Path("config.json")
        found = foreign_checkpoint(self.files, self.quantization_config.settings, config, model.dtype)
        for note in found.notes:
            logger.warning("%s", note)
        return found.weights

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        model = model or self.model  # none in older releases of transformers
        assert model is not None
        names = check_weights(model, self.checkpoint, weight_conversions)
        self.transposed = {name for name in names.values() if name and is_conv1d(_owner(model, name))}
        return super().update_weight_conversions(weight_conversions, model)

    def assemble(self, name: str, parts: Mapping[str, Tensor]) -> QuantizedTensor:
        w = super().assemble(name, parts)
        return w.t() if name in self.transposed else w  # type: ignore[return-value]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        model = super()._process_model_after_weight_loading(model, **kwargs)
        attach(model, {})  # to be saved as aoq's
        return model
