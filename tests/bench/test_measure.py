"""What measuring does with contenders that are right, wrong, missing, crash or hang."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aoq.bench import device, measure
from aoq.bench.contender import Problem, cold_copies, some_of, wrongness
from aoq.bench.contenders import FILES, contenders_in
from aoq.bench.measure import Measurement, Settings, entries

FAULTY = Path(__file__).with_name("faulty.py")
SETTINGS = Settings(shapes=[(48, 64), (32, 128)], m=[1, 3], group_size=32, threads=1, rounds=3, seconds=1e-3)


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "TURN_SECONDS", 3.0)
        patch.setattr(measure.machine, "cold_bytes", lambda: 1_000_000)
        measurement = Measurement(SETTINGS, entries(sys.executable, files=[FAULTY]))
        found = measurement.run().json()
    assert all(worker.process.returncode is not None for worker in measurement.workers.values())
    return json.loads(json.dumps(found))


def results(report, contender):
    return [result for case in report["cases"] for result in case["results"] if result["contender"] == contender]


def test_every_case_has_its_limits(report):
    assert [(case["n"], case["k"], case["m"]) for case in report["cases"]] == [
        (48, 64, 1),
        (48, 64, 3),
        (32, 128, 1),
        (32, 128, 3),
    ]
    for case in report["cases"]:
        assert len(case["limits"]) == SETTINGS.rounds
        for limits in case["limits"]:
            assert limits["bandwidth"] > 0
            assert limits["peaks"].keys() == report["instructions"].keys()


@pytest.mark.parametrize("contender", ("right", "good"))
def test_a_right_contender_is_timed(report, contender):
    found = results(report, contender)
    assert len(found) == 4
    for result in found:
        assert result["status"] == "ok"
        assert result["wrongness"] <= 1
        assert len(result["seconds"]) == len(result["calls"]) == len(result["quiet"]) == SETTINGS.rounds
        assert all(1e-7 < seconds < 1 for seconds in result["seconds"])
        assert all(0 <= quiet <= calls for quiet, calls in zip(result["quiet"], result["calls"], strict=True))
        assert result["copies"] * result["bytes"] > 1_000_000 or result["copies"] == 1024


@pytest.mark.parametrize("contender", ("wrong", "not a number"))
def test_a_wrong_contender_is_not_timed(report, contender):
    found = results(report, contender)
    assert len(found) == 4
    for result in found:
        assert result["status"] == "wrong"
        assert "seconds" not in result
        assert "times what its roundings allow" in result["why"]


def test_a_crash_is_reported_and_the_rest_goes_on(report):
    first, second = results(report, "crashes")[:2]
    assert first["status"] == "ok" and len(first["seconds"]) == SETTINGS.rounds
    assert second["status"] == "crashed"
    assert second["why"] == "SIGABRT: about to crash"
    (about,) = (contender for contender in report["contenders"] if contender["name"] == "crashes")
    assert about["status"] == "crashed"


def test_a_hang_is_reported(report):
    assert results(report, "hangs")[0]["status"] == "hung"
    assert results(report, "hangs")[0]["why"] == "no answer within 3 s"


def test_what_is_missing_or_cannot_is_reported(report):
    about = {contender["name"]: contender for contender in report["contenders"]}
    assert about["missing"]["status"] == "missing"
    assert about["missing"]["why"] == "no such peer"
    assert not results(report, "missing")
    small, large = results(report, "cannot do this")[0], results(report, "cannot do this")[2]
    assert (small["status"], small["why"]) == ("unsupported", "k = 64 is too small")
    assert large["status"] == "ok"
    assert results(report, "raises")[0]["why"] == "KeyError: 'nothing there'"
    assert about["good"]["version"] == about["good"]["torch"] == torch.__version__


def test_what_was_measured_survives_an_interrupt(monkeypatch):
    monkeypatch.setattr(measure.machine, "cold_bytes", lambda: 1_000_000)
    steps = []

    def progress(text, done, total):
        steps.append((done, total))
        if "m = 3, round 2" in text:
            raise KeyboardInterrupt

    chosen = [entry for entry in entries(sys.executable, files=[FAULTY]) if entry.name in ("right", "good")]
    measurement = Measurement(SETTINGS, chosen, progress)
    with pytest.raises(KeyboardInterrupt):
        measurement.run()
    cases = measurement.report.json()["cases"]
    assert [len(case["limits"]) for case in cases] == [3, 1]
    assert all(worker.process.returncode is not None for worker in measurement.workers.values())
    assert all(0 <= done <= total for done, total in steps) and steps[-1][0] > steps[0][0]


def test_aoqs_contenders_come_first_and_under_forced_isas():
    found = entries("python", {"torch": "/other/python"}, ["avx2"])
    ours = [entry.name for entry in found if entry.ours]
    assert [entry.name for entry in found[: len(ours)]] == ours
    assert {"aoq int4", "aoq int4, avx2 only"} <= set(ours)
    assert {entry.python for entry in found if entry.file.stem == "torch"} == {"/other/python"}
    assert {entry.python for entry in found if entry.file.stem != "torch"} == {"python"}
    with pytest.raises(ValueError, match=r"--python: expected one of .*torch.*, got tensorflow"):
        entries("python", {"tensorflow": "python"})


def test_workers_need_torch_and_their_peer_only():
    """They may run where aoq, and what it needs, is not installed."""
    code = "import importlib.util, sys; from aoq.bench.worker import BOOT; print(BOOT)"
    boot = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    forbid = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("aoq", "rich", "typer", "safetensors", "matplotlib"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Forbid())
"""
    arguments = {"threads": 1, "library": str(measure.LIBRARY), "cold_bytes": 1000, "contender": "AtenInt4"}
    (file,) = (file for file in FILES if file.stem == "torch")
    command = [sys.executable, "-W", "ignore", "-c", forbid + boot, str(Path(measure.__file__).parent), "stand"]
    run = subprocess.run(
        [*command, json.dumps({**arguments, "file": str(file)})],
        input='{"do": "prepare", "n": 64, "k": 64, "group_size": 32}\n{"do": "check", "m": 3}\n',
        capture_output=True,
        text=True,
    )
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert [answer["status"] for answer in answers] == ["ok"] * 3, run.stderr + run.stdout
    assert answers[-1]["wrongness"] <= 1


