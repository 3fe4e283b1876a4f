"""benchmarks/cuda.py: all but the GPU's clock, on the CPU."""

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from aoq import _C
from aoq.bench import device, measure, report
from aoq.bench.contender import Rows
from aoq.bench.contenders import FILES, contenders_in
from aoq.bench.contenders.aoq import arguments
from aoq.bench.device import DeviceMeasurement, DeviceSettings, Step
from aoq.bench.device_stand import REGIMES, DeviceStand

OPS = [op for op in device.ops() if op not in measure.QUANTIZERS]
FAULTY = Path(__file__).with_name("faulty.py")
CUDA = Path(__file__).parents[2] / "benchmarks/cuda.py"


def entries(*files, options=(), only=()):
    """Contenders of a GPU, that run on the CPU here."""
    return device.entries(measure.entries(sys.executable, files=files or FILES), only, options)


def on_cpu(todo, **fields):
    return DeviceSettings(todo, **{"rounds": 3, "device": "cpu", "cold_bytes": 100_000, **fields})


def test_what_matters_comes_first():
    steps = device.steps(device.ops())
    first = {step.op for step in steps[: len(OPS)]}
    assert first == set(OPS) and all((step.n, step.k) == (8192, 8192) for step in steps[: len(OPS)])
    every = [(step.op, step.n, step.k, m) for step in steps for m in step.rows]
    assert len(set(every)) == len(every), "nothing is measured twice"
    matmuls = len(OPS) * len(device.SHAPES) * len(device.ROWS)
    assert len(every) == matmuls + len(measure.QUANTIZERS) * len(device.QUANTIZER_ROWS)
    assert {(op, m) for op, n, k, m in every if op == "int4_mm"} == {("int4_mm", m) for m in device.ROWS}
    assert {"int4_mm", "int8_int4_mm", "int8_mm", "fp8_mm", "fp8_mm tensor"} <= set(OPS)


def test_steps_are_what_is_asked_for():
    steps = device.steps(["fp8_mm"], [(16, 32)], [1, 1024])
    assert steps == [Step("fp8_mm", 16, 32, (1024,)), Step("fp8_mm", 16, 32, (1,))]
    assert {step.op for step in device.steps(["int8_quantize"])} == {"int8_quantize"}


def test_turns_alternate():
    assert list(device.alternating(3, 2)) == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    turns = list(device.alternating(4, 5))
    assert all(sum(i == contender for _, i in turns) == 5 for contender in range(4))


def test_every_op_has_contenders():
    found = entries(options=[{"config": 3}, {"pdl": False}])
    names = [entry.name for entry in found]
    assert len(set(names)) == len(names)
    ours = {entry.cls.op for entry in found if entry.ours and not entry.options and not entry.cls.part}
    assert ours == set(device.ops())
    assert "aoq int4, config 3" in names and "aoq fp8 tensor, pdl False" in names and "aoq int8_quantize" in names
    assert sum("mslk" in name for name in names) == 6
    assert {entry.name for entry in entries(only=["mslk", "bf16"]) if not entry.ours} == {
        "torch bf16",
        *(name for name in names if "mslk" in name),
    }
    assert all(entry.ours for entry in entries(only=["none"]))


@pytest.fixture(scope="module")
def stand():
    """Ours and bf16, in this process."""
    every = [entry for entry in entries(options=[{"pdl": False}]) if entry.ours or entry.name == "torch bf16"]
    where = {entry.name: [str(entry.file), entry.cls.__name__, entry.options] for entry in every}
    return DeviceStand(1, "cpu", 100_000, where), every


