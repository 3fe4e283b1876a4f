"""transformers: quantize while loading, save as safetensors, reload. `import aoq` is all it needs.

    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=AoqConfig(Int4WeightOnlyConfig()))
    model.save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)

Loading takes one weight at a time from the files and keeps only its quantized form. The output layer and tied
embeddings stay as they are unless asked for.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming, rename_source_key
from transformers.quantizers.base import HfQuantizer

from aoq.config import AOBaseConfig, FqnToConfig
from aoq.integrations.quantization_config import AoqConfig
from aoq.quantize import dequantize_
from aoq.storage.checkpoint import StoredWeight, read_config, stored_weights, weight_files
from aoq.storage.safetensors import flatten, unflatten_one
from aoq.tensors.base import QuantizedTensor

logger = logging.getLogger("aoq")


class AoqQuantizer(HfQuantizer):
    """Quantizes, or reads, each weight as transformers loads it."""

    quantization_config: AoqConfig  # type: ignore[assignment]

    def __init__(self, quantization_config: AoqConfig, **kwargs: Any) -> None:
        # A copy: what is left as it is depends on the model, and the config may serve for another one.
        super().__init__(copy.copy(quantization_config), **kwargs)  # type: ignore[arg-type]
        self.configs: dict[str, AOBaseConfig] = {}  # parameter -> how to quantize it
        self.skipped: dict[str, str] = {}  # parameter -> why it stays as it is
        self.stored: dict[str, StoredWeight] = {}  # parameter -> what the checkpoint has of it
        self.model: PreTrainedModel | None = None  # while it is being read

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if self.pre_quantized:
            self.model = model
            weights = stored_weights(Path(file) for file in checkpoint_files or ())
            self.stored = {name: weight for name, weight in weights.items() if weight.description}
            if weights and not self.stored:
                logger.warning("quantization_config is aoq's, but no weight in the checkpoint is quantized")
        else:
            self._choose(model)

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        return param_name in self.configs

    # ---- quantizing while loading

    def _choose(self, model: PreTrainedModel) -> None:
        """Decides about every parameter of `model`, which is still empty."""
        config = self.quantization_config
        if config.modules_to_not_convert is None:
            config.modules_to_not_convert = self.default_skips(model)
        self.configs, self.skipped = config.choose(model)

    def default_skips(self, model: PreTrainedModel) -> list[str]:
        """Modules that stay as they are unless told otherwise: the output layer, what is tied, what is to be fp32."""
        if self.quantization_config.include_embedding:
            return []
        kept = self.get_modules_to_not_convert(model, None, list(model._keep_in_fp32_modules or ()))
        # transformers lists the last norm too: what is never quantized need not be named.
        modules = dict(model.named_modules())
        return sorted(name for name in kept if isinstance(modules.get(name), nn.Linear | nn.Embedding))

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    # ---- reading quantized weights

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        if not self.stored:
            return weight_conversions
        if model is None:  # as in older releases of transformers
            model = self.model
        names = model_names(model, self.stored, weight_conversions)
        self.stored = {names[stored] or stored: weight for stored, weight in self.stored.items()}
        return [*weight_conversions, *self.get_weight_conversions()]

    def get_weight_conversions(self) -> list[WeightConverter]:
        patterns: dict[str, set[str]] = {}  # of the parts, for each name that a parameter has in its module
        for fqn, weight in self.stored.items():
            parts = {rf"\.{part.rpartition('.')[2]}" for part in weight.parts}
            patterns.setdefault(fqn.rpartition(".")[2], set()).update(parts)
        return [WeightConverter(sorted(parts), f".{param}", [_Read(self)]) for param, parts in patterns.items()]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        # Saving undoes the conversions of loading; `get_state_dict_and_metadata` has undone ours by then.
        self.model = None
        used: Any = model._weight_conversions
        ours = [entry for entry in used if any(isinstance(op, _Read) for op in getattr(entry, "operations", ()))]
        model._weight_conversions = [entry for entry in used if entry not in ours]  # type: ignore[assignment]
        return model

    # ---- saving

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        state_dict = model.state_dict(keep_vars=True)
        for name, target in model.all_tied_weights_keys.items():
            # transformers drops tied plain tensors by itself, but would not know the parts of these by name.
            if isinstance(state_dict.get(name), QuantizedTensor) and state_dict[name] is state_dict.get(target):
                del state_dict[name]
        return flatten({name: tensor.detach() for name, tensor in state_dict.items()})

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        dequantize_(model)
        for param in model.parameters():
            param.data = param.data.to(dtype)
        return model

    # ---- what else transformers asks

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes a weight, for placing a model on several devices."""
        if param_name in self.stored:
            return self.stored[param_name].nbytes / param.numel()
        config = self.configs.get(param_name)
        if config is None:
            return param.element_size()
        return config.quantize(torch.empty_like(param, device="meta")).bits_per_weight / 8

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True  # adapters: gradients pass through quantized weights

    @property
    def is_compileable(self) -> bool:
        return True


