"""compute-sanitizer finds nothing in any op: no access out of bounds, no race, no uninitialised read that is used."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aoq import _C

CODE = """
import sys
sys.path.insert(0, {folder!r})
import torch
from operands import run, runs
from aoq import _C
_C.set_sm({sm!r})
for op in _C.ops():
    if runs(op):
        run(op)
torch.cuda.synchronize()
print("ran")
"""


@pytest.mark.parametrize("tool", ("memcheck", "racecheck"))
def test_clean(sm, tool):
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    code = CODE.format(folder=str(Path(__file__).parent), sm=sm)
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this device")
    assert done.returncode == 0 and "ran" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    assert _C.ops()