# ---- what is right


def test_every_contender_has_its_class_variables():
    names = []
    for file in FILES:
        for cls in contenders_in(file).values():
            assert (cls.op in (*device.ops(), measure.BASELINE) and cls.matmuls) or cls.models
            assert isinstance(cls.package, str)
            names.append(cls.name)
    assert len(set(names)) == len(names)
    assert {"aoq int4", "aoq int8-int4", "aoq int8", "torch bf16", "ATen int4"} <= set(names)


@pytest.mark.parametrize("stem", ("aoq", "torch"))
@pytest.mark.parametrize("shape", ((48, 64, 32), (80, 128, 128)))
def test_contenders_are_right(stem, shape):
    (file,) = (file for file in FILES if file.stem == stem)
    problem = Problem(*shape)
    for cls in contenders_in(file).values():
        if not cls.is_for("cpu"):
            continue
        contender = cls(1)
        weight = contender.weight(problem)
        exact = contender.exact(problem, weight, slice(None))
        copy = contender.another(weight)
        assert exact.shape == shape[:2]
        for m in (1, 17):
            x = problem.x(m)
            for w in (weight, copy):
                assert (
                    wrongness(contender, x, exact, contender.output(contender.multiply(contender.prepare(x), w))) <= 1
                )
            # The check would see one wrong group, one code wrong by one, and one wrong output.
            out = contender.output(contender.multiply(contender.prepare(x), weight))
            assert wrongness(contender, x, exact.clone().fill_(0), out) > 1
            moved = exact.clone()
            moved[3, : shape[2]] = 0
            assert wrongness(contender, x, moved, out) > 1
            out[-1, -1] += 0.2
            assert wrongness(contender, x, exact, out) > 1


def test_wrongness_is_exact_for_exact_arithmetic():
    (file,) = (file for file in FILES if file.stem == "torch")
    contender = contenders_in(file)["TorchBf16"](1)
    x = torch.randn(3, 64).bfloat16()
    exact = torch.randn(5, 64).bfloat16()
    product = x.double() @ exact.double().t()
    assert wrongness(contender, x, exact, product) == 0
    assert wrongness(contender, x, exact, product.bfloat16()) <= 1
    assert wrongness(contender, x, exact, product * (1 + 2**-6)) > 1
    assert wrongness(contender, x, exact, product.bfloat16().fill_(math.inf)) == math.inf


def test_problems_are_exact_and_repeatable():
    problem = Problem(24, 96, 32)
    codes, scale = problem.int4
    assert int(codes.min()) == 0 and int(codes.max()) == 15
    exact = problem.exact("int4").double()
    assert torch.equal(exact, (codes.double() - 8) * scale.double().repeat_interleave(32, 1))
    assert (exact - problem.w.double()).abs().max() <= 0.51 * scale.float().max()
    codes, scale = problem.int8
    assert torch.equal(problem.exact("int8").double(), codes.double() * scale.double())
    some = torch.tensor([3, 1])
    assert all(torch.equal(problem.exact(form, some), problem.exact(form)[some]) for form in problem.FORMS)
    w = problem.w
    problem.forget()
    assert torch.equal(problem.w, w) and problem.w is not w
    assert torch.equal(problem.x(5), Problem(24, 96, 32).x(5))


def test_copies_fill_more_than_the_caches():
    assert cold_copies(8_000_000, 300_000_000) == 38
    assert cold_copies(400_000_000, 300_000_000) == 1
    assert cold_copies(10, 300_000_000) == 1024
    assert some_of(5, 64).tolist() == [0, 1, 2, 3, 4]
    some = some_of(1000, 64).tolist()
    assert len(set(some)) == 64 and some == sorted(some) and some[0] == 0 and some[-1] == 999
