"""compute-sanitizer finds nothing in any op: no access out of bounds, no race, no uninitialised read that is used."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from operands import ROWS

CODE = """
import sys
sys.path.insert(0, {folder!r})
import torch
from operands import has_rows, run, runs
from aoq import _C
_C.set_sm({sm!r})
for op in _C.ops():
    if runs(op) and (has_rows(op) or {m} == 5):
        run(op, m={m})
        torch.cuda.synchronize()
        print("ran", op, _C.last_kernel(), flush=True)
print("ran all")
"""


@pytest.mark.parametrize("m", ROWS, ids=lambda m: f"m{m}")
@pytest.mark.parametrize("tool", ("memcheck", "racecheck"))
def test_clean(sm, tool, m):
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    code = CODE.format(folder=str(Path(__file__).parent), sm=sm, m=m)
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this device")
    assert done.returncode == 0 and "ran all" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
