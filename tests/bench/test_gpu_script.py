"""scripts/gpu.py: how it shares out its time, which needs no GPU."""

import importlib.util
import os
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
    assert all((FILE.parents[1] / "tests/gpu" / f"{stem}.py").exists() for stem in gpu.TEST_ORDER)
