"""Figures -> tables. Everything here reads the JSON of `measure.Report`, nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aoq.tensors.formats import Way

from .measure import BASELINE, OPS, QUANTIZERS, WAYS

Json = dict[str, Any]

FLOATS = ("bf16", "f32")


def way(op: str) -> Way:
    """Of "fp8_mm tensor" fp8_mm's: with x that has one scale for all rows."""
    return WAYS[op.partition(" ")[0]]


def kinds(op: str) -> tuple[str, ...]:
    """What an op multiplies, and so which instructions bound it: codes may also be multiplied as floats."""
    if op == BASELINE or way(op).x == "given":
        return FLOATS
    nibbles = way(op).x == "int8" and way(op).format.bits <= 4  # there is more to multiply them with
    return (*(("int4",) if nibbles else ()), way(op).x, *FLOATS)


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        if len(values) < 2:
            return cls(values[0], values[0], values[0]) if values else None
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def paired(above: Sequence[float | None], below: Sequence[float | None]) -> Spread | None:
    """Ratios of rounds that have both: what slows a whole round down cancels out."""
    return Spread.of([a / b for a, b in zip(above, below, strict=False) if a is not None and b is not None])


def flops(case: Json) -> float:
    return 2.0 * float(case["m"] * case["n"] * case["k"])


def least_bytes(op: str, case: Json) -> float:
    """What any implementation of the op reads and writes: the weight in its format, bf16 x and out."""
    m, n, k = (int(case[name]) for name in ("m", "n", "k"))
    if op in QUANTIZERS:
        return float(QUANTIZERS[op] * m * k)
    bits, scales = 16, 0
    if op != BASELINE:
        bits = way(op).format.bits
        scales = n * -(-k // case["group_size"]) if bits < 8 else n  # those of eight bits have one a row
    return float(n * k * bits / 8 + 2 * scales + 2 * m * (n + k))


def peak(op: str, limits: Json, instructions: dict[str, str]) -> float:
    """Operations a second of the best instruction for the op, in one round; no bound where nothing is multiplied."""
    if op in QUANTIZERS:
        return math.inf
    return max(float(limits["peaks"][name]) for name, kind in instructions.items() if kind in kinds(op))


def limit(report: Json, op: str, case: Json) -> list[float]:
    """Seconds that the op takes at least, by round: reading at full bandwidth, or multiplying at full rate."""
    return [
        max(least_bytes(op, case) / limits["bandwidth"], flops(case) / peak(op, limits, report["instructions"]))
        for limits in case["limits"]
    ]


@dataclass(frozen=True)
class Figures:
    """What a case's result says of a contender.

    seconds: of a call. vs_plain, vs_peer: how many times faster than `plain`, the faster of torch's bf16 and fp32, and
    than `peer`, the fastest one of the same op. of_limit: share of what the machine could do. noisy: most of it was
    measured in unquiet moments.
    """

    seconds: Spread
    vs_plain: Spread | None
    plain: str | None
    vs_peer: Spread | None
    peer: str | None
    of_limit: Spread | None
    noisy: bool


def figures(report: Json, case: Json) -> dict[str, Figures]:
    """By contender, of those that have any."""
    about = {contender["name"]: contender for contender in report["contenders"]}
    rounds = {result["contender"]: result.get("seconds", []) for result in case["results"]}
    medians = {name: Spread.of([s for s in seconds if s is not None]) for name, seconds in rounds.items()}
    measured = {name: median for name, median in medians.items() if median is not None}
    plain = min(
        (name for name in measured if about[name]["op"] == BASELINE),
        key=lambda name: measured[name].median,
        default=None,
    )
    found = {}
    for result in case["results"]:
        name = result["contender"]
        if name not in measured:
            continue
        op = about[name]["op"]
        peers = [
            other
            for other in measured
            if about[other]["op"] == op and not about[other]["ours"] and not is_part(about[other]) and other != name
        ]
        peer = min(peers, key=lambda other: measured[other].median, default=None)
        found[name] = Figures(
            measured[name],
            paired(rounds[plain], rounds[name]) if op != BASELINE and plain is not None else None,
            plain if op != BASELINE else None,
            paired(rounds[peer], rounds[name]) if peer is not None else None,
            peer,
            paired(limit(report, op, case), rounds[name]),
            2 * sum(count == 0 for count in result["quiet"]) > len(result["quiet"]),
        )
    return found


def is_part(contender: Json) -> bool:
    """Whether it does a part of its op, so that it does not compete."""
    return bool(contender.get("part"))


def milliseconds(seconds: float) -> str:
    """Three figures that count."""
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}" if ms >= 10 else f"{ms:.2f}" if ms >= 0.1 else f"{ms:.4f}"