@pytest.mark.parametrize("op", device.ops())
def test_ours_are_right_on_every_op(stand, op):
    """The operands, the exact weights and what is allowed, with the CPU's kernels."""
    served, every = stand
    n = 0 if op in measure.QUANTIZERS else 80
    found = [entry for entry in every if entry.cls.op == op or (n and entry.cls.op == measure.BASELINE)]
    assert len(found) >= 1 + (n > 0)
    for entry in found:
        answer = served.check(entry.name, n, 256, 64, 5)
        assert 0 <= answer["wrongness"] <= 1, (entry.name, answer)
        for regime in REGIMES:
            assert 0 < served.turn(entry.name, n, 256, 64, 5, regime)["seconds"] < 1
        if n and entry.cls.op == op and not entry.cls.part:
            assert answer["bytes"] * answer["copies"] > 100_000, "more than caches hold"
            weights = served.weights[entry.name]
            assert len({w.qdata.data_ptr() for w in weights}) == answer["copies"]
            served.check(entry.name, n, 256, 64, 2)
            assert served.weights[entry.name] is weights, "made once"


def test_the_check_sees_what_is_wrong(stand):
    served, _ = stand
    served.check("aoq int8_quantize", 0, 64, 64, 5)
    contender = served.found["aoq int8_quantize"]
    multiply = contender.multiply
    contender.multiply = lambda *args: (multiply(*args)[0] // 2, *multiply(*args)[1:])
    try:
        assert served.check("aoq int8_quantize", 0, 64, 64, 5)["wrongness"] > 1
    finally:
        del contender.multiply


def test_a_figure_without_pdl(stand, monkeypatch):
    """Off for these calls alone: contenders take turns in one process."""
    said = []
    monkeypatch.setattr(_C, "set_pdl", said.append)
    served, _ = stand
    served.check("aoq int4, pdl False", 80, 256, 64, 2)
    assert set(said) == {"0", ""} and said[-1] == ""
    served.check("aoq int4", 80, 256, 64, 2)
    assert said[-1] == "" and len(said) == 2


def test_arguments_are_those_of_the_schema(stand):
    served, _ = stand
    served.check("aoq int8-int4", 80, 256, 64, 2)
    contender, (w, *_) = served.found["aoq int8-int4"], served.weights["aoq int8-int4"]
    assert [type(part).__name__ for part in arguments(contender.call, w)[-2:]] == ["int", "int"]


def test_quantizers_are_judged_by_what_they_read():
    rows = Rows(3, 32)
    assert rows.exact("int8_quantize", slice(None)).equal(rows.x.double())
    assert rows.exact("silu_mul_quantize", slice(1)).shape == (1, 32)


def test_who_is_wrong_crashes_or_hangs_is_left_out_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr(device, "HANG", 10.0)
    every = [dataclasses.replace(entry) for entry in measure.entries(sys.executable, files=[FAULTY])]
    written = []
    settings = on_cpu([Step("int4_mm", 48, 64, (1, 3))], group_size=32)
    measurement = DeviceMeasurement(settings, every, written=lambda: written.append(len(measurement.report.cases)))
    found = json.loads(json.dumps(measurement.run().json()))
    assert written == [0, 2, 4] and not measurement.left
    assert [(case["m"], case["regime"]) for case in found["cases"]] == [(m, r) for m in (1, 3) for r in REGIMES]
    results = [{result["contender"]: result for result in case["results"]} for case in found["cases"]]
    for case in results:
        assert len(case["good"]["seconds"]) == len(case["right"]["seconds"]) == 3
        assert case["wrong"]["status"] == "wrong" and "times what is allowed" in case["wrong"]["why"]
    assert results[0]["crashes"]["status"] == "ok"
    assert results[2]["crashes"]["status"] == "crashed" and "SIGABRT: about to crash" in results[2]["crashes"]["why"]
    assert results[0]["hangs"]["status"] == "hung" and "hangs" not in results[2]
    about = {contender["name"]: contender for contender in found["contenders"]}
    assert about["missing"]["status"] == "missing" and "missing" not in results[0]
    best = report.figures(found, found["cases"][0])["good"]
    assert best.vs_plain.median > 0 and best.of_limit.median > 0


def test_who_is_slow_to_get_ready_is_left_out(monkeypatch):
    monkeypatch.setattr(device, "PATIENCE", 0.0)
    every = [entry for entry in measure.entries(sys.executable, files=[FAULTY]) if entry.name in ("right", "good")]
    found = DeviceMeasurement(on_cpu([Step("int4_mm", 48, 64, (1, 3))], group_size=32), every).run()
    late = [{result["contender"]: result for result in case["results"]} for case in found.cases[2:]]
    assert all(case["good"]["status"] == "late" and "to get ready" in case["good"]["why"] for case in late)


def test_files_are_written_as_figures_come(tmp_path, monkeypatch, capsys):
    """The command line, the order, the files, and where the time is up what was not reached."""
    spec = importlib.util.spec_from_file_location("benchmarks_cuda", CUDA)
    cuda = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cuda)
    monkeypatch.setattr(device, "DeviceSettings", lambda todo, rounds, minutes: on_cpu(todo, rounds=2, minutes=minutes))
    monkeypatch.setattr(device, "run", run_on_cpu := capture(device.run))
    options = ["--ops", "int4_mm", "int8_quantize", "--shapes", "80x256", "--m", "1", "--only", "none"]
    monkeypatch.setattr(sys, "argv", ["cuda.py", *options, "--out", str(tmp_path), "--minutes", "0"])
    cuda.main()
    settings, every, out = run_on_cpu.arguments
    assert capsys.readouterr().out.startswith("7 cases not reached") and settings.minutes == 0 and out == tmp_path
    assert json.loads((tmp_path / "cuda.json").read_text())["cases"] == []
    short = on_cpu([Step("int4_mm", 80, 256, (1,)), Step("int8_quantize", 0, 256, (4,))], rounds=2)
    session = device.run(short, [entry for entry in every if entry.cls.op in ("int4_mm", "int8_quantize")], tmp_path)
    assert not session.left
    text = capsys.readouterr().out
    assert "int4_mm 80x256, group 128 m=1    steady   aoq int4" in text and "isolated aoq int4" in text
    assert "0 cases not reached" in text
    written = json.loads((tmp_path / "cuda.json").read_text())
    assert [case["op"] for case in written["cases"]] == ["int4_mm"] * 2 + ["int8_quantize"] * 2
    page = " ".join((tmp_path / "cuda.md").read_text().split())  # titles of narrow tables take two lines
    assert "int4_mm 80x256, group 128, steady, ms" in page and "int8_quantize rows of 256, isolated, ms" in page
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"


