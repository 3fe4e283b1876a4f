"""SGLang: its server on an aoq checkpoint, or on another with `--quantization aoq`. Installing aoq is all it needs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from aoq.integrations.quantization_config import AoqConfig
from aoq.integrations.serving import WEIGHTS, Framework, ServingConfig, ServingMethod

try:
    from sglang.srt.distributed.utils import get_group_rank_size
    from sglang.srt.layers import quantization
    from sglang.srt.layers.linear import LinearBase
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.layers.quantization.base_config import LinearMethodBase, QuantizationConfig
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from sglang.srt.model_loader.weight_utils import download_weights_from_hf
    from sglang.srt.runtime_context import get_server_args, process_model_config
    from sglang.srt.server_args import add_quantization_method_choices
except ImportError as error:
    import sglang

    raise ImportError(f"aoq needs a whole SGLang of 0.5.23 or later, this is {sglang.__version__}: {error}") from None

# Where a model does not say which shards its fused layers have.
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def register() -> None:
    """The entry point in `sglang.srt.plugins`, which SGLang calls in each of its processes."""
    tables = (
        quantization.BASE_QUANTIZATION_METHODS,
        quantization.CPU_QUANTIZATION_METHODS,
        quantization.QUANTIZATION_METHODS,
    )
    for table in tables:
        table["aoq"] = AoqSglangConfig
    add_quantization_method_choices(["aoq"])


class AoqMethod(ServingMethod, LinearMethodBase):  # type: ignore[misc]
    """A layer of SGLang with quantized weights."""

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        super().create_weights(layer, *args, **kwargs)
        # The layer's own shares its `weight`, of which there is none.
        layer.tie_weights = partial(self.tie_weights, layer)

    def rank(self, layer: Any) -> tuple[int, int]:
        return get_group_rank_size(layer.tp_group)  # type: ignore[no-any-return]


class AoqSglangConfig(ServingConfig, QuantizationConfig):  # type: ignore[misc]
    """What SGLang asks of a way to quantize. Without a config it is of the model that this process serves."""

    framework = Framework(
        "SGLang",
        linear=LinearBase,
        embedding=VocabParallelEmbedding,
        head=ParallelLMHead,
        experts=FusedMoE,
        unquantized=UnquantizedLinearMethod,
        override="--json-model-override-args",
    )
    method = AoqMethod

    def __init__(self, config: AoqConfig | None = None, hf_config: Any = None) -> None:
        super().__init__(config)
        self.packed_modules_mapping = FUSED
        if hf_config is None:
            hf_config = process_model_config().hf_config
        model = hf_config.name_or_path or process_model_config().model_path
        self.find(model, hf_config, getattr(hf_config, "_commit_hash", None))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AoqSglangConfig:
        """From `quantization_config` of config.json, or of --json-model-override-args, and what SGLang adds to it."""
        config = dict(config)
        shards, hf_config = config.pop("packed_modules_mapping", {}), config.pop("hf_config", None)
        made = cls(AoqConfig(**config), hf_config)
        made.packed_modules_mapping = FUSED | shards
        return made

    def get_scaled_act_names(self) -> list[str]:
        return []

    def apply_weight_name_mapper(self, hf_to_sglang_mapper: Any) -> None:
        self.map_names(hf_to_sglang_mapper)

    def _download(self) -> Path:
        directory = get_server_args().download_dir
        return Path(download_weights_from_hf(self.model, directory, WEIGHTS, self.revision))
