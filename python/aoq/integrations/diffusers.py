"""diffusers: quantize while loading, save as safetensors, reload.

    transformer = FluxTransformer2DModel.from_pretrained(
        path, subfolder="transformer", dtype=torch.bfloat16, quantization_config=AoqConfig(Int4WeightOnlyConfig())
    )
    transformer.save_pretrained(directory)
    transformer = FluxTransformer2DModel.from_pretrained(directory)

All linear layers are quantized but those that the model wants in fp32 and those in `modules_to_not_convert`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import CustomDtype
from diffusers.quantizers.base import DiffusersQuantizer
from torch import Tensor, nn

from aoq.config import AOBaseConfig
from aoq.integrations.quantization_config import AoqConfig
from aoq.quantize import SkippedWeight, dequantize_, report_loaded, show_quantized
from aoq.storage.checkpoint import StoredWeight, stored_weights
from aoq.storage.safetensors import flatten, hashes, unflatten_one
from aoq.tensors.base import QuantizedTensor

logger = logging.getLogger("aoq")


class AoqQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Quantizes, or reads, each weight as diffusers loads it."""

    quantization_config: AoqConfig
    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: AoqConfig, **kwargs: Any) -> None:
        # A copy: what is left as it is depends on the model, and the config may serve for another one.
        super().__init__(copy.copy(quantization_config), **kwargs)
        self.configs: dict[str, AOBaseConfig] = {}  # parameter -> how to quantize it
        self.left: list[SkippedWeight] = []  # parameters that stay as they are
        self.stored: dict[str, StoredWeight] = {}  # name -> what the checkpoint has of it
        self.parts: dict[str, Tensor] = {}  # read already, of weights that have others in a file to come
        self.dtype: torch.dtype | None = None  # to load in

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError("device_map: diffusers cannot offload weights quantized with aoq to disk")

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype | None:
        self.dtype = torch_dtype
        return torch_dtype

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Sequence[str]) -> list[str]:
        """The names of whole weights, which the checkpoint has in parts."""
        files = [Path(file) for file in checkpoint_files]
        if not self.pre_quantized or any(file.suffix != ".safetensors" for file in files):
            return loaded_keys
        self.stored = stored_weights(files)
        return list(self.stored)

    def _process_model_before_weight_loading(
        self, model: nn.Module, keep_in_fp32_modules: Sequence[str] = (), state_dict: Any = None, **kwargs: Any
    ) -> None:
        config = self.quantization_config
        if not self.pre_quantized or state_dict is not None:  # a single file is never quantized
            for text in config.unmatched_skips(model):
                logger.warning("modules_to_not_convert: %s", text)
            config.modules_to_not_convert = [*(config.modules_to_not_convert or ()), *keep_in_fp32_modules]
            self.configs, self.left = config.choose(model)
            if not self.configs:
                logger.warning("none of the weights of %s would be quantized", type(model).__name__)
        if self.dtype is None:  # as stored: diffusers casts to what it finds in the model
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if name in self.stored:
                    tensor.data = tensor.data.to(self.stored[name].dtype)
        model.register_to_config(quantization_config=config)  # type: ignore[operator]

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        show_quantized(model)
        if not self.pre_quantized:
            report_loaded(model, self.configs, self.left).log()
        return model

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        if missing_keys and self.pre_quantized:
            raise ValueError(f"the checkpoint lacks {min(missing_keys)}")
        return missing_keys

    # ---- reading quantized weights

    def maybe_update_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole weights of a file, with those that lacked a part until now."""
        quantized = [weight for weight in self.stored.values() if weight.description]
        parts = {part for weight in quantized for part in weight.parts}
        whole = {name: tensor for name, tensor in state_dict.items() if name not in parts}
        self.parts |= {name: tensor for name, tensor in state_dict.items() if name in parts}
        for weight in quantized:
            if all(part in self.parts for part in weight.parts):
                read = {part: self.parts.pop(part) for part in weight.parts}
                whole[weight.name] = unflatten_one(weight.name, weight.description, read, pack=False)
        return whole

    @property
    def supports_parallel_loading(self) -> bool:
        return not self.stored  # the parts of a weight may be in several files

    # ---- a weight's place in the model

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        return param_name in self.configs or isinstance(param_value, QuantizedTensor)

    def check_quantized_param_shape(self, param_name: str, current_param: Any, loaded_param: Tensor) -> bool:
        shape = tuple(getattr(current_param, "shape", current_param))
        raise ValueError(f"{param_name}: expected shape {shape}, got {tuple(loaded_param.shape)}")

    @torch.no_grad()
    def create_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, target_device: Any, *args: Any, **kwargs: Any
    ) -> None:
        w = param_value.to(target_device)
        if not isinstance(w, QuantizedTensor):
            try:
                w = self.configs[param_name].quantize(w)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{param_name}: {error}") from error
        module_fqn, _, name = param_name.rpartition(".")
        setattr(model.get_submodule(module_fqn), name, nn.Parameter(w.pack(), requires_grad=False))

    # ---- saving

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        if not safe_serialization:
            return state_dict, {}
        tensors, metadata = flatten(state_dict)
        return tensors, metadata | hashes(tensors)

    def _dequantize(self, model: nn.Module) -> nn.Module:
        dequantize_(model)
        return model

    # ---- what else diffusers asks

    def get_special_dtypes_update(self, model: nn.Module, torch_dtype: torch.dtype) -> dict[str, Any]:
        """The dtypes that weights count as when a model is placed on several devices."""
        dtypes: dict[str, Any] = {}
        for name, param in model.named_parameters():
            if name in self.configs:
                bits = self.configs[name].quantize(torch.empty_like(param, device="meta")).bits_per_weight
            elif name in self.stored:
                bits = 8 * self.stored[name].nbytes / param.numel()
            else:
                continue
            if bits < 12:
                dtypes[name] = CustomDtype.INT4 if bits < 6 else torch.int8
        return dtypes

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True  # adapters: gradients pass through quantized weights

    @property
    def is_compileable(self) -> bool:
        return True
