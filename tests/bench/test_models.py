"""Whole models: a tiny one, measured under contenders that can and cannot."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from aoq.bench import models
from aoq.bench.command import check_device
from aoq.bench.contenders import FILES
from aoq.bench.measure import entries
from aoq.bench.models import ModelMeasurement, ModelSettings
from aoq.bench.report import Spread, model_figures, print_report, problems
from aoq.bench.worker import ModelStand

TINY = {
    **models.SHAPES["llama-3.2-1b"],
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "vocab_size": 300,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(TINY))
    chosen = [entry for entry in entries(sys.executable) if entry.name in ("aoq int4", "aoq int8", "torch bf16")]
    chosen += [entry for entry in entries(sys.executable, files=[Path(__file__).with_name("faulty.py")])]
    settings = ModelSettings([str(directory)], prompt=20, steps=3, group_size=32, threads=1, rounds=2, dtype="bfloat16")
    session = ModelMeasurement(settings, chosen)
    found = session.run().json()
    assert not session.workers
    return json.loads(json.dumps(found))


def test_figures(report):
    (model,) = report["models"]
    assert (model["name"], model["random"], model["prompt"], model["steps"]) == ("tiny", True, 20, 3)
    results = {result["contender"]: result for result in model["results"]}
    for name in ("aoq int4", "aoq int8", "torch bf16"):
        result = results[name]
        assert result["status"] == "ok"
        assert len(result["first"]) == len(result["next"]) == 2
        assert all(0 < seconds < 60 for seconds in (*result["first"], *result["next"]))
        assert 1e7 < result["peak"] < 1e11
    linears = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160)
    others = 300 * 64 + 5 * 64
    assert results["torch bf16"]["bytes"] == 2 * (linears + others)
    assert results["aoq int8"]["bytes"] == linears + 2 * others + 2 * 2 * (64 + 32 + 32 + 64 + 160 + 160 + 64)
    assert linears / 2 + 2 * others < results["aoq int4"]["bytes"] < linears * 0.7 + 2 * others


def test_what_cannot_is_reported(report):
    statuses = {result["contender"]: result["status"] for result in report["models"][0]["results"]}
    assert statuses["model that fails"] == "failed"
    assert "model that fails: failed: ValueError: no such layer (tiny)" in list(problems(report))
    assert "good" not in statuses  # it quantizes no models


def test_when_the_time_is_up_what_is_left_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    chosen = [entry for entry in entries(sys.executable) if entry.name in ("aoq int4", "torch bf16")]
    settings = ModelSettings([str(tmp_path)], prompt=20, steps=3, group_size=32, rounds=2, minutes=0.0)
    found = ModelMeasurement(settings, chosen).run().json()
    assert found["models"] == []
    ticks = itertools.chain([0, 0, 0, 0], itertools.repeat(50))  # seconds: the second one would be loaded too late
    monkeypatch.setattr(models, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    found = ModelMeasurement(dataclasses.replace(settings, minutes=1.0), chosen).run().json()
    first, second = found["models"][0]["results"]
    assert first["status"] == "ok" and len(first["next"]) == 2
    assert (second["status"], second["why"], second["next"]) == ("unsupported", "the time was up", [])


def test_a_graphs_cache_is_the_same_and_emptied(tmp_path):
    """A second turn in the memory that CUDA graphs have the addresses of gives what the first did."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (file,) = (file for file in FILES if file.stem == "aoq")
    with torch.inference_mode():
        stand = ModelStand(1, str(file), "AoqInt4")
        stand.load(str(tmp_path), 32, False)
        stand.compiled, stand.keeps_caches, forward, found = True, True, stand.read, []

        def recorded(**inputs):
            out = forward(**inputs)
            found.append((out.logits.clone(), inputs["past_key_values"]))
            return out

        stand.read = stand.write = recorded
        for _ in range(2):
            stand.turn(20, 3)
    assert len(found) == 8 and len({id(cache) for _, cache in found}) == 1
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found[:4], found[4:], strict=True))


def test_devices():
    measured = ModelMeasurement(ModelSettings([], device="cpu"), entries(sys.executable)).entries
    assert {"torch bf16", "aoq int4", "aoq int8", "aoq int8-int4"} <= {entry.name for entry in measured}
    assert all("cuda" in entry.cls.devices for entry in measured if entry.ours)
    with pytest.raises(ValueError, match="expected cpu or cuda, got gpu"):
        check_device("gpu", ["llama-3.2-1b"])
    with pytest.raises(ValueError, match=r"benchmarks/cuda\.py times ops"):
        check_device("cuda", [])


def test_ratios_are_paired():
    results = [
        {"contender": "ours", "status": "ok", "first": [1.0, 10.0], "next": [0.1, 0.2]},
        {"contender": "base", "status": "ok", "first": [3.0, 30.0], "next": [0.2, 0.4]},
    ]
    contenders = [{"name": "ours", "op": "int4_mm"}, {"name": "base", "op": "bf16"}]
    whole = {"contenders": contenders, "models": [{"results": results}]}
    ours = model_figures(whole, whole["models"][0], results[0])
    assert ours.first_vs_plain == Spread(3, 3, 3) and ours.next_vs_plain == Spread(2, 2, 2)
    # Another dtype of torch may write faster while this one reads faster.
    contenders.append({"name": "fp32", "op": "bf16"})
    results.append({"contender": "fp32", "status": "ok", "first": [4.0, 40.0], "next": [0.15, 0.3]})
    ours = model_figures(whole, whole["models"][0], results[0])
    assert (ours.first_vs_plain, ours.first_plain) == (Spread(3, 3, 3), "base")
    assert (ours.next_vs_plain.median, ours.next_plain) == (pytest.approx(1.5), "fp32")
    base = model_figures(whole, whole["models"][0], results[1])
    assert base.first_vs_plain is None
    assert model_figures(whole, whole["models"][0], results[1] | {"first": [], "next": []}) is None


def test_the_table(report):
    console = Console(record=True, width=140, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        print_report(report, console)
    text = capture.get()
    for wanted in ("tiny, random weights: 20 tokens, then 3", "aoq int4", "torch bf16", "writing"):
        assert wanted in text


def test_named_shapes_are_models():
    from transformers import AutoConfig

    sizes = {"smollm2-135m": 1.345e8, "llama-3.2-1b": 1.24e9, "llama-3.2-3b": 3.21e9, "llama-3.1-8b": 8.03e9}
    for name, shape in models.SHAPES.items():
        config = AutoConfig.for_model(**shape)
        kv = config.num_key_value_heads * config.head_dim
        attention = 2 * config.hidden_size * (config.num_attention_heads * config.head_dim + kv)
        layer = attention + 3 * config.hidden_size * config.intermediate_size
        embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
        assert config.num_hidden_layers * layer + embeddings == pytest.approx(sizes[name], rel=0.005)


def test_the_dtype_of_what_is_not_quantized(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    auto = ModelSettings([str(tmp_path)])
    assert auto.dtype_of(tmp_path) == "bfloat16"
    monkeypatch.setattr("aoq.cpu.cpu_features", lambda: frozenset({"avx2"}))
    assert auto.dtype_of(tmp_path) == "float32"
    assert ModelSettings([str(tmp_path)], dtype="bfloat16").dtype_of(tmp_path) == "bfloat16"
    assert ModelSettings([str(tmp_path)], device="cuda").dtype_of(tmp_path) == "bfloat16"
    (tmp_path / "config.json").write_text("{}")  # as SHAPES have it
    assert auto.dtype_of(tmp_path) == "float32"