def times(ratio: Spread | None) -> str:
    return "" if ratio is None else f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"


def versus(ratio: Spread | None, plain: str | None) -> str:
    """How many times faster than torch, and in which dtype that was."""
    return "" if ratio is None else f"{times(ratio)} {(plain or '').removeprefix('torch ')}"


def shapes(report: Json) -> list[tuple[int, int, int]]:
    """n, k, group_size of each shape that has cases."""
    return list(dict.fromkeys((case["n"], case["k"], case["group_size"]) for case in report["cases"]))


def by_op(report: Json, op: str) -> list[str]:
    """The op's contenders, ours first."""
    return [contender["name"] for contender in report["contenders"] if contender["op"] == op]


def ops(report: Json) -> list[str]:
    """Those that have contenders, matmuls first."""
    found = dict.fromkeys(contender["op"] for contender in report["contenders"])
    matmuls = [op for op in OPS for op in (op, f"{op} tensor") if op in found]
    return [*matmuls, *(op for op in QUANTIZERS if op in found)]


def cases_of(report: Json, op: str, n: int, k: int) -> Iterator[tuple[str, list[Json]]]:
    """An op's cases of a shape by regime, one that has no name where a machine has one."""
    cases = [case for case in report["cases"] if (case["n"], case["k"]) == (n, k) and case.get("op", op) == op]
    for regime in dict.fromkeys(case.get("regime", "") for case in cases):
        yield regime, [case for case in cases if case.get("regime", "") == regime]


def shape_text(op: str, n: int, k: int, group_size: int) -> str:
    """A shape as titles have it."""
    if op in QUANTIZERS:
        return f"rows of {k}"
    return f"{n}x{k}" + (f", group {group_size}" if op != BASELINE and way(op).format.bits < 8 else "")


def tables(report: Json) -> Iterator[Table]:
    """For each shape and op, every contender's time by m, and aoq's beside the best peer's, bf16's and the limit."""
    about = {contender["name"]: contender for contender in report["contenders"]}
    every = [(shape, op) for shape in shapes(report) for op in ops(report) if (shape[0] == 0) == (op in QUANTIZERS)]
    for (n, k, group_size), op in every:
        for regime, cases in cases_of(report, op, n, k):
            names = [*by_op(report, op), *by_op(report, BASELINE)]
            tried = {r["contender"] for case in cases for r in case["results"] if r["status"] != "unsupported"}
            names = [name for name in names if name in tried]
            title = ", ".join(filter(None, (f"{op} {shape_text(op, n, k, group_size)}", regime, "ms")))
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
            table.add_column("m", justify="right")
            for name in names:
                style = "italic" if is_part(about[name]) else ""
                table.add_column(Text(name.replace(" ", "\n", 1), style), justify="right")
            for heading in ("limit", "of limit", "against\nbest peer", "best peer", "against\ntorch"):
                table.add_column(heading, justify="left" if heading == "best peer" else "right")
            for case in cases:
                table.add_row(*_row(report, case, op, names))
            yield table


def _row(report: Json, case: Json, op: str, names: Sequence[str]) -> list[str | Text]:
    found = figures(report, case)
    results = {result["contender"]: result for result in case["results"]}
    parts = {contender["name"] for contender in report["contenders"] if is_part(contender)}
    fastest = min(found.keys() - parts, key=lambda name: found[name].seconds.median, default="")
    cells: list[str | Text] = [str(case["m"])]
    for name in names:
        if name in found:
            text = ("~" if found[name].noisy else "") + milliseconds(found[name].seconds.median)
            cells.append(Text(text, "bold green" if name == fastest else ""))
        else:
            cells.append(Text(results[name]["status"] if name in results else "", "red"))
    least = Spread.of(limit(report, op, case))
    cells.append(milliseconds(least.median) if least else "")
    ours = found.get(next((contender["name"] for contender in report["contenders"] if _is(contender, op)), ""))
    if ours is None:
        return [*cells, "", "", "", ""]
    of_limit = f"{ours.of_limit.median:.0%}" if ours.of_limit else ""
    return [*cells, of_limit, times(ours.vs_peer), ours.peer or "", versus(ours.vs_plain, ours.plain)]


def _is(contender: Json, op: str) -> bool:
    return bool(contender["ours"] and contender["op"] == op and not is_part(contender))


