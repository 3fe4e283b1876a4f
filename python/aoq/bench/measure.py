"""Figures: contenders take turns, round after round, so that the machine's moods hit all alike."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aoq.tensors.formats import ways

from . import machine
from .contender import Contender
from .contenders import FILES, contenders_in
from .probe import LIBRARY
from .process import Gone, Worker

Json = dict[str, Any]

SCHEMA = 1
BASELINE = "bf16"  # the op of what everything is compared with
WAYS = {way.op: way for way in reversed(ways())}  # of several the first, whose scales are floats of the weight's dtype
OPS = tuple(dict.fromkeys(way.op for way in ways()))  # that contenders compete in
# Bytes that a quantizer of rows moves a value, bf16 in and a byte out; "fp8 tensor" reads x twice.
QUANTIZERS = {
    "int8_quantize": 3,
    "fp8_quantize": 3,
    "fp8_quantize tensor": 5,
    "rmsnorm_quantize": 7,
    "silu_mul_quantize": 5,
}
START_SECONDS, PREPARE_SECONDS, TURN_SECONDS = 180.0, 300.0, 60.0  # then it hangs


@dataclass(frozen=True)
class Entry:
    """A contender and how to run it."""

    file: Path
    cls: type[Contender]
    python: str
    isa: str | None = None  # AOQ_ISA
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of ours, on a GPU: `config`, `pdl`

    @property
    def name(self) -> str:
        options = "".join(f", {name} {value}" for name, value in self.options.items())
        return self.cls.name + (f", {self.isa} only" if self.isa else "") + options

    @property
    def ours(self) -> bool:
        return self.cls.package == "aoq"


def entries(
    python: str, pythons: dict[str, str] | None = None, isas: Sequence[str] = (), files: Sequence[Path] = FILES
) -> list[Entry]:
    """Every contender, aoq's first.

    Args:
        pythons: {file's stem: the interpreter of that peer}; the others run under `python`.
        isas: ISAs to force for aoq besides its own choice.

    Raises ValueError for a stem that is no peer's.
    """
    pythons = pythons or {}
    stems = [file.stem for file in files]
    for unknown in pythons.keys() - set(stems):
        raise ValueError(f"--python: expected one of {', '.join(stems)}, got {unknown}")
    found = []
    for file in files:
        for cls in contenders_in(file).values():
            forced = isas if cls.package == "aoq" else ()
            found += [Entry(file, cls, pythons.get(file.stem, python), isa) for isa in (None, *forced)]
    return sorted(found, key=lambda entry: not entry.ours)


@dataclass(frozen=True)
class Settings:
    """What to measure. shapes are n x k, out x in; `seconds` of each contender's turn."""

    shapes: Sequence[tuple[int, int]] = ((4096, 4096),)
    m: Sequence[int] = (1, 4, 16, 64, 256)
    group_size: int = 128
    threads: int = 1
    rounds: int = 7
    seconds: float = 0.1


@dataclass
class Report:
    """All figures, as they are written to JSON.

    contenders: name, op, package, ours, and either version or status and why.
    cases: n, k, group_size, m, limits (by round: bandwidth in bytes/s, peaks in operations/s), results: for each
        contender status; wrongness; seconds, calls and quiet calls by round, null for a round without. On a GPU also
        op and regime, and n is 0 where rows are quantized.
    models: see models.py.
    """

    machine: Json
    settings: Json
    measured: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    )
    instructions: dict[str, str] = field(default_factory=dict)  # what each peak multiplies
    contenders: list[Json] = field(default_factory=list)
    cases: list[Json] = field(default_factory=list)
    models: list[Json] = field(default_factory=list)
    schema: int = SCHEMA

    def json(self) -> Json:
        return dataclasses.asdict(self)


Progress = Callable[[str, int, int], None]  # what is going on; steps done, of all


