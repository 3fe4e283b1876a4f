"""Checkpoints of other producers, converted and loaded as they are.

The bytes are made in numpy from the description of each layout (tests/foreign_checkpoints.py), not by the producers'
packages, most of which want a GPU or another torch. tests/frameworks has those that do not.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_plain
from safetensors.torch import save_file as save_plain
from transformers import AutoModelForCausalLM, FineGrainedFP8Config
from transformers.quantizers import auto

from aoq import Int4Tensor, Int8Tensor, IntxTensor, QuantizedTensor
from aoq.cli import main
from aoq.storage.checkpoint import stored_weights, weight_files
from aoq.storage.convert import convert_checkpoint
from aoq.storage.safetensors import load_file
from aoq.tensors.floatx import FloatxTensor
from aoq.tensors.ordered import OrderedInt4Tensor, OrderedIntxTensor
from foreign_checkpoints import (
    Array,
    awq,
    change,
    fp4,
    fp8_blocks,
    gptq,
    hqq,
    reference,
    set_config,
    write_checkpoint,
)

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
HQQ = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 32, "axis": 1}}}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [32, 48]}
IDS = torch.arange(1, 25).reshape(2, 12)


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"type": "float", "symmetric": True, **weights}}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


NVFP4 = compressed("nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16)
MXFP4 = compressed("mxfp4-pack-quantized", num_bits=4, strategy="group", group_size=32)
BLOCKS = compressed("float-quantized", num_bits=8, strategy="block", block_structure=[32, 48])

# writer, settings, the tensors that its weights become
KINDS: dict[str, tuple[Any, dict[str, Any], type[QuantizedTensor]]] = {
    "gptq": (gptq(), GPTQ, Int4Tensor),
    "gptq-v2": (gptq(offset=0), {**GPTQ, "checkpoint_format": "gptq_v2"}, Int4Tensor),
    "gptq-sym": (gptq(symmetric=True, g_idx=False), {**GPTQ, "sym": True}, Int4Tensor),
    "gptq-per-row": (gptq(group=-1), {**GPTQ, "group_size": -1}, Int4Tensor),
    "gptq-act-order": (gptq(act_order=True), {**GPTQ, "desc_act": True}, OrderedInt4Tensor),
    "gptq-2": (gptq(bits=2), {**GPTQ, "bits": 2}, IntxTensor),
    "gptq-3": (gptq(bits=3), {**GPTQ, "bits": 3}, IntxTensor),
    "gptq-3-act-order": (gptq(bits=3, act_order=True), {**GPTQ, "bits": 3, "desc_act": True}, OrderedIntxTensor),
    "gptq-8": (gptq(bits=8), {**GPTQ, "bits": 8}, IntxTensor),
    "gptq-8-per-row": (
        gptq(bits=8, group=-1, symmetric=True),
        {**GPTQ, "bits": 8, "group_size": -1, "sym": True},
        Int8Tensor,
    ),
    "awq": (awq(), AWQ, Int4Tensor),
    "auto-round": (gptq(offset=0), {**AUTO_ROUND, "packing_format": "auto_round"}, Int4Tensor),
    "auto-round-gptq": (gptq(), AUTO_ROUND, Int4Tensor),
    "auto-round-awq": (awq(), {**AUTO_ROUND, "packing_format": "auto_round:auto_awq"}, Int4Tensor),
    "hqq": (hqq(), HQQ, Int4Tensor),
    "fp8": (fp8_blocks(), FP8, FloatxTensor),
    "fp8-ue8m0": (fp8_blocks(ue8m0=True), {**FP8, "scale_fmt": "ue8m0"}, FloatxTensor),
    "compressed-nvfp4": (fp4(16, True), NVFP4, FloatxTensor),
    "compressed-mxfp4": (fp4(32, False), MXFP4, FloatxTensor),
    "compressed-blocks": (fp8_blocks(scale_name="weight_scale"), BLOCKS, FloatxTensor),
}


@pytest.fixture(scope="module", params=KINDS.items(), ids=KINDS.keys())
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(the checkpoint, its weights in fp32, the tensors that they become)"""
    name, (writer, settings, tensor_type) = request.param
    directory = tmp_path_factory.mktemp("kinds") / name
    return directory, write_checkpoint(directory, writer, settings), tensor_type


