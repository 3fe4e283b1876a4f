"""vLLM: `vllm serve DIR` of an aoq checkpoint, or with `--quantization aoq` of another. Installing aoq suffices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aoq.integrations.quantization_config import AoqConfig
from aoq.integrations.serving import WEIGHTS, Framework, ServingConfig, ServingMethod

try:
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from vllm.model_executor.model_loader.weight_utils import download_weights_from_hf
except ImportError as error:
    import vllm

    raise ImportError(f"aoq needs vLLM 0.32 or later, this is {vllm.__version__}: {error}") from None


def register() -> None:
    """The entry point in `vllm.general_plugins`, which vLLM calls in each of its processes."""
    register_quantization_config("aoq")(AoqVllmConfig)


class AoqMethod(ServingMethod, LinearMethodBase):  # type: ignore[misc]
    """A layer of vLLM with quantized weights."""

    def rank(self, layer: Any) -> tuple[int, int]:
        return layer.tp_rank, layer.tp_size


class AoqVllmConfig(ServingConfig, QuantizationConfig):  # type: ignore[misc]
    """What vLLM asks of a way to quantize."""

    framework = Framework(
        "vLLM",
        linear=LinearBase,
        embedding=VocabParallelEmbedding,
        head=ParallelLMHead,
        experts=RoutedExperts,
        unquantized=UnquantizedLinearMethod,
        override="--hf-overrides",
    )
    method = AoqMethod

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
        """From `quantization_config` of config.json, or of --hf-overrides."""
        return cls(AoqConfig(**config))

    @classmethod
    def from_config_dict_json(cls, config_dict_json: str) -> QuantizationConfig:
        """From the JSON of a config: --hf-overrides '{"quantization_config_dict_json": "..."}'."""
        return cls(AoqConfig(json.loads(config_dict_json)))

    @classmethod
    def from_config_file(cls, config_file: str) -> QuantizationConfig:
        """From a file with such JSON: --hf-overrides '{"quantization_config_file": "..."}'."""
        return cls.from_config_dict_json(Path(config_file).read_text(encoding="utf-8"))

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        self.find(model_name, hf_config, revision)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        self.map_names(hf_to_vllm_mapper)

    def _download(self) -> Path:
        directory = get_current_vllm_config().load_config.download_dir
        return Path(download_weights_from_hf(self.model, directory, WEIGHTS, self.revision))
