"""Figures of ops on a GPU: what is worth most first, in turns forwards and backwards, until the time is up.

Contenders share a process, device_stand.py's; whoever crashes it, or hangs, is left out, and the rest goes on in a new
one. Limits are measured in the same run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from aoq.ops.kernels import kernels

from . import machine
from . import report as reporting
from .contender import RowContender
from .device_stand import REGIMES
from .measure import BASELINE, QUANTIZERS, START_SECONDS, WAYS, Entry, Json, Progress, Report, Session
from .process import Gone, Worker
from .roofline import save

SHAPES = ((8192, 8192), (4096, 4096), (28672, 4096), (4096, 14336), (6144, 4096), (8192, 28672), (57344, 8192))  # n, k
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
QUANTIZER_ROWS = ((4096, 8192), (8192, 4096), (14336, 4096), (4096, 16), (8192, 1), (8192, 1024))  # k, m

COLD_BYTES = 240_000_000  # copies of a weight are more than this
HANG = 150.0  # seconds of a turn; compiling is part of a first one
PATIENCE = 60.0  # seconds that a peer may take to get ready in all: it may compile and tune at each first call


def ops() -> list[str]:
    """Every op; those with fp8 x once more with one scale for all rows, at which other kernels are best."""
    matmuls = [op + kind for op, way in WAYS.items() for kind in ("", " tensor") if not kind or way.x == "fp8"]
    return [*matmuls, *QUANTIZERS]


def ops_here() -> list[str]:
    """Those that the GPU has kernels for; all where there is none."""
    gpu = torch.device("cuda")
    if not torch.cuda.is_available():
        return ops()
    return [op for op in ops() if op in QUANTIZERS or kernels(op.partition(" ")[0], gpu)]


def entries(
    every: Sequence[Entry], only: Sequence[str] = (), options: Sequence[Mapping[str, Any]] = (), device: str = "cuda"
) -> list[Entry]:
    """Those that are for the device: aoq's, its matmuls also with each of `options`, and peers.

    Args:
        only: parts of the names of the peers that take part, or nothing for all of them.
    """
    found = []
    for entry in every:
        if device not in entry.cls.matmuls or (not entry.ours and only and not any(p in entry.name for p in only)):
            continue
        matmul = entry.ours and not issubclass(entry.cls, RowContender)
        found += [entry, *(dataclasses.replace(entry, options=each) for each in options if matmul)]
    return found


def first_rows(op: str) -> tuple[int, int, int]:
    """The rows that an op's target is about: few where weights bind, many where multiplying does."""
    x = WAYS[op.partition(" ")[0]].x
    if x == "given":
        return 1, 16, 1024
    return (1024, 4096, 16) if WAYS[op.partition(" ")[0]].format.bits == 8 else (1024, 1, 16)


@dataclass(frozen=True)
class Step:
    """A weight (n is 0 for rows to quantize) and the m that it is multiplied with."""

    op: str
    n: int
    k: int
    rows: tuple[int, ...]


def steps(
    ops: Sequence[str],
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rows: Sequence[int] = ROWS,
    quantizer_rows: Sequence[tuple[int, int]] = QUANTIZER_ROWS,
) -> list[Step]:
    """What matters most first: targets on the first shape, the quantizers, few rows and many of the other shapes,
    then what is left."""
    todo: list[Step] = []
    seen: set[tuple[str, int, int, int]] = set()

    def add(op: str, n: int, k: int, wanted: Sequence[int]) -> None:
        fresh = tuple(m for m in wanted if (op, n, k, m) not in seen)
        seen.update((op, n, k, m) for m in fresh)
        if fresh:
            todo.append(Step(op, n, k, fresh))

    matmuls = [op for op in ops if op not in QUANTIZERS]
    quantizers = [op for op in ops if op in QUANTIZERS]
    for n, k in shapes[:1]:
        for op in matmuls:
            add(op, n, k, [m for m in first_rows(op) if m in rows])
    for k, m in quantizer_rows[:2]:
        for op in quantizers:
            add(op, 0, k, (m,))
    for op in matmuls:
        for n, k in shapes[1:]:
            add(op, n, k, [m for m in first_rows(op)[:2] if m in rows])
    for k, m in quantizer_rows[2:]:
        for op in quantizers:
            add(op, 0, k, (m,))
    for n, k in shapes:
        for op in matmuls:
            add(op, n, k, rows)
    return todo


