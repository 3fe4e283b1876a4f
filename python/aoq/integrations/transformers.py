"""transformers: quantize while loading, save as safetensors, reload. `import aoq` is all it needs.

    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=AoqConfig(Int4WeightOnlyConfig()))
    model.save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)

Loading takes one weight at a time from the files and keeps only its quantized form. The output layer and tied
embeddings stay as they are unless asked for. With dtype "auto", the default, what is not quantized becomes fp32 where
the files have bf16 and this CPU has no fast bf16; codes and scales are the same either way.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
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
from transformers.core_model_loading import ConversionOps
from transformers.integrations.accelerate import get_device, load_offloaded_parameter
from transformers.quantizers.base import HfQuantizer

from aoq.config import AOBaseConfig, FqnToConfig
from aoq.cpu import auto_dtype, say_choice
from aoq.integrations.quantization_config import AoqConfig
from aoq.integrations.transformers_names import (
    first_targets,
    keep_quantized,
    model_names,
    part_converter,
    without_parts,
)
from aoq.quantize import SkippedWeight, dequantize_, is_linear, quantize_weight, report_loaded, show_quantized
from aoq.storage.checkpoint import StoredWeight, open_safetensors, read_config, stored_weights, verify, weight_files
from aoq.storage.safetensors import flatten, hashes, part_names
from aoq.tensors.base import QuantizedTensor

logger = logging.getLogger("aoq")


class AoqQuantizer(HfQuantizer):
    """Quantizes, or reads, each weight as transformers loads it."""

    quantization_config: AoqConfig  # type: ignore[assignment]

    def __init__(self, quantization_config: AoqConfig, **kwargs: Any) -> None:
        # A copy: what is left as it is depends on the model, and the config may serve for another one.
        super().__init__(copy.copy(quantization_config), **kwargs)  # type: ignore[arg-type]
        self.configs: dict[str, AOBaseConfig] = {}  # parameter -> how to quantize it
        self.firsts: set[str] = set()  # parameters that transformers asks about on behalf of some of those
        self.left: list[SkippedWeight] = []  # parameters that stay as they are
        self.skipped: dict[str, str] = {}  # and why, by name
        self.checkpoint: dict[str, StoredWeight] = {}  # all that is in it
        self.stored: dict[str, StoredWeight] = {}  # parameter -> the quantized weight that the checkpoint has for it
        self.model: PreTrainedModel | None = None  # while it is being read
        self.files: list[Path] = []  # that the checkpoint consists of
        self.device_map: dict[str, Any] = {}  # once it is decided
        self.fp32: re.Pattern[str] | None = None  # what is to be fp32, in the dtype that is being loaded
        self.auto: tuple[torch.dtype, torch.dtype] | None = None  # what "auto" is here, and what the files have instead
        self.stored_dtype: torch.dtype | None = None  # in which to quantize, where the model is in another one

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        self.device_map = device_map if isinstance(device_map, dict) else self.device_map

    # ---- the dtype of what is not quantized

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The last that transformers asks before it looks for what "auto" means: in the config, and nowhere else then.

        A dtype that was asked for by name does not come from there. A checkpoint that is quantized keeps its own.
        """
        stored = config.dtype
        if isinstance(stored, str):
            stored = getattr(torch, stored)
        if stored is not None and not self.pre_quantized and self._on_cpu():
            chosen = auto_dtype(stored)
            if chosen is not stored:
                config.dtype, self.auto = chosen, (chosen, stored)
        return config

    def update_tp_plan(self, config: PreTrainedConfig) -> PreTrainedConfig:
        return self.update_attn_implementation(config)  # the same in older releases

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if self.auto is not None and dtype is self.auto[0]:
            self.stored_dtype = self.auto[1]
            say_choice(*self.auto)
        return dtype

    def _on_cpu(self) -> bool:
        """Whether the model will compute on the CPU, as far as it is known."""
        if self.device_map:
            return all(str(device) in ("cpu", "disk") for device in self.device_map.values())
        return not torch.accelerator.is_available()

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        self.fp32 = _fp32_patterns(model, model.dtype)
        if self.pre_quantized:
            self.model = model
            self.files = [Path(file) for file in checkpoint_files or ()]
            self.checkpoint = self.read_stored(model)
            if os.environ.get("AOQ_VERIFY") == "1":
                verify(self.files)
            self.stored = {name: weight for name, weight in self.checkpoint.items() if weight.description}
            if self.checkpoint and not self.stored:
                logger.warning("quantization_config is aoq's, but no weight in the checkpoint is quantized")
        else:
            self._choose(model)

    def read_stored(self, model: PreTrainedModel) -> dict[str, StoredWeight]:
        """What is in the checkpoint's files."""
        return stored_weights(self.files)

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        return param_name in self.configs or param_name in self.firsts

    # ---- quantizing while loading

    def _choose(self, model: PreTrainedModel) -> None:
        """Decides about every parameter of `model`, which is still empty.

        Raises ValueError if all stay as they are.
        """
        config = self.quantization_config
        given, usual = config.modules_to_not_convert, self.default_skips(model)
        for text in config.unmatched_skips(model):
            logger.warning("modules_to_not_convert: %s", text)
        if given is None:
            config.modules_to_not_convert = usual
        self.configs, self.left = config.choose(model)
        self.skipped = {weight.fqn: weight.reason for weight in self.left}
        if not self.configs:
            reasons = Counter(self.skipped.values()).most_common()
            counts = "; ".join(f"{count}: {reason}" for reason, count in reasons)
            raise ValueError(f"{type(model).__name__}: none of its weights would be quantized ({counts})")
        if given and (more := [name for name in usual if f"{name}.weight" in self.configs and not config.names(name)]):
            logger.warning(
                "modules_to_not_convert takes the place of what stays as it is without one: %s %s quantized too",
                ", ".join(more),
                "is" if len(more) == 1 else "are",
            )

    def default_skips(self, model: PreTrainedModel) -> list[str]:
        """Modules that stay as they are unless told otherwise: the output layer, what is tied, what is to be fp32."""
        if self.quantization_config.include_embedding:
            return []
        fp32 = _fp32_patterns(model)
        # transformers lists the last norm too: what is never quantized need not be named.
        kept = self.get_modules_to_not_convert(model)
        weights = [
            name for name, module in model.named_modules() if is_linear(module) or isinstance(module, nn.Embedding)
        ]
        return sorted(name for name in weights if name in kept or (fp32 and fp32.search(f"{name}.weight")))

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    # ---- reading quantized weights

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        if not self.stored:
            self.firsts = first_targets(self.configs, weight_conversions)
            return weight_conversions
        if model is None:  # as in older releases of transformers
            model = self.model
        names = model_names(model, self.checkpoint, weight_conversions)
        self.stored = {names[stored] or stored: weight for stored, weight in self.stored.items()}
        tensors = [part for weight in self.checkpoint.values() for part in weight.parts]
        parts = {part: name for name, weight in self.stored.items() for part in weight.parts}
        return [part_converter(tensors, parts, _Read(self), weight_conversions), *weight_conversions]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        self.model = None
        model._weight_conversions = without_parts(model._weight_conversions)  # type: ignore[assignment, arg-type]
        show_quantized(model)
        if on_disk := [name for name in self.stored if self.is_on_disk(name)]:
            reads = {name: functools.partial(self.read, name, self.wanted_dtype(model, name)) for name in on_disk}
            _read_when_needed(model, reads)
        if not self.pre_quantized:
            report_loaded(model, self.configs, self.left).log()
        return model

    def is_on_disk(self, name: str) -> bool:
        """Whether the parameter is read from disk each time that it is needed."""
        return bool(self.device_map) and get_device(self.device_map, name) == "disk"

    def read(self, name: str, dtype: torch.dtype) -> QuantizedTensor:
        """The parameter from the checkpoint's files."""
        weight, parts = self.stored[name], dict[str, Tensor]()
        for file in self.files:
            with open_safetensors(file) as opened:
                parts |= {part: opened.get_tensor(part) for part in weight.parts.keys() & set(opened.keys())}
        return self.assemble(name, parts).to(dtype)  # type: ignore[return-value]

    def assemble(self, name: str, parts: Mapping[str, Tensor]) -> QuantizedTensor:
        """The parameter `name`, packed, from the stored tensors that it is made of."""
        return self.stored[name].read(parts)

    def wanted_dtype(self, model: PreTrainedModel, name: str) -> torch.dtype:
        """The dtype that a parameter is to have, in which `model` is made but for some."""
        return torch.float32 if self.fp32 and self.fp32.search(name) else model.get_parameter(name).dtype

    # ---- saving

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        state_dict = model.state_dict(keep_vars=True)
        for name, tensor in state_dict.items():
            if tensor.is_meta and isinstance(offloaded := load_offloaded_parameter(model, name), QuantizedTensor):
                state_dict[name] = offloaded
        for name, target in model.all_tied_weights_keys.items():
            # transformers drops tied plain tensors by itself, but would not know the parts of these by name.
            if isinstance(state_dict.get(name), QuantizedTensor) and state_dict[name] is state_dict.get(target):
                del state_dict[name]
        tensors, metadata = flatten({name: tensor.detach() for name, tensor in state_dict.items()})
        parts = {name: part_names(name, text) for name, text in metadata.items()}
        metadata |= hashes(tensors)
        keep_quantized(model, parts, tensors, metadata)
        return tensors, metadata

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        dequantize_(model)
        if isinstance(dtype, str):  # as a config has it once it has been saved
            dtype = getattr(torch, dtype)
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
        model, configs = kwargs["model"], self.quantizer.configs
        out: dict[str, list[Tensor]] = {}
        for name, values in input_dict.items():
            w = values[0] if isinstance(values, list) else values
            out[name] = [w]
            if name in configs and w.shape != model.get_parameter(name).shape:
                del configs[name]  # for transformers to find, as it does where nothing is quantized
            elif name in configs:
                try:
                    owner, stored = model.get_submodule(name.rpartition(".")[0]), self.quantizer.stored_dtype
                    quantized = quantize_weight(configs[name], w.to(stored or w.dtype), owner).to(w.dtype)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{name}: {error}") from error
                out[name] = [nn.Parameter(quantized, requires_grad=False)]
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
        name, model = kwargs["full_layer_name"], kwargs["model"]
        if self.hf_quantizer.is_on_disk(name):  # transformers would write it there anew, and knows plain tensors only
            return {name: [torch.empty(0)]}
        weight = self.hf_quantizer.stored[name]
        owner, dot, _ = weight.name.rpartition(".")
        parts = {owner + dot + part: values[0] for part, values in input_dict.items()}
        w = self.hf_quantizer.assemble(name, parts).to(self.hf_quantizer.wanted_dtype(model, name))
        return {name: [nn.Parameter(w, requires_grad=False)]}