class _Quantize(ConversionOps):
    """The last step of loading a weight: its quantized form in its place."""

    def __init__(self, quantizer: AoqQuantizer) -> None:
        self.quantizer = quantizer

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, list[Tensor]]:
        out: dict[str, list[Tensor]] = {}
        for name, values in input_dict.items():
            w = values[0] if isinstance(values, list) else values
            config = self.quantizer.configs.get(name)
            try:
                out[name] = [w if config is None else nn.Parameter(config.quantize(w), requires_grad=False)]
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from error
        return out


class _Read(ConversionOps):
    """Puts a quantized weight together from its parts, in the layout of its device."""

    def __init__(self, quantizer: AoqQuantizer) -> None:
        self.hf_quantizer = quantizer  # by this name, transformers keeps the parts in the dtypes they have

    def __deepcopy__(self, memo: dict[int, Any]) -> _Read:
        return self  # transformers copies conversions for each tensor: time quadratic in the model's size

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, list[Tensor]]:
        name = kwargs["full_layer_name"]
        weight = self.hf_quantizer.stored[name]
        owner = weight.name.rpartition(".")[0]
        parts = {owner + pattern.removeprefix("\\"): values[0] for pattern, values in input_dict.items()}
        w = unflatten_one(weight.name, weight.description, parts)
        dtype = kwargs["model"].get_parameter(name).dtype
        return {name: [nn.Parameter(w if w.dtype == dtype else w.to(dtype), requires_grad=False)]}


def model_names(
    model: PreTrainedModel, stored: Iterable[str], conversions: list[Any] | None = None
) -> dict[str, str | None]:
    """The parameter of `model` that each name in a checkpoint stands for.

    None where transformers makes a parameter of several stored tensors, or has none for it.
    """
    if conversions is None:
        conversions = get_model_conversion_mapping(model)
    conversions = copy.deepcopy(conversions)  # matching leaves marks on them
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    params = model.state_dict()
    names: dict[str, str | None] = {}
    for name in stored:
        renamed, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, params)
        if converter is None and renamed in params:
            names[name] = renamed
        else:
            names[name] = name if name in params else None
    return names


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model that `config` describes, without memory for its weights.

    Raises ValueError when transformers has no such model.
    """
    if not config.architectures:
        raise ValueError("the config names no architecture")
    model_class = getattr(transformers, config.architectures[0], None)
    if model_class is None:
        raise ValueError(f"transformers {transformers.__version__} has no {config.architectures[0]}")
    with torch.device("meta"):
        model: PreTrainedModel = model_class._from_config(config)
    return model


def with_embedding(model: PreTrainedModel, config: AOBaseConfig, embedding: AOBaseConfig) -> FqnToConfig:
    """`config`, but `embedding` for the embedding and the output layer of `model`, tied or not."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    rules = config.fqn_to_config if isinstance(config, FqnToConfig) else {"_default": config}
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module in ends]
    return FqnToConfig({**rules, **dict.fromkeys(names, embedding)})


def load_model(directory: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model in `directory`, quantized or not, and its tokenizer.

    Raises OSError or ValueError, naming the file or the weight, unless all of it is there.
    """
    directory = Path(directory)
    stored = stored_weights(weight_files(directory))
    described = read_config(directory).get("quantization_config")
    if not described and any(weight.description for weight in stored.values()):
        raise ValueError(f"{directory}: has quantized weights, but its config.json has no quantization_config")
    loaded: Any
    model: Any
    model, loaded = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)  # type: ignore[misc]
    if loaded["missing_keys"]:
        raise ValueError(f"{directory}: lacks the weight {min(loaded['missing_keys'])}")
    return model, AutoTokenizer.from_pretrained(directory)
