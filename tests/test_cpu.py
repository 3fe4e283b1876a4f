from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from aoq import cpu
from aoq.cpu import auto_dtype, cpu_features, fast_bf16, say_choice

ZEN_2 = "fpu sse4_2 fma avx f16c avx2 bmi2"
CASCADE_LAKE = f"{ZEN_2} avx512f avx512bw avx512vl avx512dq avx512_vnni"


@pytest.mark.parametrize(
    ("features", "fast"),
    [
        (ZEN_2, False),
        (CASCADE_LAKE, False),
        (f"{CASCADE_LAKE} avx512_bf16", True),
        (f"{CASCADE_LAKE} avx512_fp16 amx_tile amx_bf16", True),
        (f"{ZEN_2} avx_vnni avx_ne_convert", True),
        ("fp asimd asimddp i8mm", False),
        ("fp asimd asimddp i8mm bf16", True),
        ("", True),  # nothing is known: nothing changes
    ],
)
def test_fast_bf16(features: str, fast: bool) -> None:
    assert fast_bf16(features.split()) == fast
    assert auto_dtype(torch.bfloat16, features.split()) is (torch.bfloat16 if fast else torch.float32)
    for dtype in (torch.float16, torch.float32):
        assert auto_dtype(dtype, features.split()) is dtype


@pytest.mark.parametrize("asked", [True, False])
def test_features_of_the_first_processor(asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: asked, raising=False)
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: {ZEN_2}\n\nprocessor\t: 1\nflags\t\t: {ZEN_2} amx_bf16\n")
    # What Linux does not list, oneDNN knows.
    assert cpu_features(file) == {*ZEN_2.split(), *(["avx_ne_convert"] if asked else [])}
    file.write_text(f"processor\t: 0\nflags\t\t: {CASCADE_LAKE}\n")
    assert cpu_features(file) == set(CASCADE_LAKE.split())  # oneDNN takes bf16 with AVX-512, but converts it
    file.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert {"asimd", "bf16"} <= cpu_features(file)
    assert cpu_features(tmp_path / "none") == frozenset()


def test_this_machine_is_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, dtype in ((ZEN_2, torch.float32), (f"{ZEN_2} avx512_bf16", torch.bfloat16)):
        monkeypatch.setattr(cpu, "cpu_features", lambda features=features: frozenset(features.split()))
        assert auto_dtype(torch.bfloat16) is dtype


def test_the_choice_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    say_choice.cache_clear()
    with caplog.at_level(logging.WARNING, "aoq"):
        for _ in range(2):
            say_choice(torch.float32, torch.bfloat16)
    (line,) = caplog.messages
    assert "no fast bfloat16" in line and "not quantized is float32" in line
