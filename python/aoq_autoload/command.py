"""What the command `aoq` runs: aoq's command line, or one line that says why aoq cannot be imported."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from aoq.cli import main as run
    except Exception as error:  # such as a bad AOQ_ISA, or another torch
        print(f"aoq: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(1)
    run()