def model_tables(report: Json) -> Iterator[Table]:
    """For each model, every contender's memory and tokens a second."""
    for model in report["models"]:
        how = f"{', random weights' if model['random'] else ''}{', compiled' if model['compiled'] else ''}"
        title = f"{model['name']}{how}: {model['prompt']} tokens, then {model['steps']}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        table.add_column("")
        for heading in ("MB", "peak\nMB", "ms to the\nfirst token", "tokens/s\nreading", "against\ntorch"):
            table.add_column(heading, justify="right")
        for heading in ("tokens/s\nwriting", "against\ntorch"):
            table.add_column(heading, justify="right")
        for result in model["results"]:
            speeds = model_figures(report, model, result)
            if speeds is None:
                table.add_row(result["contender"], *[""] * 2, Text(result["status"], "red"))
                continue
            table.add_row(
                result["contender"],
                f"{result['bytes'] / 1e6:.0f}",
                f"{result['peak'] / 1e6:.0f}",
                f"{speeds.first.median * 1e3:,.0f}",
                f"{model['prompt'] / speeds.first.median:,.0f}",
                versus(speeds.first_vs_plain, speeds.first_plain),
                f"{1 / speeds.next.median:.1f}",
                versus(speeds.next_vs_plain, speeds.next_plain),
            )
        yield table


@dataclass(frozen=True)
class ModelFigures:
    """Seconds to the first token and of each next one, and how many times faster than torch, in its faster dtype."""

    first: Spread
    next: Spread
    first_vs_plain: Spread | None = None
    next_vs_plain: Spread | None = None
    first_plain: str | None = None
    next_plain: str | None = None


def model_figures(report: Json, model: Json, result: Json) -> ModelFigures | None:
    """Of one result of a model, or None if it has none."""
    baselines = by_op(report, BASELINE)
    first, next_ = (_measured(result, key) for key in ("first", "next"))
    if first is None or next_ is None:
        return None
    if result["contender"] in baselines:
        return ModelFigures(first, next_)
    found: dict[str, tuple[Spread | None, str | None]] = {}
    for key in ("first", "next"):  # one dtype may read faster, and another write
        others = [(spread.median, other) for other in model["results"] if (spread := _measured(other, key))]
        plain = [(median, other) for median, other in others if other["contender"] in baselines]
        best = min(plain, key=lambda pair: pair[0], default=(0.0, None))[1]
        found[key] = (None, None) if best is None else (paired(best[key], result[key]), best["contender"])
    (first_vs, first_plain), (next_vs, next_plain) = found["first"], found["next"]
    return ModelFigures(first, next_, first_vs, next_vs, first_plain, next_plain)


def _measured(result: Json, key: str) -> Spread | None:
    return Spread.of([seconds for seconds in result.get(key, ()) if seconds is not None])


def problems(report: Json) -> Iterator[str]:
    """What could not be measured, and why, in a line each."""
    for contender in report["contenders"]:
        if contender.get("status", "ok") != "ok":
            yield f"{contender['name']}: {contender['status']}: {contender['why']}"
    seen = {contender["name"] for contender in report["contenders"] if contender.get("status", "ok") != "ok"}
    troubles: dict[tuple[str, str, str], dict[str, list[str]]] = {}  # {contender, status, why: {shape: ms}}
    for case in report["cases"]:
        for result in case["results"]:
            if result["status"] != "ok" and result["contender"] not in seen:
                where = troubles.setdefault((result["contender"], result["status"], result["why"]), {})
                shape = f"{case['n']}x{case['k']}" if case["n"] else f"rows of {case['k']}"
                ms = where.setdefault(shape, [])
                ms += [str(case["m"])] if str(case["m"]) not in ms else []
    for model in report["models"]:
        for result in model["results"]:
            if result["status"] != "ok" and result["contender"] not in seen:
                where = troubles.setdefault((result["contender"], result["status"], result["why"]), {})
                where[model["name"] + ", compiled" * model["compiled"]] = []
    for (name, status, why), where in troubles.items():
        places = "; ".join(place + f", m = {', '.join(ms)}" * bool(ms) for place, ms in where.items())
        yield f"{name}: {status}: {why} ({places})"


def print_report(report: Json, console: Console) -> None:
    """All tables, then what was measured on what, and what was not measured."""
    for table in (*tables(report), *model_tables(report)):
        console.print(table)
    console.print(machine_line(report), highlight=False)
    if any(figure.noisy for case in report["cases"] for figure in figures(report, case).values()):
        console.print("~ most calls fell into moments when the machine was busy with something else", highlight=False)
    for problem in problems(report):
        console.print(problem, highlight=False, style="yellow")


def machine_line(report: Json) -> str:
    about, settings = report["machine"], report["settings"]
    priority = "" if about["scheduling"] == "normal" else f" at {about['scheduling']} priority"
    where = about.get("gpu") or f"{about['cpu']} ({about['aoq']['isas'][0]}), {settings['threads']} threads{priority}"
    return (
        f"{where}, torch {about['torch']}, "
        f"aoq {about['aoq']['version']}: medians of {settings['rounds']} rounds, ratios with their quartiles."
    )
