"""What `aoq bench` does with its options."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from . import report as reporting
from .contenders import FILES, contenders_in
from .measure import BASELINE, OPS, Entry, Progress, Report, Session
from .models import SHAPES


def chosen(entries: Sequence[Entry], ops: Sequence[str], names: Sequence[str]) -> list[Entry]:
    """Contenders of `ops`, and those whose names have one of `names` in them; with bf16, which all are compared with.

    Without `ops` those of every op that a peer has, and what is named in full: of integers there are many widths.

    Raises ValueError for an op that aoq does not have, and a name that no contender has.
    """
    for op in set(ops) - set(OPS):
        raise ValueError(f"--op: expected one of {', '.join(OPS)}, got {op}")
    for name in names:
        if not any(name.lower() in entry.name.lower() for entry in entries):
            known = ", ".join(entry.name for entry in entries)
            raise ValueError(f"--only: expected part of one of {known}, got {name}")

    among = ops or {entry.cls.op for entry in entries if not entry.ours}

    def wanted(entry: Entry) -> bool:
        named = not names or any(name.lower() in entry.name.lower() for name in names)
        in_full = not ops and entry.name.lower() in map(str.lower, names)
        return entry.cls.op == BASELINE or in_full or (named and entry.cls.op in among)

    return [entry for entry in entries if wanted(entry)]


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """ "4096x4096,14336x4096" -> n, k pairs. Raises ValueError."""
    found = []
    for part in text.split(","):
        numbers = part.strip().lower().split("x")
        if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
            raise ValueError(f"--shapes: expected NxK,... such as 4096x4096, got {part!r}")
        found.append((int(numbers[0]), int(numbers[1])))
    return found


def parse_numbers(option: str, text: str) -> list[int]:
    """ "1,4,16" -> numbers. Raises ValueError, naming the option."""
    if not all(part.strip().isdecimal() and int(part) > 0 for part in text.split(",")):
        raise ValueError(f"{option}: expected positive numbers such as 1,4,16, got {text!r}")
    return [int(part) for part in text.split(",")]


def check_models(directories: Sequence[Path], random: Sequence[str]) -> list[str]:
    """What `ModelSettings.models` takes. Raises OSError or ValueError, naming the option."""
    for directory in directories:
        if not (directory / "config.json").is_file():
            raise FileNotFoundError(f"--model: {directory} has no config.json")
    for name in random:
        if name not in SHAPES:
            raise ValueError(f"--random-model: expected one of {', '.join(SHAPES)}, got {name}")
    return [*map(str, directories), *random]


def check_device(device: str, models: Sequence[str]) -> None:
    """Raises ValueError for one that is not known, RuntimeError for one that is not there."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {device}")
    if device == "cuda" and not models:
        raise ValueError("--device cuda: is for models (--model, --random-model); benchmarks/cuda.py times ops")
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("--device cuda: torch finds no CUDA device")


def parse_pythons(values: Sequence[str]) -> dict[str, str]:
    """["vllm=DIR/bin/python"] -> {"vllm": that interpreter}; a virtual environment's directory will do."""
    found = {}
    for value in values:
        name, _, path = value.partition("=")
        python = Path(path) / "bin" / "python" if Path(path).is_dir() else Path(path)
        if not path or not python.is_file():
            raise ValueError(f"--python: expected PEER=PYTHON, an interpreter or a virtual environment, got {value!r}")
        found[name] = str(python.absolute())
    return found


def contender_files(own: Sequence[Path]) -> list[Path]:
    """aoq's files with contenders, then `own`. Raises FileNotFoundError, or ValueError, naming one without any."""
    for file in own:
        if not file.is_file():
            raise FileNotFoundError(f"--contenders: no such file: {file}")
        if not contenders_in(file):
            raise ValueError(f"--contenders: {file} has no class with a name and an op")
    return [*FILES, *(file.absolute() for file in own)]


def measure(make_session: Callable[[Progress], Session]) -> tuple[Report, bool]:
    """Measures with a progress bar; the report, and whether Ctrl-C cut it short."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Refreshed between turns only: a thread of our own would disturb what is being timed.
    with ProgressBar(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def progress(text: str, done: int, steps: int) -> None:
            bar.update(task, description=text, completed=done, total=steps, refresh=True)

        session = make_session(progress)
        try:
            return session.run(), False
        except KeyboardInterrupt:
            return session.report, True


def check_plot(file: Path) -> None:
    """Raises ImportError or ValueError before anything is measured in vain."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'aoq[bench]'") from error
    known = matplotlib.figure.Figure().canvas.get_supported_filetypes()
    if file.suffix.lstrip(".") not in known:
        raise ValueError(f"--plot: expected a file name that ends in .png, .svg or .pdf, got {file}")


def be_realtime() -> None:
    """Gives this process, and workers that it starts, real-time priority. Raises PermissionError, saying who may."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    except PermissionError as error:
        raise PermissionError("--realtime: only root may, or who has CAP_SYS_NICE") from error


def check_writable(file: Path | None) -> None:
    """Raises OSError, naming the file, before anything is measured in vain."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    file.open("a").close()
    if new:
        file.unlink()


def write(report: Report, file: Path | None, plot: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(report.json(), indent=1) + "\n")
    if plot is not None:
        from .roofline import save

        save(report.json(), plot)


def show(report: Report, interrupted: bool) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 140)  # a file has room
    reporting.print_report(report.json(), console)
    if interrupted:
        print("stopped: these are the figures so far", file=sys.stderr)
