"""bitsandbytes' checkpoints, quantized, saved and dequantized by that package through transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("bitsandbytes")

import bitsandbytes.functional as bnb
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from aoq import FloatxTensor, Int8Tensor
from aoq.storage.convert import convert_checkpoint
from aoq.storage.safetensors import load_file

IDS = torch.arange(1, 25).reshape(2, 12)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bitsandbytes") / "source"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=160,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_nf4(source: Path, tmp_path: Path, nested: bool) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    quantized = {name: param for name, param in theirs.named_parameters() if hasattr(param, "quant_state")}
    exact = {name: bnb.dequantize_4bit(param.data, param.quant_state) for name, param in quantized.items()}
    with torch.no_grad():
        logits = theirs(IDS).logits  # which may lay weights out anew
    report = convert_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    assert {weight.fqns[0] for weight in report.quantized} == quantized.keys() and len(quantized) == 14
    for name, expected in exact.items():
        w = weights[name]
        assert isinstance(w, FloatxTensor) and w.weight_format == "nf4" and w.group_size == 64
        # Nested scales: a product and a sum, in fp32, which may be one operation there.
        torch.testing.assert_close(w.float().dequantize(), expected.float(), rtol=2**-22 if nested else 0, atol=0)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    with torch.no_grad():
        difference = ours(IDS).logits - logits
    assert difference.norm() < 0.02 * logits.norm()  # its CPU kernels round activations to bf16


def test_int8(source: Path, tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_8bit=True)
    theirs = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    convert_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    quantized = {name: param for name, param in theirs.named_parameters() if getattr(param, "SCB", None) is not None}
    assert len(quantized) == 14
    for name, param in quantized.items():
        assert isinstance(weights[name], Int8Tensor)
        expected = param.data.float() * param.SCB[:, None] / 127
        torch.testing.assert_close(weights[name].float().dequantize(), expected, rtol=2**-22, atol=0)
