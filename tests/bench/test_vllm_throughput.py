"""benchmarks/vllm_throughput.py, without vLLM: the checkpoint that it writes for its peer, the batches, the table."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from aoq import Int4WeightOnlyConfig, MappingType
from example_models import tiny_model

GROUP = 16


@pytest.fixture(scope="module")
def throughput() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "vllm_throughput.py"
    spec = importlib.util.spec_from_file_location("vllm_throughput", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_the_peers_checkpoint_has_the_same_weights(tmp_path: Path, throughput: ModuleType) -> None:
    source = tiny_model(tmp_path)
    throughput.compressed_tensors_checkpoint(source, tmp_path / "made", GROUP)
    before, made = load_file(source / "model.safetensors"), load_file(tmp_path / "made/model.safetensors")
    config = Int4WeightOnlyConfig(group_size=GROUP, mapping_type=MappingType.SYMMETRIC)
    projections = [name for name in before if name.endswith("_proj.weight")]
    assert len(projections) == 14
    for name in projections:
        module = name.removesuffix(".weight")
        packed = made[f"{module}.weight_packed"]
        codes = torch.stack([packed >> 4 * i & 15 for i in range(8)], -1).flatten(1) - 8
        scale = made[f"{module}.weight_scale"].repeat_interleave(GROUP, 1)
        assert made[f"{module}.weight_shape"].tolist() == [*before[name].shape] == [*codes.shape]
        expected = config.quantize(before[name]).dequantize()
        assert torch.equal((codes * scale.float()).bfloat16(), expected)
    assert all(torch.equal(made[name], w) for name, w in before.items() if name not in projections)
    stored = json.loads((tmp_path / "made/config.json").read_text())["quantization_config"]
    assert stored["config_groups"]["group_0"]["weights"]["group_size"] == GROUP


@pytest.mark.parametrize("gigabytes", [1, 6, 9, 100])
def test_every_batch_has_bf16_and_every_contender_comes_once(
    tmp_path: Path, throughput: ModuleType, monkeypatch: pytest.MonkeyPatch, gigabytes: int
) -> None:
    source = tiny_model(tmp_path)
    read = Path.read_text
    meminfo = f"MemAvailable: {gigabytes * 10**6} kB"
    monkeypatch.setattr(
        Path, "read_text", lambda path, *a, **k: meminfo if path.name == "meminfo" else read(path, *a, **k)
    )
    found = [[contender.name for contender in batch] for batch in throughput.batches(throughput.CONTENDERS, source)]
    assert all(batch[0] == "bf16" and len(batch) > 1 for batch in found)
    others = [name for batch in found for name in batch[1:]]
    assert others == [contender.name for contender in throughput.CONTENDERS[1:]]
    assert (len(found) == 1) == (gigabytes == 100)


def test_table(tmp_path: Path, throughput: ModuleType) -> None:
    def rounds(*seconds: float) -> list[dict]:
        return [{"4": {"reading": s, "writing": 2 * s, "written": 8, "peak": 10**9}} for s in seconds]

    results = {
        "bf16": {"rounds": rounds(4, 2, 3), "beside": rounds(4, 2, 3)},
        "aoq int4": {"rounds": rounds(2, 1, 1), "beside": rounds(4, 2, 3)},
        "vLLM W4A16": {"rounds": [], "beside": rounds(4, 2, 3), "why": "no kernel"},
    }
    settings = {"requests": [4], "prompt": 16, "steps": 2, "group_size": 64, "eager": False}
    report = {"machine": "a machine", "models": {"m": {"settings": settings, "results": results}}}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{throughput.BEGIN}old\n{throughput.END}after\n")
    throughput.write(report, tmp_path / "figures.json", page)
    text = page.read_text()
    assert json.loads((tmp_path / "figures.json").read_text()) == report
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| bf16 | 21.3 | 1.3 | 1,000 |" in text
    assert "| **aoq int4** | 64.0 (2.00x) | 4.0 (2.00x) | 1,000 |" in text
    assert "| vLLM W4A16 | did not run: no kernel |" in text


def test_a_contender_that_there_is_not(throughput: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        throughput.parse(["--only", "int5"])
    assert "--only: expected part of one of bf16, aoq int4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('print(\'{"status": "failed", "why": "no kernel"}\')', "no kernel"),
        ("import sys; sys.exit('no memory')", "exit code 1: no memory; .*its.log has its log"),
        ("import time; time.sleep(1000)", "no answer within 2 s; .*its.log has its log"),
    ],
)
def test_a_contender_that_goes_wrong(
    tmp_path: Path, throughput: ModuleType, monkeypatch: pytest.MonkeyPatch, body: str, why: str
) -> None:
    script = tmp_path / "contender.py"
    script.write_text(body)
    monkeypatch.setattr(throughput, "__file__", str(script))
    process = throughput.Process({"contender": "bf16"}, tmp_path / "its.log")
    try:
        with pytest.raises(throughput.Failed, match=why):
            process.ask(2 if "sleep" in body else 60)
    finally:
        process.close()
