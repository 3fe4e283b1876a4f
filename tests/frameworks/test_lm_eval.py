"""The unmodified `lm_eval` command on a quantized checkpoint; nothing imports aoq for it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aoq import Int4WeightOnlyConfig, QuantizedTensor
from aoq.evaluation import evaluate, evaluation_text
from aoq.integrations.transformers import load_model
from aoq.storage.convert import quantize_checkpoint
from example_models import real_model

ROOT = Path(__file__).resolve().parents[2]

PROSE = """
task: local_prose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "int4"
    quantize_checkpoint(real_model(), directory, Int4WeightOnlyConfig(group_size=32))
    return directory


def lm_eval(model: Path, tasks: Path, *options: str) -> subprocess.CompletedProcess[str]:
    args = [
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={model},dtype=bfloat16,softmax_dtype=float32",
        "--device",
        "cpu",
    ]
    command = [Path(sys.executable).with_name("lm_eval"), *args, "--include_path", tasks, *options]
    return subprocess.run(command, capture_output=True, text=True)


def results(output: Path) -> dict[str, dict[str, float]]:
    (file,) = output.rglob("results_*.json")
    return json.loads(file.read_text())["results"]


def test_score_is_that_of_aoq_eval(tmp_path: Path, checkpoint: Path) -> None:
    text = evaluation_text()
    passages = [text[start : start + 600] for start in (10_000, 200_000, 300_000)]
    data = tmp_path / "prose.jsonl"
    data.write_text("\n".join(json.dumps({"text": passage}) for passage in passages))
    (tmp_path / "prose.yaml").write_text(PROSE.format(data=data))
    ran = lm_eval(checkpoint, tmp_path, "--tasks", "local_prose", "--output_path", str(tmp_path / "out"))
    assert ran.returncode == 0, ran.stderr

    model, tokenizer = load_model(checkpoint)
    assert any(isinstance(param, QuantizedTensor) for param in model.parameters())
    bits = 0.0
    for passage in passages:
        window = tokenizer(tokenizer.bos_token + passage, return_tensors="pt").input_ids
        quality = evaluate(model, window)
        bits += math.log2(quality.perplexity) * quality.tokens
    expected = bits / sum(len(passage.encode()) for passage in passages)
    score = results(tmp_path / "out")["local_prose"]["bits_per_byte,none"]
    assert score == pytest.approx(expected, rel=2e-4)
    assert 0.5 < score < 2  # a model with random weights has about 4


def test_example(tmp_path: Path, checkpoint: Path) -> None:
    script = [ROOT / "examples" / "evaluate_lm_eval.sh", checkpoint]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [*script, "--limit", "4", "--batch_size", "4", "--output_path", tmp_path]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    assert results(tmp_path)["aoq_questions"]["acc,none"] >= 0.5
    assert 0.5 < results(tmp_path)["aoq_prose"]["bits_per_byte,none"] < 2


@pytest.mark.parametrize("damage", ["lacks a part", "truncated"])
def test_damaged_checkpoint(tmp_path: Path, checkpoint: Path, damage: str) -> None:
    directory = tmp_path / "damaged"
    directory.mkdir()
    for file in checkpoint.iterdir():
        if file.name != "model.safetensors":
            (directory / file.name).write_bytes(file.read_bytes())
    file, expected = directory / "model.safetensors", "model.layers.3.mlp.up_proj"
    if damage == "truncated":
        file.write_bytes((checkpoint / "model.safetensors").read_bytes()[:-100])
        expected = "model.safetensors"
    else:
        tensors = load_file(checkpoint / "model.safetensors")
        with safe_open(checkpoint / "model.safetensors", framework="pt") as opened:
            metadata = opened.metadata()
        del tensors[f"{expected}._weight_scale"]
        save_file(tensors, file, metadata)
    ran = lm_eval(directory, ROOT / "examples" / "lm_eval_tasks", "--tasks", "aoq_questions")
    assert ran.returncode != 0
    assert expected in ran.stderr.splitlines()[-1]


def test_unsupported_version_of_transformers(tmp_path: Path, checkpoint: Path) -> None:
    script = f"""
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: "4.57.1" if name == "transformers" else version(name)
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained({str(checkpoint)!r})
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "aoq works with transformers>=5.16, got 4.57.1" in ran.stderr.splitlines()[-1]