class _OnDisk(dict[str, Any]):
    """Tensors by name, some of which are functions that read them."""

    def __getitem__(self, name: str) -> Tensor:
        value = super().__getitem__(name)
        return value if isinstance(value, Tensor) else value()


def _read_when_needed(model: PreTrainedModel, reads: Mapping[str, Callable[[], Tensor]]) -> None:
    """Has accelerate's hooks, which put parameters in place for the time of a call, get some of them by `reads`."""
    from accelerate.utils import OffloadedWeightsLoader  # it is there: nothing else puts parameters on disk

    loaders = {}
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            loader = getattr(getattr(each, "weights_map", None), "dataset", None)
            if isinstance(loader, OffloadedWeightsLoader):
                loaders[id(loader)] = loader
    for loader in loaders.values():
        loader.state_dict = _OnDisk({**loader.state_dict, **reads})


def attach(model: PreTrainedModel, configs: dict[str, AOBaseConfig]) -> None:
    """Makes a model that `quantize_` has quantized one that `from_pretrained` might have: it saves and reloads.

    Args:
        configs: what each parameter has been quantized by, of those quantized just now.
    """
    before = getattr(model, "hf_quantizer", None)
    params = dict(model.named_parameters(remove_duplicate=False))
    quantized = {name: w for name, w in params.items() if isinstance(w, QuantizedTensor)}
    if not quantized or (before is not None and not isinstance(before, AoqQuantizer)):
        return
    known = {**(before.configs if before else {}), **configs}
    chosen = {name: known[name] if name in known else w.config() for name, w in quantized.items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    looked_up = any(isinstance(modules[name.rpartition(".")[0]], nn.Embedding) for name in quantized)
    first = next(iter(chosen.values()))
    config = first
    if any(other != first for other in chosen.values()) or not all(name.endswith(".weight") for name in chosen):
        config = FqnToConfig({name.removesuffix(".weight"): other for name, other in chosen.items()})
    left = [
        name
        for name, module in modules.items()
        if (is_linear(module) or (looked_up and isinstance(module, nn.Embedding))) and f"{name}.weight" not in quantized
    ]
    quantizer = AoqQuantizer(AoqConfig(config, left, looked_up), pre_quantized=False)
    quantizer.configs = chosen
    model.hf_quantizer, model.is_quantized = quantizer, True  # type: ignore[assignment]
    model.quantization_method = quantizer.quantization_config.quant_method  # type: ignore[assignment]
    model.config.quantization_config = quantizer.quantization_config


def _fp32_patterns(model: PreTrainedModel, dtype: torch.dtype = torch.float16) -> re.Pattern[str] | None:
    """What `model` keeps in fp32 when it is loaded in `dtype`: a pattern to search for in names of parameters."""
    plan = [name for name, wanted in model._get_dtype_plan(dtype).items() if wanted is torch.float32]
    return re.compile("|".join(f"(?:{name.replace('*', '.*')})" for name in plan)) if plan else None


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


def load_model(
    directory: str | Path, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model in `directory`, quantized or not, and its tokenizer.

    Args:
        dtype: of what is not quantized; by default as it is stored, or fp32 where that is bf16 and this CPU has no fast
            bf16.

    Raises OSError or ValueError, naming the file or the weight, unless all of it is there.
    """
    directory = Path(directory)
    stored = stored_weights(weight_files(directory))
    config = read_config(directory)
    described = config.get("quantization_config")
    if not described and any(weight.description for weight in stored.values()):
        raise ValueError(f"{directory}: has quantized weights, but its config.json has no quantization_config")
    loaded: Any
    model: Any
    model, loaded = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
        directory, dtype=dtype or _stored_or_auto(config), output_loading_info=True
    )
    if loaded["missing_keys"]:
        raise ValueError(f"{directory}: lacks the weight {min(loaded['missing_keys'])}")
    return model, AutoTokenizer.from_pretrained(directory)


def _stored_or_auto(config: Mapping[str, Any]) -> torch.dtype | str:
    """The dtype to load the checkpoint with this config.json in."""
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    if not isinstance(stored, torch.dtype):
        return "auto"
    chosen = auto_dtype(stored)
    if chosen is not stored:
        say_choice(chosen, stored)
    return chosen
