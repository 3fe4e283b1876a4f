"""Runs a command behind a line that moves: show.py TEXT COMMAND [ARGUMENT...], with the standard library alone.

On a terminal: what is done, how many of Ninja's steps if there are any, for how long; what the command says only if it
fails. Elsewhere, as in CI's log, what it says as it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

STEP = re.compile(rb"\[(\d+)/(\d+)\] ")
INTERVAL = 0.2  # seconds between two pictures of the line


class Output(threading.Thread):
    """Collects what a command says, and the steps that it counts."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.lines: list[bytes] = []
        self.steps = ""

    def run(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := STEP.match(line):
                done, total = map(int, found.groups())
                self.steps = f": {done} of {total}" if total > 2 else self.steps  # CMake's own are one or two


def show(text: str, command: Sequence[str], out: TextIO) -> int:
    """The command's exit status. `out` is a terminal."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    output = Output(process)
    output.start()
    try:
        while output.is_alive():
            spinner = "|/-\\"[int((time.monotonic() - begun) / INTERVAL) % 4]
            out.write(f"\r\x1b[K{spinner} {text}{output.steps}, {time.monotonic() - begun:.0f} s")
            out.flush()
            output.join(INTERVAL)
    except KeyboardInterrupt:  # the terminal has sent it to the command too
        process.wait()
        out.write("\n")
        return 130
    status = process.wait()
    out.write(f"\r\x1b[K{text}: {'done' if status == 0 else 'failed'} in {time.monotonic() - begun:.0f} s\n")
    if status:
        out.write(b"".join(output.lines).decode(errors="replace"))
    out.flush()
    return status


def main() -> None:
    text, *command = sys.argv[1:]
    if not sys.stdout.isatty():
        print(f"{text}: {' '.join(command)}", flush=True)
        os.execvp(command[0], command)
    sys.exit(show(text, command, sys.stdout))


if __name__ == "__main__":
    main()
