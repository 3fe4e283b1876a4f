"""`aoq bench` from a shell."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aoq.bench import command, measure
from aoq.bench.contenders import contenders_in
from aoq.cli import app
from aoq.tensors.formats import ways
from widths import OTHERS, representative

ENVIRONMENT = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "2"}


def run(*args):
    return CliRunner(env=ENVIRONMENT).invoke(app, ["bench", *map(str, args)])


def test_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(measure.machine, "cold_bytes", lambda: 2_000_000)
    file = tmp_path / "deep" / "bench.json"
    options = ["--shapes", "64x128,32x64", "--m", "1,5", "--rounds", 3, "--seconds", 0.001, "--group-size", 64]
    chosen = [way for way in ways() if way.command in representative()]
    options += [option for way in chosen for option in ("--op", way.op)]
    result = run(*options, "--only", "aoq", "--only", "aten", "--json", file, "--plot", file.with_suffix(".png"))
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert report["schema"] == 1
    assert set(report) == {
        "schema", "machine", "settings", "measured", "instructions", "contenders", "cases", "models",
    }  # fmt: skip
    for key in ("cpu", "flags", "cores", "threads", "caches", "memory", "system", "scheduling", "torch", "aoq"):
        assert report["machine"][key]
    assert report["machine"]["aoq"].keys() >= {"version", "isa", "isas", "compiler"}
    names = [contender["name"] for contender in report["contenders"]]
    ops = {way.op for way in chosen}
    ours = [f"aoq {way.command.replace('-weight', ' weight')}" for way in ways() if way.op in ops]
    assert {"aoq int4", "aoq int8-int4", "aoq int8 weight"} <= set(ours)
    assert names == [*ours, "torch bf16", "torch fp32", "ATen int4", "ATen int8 weight"]
    assert len(report["cases"]) == 4
    for case in report["cases"]:
        for found in case["results"]:
            if found["contender"].startswith("ATen") and found["status"] == "unsupported":
                continue  # it cannot do every shape
            assert found["status"] == "ok", found
            assert len(found["seconds"]) == 3
    for shape in ("64x128", "32x64"):
        assert (file.parent / f"bench-{shape}.png").read_bytes().startswith(b"\x89PNG")
    for text in ("int4_mm 64x128, group 64", "int8_mm 32x64", "fp8_mm 32x64", "against", "aoq 0."):
        assert text in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, number):
    file = tmp_path / "bench.json"
    arguments = ["--shapes", "64x128", "--m", "1,2,3,4,5,6,7,8", "--rounds", "50", "--op", "int8_mm", "--only", "aoq"]
    arguments += ["--json", file]
    code = """
import sys
from aoq.bench.measure import Measurement, machine
from aoq.cli import main
machine.cold_bytes = lambda: 10**6
round = Measurement.round
Measurement.round = lambda *args: (round(*args), print("a round", file=sys.stderr, flush=True))
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "bench", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr.readline() == "a round\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "these are the figures so far" in stderr and "Traceback" not in stderr
    assert json.loads(file.read_text())["cases"][0]["limits"]
    assert "int8_mm 64x128" in stdout


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--shapes", "4096"], "--shapes: expected NxK,... such as 4096x4096, got '4096'"),
        (["--shapes", "0x4"], "--shapes"),
        (["--m", "1,x"], "--m: expected positive numbers such as 1,4,16, got '1,x'"),
        (
            ["--op", "int9_mm"],
            f"--op: expected one of {', '.join(dict.fromkeys(way.op for way in ways()))}, got int9_mm",
        ),
        (["--only", "tensorflow"], "--only: expected part of one of aoq int"),
        (["--model", "/no/such/model"], "--model: /no/such/model has no config.json"),
        (["--random-model", "gpt-9"], "--random-model: expected one of smollm2-135m"),
        (["--json", "/proc/none/bench.json"], "/proc/none"),
        (["--plot", "/proc/none/bench.png"], "/proc/none"),
        (["--json", "/"], "Is a directory: '/'"),
        (["--contenders", "/no/such.py"], "--contenders: no such file: /no/such.py"),
        (["--contenders", __file__], "has no class with a name and an op"),
        (["--plot", "roofline.xyz"], "--plot: expected a file name that ends in .png"),
        (["--python", "torch"], "--python: expected PEER=PYTHON"),
        (["--python", "torch=/no/such/python"], "--python: expected PEER=PYTHON"),
        (["--python", f"tensorflow={sys.executable}"], "--python: expected one of aoq"),
    ],
)
def test_errors(options, text):
    result = run(*options)
    assert result.exit_code == 1
    assert text in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_contenders_of_ones_own(tmp_path, monkeypatch):
    """The variants in benchmarks: right, and of the kind that their names say."""
    monkeypatch.setattr(measure.machine, "cold_bytes", lambda: 2_000_000)
    variants = Path(__file__).parents[2] / "benchmarks" / "int4_variants.py"
    names = [cls.name for cls in contenders_in(variants).values()]
    file = tmp_path / "bench.json"
    options = ["--shapes", "64x128", "--m", "1,5", "--rounds", 2, "--seconds", 0.001, "--group-size", 64]
    only = [option for name in ("aoq int4", "aoq int8-int4") for option in ("--only", name)]
    result = run("--contenders", variants, *options, *only, "--json", file)
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert {contender["name"] for contender in report["contenders"]} == {
        "aoq int4", "aoq int8-int4", "torch bf16", "torch fp32", *names,
    }  # fmt: skip
    for case in report["cases"]:
        assert [found["status"] for found in case["results"]] == ["ok"] * len(case["results"])
    bytes_of = {found["contender"]: found["bytes"] for found in report["cases"][0]["results"]}
    scales = 2 * 64 * 2  # two groups of 64, of 48 three
    assert bytes_of["aoq int4"] - bytes_of["aoq int4, no zero points"] == scales
    assert bytes_of["aoq int8-int4, zero points"] - bytes_of["aoq int8-int4"] == scales
    assert bytes_of["aoq int4, ragged groups"] - bytes_of["aoq int4"] == scales
    assert bytes_of["aoq int8-int4, ragged groups"] - bytes_of["aoq int8-int4"] == scales / 2


def test_what_may_be_written_is_left_as_it_was(tmp_path):
    command.check_writable(tmp_path / "new" / "bench.json")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "old.json").write_text("figures")
    command.check_writable(tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "figures"


def test_who_may_not_be_realtime_is_told(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(command.os, "sched_setscheduler", refuse)
    result = run("--realtime")
    assert (result.exit_code, result.stderr) == (1, "aoq: error: --realtime: only root may, or who has CAP_SYS_NICE\n")


def test_a_virtual_environment_stands_for_its_python(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert command.parse_pythons([f"vllm={tmp_path}"]) == {"vllm": str(tmp_path / "bin" / "python")}


def test_ops_without_peers_are_measured_when_asked_for():
    entries = [entry for entry in measure.entries(sys.executable) if entry.cls.is_for("cpu")]

    def names(*options):
        return {entry.name for entry in command.chosen(entries, *options)}

    assert {"aoq int4", "aoq int8", "torch bf16", "ATen int4"} <= names([], [])
    lone = next(way for way in ways() if way.command in OTHERS or way.command == "int3")
    assert f"aoq {lone.command}" not in names([], []) | names([], ["aoq"])
    alone = {f"aoq {lone.command}", "torch bf16", "torch fp32"}
    assert names([], [f"aoq {lone.command}"]) == alone
    assert names([lone.op], []) == alone | {f"aoq {lone.command}, int8 head"}