class Session:
    """Workers that are measured in turns. Whatever stops it, `report` holds what there is so far."""

    def __init__(self, report: Report, entries: Sequence[Entry], progress: Progress = lambda *_: None) -> None:
        self.report = report
        self.entries = entries
        self.progress = progress
        self.about: dict[str, Json] = {
            entry.name: {"name": entry.name, "op": entry.cls.op, "package": entry.cls.package, "ours": entry.ours}
            for entry in entries
        }
        self.report.contenders = list(self.about.values())
        self.workers: dict[str, Worker] = {}
        self.done, self.steps = 0, 0

    def run(self) -> Report:
        """Raises RuntimeError if the machine's limits cannot be measured."""
        try:
            self.measure()
        finally:
            for worker in self.workers.values():
                worker.close()
        return self.report

    def measure(self) -> None:
        raise NotImplementedError

    def start(self, server: str, common: Json) -> None:
        """A worker for each contender; they get ready at the same time."""
        for entry in self.entries:
            arguments = {**common, "file": str(entry.file), "contender": entry.cls.__name__}
            environment = entry.cls.environment | ({"AOQ_ISA": entry.isa} if entry.isa else {})
            self.workers[entry.name] = Worker(server, arguments, entry.python, environment)
        for entry in self.entries:
            self.step(f"starting {entry.name}", 0)
            self.about[entry.name] |= self.ask(entry.name, START_SECONDS)

    def step(self, text: str, by: int = 1) -> None:
        self.progress(text, self.done, self.steps)
        self.done += by

    def ask(self, name: str, timeout: float, do: str | None = None, **command: Any) -> Json:
        """A contender's answer. One that is not there, crashes or hangs is out of the run."""
        worker = self.workers[name]
        try:
            answer = worker.ask(timeout, do, **command)
        except Gone as gone:
            answer = {"status": gone.status, "why": str(gone)}
        if answer["status"] in ("crashed", "hung") or (do is None and answer["status"] != "ok"):
            self.workers.pop(name).close()
            self.about[name] |= answer
        return answer


class Measurement(Session):
    """Measures `entries`' matmuls as `settings` say."""

    def __init__(self, settings: Settings, entries: Sequence[Entry], progress: Progress = lambda *_: None) -> None:
        report = Report(machine.describe(settings.threads), dataclasses.asdict(settings))
        can = [entry for entry in entries if "cpu" in entry.cls.matmuls]
        super().__init__(report, can, progress)
        self.settings = settings

    def measure(self) -> None:
        settings = self.settings
        common: Json = {"threads": settings.threads, "library": str(LIBRARY), "cold_bytes": machine.cold_bytes()}
        self.steps = len(settings.shapes) * (1 + len(settings.m) * (1 + settings.rounds))
        self.limits = self.workers["limits"] = Worker("limits", common)
        self.start("stand", common)
        try:
            self.report.instructions = self.limits.ask(START_SECONDS)["instructions"]
        except (Gone, KeyError) as error:
            raise RuntimeError(f"the machine's limits could not be measured: {error}") from error
        for n, k in settings.shapes:
            self.shape(n, k)

    def shape(self, n: int, k: int) -> None:
        group_size = math.gcd(self.settings.group_size, k)
        ready = {}
        for entry in [entry for entry in self.entries if entry.name in self.workers]:
            self.step(f"{n}x{k}: {entry.name} packs its weights", 0)
            ready[entry] = self.ask(entry.name, PREPARE_SECONDS, "prepare", n=n, k=k, group_size=group_size)
        self.step(f"{n}x{k}")
        for m in self.settings.m:
            case: Json = {"n": n, "k": k, "group_size": group_size, "m": m, "limits": [], "results": []}
            self.report.cases.append(case)
            running = []
            for entry, answer in ready.items():
                result = {"contender": entry.name, **answer}
                case["results"].append(result)
                if entry.name not in self.workers:
                    result |= {key: self.about[entry.name][key] for key in ("status", "why")}
                if result["status"] == "ok":
                    self.step(f"{n}x{k}, m = {m}: is {entry.name} right?", 0)
                    result |= self.ask(entry.name, TURN_SECONDS, "check", m=m)
                    if result["status"] == "ok" and not result["wrongness"] <= 1:
                        result["status"] = "wrong"
                        result["why"] = f"an error {result['wrongness']:.1f} times what its roundings allow"
                if result["status"] == "ok":
                    result |= {"seconds": [], "calls": [], "quiet": []}
                    running.append(result)
            self.step(f"{n}x{k}, m = {m}")
            for round_ in range(self.settings.rounds):
                self.round(case, running, m, round_)

    def round(self, case: Json, results: list[Json], m: int, round_: int) -> None:
        """A turn of each contender, another one beginning each time, after the machine's limits."""
        text = f"{case['n']}x{case['k']}, m = {m}, round {round_ + 1} of {self.settings.rounds}"
        self.step(f"{text}: limits")
        limits = self.limits.ask(TURN_SECONDS, "turn")
        if limits["status"] != "ok":
            raise RuntimeError(f"the machine's limits could not be measured: {limits['why']}")
        case["limits"].append({"bandwidth": limits["bandwidth"], "peaks": limits["peaks"], "gate": limits["gate"]})
        first = round_ % max(len(results), 1)
        for result in results[first:] + results[:first]:
            if result["status"] != "ok":
                continue
            self.step(f"{text}: {result['contender']}", 0)
            seconds = self.settings.seconds
            answer = self.ask(
                result["contender"], TURN_SECONDS + 4 * seconds, "turn", m=m, seconds=seconds, gate=limits["gate"]
            )
            if answer["status"] == "ok":
                for name in ("seconds", "calls", "quiet"):
                    result[name] += [None] * (round_ - len(result[name])) + [answer[name]]
            else:
                result |= answer
