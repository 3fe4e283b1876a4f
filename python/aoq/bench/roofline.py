"""Figures -> pictures: every contender under the machine's roofline. Needs matplotlib (`pip install aoq[bench]`)."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from .measure import BASELINE, QUANTIZERS
from .report import by_op, cases_of, figures, flops, kinds, least_bytes, machine_line, ops, shapes

Json = dict[str, Any]

# Distinct for colour-blind readers too (Okabe and Ito's palette), with markers that differ within a panel.
_PEERS = ("#009E73", "#8C564B", "#0072B2", "#CC79A7", "#56B4E9", "#E69F00")  # by package
_MARKERS = "s^DvPX"
_OURS = ("#D55E00", "o")
_BF16 = ("#555555", "*")


def roofline(report: Json, n: int, k: int) -> Any:
    """A matplotlib figure for the weight [n, k]: a panel an op, operations a second over operations a byte.

    Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    panels = {}
    for op in ops(report):
        for regime, cases in cases_of(report, op, n, k) if op not in QUANTIZERS else ():
            if regime in ("", "steady"):
                panels[op] = [case for case in cases if case["limits"]]
    figure = Figure(figsize=(6 * len(panels), 6.8), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (op, cases) in zip(axes, panels.items(), strict=True):
        _panel(axis, report, cases, op)
    axes[0].set_ylabel("G operations/s (a multiplication and an addition are two)")
    (group_size,) = {group_size for *shape, group_size in shapes(report) if shape == [n, k]}
    figure.suptitle(f"{n}x{k}, int4 in groups of {group_size}", fontsize=14)
    figure.supxlabel(machine_line(report), fontsize=8, color="#444444")
    return figure


def _panel(axis: Any, report: Json, cases: list[Json], op: str) -> None:
    axis.set_title(op)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel("operations per byte of weight, x and out")
    about = {contender["name"]: contender for contender in report["contenders"]}
    own, baselines = by_op(report, op), by_op(report, BASELINE)
    packages = list(dict.fromkeys(contender["package"] for contender in about.values() if not contender["ours"]))
    xs: list[float] = []
    ys: list[float] = []
    for name in [*own, *baselines]:
        ours, forced = about[name]["ours"], name != own[0]
        colour, marker = _OURS if ours else _BF16
        if name in own and not ours:
            colour = _PEERS[packages.index(about[name]["package"]) % len(_PEERS)]
            marker = _MARKERS[own.index(name) % len(_MARKERS)]
        points = []
        for case in cases:
            found = figures(report, case).get(name)
            if found is not None:
                # bf16 reads more bytes for the same m: it lies further left.
                intensity = flops(case) / least_bytes(about[name]["op"], case)
                points.append((intensity, flops(case) / found.seconds.median / 1e9, case["m"]))
        if not points:
            continue
        x, y, m = zip(*points, strict=True)
        xs, ys = [*xs, *x], [*ys, *y]
        axis.plot(
            x,
            y,
            color=colour,
            marker=marker,
            markersize=8 if ours else 6,
            linewidth=2.2 if ours and not forced else 1.2,
            linestyle=":" if name in baselines or (ours and forced) else "-",
            label=name,
            zorder=5 if ours else 4,
        )
        for x_, y_, m_ in zip(x, y, m, strict=True) if name in baselines else ():
            axis.annotate(f"{m_}", (x_, y_), (4, -9), textcoords="offset points", fontsize=6.5, color=colour)
    if xs:
        axis.legend(fontsize=8, loc="lower right", framealpha=0.9)
        _roof(axis, report, cases, op, (min(xs) / 1.8, max(xs) * 2.5), min(ys) / 2.5)


def _roof(axis: Any, report: Json, cases: list[Json], op: str, span: tuple[float, float], bottom: float) -> None:
    """The memory's slope and each instruction's ceiling, medians of all rounds; m along the top."""
    left, right = span
    limits = [limits for case in cases for limits in case["limits"]]
    bandwidth = statistics.median(limit["bandwidth"] for limit in limits) / 1e9
    names = [name for name, kind in report["instructions"].items() if kind in kinds(op)]
    names = [name for name in names if name != "plain C++"] or names
    ceilings = {name: statistics.median(limit["peaks"][name] for limit in limits) / 1e9 for name in names}
    top = max(ceilings.values())
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top * 2)
    axis.plot([left, top / bandwidth], [left * bandwidth, top], color="black", linewidth=1.6, zorder=3)
    at = max(left * 1.15, bottom * 1.15 / bandwidth)
    above = 1.15 * bandwidth
    angle = math.degrees(math.atan(above))  # in the data's units; matplotlib turns it as the axes do
    text = {"fontsize": 8, "rotation_mode": "anchor", "transform_rotates_text": True}
    axis.text(at, at * above, f"reading memory, {bandwidth:.0f} GB/s", rotation=angle, **text)
    drawn: list[float] = []
    for name, ceiling in sorted(ceilings.items(), key=lambda item: -item[1]):
        if ceiling < bottom * 1.5 or any(ceiling > 0.6 * other for other in drawn):
            continue  # out of sight, or the narrower form of the same instruction
        drawn.append(ceiling)
        style = {"linewidth": 1.6} if ceiling == top else {"linewidth": 0.9, "linestyle": (0, (4, 3))}
        axis.plot([ceiling / bandwidth, right], [ceiling, ceiling], color="black", zorder=3, **style)
        # Left of the slope nothing can be.
        axis.text(ceiling / bandwidth * 0.9, ceiling, f"{name} {ceiling:,.0f}", fontsize=8, ha="right", va="center")
    marks = axis.secondary_xaxis("top")
    intensities = [flops(case) / least_bytes(op, case) for case in cases]
    marks.set_xticks(intensities, [f"{'m=' * (case is cases[0])}{case['m']}" for case in cases], fontsize=8)
    marks.tick_params(length=3)
    marks.minorticks_off()


def save(report: Json, file: Path) -> list[Path]:
    """Writes `file`, or for several shapes `file` with each shape in its name; returns what was written."""
    written = []
    found = [(n, k) for n, k, _ in shapes(report) if n]
    for n, k in found:
        path = file if len(found) == 1 else file.with_name(f"{file.stem}-{n}x{k}{file.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        roofline(report, n, k).savefig(path)
        written.append(path)
    return written
