"""scripts/gpu.py: its time, its order and what it keeps of what fails, which need no GPU."""

import collections
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "scripts/gpu.py"
spec = importlib.util.spec_from_file_location("scripts_gpu", FILE)
gpu = sys.modules["scripts_gpu"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


def test_each_stage_has_a_share_and_the_last_takes_what_is_left():
    shares = gpu.budgets(["tests", "ops", "models"], 500)
    assert sum(shares.values()) == pytest.approx(500) and all(seconds > 60 for seconds in shares.values())
    assert gpu.budgets(["ops"], 500) == {"ops": 500}


def test_what_takes_too_long_is_interrupted_and_keeps_what_it_had(tmp_path):
    file = tmp_path / "partial"
    code = f"""
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    open({str(file)!r}, "w").write("what there is")
"""
    begun = time.monotonic()
    assert gpu.run([sys.executable, "-c", code], os.environ, 2) is None
    assert time.monotonic() - begun < 30 and file.read_text() == "what there is"
    assert gpu.run([sys.executable, "-c", "raise SystemExit(3)"], os.environ, 60) == 3


def test_what_does_not_heed_it_is_killed():
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    begun = time.monotonic()
    assert gpu.run([sys.executable, "-c", code], os.environ, 2, grace=0.5) is None
    assert time.monotonic() - begun < 30


def test_the_order_of_tests_names_files():
    folder = FILE.parents[1] / "tests/gpu"
    assert sorted([*gpu.stems_in_order(), gpu.SANITIZER]) == sorted(file.stem for file in folder.glob("test_*.py"))


def test_the_plainest_kernels_come_first_and_block():
    names = [one.name for one in gpu.PASSES]
    assert names[:4] == ["sm80", "sm89", "sm90a", "sm90a-pdl"]
    blocking = {"CUDA_LAUNCH_BLOCKING": "1", "AOQ_PDL": "0"}
    assert [dict(one.environment) for one in gpu.PASSES[:3]] == [blocking] * 3
    assert all(not one.environment for one in gpu.PASSES[3:]) and "models" not in gpu.DEFAULT


# Prints the tests of tests/gpu and which ask for launches that do not block, where there is no hypothesis, which
# tests/conftest.py asks for and a machine with a GPU may not have.
COLLECT = """
import sys
import pytest
sys.modules["hypothesis"] = None
class Collected:
    def pytest_collection_finish(self, session):
        for item in session.items:
            print("::" + item.nodeid, item.get_closest_marker("queued") is not None)
sys.exit(pytest.main(sys.argv[1:], plugins=[Collected()]))
"""


@pytest.fixture(scope="module")
def collected():
    options = [*gpu.pytest_command(gpu.SANITIZER, "", "")[3:-1], "--collect-only", "tests/gpu"]
    command = [sys.executable, "-c", COLLECT, *options]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # hypothesis has a plugin
    done = subprocess.run(command, cwd=FILE.parents[1], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [line[2:].rsplit(" ", 1) for line in done.stdout.splitlines() if line.startswith("::")]
    return {name: queued == "True" for name, queued in lines}


def selected(collected, one):
    """What pytest selects for a pass, as its -k and -m do of expressions as plain as these."""

    def holds(expression, has):
        words = {word for word in expression.split() if word not in ("and", "or", "not")}
        return not expression or eval(expression, {}, {word: has(word) for word in words})

    return {
        name
        for name, queued in collected.items()
        if holds(one.names, lambda word, name=name: word in name)
        and holds(one.marks, lambda word, queued=queued: queued and word == "queued")
    }


def test_every_test_is_in_a_pass(collected):
    """And in one alone, but for those of Hopper: these run without PDL, then with it."""
    passes = {one.name: selected(collected, one) for one in gpu.PASSES}
    counts = collections.Counter(test for tests in passes.values() for test in tests)
    assert counts.keys() == collected.keys() and len(collected) > 500
    assert {test for test, count in counts.items() if count > 1} == passes["sm90a"] & passes["sm90a-pdl"] != set()
    assert any("test_awkward_shapes" in test for test in passes["sm80"])
    assert not any("test_graph_capture" in test for name in ("sm80", "sm89", "sm90a") for test in passes[name])


def test_a_file_that_fails_or_hangs_loses_itself_alone(tmp_path, capsys):
    sources = {
        "right": "def test_it(): pass",
        "wrong": "def test_it(): assert False, 'what is wrong'\ndef test_later(): pass",
        "crashes": "import os\ndef test_that_crashes(): os.abort()",
        "empty": "",
        "last": "def test_it(): pass",
    }
    for name, source in sources.items():
        (tmp_path / f"test_{name}.py").write_text(source)
    command = [sys.executable, *gpu.PYTEST, "--rootdir", str(tmp_path)]
    todo = [(name, [*command, str(tmp_path / f"test_{name}.py")], dict(os.environ), 200) for name in sources]
    # As pytest -v begins a test: its own start takes longer than a limit for a test may be.
    hangs = "import time; print('test_x.py::test_that_hangs ', flush=True); time.sleep(60)"
    todo.insert(2, ("hangs", [sys.executable, "-c", hangs], dict(os.environ), 10))
    found = gpu.run_files(iter(todo), 900, tmp_path)
    assert not found["passed"] and set(found["failures"]) == {"wrong", "hangs", "crashes"}
    assert "test_that_hangs" in found["failures"]["hangs"] and "not done after 10 s" in found["failures"]["hangs"]
    assert "test_that_crashes" in found["failures"]["crashes"]
    assert found["failures"]["wrong"].startswith("exit 1")
    assert "what is wrong" in capsys.readouterr().out and (tmp_path / "last.log").exists()
    assert gpu.run_files(iter([("late", command, {}, 20)]), 1, tmp_path)["not_reached"] == ["late"]


def test_the_probes_names_are_its_families():
    listed = subprocess.run([sys.executable, "tests/gpu/probe.py"], cwd=FILE.parents[1], capture_output=True, text=True)
    names = listed.stdout.split()
    assert names[:2] == ["device", "clusters"] and set(gpu.PROFILED) <= set(names)
