"""What holds in vLLM and in SGLang, whose layers are designed alike: tests, and what tests of them need.

The test file of such a framework imports the tests, and defines the fixtures `framework`, its layers, and `ranks`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from aoq import (
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    MappingType,
    config_to_dict,
)
from aoq.storage.convert import quantize_checkpoint
from aoq.storage.safetensors import load_file as load_weights
from aoq.tensors.base import QuantizedTensor
from widths import representative


@dataclass
class Layers:
    """A framework's layers.

    linear, vocab: the modules that have them.
    config: makes the framework's config of a checkpoint's directory and a `quantization_config`, if it has none itself.
    method: what a layer's `quant_method` is an instance of if its weights are quantized.
    """

    linear: ModuleType
    vocab: ModuleType
    config: Callable[..., Any]
    method: type


CONFIGS = representative() | {
    "int4-symmetric": Int4WeightOnlyConfig(group_size=64, mapping_type=MappingType.SYMMETRIC),
    "int8-asymmetric": Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC),
}
# Every format in one model, by exact names and by patterns; shards of one fused layer differ, one is not quantized.
MIXED = FqnToConfig(
    {
        "model.layers.0.self_attn.q_proj": CONFIGS["int4"],
        "model.layers.0.self_attn.k_proj": CONFIGS["int8"],
        "model.layers.0.self_attn.v_proj": CONFIGS["int4"],
        r"re:model\.layers\.0\.mlp\.gate_proj": CONFIGS["int8-int4"],
        r"re:.*\.1\.self_attn\.v_proj": None,
        r"re:.*\.down_proj": CONFIGS["int4-symmetric"],
        "model.embed_tokens": CONFIGS["int8"],
        "lm_head": CONFIGS["int8-asymmetric"],
        "_default": CONFIGS["int4"],
    }
)


# ---- models


def tiny_llama(directory: Path, tied: bool = False) -> Path:
    """A random model. Its k, split in two, is no multiple of groups of 64 or 128; its vocabulary is padded."""
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 2, "vocab_size": 190}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256}
    config = LlamaConfig(**shape, **heads, tie_word_embeddings=tied, initializer_range=0.1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


PROMPT = [3, 17, 60, 5, 9, 33, 121, 180, 64, 2, 8]


@torch.no_grad()
def transformers_logprobs(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model(torch.tensor([PROMPT])).logits[0, :-1].log_softmax(-1)


# Where activations become int8, a difference of one rounding between two programs is one code, 1/127 of a value.
TOLERANCE = {"int4": 1e-4, "int4-symmetric": 1e-4, "int8-int4": 0.1, "int8": 0.1, "int8-asymmetric": 0.1, "mixed": 0.1}


# ---- layers


QKV, GATE_UP = ["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]
SHARDS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": 0, "up_proj": 1}


def make_layer(config: Any, prefix: str, kind: type, *sizes: int, **kwargs) -> torch.nn.Module:
    """A layer with what the checkpoint has for it."""
    layer = kind(*sizes, quant_config=config, prefix=prefix, params_dtype=torch.float32, **kwargs)
    tensors = load_file(Path(config.model) / "model.safetensors")
    parent, _, name = prefix.rpartition(".")
    for shard in config.packed_modules_mapping.get(name, [name]):
        for tensor, value in tensors.items():
            if tensor.startswith(f"{parent}.{shard}." if parent else f"{shard}."):
                param = getattr(layer, tensor.rpartition(".")[2])
                param.weight_loader(param, value, *([SHARDS[shard]] if shard in SHARDS else []))
    layer.quant_method.process_weights_after_loading(layer)
    return layer


@pytest.fixture(params=[*CONFIGS, "mixed"])
def checkpoint_of_each(request, tmp_path):
    source = tiny_llama(tmp_path / "float")
    quantize_checkpoint(source, tmp_path / "aoq", CONFIGS.get(request.param, MIXED), include_embedding=True)
    return tmp_path / "aoq"


def test_layers(checkpoint_of_each, ranks, framework):
    config = framework.config(checkpoint_of_each)
    whole = load_weights(checkpoint_of_each / "model.safetensors")
    whole = {name: w.dequantize() if isinstance(w, QuantizedTensor) else w for name, w in whole.items()}
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    x, wide = torch.randn(5, 192), torch.randn(5, 320)
    ids = torch.tensor([0, 3, 95, 96, 189])
    count = len(ranks)
    sums = {"o_proj": 0, "down_proj": 0, "embed_tokens": 0}
    for rank, set_rank in enumerate(ranks):
        set_rank()
        qkv = make_layer(config, f"{attention}.qkv_proj", framework.linear.QKVParallelLinear, 192, 32, 6, 2, bias=False)
        own = [whole[f"{attention}.{name}.weight"].chunk(count)[rank] for name in QKV]
        close(qkv.quant_method.apply(qkv, x), x @ torch.cat(own).T)
        gate_up = make_layer(
            config, f"{mlp}.gate_up_proj", framework.linear.MergedColumnParallelLinear, 192, [320, 320], bias=False
        )
        names = [f"{mlp}.{name}.weight" for name in ("gate_proj", "up_proj")]
        close(
            gate_up.quant_method.apply(gate_up, x), x @ torch.cat([whole[name].chunk(count)[rank] for name in names]).T
        )
        o = make_layer(config, f"{attention}.o_proj", framework.linear.RowParallelLinear, 192, 192, bias=False)
        sums["o_proj"] += o.quant_method.apply(o, x.chunk(count, 1)[rank].contiguous())
        down = make_layer(config, f"{mlp}.down_proj", framework.linear.RowParallelLinear, 320, 192, bias=False)
        sums["down_proj"] += down.quant_method.apply(down, wide.chunk(count, 1)[rank].contiguous())
        embedding = make_layer(config, "model.embed_tokens", framework.vocab.VocabParallelEmbedding, 190, 192)
        start, end = (getattr(embedding.shard_indices, f"org_vocab_{which}_index") for which in ("start", "end"))
        here = (ids >= start) & (ids < end)
        rows = embedding.quant_method.embedding(embedding, (ids - start) * here)
        sums["embed_tokens"] += rows * here[:, None]
        head = make_layer(config, "lm_head", framework.vocab.ParallelLMHead, 190, 192)
        logits = head.quant_method.apply(head, x)
        expected = x @ whole["lm_head.weight"][start:end].T
        close(logits[:, : expected.shape[1]], expected)
        assert not logits[:, expected.shape[1] :].any(), "what pads the vocabulary is 0"
    close(sums["o_proj"], x @ whole[f"{attention}.o_proj.weight"].T)
    close(sums["down_proj"], wide @ whole[f"{mlp}.down_proj.weight"].T)
    assert torch.equal(sums["embed_tokens"], whole["model.embed_tokens.weight"][ids])


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Off as activations are: those that become fp8 by 1/38 on average, those that become int8 by less."""
    assert got.shape == expected.shape
    assert (got - expected).norm() <= 0.04 * expected.norm()


