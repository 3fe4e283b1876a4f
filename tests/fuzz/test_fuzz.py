"""A few thousand of the calls that `make sanitize` makes 100,000 of."""

import subprocess
import sys
from pathlib import Path


def test_calls():
    command = [sys.executable, Path(__file__).with_name("fuzz_ops.py"), "--calls", "3000", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
