"""torchao in vLLM on aoq's kernels: torchao's checkpoints, and others that `--quantization torchao` quantizes.

A plugin of its own beside aoq's: `VLLM_PLUGINS=aoq` leaves torchao to itself. It does nothing where vLLM does not run
on the CPU, or without torchao.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.quantization.torchao import TorchAOConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.platforms import current_platform

from aoq.integrations.quantization_config import AoqConfig
from aoq.integrations.serving import Source
from aoq.integrations.vllm import AoqVllmConfig
from aoq.storage.safetensors import is_torchao
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.int4 import Int4WeightOnlyConfig

logger = logging.getLogger("aoq")


def register() -> None:
    """The entry point in `vllm.general_plugins`, which vLLM calls in each of its processes."""
    if current_platform.is_cpu() and importlib.util.find_spec("torchao"):
        register_quantization_config("torchao")(TorchaoVllmConfig)


class TorchaoVllmConfig(AoqVllmConfig):
    """A checkpoint of torchao's, read weight by weight as those of aoq are. Without one, a config of vLLM's own."""

    def get_name(self) -> Any:
        return "torchao"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
        """From `quantization_config` of config.json; without a `quant_method` in it, weights are still to quantize."""
        import aoq.integrations.torchao  # noqa: F401 (behind vLLM's own config, which calls torchao's quantize_)

        if "torchao" not in (config.get("quant_method") or ""):
            return TorchAOConfig.from_config(config)
        return cls(AoqConfig(Int4WeightOnlyConfig()))  # of no use: what is stored says all

    @classmethod
    def from_config_dict_json(cls, config_dict_json: str) -> QuantizationConfig:
        """From the JSON of a config of torchao's: --hf-overrides '{"quantization_config_dict_json": "..."}'."""
        return cls.from_config({"quant_type": {"default": json.loads(config_dict_json)}})

    def __repr__(self) -> str:
        return f"TorchaoVllmConfig({self.model!r})"

    def _read(self, directory: Path) -> None:
        if not any(directory.glob("*.safetensors")) and any(directory.glob("*.bin")):
            raise ValueError(
                f"{directory}: aoq does not serve torchao's pickles; `aoq convert` makes a checkpoint of them"
            )
        super()._read(directory)
        if self.quantizes:
            raise ValueError(f"{directory}: config.json says that torchao quantized it, but no weight is")

    def _sources(self, layer: Any, prefix: str) -> list[Source]:
        is_embedding = isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead)
        looked_up = is_embedding and not self.tied
        return [TorchaoSource(source.stored, None, looked_up) for source in super()._sources(layer, prefix)]


@dataclass(frozen=True)
class TorchaoSource(Source):
    looked_up: bool = False  # and never multiplied by

    def read(self, params: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The weight as an aoq tensor, or as torchao's if aoq has no kernels for it."""
        if not is_torchao(self.stored.description):
            return super().read(params, dtype)
        from aoq.integrations.torchao_tensors import Unsupported, tensor_from_parts, tensor_from_torchao

        description = json.loads(self.stored.description)
        names = {name: param for param, name in self.params.items()}
        values = [params[names[part]] for part in self.stored.parts]
        w = tensor_from_parts(description, dict(zip(description["_tensor_data_names"], values, strict=True)))
        try:
            w = tensor_from_torchao(w, self.looked_up)
        except Unsupported as error:
            logger.info("%s: left to torchao: %s", self.stored.name, error)
            return w
        assert isinstance(w, QuantizedTensor)
        return w if w.dtype == dtype else w.rebuild(w.parts(), dtype=dtype)
