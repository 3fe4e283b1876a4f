"""Models to test with: tiny random ones in well-known shapes, and a real one."""

from __future__ import annotations

import functools
import runpy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PhiConfig, Qwen2Config, Qwen3Config

KINDS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "phi": PhiConfig, "phi3": Phi3Config}

# k = 80 and 112: no multiple of the usual groups, nor of the kernels' tiles.
SHAPE = {
    "vocab_size": 160,
    "hidden_size": 80,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_model(parent: Path, kind: str = "llama", tied: bool = False, shards: int = 1) -> Path:
    """A new directory in `parent` with a tiny random bf16 model in about `shards` files."""
    torch.manual_seed(0)
    config = KINDS[kind](**SHAPE, tie_word_embeddings=tied, initializer_range=0.1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    directory = parent / f"{kind}-{'tied' if tied else 'untied'}"
    nbytes = sum(param.nbytes for param in model.parameters())
    model.save_pretrained(directory, max_shard_size=nbytes if shards == 1 else nbytes // shards)
    return directory


@functools.cache
def real_model() -> Path:
    """SmolLM2-135M-Instruct in bf16, downloaded unless it is already there."""
    script = Path(__file__).resolve().parents[1] / "examples" / "get_model.py"
    return Path(runpy.run_path(str(script))["get_model"]())