def capture(function):
    def called(*arguments):
        called.arguments = arguments
        return function(*arguments)

    return called


def test_limits_of_a_gpu():
    case = {"n": 8192, "k": 8192, "group_size": 128, "m": 4096, "limits": [{"bandwidth": 4e12, "peaks": {}}]}
    whole = {"instructions": {"bf16": "bf16", "fp8": "fp8"}}
    case["limits"][0]["peaks"] = {"bf16": 800e12, "fp8": 1600e12}
    assert report.limit(whole, "int4_mm", case) == [2 * 4096 * 8192**2 / 800e12]
    assert report.limit(whole, "fp8_mm tensor", case) == [2 * 4096 * 8192**2 / 1600e12]
    assert report.limit(whole, "int8_mm", case) == [2 * 4096 * 8192**2 / 800e12], "a peak that there is"
    rows = {**case, "n": 0, "k": 4096, "m": 8192}
    assert report.limit(whole, "rmsnorm_quantize", rows) == [7 * 4096 * 8192 / 4e12]
    assert math.isinf(report.peak("int8_quantize", case["limits"][0], whole["instructions"]))


def test_gpu_contenders_need_torch_alone_to_be_listed():
    names = [cls.name for file in FILES for cls in contenders_in(file).values()]
    assert len(set(names)) == len(names)
