"""torchao inside vLLM, on aoq's kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from test_vllm import PROMPT, QUESTION, in_process, start, stop, tiny_llama, vllm_logprobs, wait_for
from torchao.core.config import config_to_dict
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    ModuleFqnToConfig,
    PerGroup,
    PerRow,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.plugins import load_general_plugins

from aoq import _C
from aoq.storage.convert import convert_checkpoint
from example_models import real_model

__all__ = ["in_process"]

INT4 = Int4WeightOnlyConfig(group_size=64)
W8A8 = Int8DynamicActivationInt8WeightConfig()
W4A8 = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))
MIXED = ModuleFqnToConfig(
    {
        "_default": W4A8,
        "model.layers.0.self_attn.k_proj": W8A8,
        "model.layers.0.self_attn.v_proj": None,
        "model.layers.1.mlp.gate_proj": Float8WeightOnlyConfig(torch.float8_e5m2, granularity=PerGroup(32)),
        "model.layers.1.mlp.down_proj": Float8WeightOnlyConfig(torch.float8_e5m2, granularity=PerGroup(32)),
    }
)
FP8 = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


@torch.no_grad()
def transformers_logprobs(directory: Path, **kwargs: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **kwargs)
    return model(torch.tensor([PROMPT])).logits[0, :-1].log_softmax(-1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "float")


def own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao as it is without aoq."""
    from torchao.quantization.transform_module import _QUANTIZE_CONFIG_HANDLER as handlers

    for kind, handler in handlers.items():
        monkeypatch.setitem(handlers, kind, getattr(handler, "__wrapped__", handler))


# Of activations in int8 or fp8 a difference of one rounding is one code.
@pytest.mark.parametrize(
    ("config", "by_aoq", "op", "tolerance"),
    [
        (INT4, True, "int4_mm", 1e-3),
        (W8A8, False, "int8_mm", 0.15),
        (MIXED, False, "int8_int4_mm", 0.15),
        (Float8WeightOnlyConfig(), False, "fp8_weight_mm", 1e-3),
        (Int8WeightOnlyConfig(), False, "int8_weight_mm", 1e-3),
        (FP8, True, "fp8_mm", 0.5),
    ],
    ids=["aoq-int4", "torchao-int8", "torchao-mixed", "torchao-fp8-weight", "torchao-int8-weight", "aoq-fp8"],
)
def test_checkpoints(source, tmp_path, in_process, monkeypatch, config, by_aoq, op, tolerance):
    """Written by transformers, with aoq's tensors or torchao's; what aoq has no kernels for stays torchao's."""
    import aoq.integrations.torchao

    if not by_aoq:
        own_handlers(monkeypatch)
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=TorchAoConfig(config))
    assert any(isinstance(param, aoq.QuantizedTensor) for param in model.parameters()) == by_aoq
    model.save_pretrained(tmp_path / "q")
    expected = transformers_logprobs(tmp_path / "q")
    assert expected.std() > 1, "the model tells tokens apart"
    found = vllm_logprobs(tmp_path / "q")
    assert _C.last_kernel() in _C.kernels(op)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    if config is W8A8:
        convert_checkpoint(tmp_path / "q", tmp_path / "aoq")
        torch.testing.assert_close(vllm_logprobs(tmp_path / "aoq"), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("config", "op", "tolerance"),
    [(INT4, "int4_mm", 1e-3), (W8A8, "int8_mm", 0.15), (Float8WeightOnlyConfig(), "fp8_weight_mm", 1e-3)],
    ids=["int4", "int8", "fp8-weight"],
)
def test_quantizing_while_loading(source, in_process, config, op, tolerance):
    """vllm serve DIR --quantization torchao --hf-overrides '{"quantization_config_dict_json": ...}'"""
    overrides = {"quantization_config_dict_json": json.dumps(config_to_dict(config))}
    found = vllm_logprobs(source, quantization="torchao", hf_overrides=overrides)
    assert _C.last_kernel() in _C.kernels(op)
    import aoq.integrations.torchao  # noqa: F401

    expected = transformers_logprobs(source, quantization_config=TorchAoConfig(config))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_guide_config_json(source, in_process):
    """The config.json of torchao's guide to vLLM, which torchao alone refuses."""
    guide = {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128, "use_hqq": True}}
    overrides = {"quantization_config_dict_json": json.dumps(guide)}
    found = vllm_logprobs(source, quantization="torchao", hf_overrides=overrides)
    assert _C.last_kernel() in _C.kernels("int4_mm") and found.isfinite().all()


def test_pickles_say_what_to_do(source, tmp_path):
    load_general_plugins()
    settings = {"quant_method": "torchao", "quant_type": {"default": config_to_dict(W8A8)}}
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    config = get_quantization_config("torchao").from_config(settings)
    with pytest.raises(ValueError, match="`aoq convert` makes a checkpoint"):
        config.maybe_update_config(str(tmp_path))


def test_which_plugin_serves_torchao():
    """VLLM_PLUGINS=aoq leaves it to vLLM."""
    load_general_plugins()
    assert get_quantization_config("torchao").__module__ == "aoq.integrations.vllm_torchao"
    code = (
        "from vllm.plugins import load_general_plugins; load_general_plugins();"
        "from vllm.model_executor.layers.quantization import get_quantization_config as get;"
        "print(get('torchao').__module__, get('aoq').__module__)"
    )
    env = os.environ | {"VLLM_PLUGINS": "aoq"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    modules = "vllm.model_executor.layers.quantization.torchao aoq.integrations.vllm"
    assert done.stdout.splitlines()[-1] == modules, done.stderr


def test_guide_command(tmp_path):
    """vllm serve DIR --quantization torchao --dtype bfloat16, of a checkpoint that transformers saved; compiled."""
    import aoq.integrations.torchao  # noqa: F401

    config = TorchAoConfig(Int4WeightOnlyConfig(group_size=32, use_hqq=True))
    model = AutoModelForCausalLM.from_pretrained(real_model(), dtype="auto", quantization_config=config)
    model.save_pretrained(tmp_path / "int4")
    AutoTokenizer.from_pretrained(real_model()).save_pretrained(tmp_path / "int4")
    arguments = ("--quantization", "torchao", "--dtype", "bfloat16")
    process, port, log = start(tmp_path / "int4", tmp_path, *arguments, "--served-model-name", "smol")
    try:
        wait_for(process, port, log)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        answer = client.chat.completions.create(model="smol", messages=QUESTION, max_tokens=20, temperature=0)
        assert "4" in answer.choices[0].message.content
    finally:
        stop(process)