# ---- quantizing while loading


@pytest.mark.parametrize("name", [*CONFIGS, "mixed"])
def test_quantizing_while_loading_is_as_quantizing_before(tmp_path, ranks, name, framework):
    source, config = tiny_llama(tmp_path / "float"), CONFIGS.get(name, MIXED)
    quantize_checkpoint(source, tmp_path / "aoq", config, include_embedding=True)
    before = framework.config(tmp_path / "aoq")
    now = framework.config(source, quant_type=config_to_dict(config), include_embedding=True)
    ranks[-1]()
    x = torch.randn(5, 192)
    for prefix, kind, sizes in [
        ("model.layers.0.self_attn.qkv_proj", framework.linear.QKVParallelLinear, (192, 32, 6, 2)),
        ("model.layers.1.self_attn.o_proj", framework.linear.RowParallelLinear, (192, 192)),
        ("lm_head", framework.vocab.ParallelLMHead, (190, 192)),
    ]:
        layers = [make_layer(config, prefix, kind, *sizes, bias=False) for config in (before, now)]
        own = x[:, : layers[0].quant_method.shape[1]].contiguous()
        first, second = (layer.quant_method.apply(layer, own) for layer in layers)
        assert torch.equal(first, second)


def chosen(framework: Layers, config: Any, prefix: str) -> bool:
    """Whether the layer `prefix` is quantized."""
    if prefix == "model.layers.0.self_attn.o_proj":
        layer = framework.linear.RowParallelLinear(192, 192, bias=False, quant_config=config, prefix=prefix)
    else:
        kind = framework.vocab.ParallelLMHead if prefix == "lm_head" else framework.vocab.VocabParallelEmbedding
        layer = kind(190, 192, quant_config=config, prefix="" if prefix == "embedding" else prefix)
    return isinstance(layer.quant_method, framework.method)


INT8 = {"quant_type": config_to_dict(CONFIGS["int8"])}
EMBEDDING_ONLY = {"quant_type": config_to_dict(FqnToConfig({"model.embed_tokens": CONFIGS["int8"]}))}


