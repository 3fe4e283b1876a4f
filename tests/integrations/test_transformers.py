from __future__ import annotations

import copy
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompileConfig,
    GPT2Config,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

from aoq import (
    AOBaseConfig,
    AoqConfig,
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    MappingType,
    QuantizedTensor,
    cpu,
    quantize_,
)
from aoq.integrations.transformers import load_model
from aoq.storage.convert import quantize_checkpoint
from aoq.storage.safetensors import flatten
from example_models import SHAPE, real_model, tiny_model

CONFIG = Int4WeightOnlyConfig(group_size=32)
INT8 = [
    Int8DynamicActivationInt8WeightConfig(),
    Int8DynamicActivationInt8WeightConfig(MappingType.ASYMMETRIC),
    Int8DynamicActivationInt4WeightConfig(),
    Float8DynamicActivationFloat8WeightConfig(),
    Float8WeightOnlyConfig(),
    Int8WeightOnlyConfig(),
]
IDS = torch.tensor([[1, 17, 42, 99, 5, 64, 23]])


def load(directory: Path, config: AoqConfig | None = None, **kwargs: object) -> PreTrainedModel:
    if config is not None:
        kwargs["quantization_config"] = config
    return AutoModelForCausalLM.from_pretrained(directory, **kwargs)


def slow_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_features", lambda: frozenset({"avx2"}))
    cpu.say_choice.cache_clear()


