"""Contenders' processes, seen from the one that measures."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .worker import BOOT, Answer


class Gone(Exception):
    """The process ended, or was ended because it did not answer; the text says how."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status  # "crashed" or "hung"


class Child:
    """A process that answers lines of JSON with lines of JSON, out of reach of the terminal's Ctrl-C.

    errors: where its stderr goes, open for reading too.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], errors: IO[str]) -> None:
        self.errors = errors
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        self.buffer = b""

    def ask(self, timeout: float, do: str | None = None, **command: Any) -> Answer:
        """The answer to a command; without one, the first answer.

        Raises Gone when the process ends, or gives no answer within `timeout` seconds.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            if do is not None:
                self.process.stdin.write(json.dumps({"do": do, **command}).encode() + b"\n")
                self.process.stdin.flush()
        except BrokenPipeError:
            pass  # reading says why
        end = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(end - time.monotonic(), 0))
            if not ready:
                self.close()
                raise Gone("hung", f"no answer within {timeout:.0f} s")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise Gone("crashed", self._how_it_ended())
            self.buffer += part
        line, self.buffer = self.buffer.split(b"\n", 1)
        answer: Answer = json.loads(line)
        return answer

    def _how_it_ended(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read()[-4000:].splitlines() if line.strip()]
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}: {lines[-1]}" if lines else how

    def close(self) -> None:
        """Ends the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            if file is not None:
                file.close()


def _environment(threads: str) -> dict[str, str]:
    """Peers import nothing that their code does not, least of all another aoq that is installed beside them."""
    quiet = {"PYTHONSAFEPATH": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": threads}


class Worker(Child):
    """Runs `worker.main(server, arguments)`."""

    def __init__(
        self,
        server: str,
        arguments: dict[str, Any],
        python: str = sys.executable,
        environment: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            [python, "-c", BOOT, str(Path(__file__).parent), server, json.dumps(arguments)],
            _environment(str(arguments["threads"])) | (environment or {}),
            tempfile.TemporaryFile("w+", errors="replace"),  # noqa: SIM115
        )
