"""Models to test with: tiny random ones in well-known shapes, and a real one."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PhiConfig, PreTrainedModel, Qwen2Config, Qwen3Config

ROOT = Path(__file__).resolve().parents[1]

# k = 80 and 112: no multiple of the usual groups, nor of the kernels' tiles.
SHAPE = dict(
    vocab_size=160,
    hidden_size=80,
    intermediate_size=112,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
KINDS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "phi": PhiConfig, "phi3": Phi3Config}


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """A function (kind, tied, shards) -> directory of a tiny random model in bf16."""

    def make(kind: str = "llama", tied: bool = False, shards: int = 1) -> Path:
        torch.manual_seed(0)
        config = KINDS[kind](**SHAPE, tie_word_embeddings=tied, dtype=torch.bfloat16, initializer_range=0.1)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        directory = tmp_path / f"{kind}-{'tied' if tied else 'untied'}"
        size = sum(param.nbytes for param in model.parameters())
        model.save_pretrained(directory, max_shard_size=size if shards == 1 else size // shards)
        return directory

    return make


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct in bf16; downloaded once."""
    return Path(runpy.run_path(str(ROOT / "examples" / "get_model.py"))["get_model"]())