def test_auto_is_fp32_where_bf16_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of what is not quantized; codes and scales are those of any other machine."""
    source = tiny_model(tmp_path)
    expected = load(source, AoqConfig(CONFIG))
    assert expected.dtype is torch.bfloat16
    expected.save_pretrained(tmp_path / "bf16")
    slow_bf16(monkeypatch)
    for auto in ({}, {"dtype": "auto"}):
        model = load(source, AoqConfig(CONFIG), **auto)
        assert {param.dtype for param in model.parameters()} == {torch.float32}
        ours, theirs = weights(model), weights(expected)
        parts = [name for name in ours if "_weight_" in name]
        assert len(parts) == 3 * 14
        assert all(ours[name].dtype is theirs[name].dtype and ours[name].equal(theirs[name]) for name in parts)
        assert (model(IDS).logits - expected(IDS).logits).abs().max() < 0.1
    (line,) = [text for text in caplog.messages if "bfloat16" in text]
    assert "what is not quantized is float32" in line

    caplog.clear()
    # An explicit dtype is obeyed, of the class itself too; a checkpoint keeps the one it was saved with.
    assert load(source, AoqConfig(CONFIG), dtype=torch.bfloat16).dtype is torch.bfloat16
    assert (
        LlamaForCausalLM.from_pretrained(source, quantization_config=AoqConfig(CONFIG), dtype="bfloat16").dtype
        is torch.bfloat16
    )
    assert load(tmp_path / "bf16").dtype is torch.bfloat16
    model.save_pretrained(tmp_path / "fp32")
    assert load(tmp_path / "fp32").dtype is torch.float32
    assert not caplog.messages
    # Nothing to choose where the files have another dtype, or another device computes.
    assert load(tmp_path / "fp32").dtype is torch.float32
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert load(source, AoqConfig(CONFIG)).dtype is torch.bfloat16
    assert load(source, AoqConfig(CONFIG), device_map="cpu").dtype is torch.float32


def test_load_model_computes_in_fp32_where_bf16_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_model(tmp_path)
    load(source, AoqConfig(CONFIG)).save_pretrained(tmp_path / "int4")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda directory: None)
    assert load_model(source)[0].dtype is torch.bfloat16
    slow_bf16(monkeypatch)
    for directory in (source, tmp_path / "int4"):
        assert load_model(directory)[0].dtype is torch.float32
        assert load_model(directory, torch.bfloat16)[0].dtype is torch.bfloat16


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return flatten(model.state_dict())[0]


def assert_identical(a: PreTrainedModel, b: PreTrainedModel) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(a(IDS).logits, b(IDS).logits)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [*((kind, CONFIG) for kind in ("llama", "qwen2", "qwen3", "phi", "phi3")), *(("llama", each) for each in INT8)],
)
def test_quantize_save_reload(tmp_path: Path, kind: str, tied: bool, config: AOBaseConfig) -> None:
    bf16 = tiny_model(tmp_path, kind, tied)
    model = load(bf16, AoqConfig(config))
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, module in linears.items():
        assert isinstance(module.weight, QuantizedTensor) == (name != "lm_head"), name
    assert len(linears) > 2

    plain = load(bf16)
    quantize_(plain, config, lambda module, fqn: isinstance(module, nn.Linear) and fqn != "lm_head")
    assert_identical(model, plain)

    saved = tmp_path / "int4"
    model.save_pretrained(saved)
    reloaded = load(saved)
    assert_identical(model, reloaded)
    assert reloaded.lm_head.weight is reloaded.get_input_embeddings().weight or not tied

    again = tmp_path / "again"
    reloaded.save_pretrained(again)
    first, second = load_file(saved / "model.safetensors"), load_file(again / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpoint_is_plain_tensors(tmp_path: Path) -> None:
    load(tiny_model(tmp_path), AoqConfig(CONFIG)).save_pretrained(tmp_path / "int4")
    with safe_open(tmp_path / "int4" / "model.safetensors", framework="pt") as file:
        owner = "model.layers.1.mlp.down_proj"
        assert file.get_tensor(f"{owner}._weight_qdata").shape == (80, 56)
        assert file.get_tensor(f"{owner}._weight_scale").shape == (80, 4)  # k = 112: the last group has 16
        assert file.get_tensor(f"{owner}._weight_zero_point").dtype == torch.bfloat16
        description = json.loads(file.metadata()[f"{owner}.weight"])
        assert file.get_tensor("lm_head.weight").dtype == torch.bfloat16
    assert description["_type"] == "Int4Tensor"
    assert description["_tensor_data_names"] == ["qdata", "scale", "zero_point"]
    assert json.loads((tmp_path / "int4" / "config.json").read_text())["quantization_config"] == {
        "quant_method": "aoq",
        "quant_type": {
            "default": {
                "_type": "Int4WeightOnlyConfig",
                "_version": 2,
                "_data": {
                    "group_size": 32,
                    "use_hqq": False,
                    "mapping_type": {"_type": "MappingType", "_data": "ASYMMETRIC"},
                    "scale_dtype": None,
                },
            }
        },
        "modules_to_not_convert": ["lm_head"],
        "include_embedding": False,
    }


def test_sharded(tmp_path: Path) -> None:
    bf16 = tiny_model(tmp_path, shards=4)
    assert len(list(bf16.glob("*.safetensors"))) > 3
    model = load(bf16, AoqConfig(CONFIG))
    model.save_pretrained(tmp_path / "int4", max_shard_size="20KB")
    assert len(list((tmp_path / "int4").glob("*.safetensors"))) > 3
    assert_identical(model, load(tmp_path / "int4"))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_include_embedding(tmp_path: Path, tied: bool) -> None:
    model = load(tiny_model(tmp_path, tied=tied), AoqConfig(CONFIG, include_embedding=True))
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, Int4Tensor)
    assert isinstance(model.lm_head.weight, Int4Tensor)
    assert (model.lm_head.weight is embedding) == tied
    model.save_pretrained(tmp_path / "int4")
    names = load_file(tmp_path / "int4" / "model.safetensors")
    assert "model.embed_tokens._weight_qdata" in names
    assert ("lm_head._weight_qdata" in names) != tied
    reloaded = load(tmp_path / "int4")
    assert_identical(model, reloaded)
    assert (reloaded.lm_head.weight is reloaded.get_input_embeddings().weight) == tied


def test_modules_to_not_convert(tmp_path: Path) -> None:
    model = load(tiny_model(tmp_path), AoqConfig(CONFIG, modules_to_not_convert=["mlp", "layers.1", "proj"]))
    quantized = {name for name, param in model.named_parameters() if isinstance(param, QuantizedTensor)}
    # "proj" is not a part of "q_proj" between dots, and the output layer is no longer left out.
    assert quantized == {f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkvo"} | {"lm_head.weight"}


def test_fqn_to_config(tmp_path: Path) -> None:
    rules = FqnToConfig(
        {
            r"re:.*\.mlp\..*": Int4WeightOnlyConfig(group_size=16, mapping_type=MappingType.SYMMETRIC),
            "model.layers.0.mlp.up_proj": None,
            "_default": CONFIG,
        }
    )
    model = load(tiny_model(tmp_path), AoqConfig(rules))
    groups = {n: p.group_size for n, p in model.named_parameters() if isinstance(p, Int4Tensor)}
    assert groups["model.layers.0.mlp.gate_proj.weight"] == 16
    assert groups["model.layers.1.self_attn.q_proj.weight"] == 32
    assert "model.layers.0.mlp.up_proj.weight" not in groups
    assert "lm_head.weight" not in groups  # `_default` does not reach what is left out by default
    model.save_pretrained(tmp_path / "int4")
    assert_identical(model, load(tmp_path / "int4"))
    with pytest.raises(ValueError, match=r"gate_projj.*did you mean"):
        load(tiny_model(tmp_path), AoqConfig(FqnToConfig({"model.layers.0.mlp.gate_projj": CONFIG})))


def test_dtype(tmp_path: Path) -> None:
    model = load(tiny_model(tmp_path), AoqConfig(CONFIG), dtype=torch.float32)
    assert model(IDS).logits.dtype == torch.float32
    load(tiny_model(tmp_path), AoqConfig(CONFIG)).save_pretrained(tmp_path / "int4")
    reloaded = load(tmp_path / "int4", dtype=torch.float32)
    assert {param.dtype for param in reloaded.parameters()} == {torch.float32}
    assert reloaded(IDS).logits.dtype == torch.float32


def test_base_model_of_a_causal_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoModel

    model = load(tiny_model(tmp_path), AoqConfig(CONFIG))
    model.save_pretrained(tmp_path / "int4")
    base = AutoModel.from_pretrained(tmp_path / "int4")
    assert torch.equal(base(IDS).last_hidden_state, model.model(IDS).last_hidden_state)


def test_a_config_json_that_promises_too_much(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = tiny_model(tmp_path)
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"quantization_config": AoqConfig(CONFIG).to_dict()}))
    load(plain)
    assert "quantization_config is aoq's, but no weight in the checkpoint is quantized" in caplog.text


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map(tmp_path: Path, device_map: str) -> None:
    bf16 = tiny_model(tmp_path)
    model = load(bf16, AoqConfig(CONFIG), device_map=device_map)
    model.save_pretrained(tmp_path / "int4")
    assert_identical(load(tmp_path / "int4", device_map=device_map), load(bf16, AoqConfig(CONFIG)))


@pytest.mark.parametrize("config", [CONFIG, *INT8])
def test_generate(tmp_path: Path, config: AOBaseConfig) -> None:
    model = load(tiny_model(tmp_path), AoqConfig(config))
    model.save_pretrained(tmp_path / "int4")
    reloaded = load(tmp_path / "int4")
    settings = dict(max_new_tokens=12, do_sample=False, eos_token_id=None)
    out = model.generate(IDS, **settings)
    assert out.shape == (1, 19)
    assert torch.equal(out, reloaded.generate(IDS, **settings))
    if config is CONFIG:  # with int8 activations, the rounding of another attention kernel moves whole codes
        assert torch.equal(out, reloaded.generate(IDS, cache_implementation="static", **settings))


def test_generate_compiled(tmp_path: Path) -> None:
    """transformers compiles for a static cache; on a CPU only when asked to."""
    compiled = CompileConfig(fullgraph=True, mode="default")
    compiled._compile_all_devices = True
    model = load(tiny_model(tmp_path), AoqConfig(CONFIG), dtype=torch.float32)
    settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    out = model.generate(IDS, cache_implementation="static", compile_config=compiled, **settings)
    assert torch.equal(out, model.generate(IDS, **settings))
    assert hasattr(model, "_compiled_call")


def test_dequantize(tmp_path: Path) -> None:
    model = load(tiny_model(tmp_path), AoqConfig(CONFIG), dtype=torch.float32)
    expected = model(IDS).logits
    model = model.dequantize()
    assert not any(isinstance(param, QuantizedTensor) for param in model.parameters())
    torch.testing.assert_close(model(IDS).logits, expected)


def test_gradient_reaches_the_input(tmp_path: Path) -> None:
    model = load(tiny_model(tmp_path), AoqConfig(CONFIG), dtype=torch.float32)
    x = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=x).logits.square().mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load(tiny_model(tmp_path), AoqConfig(CONFIG), dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    optimizer = torch.optim.SGD([param for param in model.parameters() if param.requires_grad], lr=0.5)
    losses = []
    for _ in range(4):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# ---- what is said


def test_the_report_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aoq")
    load(tiny_model(tmp_path), AoqConfig(CONFIG))
    (line,) = (record.message for record in caplog.records if record.name == "aoq")
    assert line.startswith("quantized 14 weights: ") and "; left 1 as they are: in modules_to_not_convert" in line
    caplog.clear()
    load(tiny_model(tmp_path), AoqConfig(CONFIG), output_loading_info=True)[0].save_pretrained(tmp_path / "int4")
    caplog.clear()
    load(tmp_path / "int4")
    assert not [record for record in caplog.records if record.name == "aoq"]


def test_skips_that_match_nothing_or_bring_the_head_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(tiny_model(tmp_path), AoqConfig(CONFIG, modules_to_not_convert=["modle.layers.0", "norm"]))
    assert "modules_to_not_convert: 'modle.layers.0' matches no module (did you mean model.layers.0" in caplog.text
    assert "'norm'" not in caplog.text
    assert isinstance(model.lm_head.weight, Int4Tensor) and "lm_head is quantized too" in caplog.text
    caplog.clear()
    load(tiny_model(tmp_path), AoqConfig(CONFIG, modules_to_not_convert=["lm_head", "mlp"]))
    load(tiny_model(tmp_path), AoqConfig(CONFIG, modules_to_not_convert=[]))
    named = AoqConfig(FqnToConfig({"_default": CONFIG, "lm_head": CONFIG}), modules_to_not_convert=["mlp"])
    load(tiny_model(tmp_path), named)
    assert not caplog.text


def experts(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**SHAPE, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=48, head_dim=16)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "experts")
    return tmp_path / "experts"


def test_little_is_quantized(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(experts(tmp_path), AoqConfig(CONFIG))
    assert re.search(r"only \d+% of the weights are quantized: .* such as model.*experts.*FqnToConfig", caplog.text)
    caplog.clear()
    rules = FqnToConfig({"_default": CONFIG, r"re:.*\.experts\..*": CONFIG})
    model = load(experts(tmp_path), AoqConfig(rules))
    assert isinstance(model.model.layers[1].mlp.experts.gate_up_proj, Int4Tensor) and not caplog.text
    model.save_pretrained(tmp_path / "int4")
    reloaded = load(tmp_path / "int4")
    assert_identical(model, reloaded)
    for implementation in ("eager", "batched_mm"):
        reloaded.set_experts_implementation(implementation)
        torch.testing.assert_close(reloaded(IDS).logits, model(IDS).logits)
    assert "dequantized copy" not in caplog.text


def test_nothing_is_quantized(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: none of its weights would be quantized \(21: in mod"):
        load(tiny_model(tmp_path), AoqConfig(CONFIG, modules_to_not_convert=["model", "lm_head"]))


def test_shapes_are_checked(tmp_path: Path) -> None:
    """As without quantizing: of a checkpoint that is of another model, and of a head with other labels."""
    directory = tiny_model(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: tensors[name].reshape(40, 160)}, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(directory, AoqConfig(CONFIG))
    model, info = load(directory, AoqConfig(CONFIG), ignore_mismatched_sizes=True, output_loading_info=True)
    assert {key[0] for key in info["mismatched_keys"]} == {name}
    assert model.get_parameter(name).shape == (80, 80)


# ---- what the model wants


def test_what_is_to_be_fp32_stays_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = dict(vocab_size=160, d_model=64, d_ff=96, num_layers=2, num_heads=4, d_kv=16)
    T5ForConditionalGeneration(T5Config(**sizes)).half().save_pretrained(tmp_path / "fp16")
    fp16 = dict(dtype=torch.float16)
    model = T5ForConditionalGeneration.from_pretrained(
        tmp_path / "fp16", quantization_config=AoqConfig(INT8[-1]), **fp16
    )
    every = AoqConfig(INT8[-1], modules_to_not_convert=[])
    forced = T5ForConditionalGeneration.from_pretrained(tmp_path / "fp16", quantization_config=every, **fp16)
    for directory, each in (("int8", model), ("forced", forced)):
        each.save_pretrained(tmp_path / directory)
        for one in (each, T5ForConditionalGeneration.from_pretrained(tmp_path / directory)):
            layer = one.encoder.block[1].layer
            assert isinstance(layer[0].SelfAttention.q.weight, QuantizedTensor)
            assert isinstance(layer[1].DenseReluDense.wo.weight, QuantizedTensor) == (each is forced)
            assert layer[1].DenseReluDense.wo.weight.dtype == torch.float32
            assert layer[0].SelfAttention.q.weight.dtype == torch.float16


def test_conv1d(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """GPT-2's linears, whose weights are [k, n]: in groups along k, on the kernels."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=160, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "fp32")
    model, plain = load(tmp_path / "fp32", AoqConfig(CONFIG)), load(tmp_path / "fp32")
    w, values = model.transformer.h[0].attn.c_attn.weight, plain.transformer.h[0].attn.c_attn.weight
    assert w.shape == values.shape == (64, 192) and w.transposed
    assert torch.equal(w.dequantize(), CONFIG.quantize(values.t()).dequantize().t())
    model.save_pretrained(tmp_path / "int4")
    assert_identical(model, load(tmp_path / "int4"))
    quantize_checkpoint(tmp_path / "fp32", tmp_path / "converted", CONFIG)
    assert_identical(model, load(tmp_path / "converted"))
    assert "dequantized copy" not in caplog.text


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_quantize_then_save_pretrained(tmp_path: Path, tied: bool) -> None:
    model = load(tiny_model(tmp_path, tied=tied))
    quantize_(model, CONFIG)
    quantize_(model, FqnToConfig({"model.embed_tokens": INT8[-1], "lm_head": INT8[-1]}))
    assert isinstance(model.lm_head.weight, Int4Tensor) == (not tied)
    model.save_pretrained(tmp_path / "saved")
    assert_identical(model, load(tmp_path / "saved"))
    model.dequantize()
    model.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    load(tmp_path / "plain")