@pytest.mark.parametrize(
    "tied, settings, quantized",
    [
        (False, INT8, {"o_proj"}),
        (True, INT8, {"o_proj"}),
        (True, INT8 | {"include_embedding": True}, {"o_proj", "lm_head", "embedding"}),
        (False, INT8 | {"modules_to_not_convert": []}, {"o_proj", "lm_head"}),
        (True, INT8 | {"modules_to_not_convert": []}, {"o_proj"}),  # the head is the embedding, which is not chosen
        (False, INT8 | {"modules_to_not_convert": ["self_attn"]}, {"lm_head"}),
        (False, INT8 | {"modules_to_not_convert": ["attn"]}, {"o_proj", "lm_head"}),
        (False, INT8 | {"modules_to_not_convert": ["layers.0", "lm_head"]}, set()),
        (False, EMBEDDING_ONLY, {"embedding"}),
        (True, EMBEDDING_ONLY, {"embedding", "lm_head"}),
    ],
)
def test_what_is_quantized(tmp_path, ranks, tied, settings, quantized, framework):
    ranks[0]()
    config = framework.config(tiny_llama(tmp_path / "float", tied), **settings)
    names = {"o_proj": "model.layers.0.self_attn.o_proj", "lm_head": "lm_head", "embedding": "embedding"}
    assert {name for name, prefix in names.items() if chosen(framework, config, prefix)} == quantized


def test_a_rule_that_matches_nothing(tmp_path, framework):
    rules = FqnToConfig({"model.layers.0.self_attn.q_prj": CONFIGS["int8"]})
    with pytest.raises(ValueError, match=r"q_prj.*matches no parameter.*did you mean model.layers.0.self_attn.q_proj"):
        framework.config(tiny_llama(tmp_path / "float"), quant_type=config_to_dict(rules))


# ---- what goes wrong has one clear message


@pytest.fixture
def int8_checkpoint(tmp_path):
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", CONFIGS["int8"])
    return tmp_path / "aoq"


def edit(directory: Path, change) -> None:
    """Changes the tensors of a checkpoint; their descriptions stay."""
    file = directory / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)


O_PROJ = "model.layers.0.self_attn.o_proj"


def test_a_missing_part(int8_checkpoint, framework):
    edit(int8_checkpoint, lambda tensors, _: tensors.pop(f"{O_PROJ}._weight_scale"))
    with pytest.raises(ValueError, match=f"{O_PROJ}.weight: its part {O_PROJ}._weight_scale is missing"):
        framework.config(int8_checkpoint)


def test_a_truncated_file(int8_checkpoint, framework):
    file = int8_checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model.safetensors: damaged, or not a safetensors file"):
        framework.config(int8_checkpoint)


def test_a_weight_that_never_comes(int8_checkpoint, ranks, framework):
    config = framework.config(int8_checkpoint)
    edit(int8_checkpoint, lambda tensors, _: tensors.pop(f"{O_PROJ}._weight_scale"))
    with pytest.raises(ValueError, match=f"{O_PROJ}: the checkpoint lacks .*{O_PROJ}._weight_scale"):
        make_layer(config, O_PROJ, framework.linear.RowParallelLinear, 192, 192, bias=False)


@pytest.mark.parametrize("sizes", [(192, 96), (192, 320), (96, 192), (320, 192)])
def test_a_shape_that_does_not_fit(int8_checkpoint, ranks, sizes, framework):
    ranks[-1]()
    with pytest.raises(ValueError, match=rf"{O_PROJ}.weight: shape \(192, 192\) does not fit"):
        make_layer(framework.config(int8_checkpoint), O_PROJ, framework.linear.RowParallelLinear, *sizes, bias=False)


# ---- servers


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(process: subprocess.Popen, port: int, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            return
        except OSError:
            time.sleep(1)
    raise TimeoutError(log.read_text())


def stop(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)


QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def check_interrupt(process: subprocess.Popen, log: Path, loading: str) -> None:
    """Ctrl-C ends a server that has said `loading`, all of its processes, with at most one traceback through aoq."""
    try:
        for _ in range(6000):
            if loading in log.read_text():
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as terminals do
        process.wait(120)
        for _ in range(300):
            if not running(process.pid):
                break
            time.sleep(0.1)
        assert not running(process.pid), log.read_text()
        assert sum("aoq/" in part for part in log.read_text().split("Traceback")[1:]) <= 1, log.read_text()
    finally:
        stop(process)


def running(group: int) -> list[int]:
    """The processes of a group, but for those that have ended."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, _, pgrp = (directory / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(directory.name))
    return found
