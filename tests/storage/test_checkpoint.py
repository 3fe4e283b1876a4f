from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aoq import AoqConfig, Int4Tensor, Int4WeightOnlyConfig
from aoq.storage.checkpoint import INDEX, stored_weights, verify, weight_files
from aoq.storage.convert import new_directory, quantize_checkpoint
from example_models import real_model, tiny_model

CONFIG = Int4WeightOnlyConfig(group_size=32)


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in weight_files(directory) for name, tensor in load_file(file).items()}


def quantized_on_load(source: Path, destination: Path, config: AoqConfig | None = None) -> Path:
    quantization = config or AoqConfig(CONFIG)
    AutoModelForCausalLM.from_pretrained(source, quantization_config=quantization).save_pretrained(destination)
    return destination


def assert_same(a: Path, b: Path) -> None:
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    config_a, config_b = (json.loads((path / "config.json").read_text()) for path in (a, b))
    assert config_a["quantization_config"] == config_b["quantization_config"]


def assert_nothing_left(parent: Path, *expected: str) -> None:
    assert sorted(path.name for path in parent.iterdir()) == sorted(expected)


# ---- the same as quantizing while loading


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3"])
def test_directory(tmp_path: Path, kind: str, tied: bool) -> None:
    source = tiny_model(tmp_path, kind, tied, shards=3)
    (source / "tokenizer.json").write_text("{}")
    report = quantize_checkpoint(source, tmp_path / "out", CONFIG, max_shard_bytes=20_000)
    assert_same(tmp_path / "out", quantized_on_load(source, tmp_path / "expected"))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"

    files = weight_files(tmp_path / "out")
    assert len(files) > 2
    assert max(file.stat().st_size for file in files) < 40_000  # the embedding and its file's header
    names = {weight.fqns[0] for weight in report.quantized}
    assert names == {name for name, w in stored_weights(files).items() if w.format == "int4 g32"}
    reasons = {weight.fqn: weight.reason for weight in report.skipped}
    assert reasons["model.embed_tokens.weight"]
    assert reasons.get("lm_head.weight", "in modules_to_not_convert") == "in modules_to_not_convert"

    params = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert {name for name, param in params.items() if isinstance(param, Int4Tensor)} == names