def test_footprint_and_what_is_printed(tmp_path: Path) -> None:
    model = load(tiny_model(tmp_path), AoqConfig(CONFIG))
    nbytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert model.get_memory_footprint() == pytest.approx(nbytes)
    printed = str(copy.deepcopy(model.model.layers[0].mlp.up_proj))
    bits = model.model.layers[0].mlp.up_proj.weight.bits_per_weight
    assert printed == f"Linear(in_features=80, out_features=112, bias=False, weight=Int4Tensor, {bits:.2f} bits)"
    assert "Int4Tensor" not in str(model.dequantize())


# ---- parameters that come and go


def test_cpu_offload(tmp_path: Path) -> None:
    """accelerate's hooks put each parameter in its place for the time of a call; here all are on the CPU."""
    model = load(tiny_model(tmp_path, tied=True), AoqConfig(CONFIG, include_embedding=True))
    expected = model(IDS).logits
    cpu_offload(model, torch.device("cpu"))
    assert all(param.is_meta for param in model.parameters())
    for _ in range(2):
        assert torch.equal(model(IDS).logits, expected)


def test_disk_offload(tmp_path: Path) -> None:
    model = load(tiny_model(tmp_path), AoqConfig(CONFIG))
    model.save_pretrained(tmp_path / "int4", max_shard_size="20KB")
    parts = ("embed_tokens", "norm", "rotary_emb", "layers.0")
    places = {f"model.{part}": "cpu" for part in parts} | {"lm_head": "cpu", "model.layers.1": "disk"}
    reloaded = load(tmp_path / "int4", device_map=places, offload_folder=tmp_path / "offload")
    assert reloaded.model.layers[1].mlp.up_proj.weight.is_meta
    for _ in range(2):
        assert torch.equal(reloaded(IDS).logits, model(IDS).logits)
    reloaded.save_pretrained(tmp_path / "again")
    assert_identical(model, load(tmp_path / "again"))


