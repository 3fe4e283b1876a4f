"""aoq's ops on a GPU, beside peers, in two regimes: python benchmarks/cuda.py [--out DIR] [--minutes 6] [--ops OP ...]

isolated  a call at a time, L2 flushed before each: what a lone layer costs
steady    calls of a CUDA graph, back to back, over copies of the weight that no cache holds: what a model's decoding
          costs; launches cost nothing there

A contender is checked against fp64, its output memory poisoned before, and is not timed where it is wrong. Contenders
take turns in one process, forwards then backwards, several passes: a figure is the median of its passes. Limits (copy
bandwidth, matmul peaks) are measured in the same run. Data are random; zeros run faster. What is worth most comes
first, and everything is printed and written (DIR/cuda.json, cuda.md, roofline*.png) as it comes: what is cut short
keeps what it had. An op that this build lacks, or a peer that is not installed, is a line; so is a contender that
crashes or hangs, and the rest goes on without it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aoq.bench import device, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = device.ops()
    parser.add_argument(
        "--ops", nargs="+", default=device.ops_here(), choices=every, metavar="OP", help=", ".join(every)
    )
    parser.add_argument("--shapes", nargs="+", default=[f"{n}x{k}" for n, k in device.SHAPES], metavar="NxK")
    parser.add_argument("--m", type=int, nargs="+", default=list(device.ROWS))
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
    args = parser.parse_args()
    shapes = [(int(n), int(k)) for n, k in (shape.split("x") for shape in args.shapes)]
    options = [*({"config": config} for config in args.configs), *([{"pdl": False}] if args.without_pdl else [])]
    entries = device.entries(measure.entries(sys.executable), args.only, options)
    todo = device.steps(args.ops, shapes, args.m)
    settings = device.DeviceSettings(todo, args.passes, args.minutes)
    device.run(settings, entries, args.out)


if __name__ == "__main__":
    main()