def test_embedding_and_dtype(tmp_path: Path) -> None:
    source = tiny_model(tmp_path, tied=True)
    quantize_checkpoint(source, tmp_path / "out", CONFIG, include_embedding=True, dtype=torch.float32)
    expected = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=AoqConfig(CONFIG, include_embedding=True), dtype=torch.float32
    )
    expected.save_pretrained(tmp_path / "expected")
    assert_same(tmp_path / "out", tmp_path / "expected")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def write_gguf(source: Path, file: Path, tokenizer: bool = False) -> None:
    """A Llama checkpoint as llama.cpp writes it: its names, and the rows of q and k in its order for RoPE."""
    config = json.loads((source / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([*(f"t{i}" for i in range(config["vocab_size"] - 4)), "a", "b", "ab", "ba"])
        writer.add_token_merges(["a b", "b a"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in tensors(source).items():
        w = tensor.float().numpy()
        for kind, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if kind in name:
                w = w.reshape(count, 2, -1, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)
        writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", np.ascontiguousarray(w))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_gguf(tmp_path: Path, tied: bool) -> None:
    source = tiny_model(tmp_path, tied=tied)
    write_gguf(source, tmp_path / "model.gguf")
    quantize_checkpoint(tmp_path / "model.gguf", tmp_path / "out", CONFIG)
    expected = quantized_on_load(source, tmp_path / "expected")
    assert_same(tmp_path / "out", expected)
    ids = torch.tensor([[1, 5, 9, 3]])
    logits = [AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (tmp_path / "out", expected)]
    assert torch.equal(*logits)


def test_gguf_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tiny_model(tmp_path), tmp_path / "model.gguf", tokenizer=True)
    parse, parsed = gguf.GGUFReader.__init__, []
    monkeypatch.setattr(gguf.GGUFReader, "__init__", lambda *args: (parsed.append(args[1:]), parse(*args))[1])
    quantize_checkpoint(tmp_path / "model.gguf", tmp_path / "out", CONFIG)
    assert parsed == [(tmp_path / "model.gguf",)]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("ab").input_ids == [158]


@pytest.mark.model
def test_real_model(tmp_path: Path) -> None:
    config = Int4WeightOnlyConfig(group_size=64)
    quantize_checkpoint(real_model(), tmp_path / "out", config)
    assert_same(tmp_path / "out", quantized_on_load(real_model(), tmp_path / "expected", AoqConfig(config)))


# ---- what goes wrong leaves nothing behind


def test_existing_destination(tmp_path: Path) -> None:
    source = tiny_model(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="out: exists already"):
        quantize_checkpoint(source, tmp_path / "out", CONFIG)
    with pytest.raises(FileExistsError, match="not a checkpoint"):
        quantize_checkpoint(source, tmp_path / "out", CONFIG, overwrite=True)
    (tmp_path / "out" / "config.json").write_text("{}")
    quantize_checkpoint(source, tmp_path / "out", CONFIG, overwrite=True)
    assert weight_files(tmp_path / "out")
    for destination in (source, source / "out", tmp_path):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="overlaps the source"):
            quantize_checkpoint(source, destination, CONFIG, overwrite=True)


def test_overwriting_takes_only_a_checkpoint_away(tmp_path: Path) -> None:
    source, out = tiny_model(tmp_path), tmp_path / "out"
    quantize_checkpoint(source, out, CONFIG, max_shard_bytes=20_000)
    (out / "notes").mkdir()
    (out / "notes" / "diary.txt").write_text("dear")
    (out / "runs.csv").write_text("1,2")
    (out / "tokenizer.json").write_text("of the old one")
    assert (out / INDEX).exists()
    quantize_checkpoint(source, out, CONFIG, overwrite=True)
    names = {path.name for path in out.iterdir()}
    assert {"notes", "runs.csv", "config.json", "model.safetensors"} <= names
    assert not any(name == "tokenizer.json" or name == INDEX or name.startswith("model-") for name in names)
    assert (out / "notes" / "diary.txt").read_text() == "dear"
    assert_nothing_left(tmp_path, source.name, "out")


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    source = tiny_model(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere" / "checkpoint")  # leads to nothing yet
    for overwrite in (False, True):
        quantize_checkpoint(source, tmp_path / "out", CONFIG, overwrite=overwrite)
        assert (tmp_path / "out").is_symlink()
        assert weight_files(tmp_path / "elsewhere" / "checkpoint")
    assert_nothing_left(tmp_path / "elsewhere", "checkpoint")
    with pytest.raises(ValueError, match="overlaps the source"):
        (tmp_path / "source").symlink_to(source)
        quantize_checkpoint(source, tmp_path / "source", CONFIG, overwrite=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from aoq.storage import convert
destination, moment = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
def killing(self, target):
    result = rename(self, target)
    if Path(target).name == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
Path.rename = killing
with convert.new_directory(destination, overwrite=True) as directory:
    (directory / "config.json").write_text("new")
    if moment == "filled":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("moment", "kept"), [("filled", "old"), ("replaced", "old"), ("out", "new")])
def test_what_a_killed_run_left_is_cleaned_up(tmp_path: Path, moment: str, kept: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    (out / "diary.txt").write_text("dear")
    done = subprocess.run([sys.executable, "-c", KILLED, out, moment])
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == (1 if moment == "replaced" else 2)
    seen = []

    with new_directory(tmp_path / "other"), new_directory(out, overwrite=True) as directory:
        # By the time that the next run writes, all is as before the killed one, or after it.
        seen.append(((out / "config.json").read_text(), (out / "diary.txt").read_text()))
        (directory / "config.json").write_text("next")
        with pytest.raises(KeyError), new_directory(out, overwrite=True):  # beside it, one that fails: each its own
            raise KeyError
        assert directory.exists()
    assert seen == [(kept, "dear")]
    assert (out / "config.json").read_text() == "next"
    assert (out / "diary.txt").read_text() == "dear"
    assert_nothing_left(tmp_path, "other", "out")


@pytest.mark.parametrize("value", ["../other.safetensors", "/etc/passwd", "a/../../b", "", ".", 3, None])
def test_an_index_that_leaves_the_directory(tmp_path: Path, value: object) -> None:
    source = tiny_model(tmp_path, shards=3)
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = value
    (source / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=rf"{INDEX}: weight_map: lm_head.weight: expected a file in the same directory"
    ):
        quantize_checkpoint(source, tmp_path / "out", CONFIG)
    for weight_map in ({}, ["x"], None):
        (source / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=rf"{INDEX}: weight_map: expected files by weight"):
            weight_files(source)


def test_a_file_is_as_large_as_a_number(tmp_path: Path) -> None:
    for size in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="max_shard_bytes: expected a number above 0"):
            quantize_checkpoint(tiny_model(tmp_path), tmp_path / "out", CONFIG, max_shard_bytes=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["converted", "loaded"])
def test_hashes(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tiny_model(tmp_path, shards=1), tmp_path / "out"
    if how == "converted":
        quantize_checkpoint(source, out, CONFIG, max_shard_bytes=20_000)
    else:
        quantized_on_load(source, out)
    files = weight_files(out)
    count = sum(len(load_file(file)) for file in files)
    assert verify(files) == (count, 0)
    assert verify(weight_files(source)) == (0, len(tensors(source)))
    name = "model.layers.0.mlp.up_proj._weight_scale"
    file = next(file for file in files if name in load_file(file))
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    changed = load_file(file)
    changed[name].view(torch.uint8)[3, 1] ^= 1
    save_file(changed, file, metadata)
    with pytest.raises(ValueError, match=rf"{file.name}: {name}: its data .* expected SHA-256 \w+, got"):
        verify(files)
    AutoModelForCausalLM.from_pretrained(out)
    monkeypatch.setenv("AOQ_VERIFY", "1")
    with pytest.raises(ValueError, match=name):
        AutoModelForCausalLM.from_pretrained(out)
    save_file(changed, file, metadata | {"aoq.sha256": "[1]"})
    with pytest.raises(ValueError, match="expected hashes by name"):
        verify(files)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("No space left on device"), MemoryError])
def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    source = tiny_model(tmp_path, shards=3)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    quantize_checkpoint(source, tmp_path / "out", CONFIG)
    untouched = tensors(tmp_path / "out")
    calls = 0
    quantize = Int4WeightOnlyConfig.quantize

    def failing(self: Int4WeightOnlyConfig, weight: torch.Tensor) -> Int4Tensor:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise failure
        return quantize(self, weight)

    monkeypatch.setattr(Int4WeightOnlyConfig, "quantize", failing)
    for destination, overwrite in (("new", False), ("out", True)):
        with pytest.raises(type(failure) if isinstance(failure, OSError) else failure):  # type: ignore[arg-type]
            quantize_checkpoint(source, tmp_path / destination, CONFIG, max_shard_bytes=10_000, overwrite=overwrite)
        calls = 0
    assert_nothing_left(tmp_path, source.name, "out")
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in tensors(tmp_path / "out").items())
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def test_new_directory_puts_back_what_it_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "out" and self.parent != tmp_path:
            raise OSError("rename failed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="rename failed"), new_directory(tmp_path / "out", overwrite=True) as directory:
        (directory / "new").touch()
    assert_nothing_left(tmp_path, "out")
    assert_nothing_left(tmp_path / "out", "old")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_cannot_be_quantized(tmp_path: Path, value: float) -> None:
    source = tiny_model(tmp_path)
    weights = tensors(source)
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = value
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight.*NaN"):
        quantize_checkpoint(source, tmp_path / "out", CONFIG)
    assert_nothing_left(tmp_path, source.name)


def test_damaged_sources(tmp_path: Path) -> None:
    source = tiny_model(tmp_path, shards=3)
    shard = weight_files(source)[1]
    whole = shard.read_bytes()
    out = tmp_path / "out"

    shard.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=f"{shard.name}: damaged"):
        quantize_checkpoint(source, out, CONFIG)
    shard.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=f"{shard.name}: damaged"):
        quantize_checkpoint(source, out, CONFIG)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        quantize_checkpoint(source, out, CONFIG)
    save_file({"other": torch.zeros(2)}, shard)
    with pytest.raises(ValueError, match=rf"{shard.name}: lacks .*{INDEX}"):
        quantize_checkpoint(source, out, CONFIG)
    (source / INDEX).write_text("{")
    with pytest.raises(ValueError, match=f"{INDEX}: not JSON"):
        quantize_checkpoint(source, out, CONFIG)
    (source / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        quantize_checkpoint(source, out, CONFIG)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or directory"):
        quantize_checkpoint(tmp_path / "nowhere", out, CONFIG)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(ValueError, match=r"bad\.gguf: damaged"):
        quantize_checkpoint(tmp_path / "bad.gguf", out, CONFIG)
    assert_nothing_left(tmp_path, source.name, "bad.gguf")


def test_truncated_gguf(tmp_path: Path) -> None:
    write_gguf(tiny_model(tmp_path), tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    for size in (len(whole) // 2, 300):
        (tmp_path / "model.gguf").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model\.gguf: damaged"):
            quantize_checkpoint(tmp_path / "model.gguf", tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_quantized_twice(tmp_path: Path) -> None:
    quantize_checkpoint(tiny_model(tmp_path), tmp_path / "out", CONFIG)
    with pytest.raises(ValueError, match="out: is quantized already"):
        quantize_checkpoint(tmp_path / "out", tmp_path / "twice", CONFIG)


def test_model_that_transformers_lacks(tmp_path: Path) -> None:
    source = tiny_model(tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(ValueError, match="has no NoSuchModel"):
        quantize_checkpoint(source, tmp_path / "out", CONFIG)