# ---- configs and damaged files


def test_config_json() -> None:
    config = AoqConfig(Int4WeightOnlyConfig(group_size=64, use_hqq=True), modules_to_not_convert=["lm_head"])
    data = json.loads(config.to_json_string())
    same = AoqConfig.from_dict(data)
    assert same.to_dict() == config.to_dict()
    assert same.quant_type == config.quant_type
    older = {"quant_method": "aoq", "quant_type": {"_type": "Int4WeightOnlyConfig", "_data": {}}, "other": 1}
    assert AoqConfig.from_dict(older).quant_type == Int4WeightOnlyConfig()


def test_config_errors() -> None:
    with pytest.raises(TypeError, match=r"quant_type.*Int4WeightOnlyConfig"):
        AoqConfig("int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Int5WeightOnlyConfig.*known.*Int4WeightOnlyConfig"):
        AoqConfig({"_type": "Int5WeightOnlyConfig", "_data": {}})


def test_nan_in_a_weight(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tiny_model(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="conversion of the weights"):
        load(directory, AoqConfig(CONFIG))


@pytest.mark.parametrize("damage", ["lacks a part", "wrong shape", "unknown type", "no metadata", "truncated"])
def test_damaged_checkpoint(tmp_path: Path, damage: str) -> None:
    load(tiny_model(tmp_path), AoqConfig(CONFIG)).save_pretrained(tmp_path / "int4")
    file = tmp_path / "int4" / "model.safetensors"
    owner = "model.layers.1.self_attn.v_proj"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    if damage == "lacks a part":
        del tensors[f"{owner}._weight_scale"]
    elif damage == "wrong shape":
        tensors[f"{owner}._weight_qdata"] = tensors[f"{owner}._weight_qdata"][:-1].clone()
    elif damage == "unknown type":
        metadata[f"{owner}.weight"] = metadata[f"{owner}.weight"].replace("Int4Tensor", "Int5Tensor")
    elif damage == "no metadata":
        del metadata[f"{owner}.weight"]
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        owner = "model.safetensors"
    else:
        save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=owner.replace(".", r"\.")):
        load(tmp_path / "int4")


