"""Cases, the limits that bind them, results, and the files they are written to. Needs no GPU."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GROUP = 128
REGIMES = ("steady", "isolated")


@dataclass(frozen=True)
class Op:
    """How an op's floor is found, and what tables call it.

    x_bits, weight_bits: of what it multiplies; 16 are bf16.
    group: weights share scales along k.
    """

    x_bits: int = 16
    weight_bits: int = 16
    group: bool = False
    peak: str = "bf16"  # whose matmul rate is the limit
    quantizer: str = ""  # the op that makes its activations


OPS = {
    "int4_mm": Op(16, 4, True),
    "fp8_weight_mm": Op(16, 8),
    "int8_weight_mm": Op(16, 8),
    "int8_mm": Op(8, 8, peak="int8", quantizer="int8_quantize"),
    "fp8_mm": Op(8, 8, peak="fp8", quantizer="fp8_quantize"),
    "fp8_mm tensor": Op(8, 8, peak="fp8", quantizer="fp8_quantize"),
    "int8_int4_mm": Op(8, 4, True, peak="int8", quantizer="int8_quantize"),
}

# Bytes that a quantizer of rows moves a value, bf16 in and a byte out; "fp8 tensor" reads x twice.
QUANTIZERS = {
    "int8_quantize": 3,
    "fp8_quantize": 3,
    "fp8_quantize tensor": 5,
    "rmsnorm_quantize": 7,
    "silu_mul_quantize": 5,
}


@dataclass(frozen=True)
class Case:
    """x [m, k] times a weight [n, k]; or m rows of k values quantized, and n = 0."""

    op: str
    n: int
    k: int
    m: int

    @property
    def shape(self) -> str:
        return f"{self.n}x{self.k}" if self.n else f"rows of {self.k}"


@dataclass(frozen=True)
class Machine:
    """What a device can do, measured: bytes/s that a large copy moves, operations/s of large matmuls by dtype."""

    name: str
    bandwidth: float
    flops: dict[str, float]


def least_bytes(case: Case, bits: int | None = None) -> float:
    """What any implementation reads and writes: codes, bf16 scales of groups, bf16 x and out."""
    if case.op in QUANTIZERS:
        return QUANTIZERS[case.op] * case.m * case.k
    op = OPS[case.op]
    bits = op.weight_bits if bits is None else bits
    scales = 2 * case.n * -(-case.k // GROUP) if bits < 8 else 0
    return case.n * case.k * bits / 8 + scales + 2 * case.m * (case.n + case.k)


def floor(machine: Machine, case: Case, bits: int | None = None, peak: str | None = None) -> tuple[float, str]:
    """Seconds that the case takes at least, and which limit binds; `bits`, `peak`: of another kind of weight."""
    memory = least_bytes(case, bits) / machine.bandwidth
    peak = peak or (OPS[case.op].peak if case.op in OPS else "")
    flops = machine.flops.get(peak)  # a peak that was not measured does not bind
    compute = 2 * case.m * case.n * case.k / flops if flops else 0.0
    return max((memory, "memory"), (compute, f"compute, {peak}"))


@dataclass
class Result:
    """A contender on a case in a regime: seconds by pass, or why there are none."""

    contender: str
    case: Case
    regime: str
    bits: int | None = None  # of its weights, where not the op's
    peak: str | None = None  # likewise
    part: bool = False  # takes x quantized, or only quantizes it: does not compete
    error: float | None = None  # relative, against fp64
    seconds: list[float] = field(default_factory=list)
    why: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the passes."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    def share(self, machine: Machine) -> float:
        """Of the floor that binds."""
        return floor(machine, self.case, self.bits, self.peak)[0] / self.median


def alternating(count: int, passes: int) -> Iterator[tuple[int, int]]:
    """(pass, contender): forwards, backwards, forwards ..., so that no one always follows the same one."""
    for i in range(passes):
        order = range(count) if i % 2 == 0 else reversed(range(count))
        yield from ((i, contender) for contender in order)


def best_by_case(results: Sequence[Result], regime: str) -> dict[Case, str]:
    """The fastest contender of each case that has figures and does all of the work."""
    best: dict[Case, Result] = {}
    for result in results:
        if result.regime != regime or not result.seconds or result.part:
            continue
        if result.case not in best or result.median < best[result.case].median:
            best[result.case] = result
    return {case: result.contender for case, result in best.items()}


def cell(machine: Machine, result: Result | None, best: bool = False) -> str:
    if result is None:
        return ""
    if not result.seconds:
        return "-"
    text = f"{result.median * 1e6:.1f}"
    return f"{f'**{text}**' if best else text} ({result.share(machine):.0%}, {result.spread:.0%})"


def markdown(machine: Machine, results: Sequence[Result], notes: Sequence[str] = ()) -> str:
    """A table for each op, regime and shape: us, share of the binding floor, spread; errors; a line for each miss."""
    peaks = ", ".join(f"{rate / 1e12:.0f} TFLOP/s {name}" for name, rate in machine.flops.items())
    lines = [
        f"# aoq on {machine.name}",
        "",
        f"Measured limits: {machine.bandwidth / 1e12:.2f} TB/s copy, {peaks}. int4 in groups of {GROUP}, bf16 x and "
        "out. A cell: us (share of the floor that binds, spread of the passes). isolated: a call at a time, L2 flushed "
        "before; steady: in a CUDA graph over copies that no cache holds. *Italics*: takes x quantized before, or only "
        "quantizes it.",
    ]
    lines += [line for note in notes for line in ("", note)]
    for op in dict.fromkeys(result.case.op for result in results):
        of_op = [result for result in results if result.case.op == op]
        names = list(dict.fromkeys(result.contender for result in of_op))
        parts = {result.contender for result in of_op if result.part}
        for regime in REGIMES:
            best = best_by_case(of_op, regime)
            rows = {(r.case, r.contender): r for r in of_op if r.regime == regime}
            for shape in dict.fromkeys(case.shape for case, _ in rows):
                lines += ["", f"## {op}, {regime}, {shape}", ""]
                lines.append("| m | floor, us |" + "".join(f" {f'*{n}*' if n in parts else n} |" for n in names))
                lines.append("|---" * (len(names) + 2) + "|")
                cases = sorted({case for case, _ in rows if case.shape == shape}, key=lambda case: case.m)
                for case in cases:
                    seconds, limit = floor(machine, case)
                    cells = [cell(machine, rows.get((case, name)), best.get(case) == name) for name in names]
                    lines.append(f"| {case.m} | {seconds * 1e6:.1f} ({limit}) |" + "".join(f" {c} |" for c in cells))
    worst: dict[tuple[str, str], float] = {}
    for result in results:
        if result.error is not None and result.seconds:
            key = (result.case.op, result.contender)
            worst[key] = max(worst.get(key, 0.0), result.error)
    if worst:
        lines += ["", "## Largest relative errors against fp64", "", "| op | | error |", "|---|---|---|"]
        lines += [f"| {op} | {contender} | {error:.2e} |" for (op, contender), error in worst.items()]
    misses = dict.fromkeys(f"- {r.case.op}, {r.contender}: {r.why}" for r in results if r.why)
    return "\n".join(lines + (["", "Not measured:", "", *misses] if misses else [])) + "\n"


def roofline(machine: Machine, results: Sequence[Result], file: Path) -> None:
    """Operations/s over m of the steady figures of matmuls, under the roof of their op and of bf16 weights."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [r for r in results if r.regime == "steady" and r.seconds and r.case.op in OPS and not r.part]
    panels = list(dict.fromkeys((r.case.op, r.case.n, r.case.k) for r in timed))
    if not panels:
        return
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.5 * columns, 4 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (op, n, k) in zip(axes.flat, panels, strict=False):
        own = [r for r in timed if (r.case.op, r.case.n, r.case.k) == (op, n, k)]
        rows = sorted({r.case.m for r in own})
        for label, bits, peak, style in ((op, None, None, "k-"), ("bf16", 16, "bf16", "k:")):
            roof = [2 * m * n * k / floor(machine, Case(op, n, k, m), bits, peak)[0] / 1e12 for m in rows]
            axis.plot(rows, roof, style, label=f"{label} limit", linewidth=1)
        for name in dict.fromkeys(r.contender for r in own):
            points = sorted((r.case.m, 2 * r.case.m * n * k / r.median / 1e12) for r in own if r.contender == name)
            axis.plot(*zip(*points, strict=True), "o-", label=name, markersize=3, linewidth=1)
        axis.set(xscale="log", yscale="log", title=f"{op} {n}x{k}", xlabel="m", ylabel="TFLOP/s")
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def write(
    folder: Path, machine: Machine, results: Sequence[Result], notes: Sequence[str] = (), plot: bool = True
) -> None:
    """cuda.json, cuda.md and roofline.png (where matplotlib is) of what there is."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"machine": dataclasses.asdict(machine), "notes": list(notes), "group": GROUP}
    figures["results"] = [dataclasses.asdict(result) for result in results]
    whole = folder / "cuda.json.part"
    whole.write_text(json.dumps(figures, indent=1) + "\n")
    whole.replace(folder / "cuda.json")  # who is stopped while writing keeps what was there
    (folder / "cuda.md").write_text(markdown(machine, results, notes))
    if plot:
        try:
            roofline(machine, results, folder / "roofline.png")
        except ImportError:
            return


def read(folder: Path) -> list[Result]:
    """The results that `write` wrote, if any."""
    file = folder / "cuda.json"
    if not file.exists():
        return []
    return [Result(**entry | {"case": Case(**entry["case"])}) for entry in json.loads(file.read_text())["results"]]
