"""Runs the benchmark in a process that may crash or hang, and again without whoever's turn it was.

A kernel that reads where it must not, or waits for ever, takes its process's device with it. So the process notes whose
turn it is in a file; what it had written stays.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HANG = 150.0  # seconds of a turn; compiling is part of a first one


class Notes:
    """DIR/doing.json: whose turn it is."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "doing.json"
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, op: str, contender: str) -> None:
        self.file.write_text(json.dumps([op, contender]))

    def read(self) -> tuple[str, str] | None:
        """Whose turn it is, or nothing before the first."""
        try:
            op, contender = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return None
        return op, contender

    def age(self) -> float:
        """Seconds since the turn began."""
        return time.time() - self.file.stat().st_mtime if self.file.exists() else 0.0

    def clear(self) -> None:
        self.file.unlink(missing_ok=True)


def supervise(
    folder: Path,
    command: Callable[[dict[tuple[str, str], str], float], Sequence[str]],
    seconds: float,
    hang: float = HANG,
    say: Callable[[str], None] = print,
) -> int:
    """The exit status of the last run.

    Args:
        command: of a run, given who is left out and why, and the seconds that are left.
    """
    end = time.monotonic() + seconds
    broken: dict[tuple[str, str], str] = {}
    notes = Notes(folder)
    while True:
        notes.clear()
        process = subprocess.Popen(list(command(broken, end - time.monotonic())), start_new_session=True)
        why = ""
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if notes.age() > hang:
                    why = f"hung for {hang:.0f} s"
                    break
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        code, turn = process.returncode, notes.read()
        notes.clear()
        if not why and code == 0:
            return 0
        why = why or f"crashed: {signal.Signals(-code).name if code < 0 else f'exit status {code}, an error above'}"
        if turn is None or turn in broken or time.monotonic() > end:
            return code or 1
        broken[turn] = why
        say(f"{', '.join(turn)}: {why}. On without it.")