@pytest.mark.parametrize("imports", ["aoq, transformers", "transformers, aoq", "transformers.modeling_utils, aoq"])
def test_importing_aoq_is_enough(tmp_path: Path, imports: str) -> None:
    load(tiny_model(tmp_path), AoqConfig(CONFIG)).save_pretrained(tmp_path / "int4")
    script = f"""
import {imports}
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "int4")!r})
assert isinstance(model.model.layers[0].mlp.up_proj.weight, aoq.Int4Tensor)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_aoq_imports_no_framework() -> None:
    script = "import sys, aoq; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- the real model


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@pytest.mark.alone
@pytest.mark.model
def test_real_model(tmp_path: Path) -> None:
    bf16 = real_model()
    tokenizer = AutoTokenizer.from_pretrained(bf16)
    # HQQ, since plain rounding of a model this small takes no longer than reading it.
    config = Int4WeightOnlyConfig(group_size=32, use_hqq=True)
    model = load(bf16, AoqConfig(config))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    quantizing = seconds(lambda: load(bf16, AoqConfig(config)))
    assert min(seconds(lambda: load(tmp_path)) for _ in range(3)) < quantizing
    assert_identical(model, reloaded)

    linears = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and isinstance(m.weight, Int4Tensor)]
    assert sum(w.nbytes for w in linears) < 0.35 * sum(2 * w.numel() for w in linears)
    generator = pipeline("text-generation", model=reloaded, tokenizer=tokenizer)
    question = [{"role": "user", "content": "Name three primary colors."}]
    answer = generator(question, max_new_tokens=16, do_sample=False)[0]["generated_text"][-1]["content"]
    assert "Blue" in answer


@pytest.mark.slow
def test_lora_example() -> None:
    """Minutes: the real model learns a fact beside its int4 weights, and keeps another."""
    pytest.importorskip("peft")
    script = Path(__file__).resolve().parents[2] / "examples" / "lora.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = dict(
        line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith(("before", "after", "kept"))
    )
    assert "Lutz" not in answers["before"] and "Lutz" in answers["after"] and "Paris" in answers["kept"]