def alternating(count: int, passes: int) -> Iterator[tuple[int, int]]:
    """(pass, contender): forwards, backwards, forwards ..., so that no one always follows the same one."""
    for i in range(passes):
        order = range(count) if i % 2 == 0 else reversed(range(count))
        yield from ((i, contender) for contender in order)


@dataclass(frozen=True)
class DeviceSettings:
    """What to measure; `rounds` are passes, `minutes` when no further case is begun."""

    todo: Sequence[Step]
    rounds: int = 4
    minutes: float = 6
    group_size: int = 128
    device: str = "cuda"
    cold_bytes: int = COLD_BYTES
    threads: int = 1


class DeviceMeasurement(Session):
    """Measures `todo`. A case's limits are those of the run, as often as there are rounds.

    Args:
        written: called after each case.
    """

    def __init__(
        self,
        settings: DeviceSettings,
        entries: Sequence[Entry],
        progress: Progress = lambda *_: None,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        about = machine.describe(settings.threads, settings.device)
        fields = {key: value for key, value in vars(settings).items() if key != "todo"}
        super().__init__(Report(about, fields), entries, progress)
        self.settings, self.written = settings, written
        for entry in entries:
            self.about[entry.name]["part"] = entry.cls.part
        self.stand: Worker | None = None
        self.spent: dict[str, float] = {}  # seconds of getting ready
        self.left = sum(len(step.rows) for step in settings.todo)  # cases that were not reached
        self.running: list[Entry] = []  # contenders that have not crashed

    def measure(self) -> None:
        end = time.monotonic() + 60 * self.settings.minutes
        self.steps = self.left
        self.running = list(self.entries)
        limits = self.command(START_SECONDS, "limits")
        if limits["status"] != "ok":
            raise RuntimeError(f"the device's limits could not be measured: {limits['why']}")
        self.limits = {key: limits[key] for key in ("bandwidth", "peaks")}
        self.report.instructions = {name: name for name in limits["peaks"]}
        ops = {step.op for step in self.settings.todo}
        wanted = [entry for entry in self.entries if entry.cls.op in ops or entry.cls.op == BASELINE]
        self.running = [entry for entry in wanted if self.get_ready(entry)]
        self.written()
        for step in self.settings.todo:
            for m in step.rows:
                if time.monotonic() > end:
                    return
                self.case(step, m)
                self.left -= 1
                self.written()

    def get_ready(self, entry: Entry) -> bool:
        self.step(f"starting {entry.name}", 0)
        self.about[entry.name] |= self.ask(entry.name, START_SECONDS, "ready")
        return self.about[entry.name]["status"] == "ok"

    def case(self, step: Step, m: int) -> None:
        """A case of the report for each regime."""
        settings = self.settings
        sizes = {"n": step.n, "k": step.k, "group_size": settings.group_size, "m": m}
        text = f"{step.op} {step.n}x{step.k} m={m}" if step.n else f"{step.op} rows of {step.k} m={m}"
        self.step(text)
        found = [entry for entry in self.running if entry.cls.op == step.op]
        if step.n:
            found += [entry for entry in self.running if entry.cls.op == BASELINE]
        checked = {entry: self.checked(entry, sizes) for entry in found if entry in self.running}
        for regime in REGIMES:
            limits = [self.limits] * settings.rounds
            case: Json = {"op": step.op, "regime": regime, **sizes, "limits": limits, "results": []}
            self.report.cases.append(case)
            for entry, answer in checked.items():
                result = {"contender": entry.name, **answer}
                case["results"].append(result | ({"seconds": [], "quiet": []} if answer["status"] == "ok" else {}))
            running = [result for result in case["results"] if result["status"] == "ok"]
            for _, i in alternating(len(running), settings.rounds):
                result = running[i]
                if result["status"] != "ok":
                    continue
                self.step(f"{text}, {regime}: {result['contender']}", 0)
                answer = self.ask(result["contender"], HANG, "turn", **sizes, regime=regime)
                if answer["status"] == "ok":
                    result["seconds"].append(answer["seconds"])
                else:
                    result |= answer
            for entry in list(checked):
                if entry not in self.running:
                    checked[entry] = {key: self.about[entry.name][key] for key in ("status", "why")}
        self.command(HANG, "forget")

    def checked(self, entry: Entry, sizes: Json) -> Json:
        """Whether a contender is right at these sizes; what takes too long to get ready is not asked."""
        if not entry.ours and self.spent.get(entry.name, 0.0) > PATIENCE:
            return {"status": "late", "why": f"took over {PATIENCE:.0f} s to get ready for the cases before"}
        begun = time.monotonic()
        answer = self.ask(entry.name, HANG, "check", **sizes)
        self.spent[entry.name] = self.spent.get(entry.name, 0.0) + time.monotonic() - begun
        if answer["status"] == "ok" and not answer["wrongness"] <= 1:
            answer |= {"status": "wrong", "why": f"an error {answer['wrongness']:.1f} times what is allowed"}
        return answer

    def ask(self, name: str, timeout: float, do: str | None = None, **command: Any) -> Json:
        answer = self.command(timeout, do, contender=name, **command)
        if answer["status"] in ("crashed", "hung"):
            self.about[name] |= answer
            self.running = [entry for entry in self.running if entry.name != name]
        return answer

    def command(self, timeout: float, do: str | None, **command: Any) -> Json:
        """Of the stand; it is started if there is none."""
        if self.stand is None:
            settings, where = self.settings, {}
            for entry in self.entries:
                where[entry.name] = [str(entry.file), entry.cls.__name__, entry.options]
            common = {"threads": settings.threads, "device": settings.device, "cold_bytes": settings.cold_bytes}
            self.stand = self.workers["stand"] = Worker("device", common | {"contenders": where})
            try:
                self.stand.ask(START_SECONDS)
            except Gone as gone:
                raise RuntimeError(f"the device's process does not start: {gone}") from gone
        try:
            return self.stand.ask(timeout, do, **command)
        except Gone as gone:
            self.workers.pop("stand").close()
            self.stand = None
            return {"status": gone.status, "why": str(gone)}


def run(settings: DeviceSettings, entries: Sequence[Entry], out: Path) -> DeviceMeasurement:
    """Measures, prints, and writes into the folder `out` as figures come; Ctrl-C ends it, and what there is stays."""
    out.mkdir(parents=True, exist_ok=True)
    printed, plotted = 0, time.monotonic()

    def written(last: bool = False) -> None:
        nonlocal printed, plotted
        report = session.report.json()
        for case in report["cases"][printed:]:
            print_case(report, case)
        printed = len(report["cases"])
        whole = out / "cuda.json.part"
        whole.write_text(json.dumps(report, indent=1) + "\n")
        whole.replace(out / "cuda.json")  # who is stopped while writing keeps what was there
        with (out / "cuda.md").open("w") as file:
            file.write(f"# aoq on {report['machine'].get('gpu', 'a CPU')}\n\n```\n")
            reporting.print_report(report, Console(file=file, width=240))
            file.write(f"{session.left} cases were not reached.\n```\n")
        if last or time.monotonic() - plotted > 60:
            plotted = time.monotonic()
            with contextlib.suppress(ImportError):  # of matplotlib
                save(report, out / "roofline.png")

    session = DeviceMeasurement(settings, entries, written=written)
    try:
        session.run()
    except KeyboardInterrupt:
        print("stopped: these are the figures so far", file=sys.stderr)
    written(last=True)
    print(f"{session.left} cases not reached. {out}/cuda.md, cuda.json", flush=True)
    return session


def print_case(report: Json, case: Json) -> None:
    """A line for each contender."""
    found = reporting.figures(report, case)
    shape = reporting.shape_text(case["op"], case["n"], case["k"], case["group_size"])
    for result in case["results"]:
        name, text = result["contender"], f"{result['status']}: {result.get('why', '')}"
        if name in found:
            share = found[name].of_limit
            text = f"{found[name].seconds.median * 1e6:.1f} us" + (f" ({share.median:.0%} of limit)" if share else "")
        print(f"{case['op']} {shape} m={case['m']:<4} {case['regime']:8} {name:40} {text}", flush=True)
