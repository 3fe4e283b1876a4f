"""scripts/show.py, behind which `make` runs what takes long, and what `make` builds where."""

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOW = ROOT / "scripts" / "show.py"


def on_a_terminal(*command: str) -> tuple[int, str]:
    """The exit status of a command, and everything that it shows on a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=subprocess.DEVNULL)
    os.close(slave)
    shown = b""
    while select.select([master], [], [], 60)[0]:
        try:
            shown += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    os.close(master)
    return process.wait(60), shown.decode()


SLOW = "import time; print('[1/2] x'); print('[3/40] Building', flush=True); time.sleep(1); print('[40/40] Linking')"


def test_a_line_moves_and_counts() -> None:
    status, shown = on_a_terminal(sys.executable, str(SHOW), "Compiling", sys.executable, "-c", SLOW)
    assert status == 0
    moments = [text for text in re.split(r"\r\x1b\[K", shown) if "3 of 40" in text]
    assert len(set(moments)) >= 3  # the spinner turns, the seconds pass
    assert "Building" not in shown and "1 of 2" not in shown
    assert re.search(r"Compiling: done in \d+ s\r\n$", shown)


def test_output_is_shown_when_it_fails() -> None:
    code = "import sys; print('what went wrong'); sys.exit(3)"
    status, shown = on_a_terminal(sys.executable, str(SHOW), "Compiling", sys.executable, "-c", code)
    assert status == 3
    assert "Compiling: failed" in shown and "what went wrong" in shown


def test_elsewhere_everything_is_shown() -> None:
    command = [sys.executable, SHOW, "Compiling", sys.executable, "-c", SLOW]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Compiling: ")
    assert done.stdout.splitlines()[1:] == ["[1/2] x", "[3/40] Building", "[40/40] Linking"]


@pytest.mark.parametrize(
    ("target", "cuda"), [("build/.installed-cpu", "OFF"), ("build/.installed", "AUTO"), ("wheel", "AUTO")]
)
def test_what_is_built(target: str, cuda: str) -> None:
    plan = subprocess.run(
        ["make", "--always-make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"AOQ_CUDA=(\w+)", plan) == [cuda]
    assert ("cutlass" in plan) == (cuda == "AUTO")  # headers that only nvcc reads
    # One build directory: what the demo has compiled is not compiled again.
    assert "build-dir=build/cmake-wheel" in plan
