"""aoq's ops on a GPU, beside peers, in two regimes: python benchmarks/cuda.py [--out DIR] [--minutes 6] [--ops OP ...]

isolated  a call at a time, L2 flushed before each: what a lone layer costs
steady    calls of a CUDA graph, back to back, over copies of the weight that no cache holds: what a model's decoding
          costs; launches cost nothing there

A contender is checked against fp64, its output memory poisoned before, and is not timed where it is wrong. Contenders
take turns in one process, forwards then backwards, several passes: a figure is the median of its passes, with their
spread. Limits (copy bandwidth, matmul peaks) are measured in the same run. Data are random; zeros run faster. What is
worth most comes first, and everything is printed and written (DIR/cuda.json, cuda.md, roofline.png) as it comes: what
is cut short keeps what it had. An op that this build lacks, or a peer that is not installed, is a line; so is a
contender that crashes or hangs, and the rest goes on without it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cuda_bench.contender import contenders
from cuda_bench.figures import OPS, QUANTIZERS, REGIMES, Case, cell, read, write
from cuda_bench.supervisor import Notes, supervise
from cuda_bench.timing import Block, describe

SHAPES = ((8192, 8192), (4096, 4096), (28672, 4096), (4096, 14336), (6144, 4096), (8192, 28672), (57344, 8192))  # n, k
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)

# Of each op the rows that its target is about; a round of all ops, then the next.
FIRST = {
    "int4_mm": (1, 16, 1024),
    "fp8_mm": (1024, 4096, 16),
    "int8_mm": (1024, 4096, 16),
    "int8_int4_mm": (1024, 1, 16),
    "fp8_weight_mm": (1, 16, 1024),
    "int8_weight_mm": (1, 16, 1024),
    "fp8_mm tensor": (1024, 4096, 16),
}
QUANTIZER_ROWS = ((4096, 8192), (8192, 4096), (14336, 4096), (4096, 16), (8192, 1), (8192, 1024))  # k, m


@dataclass(frozen=True)
class Step:
    """A weight (n is 0 for rows to quantize) and the m that it is multiplied with."""

    op: str
    n: int
    k: int
    rows: tuple[int, ...]


def steps(ops: Sequence[str], shapes: Sequence[tuple[int, int]] = SHAPES, rows: Sequence[int] = ROWS) -> list[Step]:
    """What matters most first: targets on the first shape, the quantizers, few rows and many of the other shapes,
    then what is left."""
    todo: list[Step] = []
    seen: set[tuple[str, int, int, int]] = set()

    def add(op: str, n: int, k: int, wanted: Sequence[int]) -> None:
        fresh = tuple(m for m in wanted if (op, n, k, m) not in seen)
        seen.update((op, n, k, m) for m in fresh)
        if fresh:
            todo.append(Step(op, n, k, fresh))

    matmuls = [op for op in FIRST if op in ops]
    quantizers = [op for op in QUANTIZERS if op in ops]
    for n, k in shapes[:1]:
        for op in matmuls:
            add(op, n, k, [m for m in FIRST[op] if m in rows])
    for k, m in QUANTIZER_ROWS[:2]:
        for op in quantizers:
            add(op, 0, k, (m,))
    for op in matmuls:
        for n, k in shapes[1:]:
            add(op, n, k, [m for m in FIRST[op][:2] if m in rows])
    for k, m in QUANTIZER_ROWS[2:]:
        for op in quantizers:
            add(op, 0, k, (m,))
    for n, k in shapes:
        for op in matmuls:
            add(op, n, k, rows)
    return todo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*OPS, *QUANTIZERS]
    parser.add_argument("--ops", nargs="+", default=every, choices=every, metavar="OP", help=", ".join(every))
    parser.add_argument("--shapes", nargs="+", default=[f"{n}x{k}" for n, k in SHAPES], metavar="NxK")
    parser.add_argument("--m", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=6, help="begin no case later than this")
    parser.add_argument("--only", nargs="+", default=[], help="peers with one of these in their names; 'none' for none")
    parser.add_argument(
        "--configs", type=int, nargs="+", default=[], help="plans of aoq's kernels besides their choice"
    )
    parser.add_argument(
        "--without-pdl", action="store_true", help="aoq's matmuls also without programmatic dependent launch"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench-cuda"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # whom to leave out, as JSON: measure, in this process
    args = parser.parse_args()
    if args.worker is not None:
        measure(args, {(op, name): why for op, name, why in json.loads(args.worker)})
        return
    (args.out / "cuda.json").unlink(missing_ok=True)

    def command(broken: dict[tuple[str, str], str], left: float) -> list[str]:
        out = json.dumps([[*who, why] for who, why in broken.items()])
        return [sys.executable, __file__, *sys.argv[1:], "--minutes", f"{left / 60:.3f}", "--worker", out]

    sys.exit(supervise(args.out, command, 60 * args.minutes))


def measure(args: argparse.Namespace, broken: dict[tuple[str, str], str]) -> None:
    """Goes on where a run before has ended, if one has, without who is `broken`."""
    shapes = [(int(n), int(k)) for n, k in (shape.split("x") for shape in args.shapes)]
    begin = time.monotonic()
    machine = describe()
    peaks = ", ".join(f"{rate / 1e12:.0f} TFLOP/s {name}" for name, rate in machine.flops.items())
    print(f"{machine.name}: {machine.bandwidth / 1e12:.2f} TB/s, {peaks}", flush=True)
    found, missing = contenders("cuda", args.only, args.configs, args.without_pdl)
    found = [contender for contender in found if (contender.op, contender.name) not in broken]
    missing += [f"{op}, {name}: {why}" for (op, name), why in broken.items()]
    for line in missing:
        print(f"not here: {line}", flush=True)
    results = read(args.out)
    measured = {result.case for result in results}
    todo = steps(args.ops, shapes, args.m)
    spent: dict[int, float] = {}
    left = sum(Case(step.op, step.n, step.k, m) not in measured for step in todo for m in step.rows)
    plotted, turns = begin, Notes(args.out)

    def notes() -> list[str]:
        return (["Not here: " + "; ".join(missing)] if missing else []) + (
            [f"{left} cases were not reached."] if left else []
        )

    for step in todo:
        block = None
        for m in step.rows:
            if Case(step.op, step.n, step.k, m) in measured:
                continue
            if time.monotonic() - begin > 60 * args.minutes:
                break
            # Its weights are made once, and freed before the next step's.
            block = block or Block(
                step.op, step.n, step.k, found, spent=spent, doing=lambda who: turns.write(who.op, who.name)
            )
            fresh = block.measure(m, args.passes)
            results += fresh
            left -= 1
            for result in fresh:
                text = cell(machine, result) if result.seconds else result.why
                print(
                    f"{step.op} {result.case.shape} m={m:<4} {result.regime:8} {result.contender:40} {text}", flush=True
                )
            plot = time.monotonic() - plotted > 60
            plotted = time.monotonic() if plot else plotted
            write(args.out, machine, results, notes(), plot)
        del block
    write(args.out, machine, results, notes())
    print(
        f"{len(results) // len(REGIMES)} figures; {left} cases not reached. {args.out}/cuda.md, cuda.json", flush=True
    )


if __name__ == "__main__":
    main()