@pytest.fixture
def from_pretrained(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`from_pretrained` after the import, whose effects end with the test."""
    for table in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        for name in (
            "aoq_foreign",
            "gptq",
            "awq",
            "compressed-tensors",
            "auto-round",
            "intel/auto-round",
            "hqq",
            "fp8",
        ):
            if name in table:
                monkeypatch.setitem(table, name, table[name])
            else:
                monkeypatch.setitem(table, name, None)
    importlib.reload(importlib.import_module("aoq.integrations.checkpoints"))
    return AutoModelForCausalLM.from_pretrained


def assert_equal(w: torch.Tensor, expected: Array) -> None:
    """Bit for bit in fp32."""
    assert np.array_equal(w.to(torch.float32).dequantize().numpy(), expected)


def test_converted(kind: Any, tmp_path: Path) -> None:
    directory, expected, tensor_type = kind
    report = convert_checkpoint(directory, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.fqns[0] for weight in report.quantized} == expected.keys()
    for name, values in expected.items():
        assert type(weights[name]) is tensor_type
        assert_equal(weights[name], values)
    text = str(report)
    assert "codes and scales as they are" in text and f"{len(expected)} weights: " in text
    kept = load_plain(directory / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"], kept["lm_head.weight"])

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert sum(isinstance(param, tensor_type) for param in model.parameters()) == len(expected)
    with torch.no_grad():
        logits = model(IDS).logits
    torch.testing.assert_close(logits, reference(directory, expected, IDS), rtol=1e-4, atol=1e-4)


def test_blocks_of_fp8_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    directory = tmp_path / "fp8"
    settings = {**FP8, "weight_block_size": [32, 32]}
    expected = write_checkpoint(directory, fp8_blocks(32, 32), settings)
    dequantizing = FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(directory, quantization_config=dequantizing, dtype=torch.float32)
    params = dict(theirs.named_parameters())
    convert_checkpoint(directory, tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    for name in expected:
        assert torch.equal(ours[name].to(params[name].dtype).dequantize(), params[name])


def test_loaded_as_they_are(kind: Any, tmp_path: Path, from_pretrained: Any) -> None:
    directory, expected, tensor_type = kind
    model = from_pretrained(directory, dtype=torch.float32)
    params = dict(model.named_parameters())
    for name, values in expected.items():
        assert type(params[name]) is tensor_type and params[name].packed
        assert_equal(params[name], values)
    with torch.no_grad():
        logits = model(IDS).logits
    torch.testing.assert_close(logits, reference(directory, expected, IDS), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]["quant_method"] == "aoq"
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(saved(IDS).logits, logits)


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    expected = write_checkpoint(tmp_path / "in", gptq(), None)
    (tmp_path / "in" / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False}))
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "quantize_config.json").exists()
    for name, w in load_file(tmp_path / "out" / "model.safetensors").items():
        if name in expected:
            assert_equal(w, expected[name])
    old = write_checkpoint(tmp_path / "awq", awq(), None)
    (tmp_path / "awq" / "quant_config.json").write_text(json.dumps({"w_bit": 4, "q_group_size": 32, "version": "GEMM"}))
    convert_checkpoint(tmp_path / "awq", tmp_path / "out-awq")
    name = min(old)
    assert_equal(load_file(tmp_path / "out-awq" / "model.safetensors")[name], old[name])


def test_the_largest_stored_zero_point_is_zero(tmp_path: Path) -> None:
    """GPTQ's first version stores 15 for a zero point of 0: nothing is carried into the neighbour."""
    expected = write_checkpoint(tmp_path / "in", gptq(), GPTQ)
    stored = load_plain(tmp_path / "in" / "model.safetensors")
    name = min(expected)
    qzeros = f"{name.removesuffix('weight')}qzeros"
    stored[qzeros] = torch.full_like(stored[qzeros], -1)
    save_plain(stored, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    zero_point = load_file(tmp_path / "out" / "model.safetensors", pack=False)[name].zero_point
    assert not zero_point.any()


def test_dynamic_rules(tmp_path: Path) -> None:
    writers = {"mlp.down_proj": gptq(bits=3, group=16), "mlp": gptq(bits=4, group=-1), "": gptq()}
    rules = {
        r"+:.*\.mlp\.down_proj": {"bits": 3, "group_size": 16},
        r"+:.*\.mlp\.": {"group_size": -1},
        r"-:lm_head": {},
    }
    expected = write_checkpoint(tmp_path / "in", writers, {**GPTQ, "dynamic": rules})
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    formats = {name: w.format for name, w in stored_weights(weight_files(tmp_path / "out")).items()}
    assert formats["model.layers.0.mlp.down_proj.weight"] == "int3 g16"
    assert formats["model.layers.1.self_attn.q_proj.weight"] == "int4 g32"
    for name, w in load_file(tmp_path / "out" / "model.safetensors").items():
        if name in expected:
            assert_equal(w, expected[name])


def test_biases(tmp_path: Path) -> None:
    """AutoGPTQ gave every linear a bias: zeros where the model has none."""
    write_checkpoint(tmp_path / "in", gptq(), GPTQ)
    file = tmp_path / "in" / "model.safetensors"
    bias = "model.layers.0.mlp.up_proj.bias"
    save_plain({**load_plain(file), bias: torch.zeros(96, dtype=torch.float16)}, file, {"format": "pt"})
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert "left out 1 tensors: biases of zeros" in str(report)
    save_plain({**load_plain(file), bias: torch.ones(96, dtype=torch.float16)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{bias}: is not zero"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out-2")


# ---- what cannot be read: one line that names file and tensor, and nothing is written


ZEROS = torch.zeros
BROKEN: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "no zero points": (
        awq(),
        AWQ,
        {"down_proj_qzeros": None},
        r"model.safetensors: .*its .*down_proj.qzeros is missing",
    ),
    "no scales": (gptq(), GPTQ, {"q_proj_scales": None}, r"model.safetensors: .*its .*q_proj.scales is missing"),
    "no codes": (gptq(), GPTQ, {"q_proj_qweight": None}, r"model.safetensors: .*its .*q_proj.qweight is missing"),
    "bits": (gptq(), {**GPTQ, "bits": 8}, {}, r"model.safetensors: .*: expected shape .* by config.json"),
    "group": (
        gptq(),
        {**GPTQ, "group_size": 16},
        {},
        r"scales: expected shape \[6, 64\] by config.json, got \[3, 64\]",
    ),
    "dtype": (gptq(), GPTQ, {"q_proj_qweight": ZEROS(8, 64)}, r"q_proj.qweight: expected int32, got float32"),
    "g_idx": (
        gptq(),
        GPTQ,
        {"q_proj_g_idx": ZEROS(64, dtype=torch.int32)},
        r"model.safetensors: .*q_proj.weight: g_idx: expected 32 columns in every group",
    ),
    "model": (gptq(), GPTQ, {}, r"_proj.weight: expected shape \[128, 96\] by config.json"),
    "gptq version": (
        gptq(),
        {**GPTQ, "checkpoint_format": "marlin"},
        {},
        r"config.json: checkpoint_format: .*'marlin'",
    ),
    "awq version": (
        awq(),
        {**AWQ, "version": "gemv_fast"},
        {},
        r"config.json: version: expected gemm, got 'gemv_fast'",
    ),
    "awq gemv": (awq(), {**AWQ, "version": "gemv"}, {}, r"config.json: version: expected gemm, got 'gemv'"),
    "method": (
        gptq(),
        {**GPTQ, "quant_method": "squeezellm"},
        {},
        r"config.json: quant_method: expected one of gptq, ",
    ),
    "hqq axis": (
        hqq(),
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 32, "axis": 0}}},
        {},
        r"config.json: axis: expected 1",
    ),
    "auto-round": (gptq(), {**AUTO_ROUND, "packing_format": "auto_round:x"}, {}, r"packing_format: expected one of"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_errors(case: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer, settings, changes, text = case
    write_checkpoint(tmp_path / "in", writer, settings)
    change(tmp_path / "in", **changes)
    if text.startswith("_proj.weight"):
        set_config(tmp_path / "in", hidden_size=128, head_dim=16)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(["convert", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert exit.value.code == 1 and err.startswith("aoq: error: ") and err.count("\n") == 1
    assert re.search(text, err), err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_truncated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "in", gptq(), GPTQ)
    file = tmp_path / "in" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    assert "model.safetensors: damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
