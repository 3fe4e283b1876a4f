"""int4 weights on a GPU, against peers, in two regimes: python benchmarks/cuda.py [--out DIR] [--minutes 6]

isolated  a call at a time, L2 flushed before each: what a lone layer costs
steady    calls of a CUDA graph, back to back, over copies of the weight that no cache holds: what a model's decoding
          costs; launches cost nothing there

A contender is checked against fp64, its output memory poisoned before, and is not timed where it is wrong. Contenders
take turns in one process, forwards then backwards, several passes: a figure is the median of its passes, with their
spread. Data are random; zeros run faster. Everything is printed and written (DIR/cuda.json, cuda.md, roofline.png) as
it comes: what is cut short keeps what it had.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GROUP = 128
SHAPES = ((8192, 8192), (4096, 4096), (28672, 4096), (4096, 14336), (6144, 4096), (8192, 28672), (57344, 8192))  # n, k
ROWS = (1, 16, 8, 32, 4, 2, 64, 256, 1024)
REGIMES = ("steady", "isolated")
COLD_BYTES = 4 * 60e6  # copies of a weight are more than this


@dataclass(frozen=True)
class Case:
    n: int
    k: int
    m: int


def cases(shapes: Sequence[tuple[int, int]], rows: Sequence[int]) -> list[Case]:
    """What matters most first: the first rows of all shapes, then the next."""
    return [Case(n, k, m) for m in rows for n, k in shapes]


# ---- limits


@dataclass(frozen=True)
class Machine:
    """What a device can do: bytes/s that a large copy moves, and bf16 operations/s of a large matmul, both measured."""

    name: str
    bandwidth: float
    flops: float


def least_bytes(case: Case, bits: int) -> float:
    """What any implementation reads and writes: codes, bf16 scales where there are some, bf16 x and out."""
    scales = 2 * case.n * -(-case.k // GROUP) if bits < 16 else 0
    return case.n * case.k * bits / 8 + scales + 2 * case.m * (case.n + case.k)


def floor(machine: Machine, case: Case, bits: int) -> tuple[float, str]:
    """Seconds that the matmul takes at least, and which limit binds."""
    memory = least_bytes(case, bits) / machine.bandwidth
    compute = 2 * case.m * case.n * case.k / machine.flops
    return max((memory, "memory"), (compute, "compute"))


# ---- figures


@dataclass
class Result:
    """A contender on a case in a regime: seconds by pass, or why there are none."""

    contender: str
    case: Case
    regime: str
    bits: int
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


def alternating(count: int, passes: int) -> Iterator[tuple[int, int]]:
    """(pass, contender): forwards, backwards, forwards ..., so that no one always follows the same one."""
    for i in range(passes):
        order = range(count) if i % 2 == 0 else reversed(range(count))
        yield from ((i, contender) for contender in order)


def best_by_case(results: Sequence[Result], regime: str) -> dict[Case, str]:
    """The fastest contender of each case that has figures."""
    best: dict[Case, Result] = {}
    for result in results:
        if result.regime != regime or not result.seconds:
            continue
        if result.case not in best or result.median < best[result.case].median:
            best[result.case] = result
    return {case: result.contender for case, result in best.items()}


def markdown(machine: Machine, results: Sequence[Result], note: str = "") -> str:
    """A table for each regime and shape: us, share of the binding floor, spread of the passes; a line for each miss."""
    lines = [
        f"# int4 matmuls on {machine.name}",
        "",
        f"Measured limits: {machine.bandwidth / 1e12:.2f} TB/s copy, {machine.flops / 1e12:.0f} TFLOP/s bf16. "
        f"Group {GROUP}, bf16 x. A cell: us (share of the floor that binds, spread of the passes).",
        *(["", note] if note else []),
    ]
    names = list(dict.fromkeys(result.contender for result in results))
    for regime in REGIMES:
        best = best_by_case(results, regime)
        rows = {(r.case, r.contender): r for r in results if r.regime == regime}
        for shape in dict.fromkeys((case.n, case.k) for case, _ in rows):
            lines += [
                "",
                f"## {regime}, {shape[0]}x{shape[1]}",
                "",
                "| m | floor, us |" + "".join(f" {n} |" for n in names),
            ]
            lines.append("|---" * (len(names) + 2) + "|")
            for m in sorted({case.m for case, _ in rows if (case.n, case.k) == shape}):
                case = Case(*shape, m)
                seconds, limit = floor(machine, case, 4)
                cells = [_cell(machine, rows.get((case, name)), best.get(case) == name) for name in names]
                lines.append(f"| {m} | {seconds * 1e6:.1f} ({limit}) |" + "".join(f" {cell} |" for cell in cells))
    misses = dict.fromkeys(f"- {r.contender}: {r.why}" for r in results if r.why)
    return "\n".join(lines + (["", "Not measured:", "", *misses] if misses else [])) + "\n"


def _cell(machine: Machine, result: Result | None, best: bool) -> str:
    if result is None:
        return ""
    if not result.seconds:
        return "-"
    share = floor(machine, result.case, result.bits)[0] / result.median
    text = f"{result.median * 1e6:.1f}"
    return f"{f'**{text}**' if best else text} ({share:.0%}, {result.spread:.0%})"


def roofline(machine: Machine, results: Sequence[Result], file: Path) -> None:
    """Operations/s over m of the steady figures, under the roof of int4 and of bf16 weights."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = list(dict.fromkeys((r.case.n, r.case.k) for r in results if r.regime == "steady" and r.seconds))
    if not shapes:
        return
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(4.5 * len(shapes), 4), squeeze=False)
    for axis, (n, k) in zip(axes[0], shapes, strict=True):
        of_shape = [r for r in results if r.regime == "steady" and r.seconds and (r.case.n, r.case.k) == (n, k)]
        rows = sorted({r.case.m for r in of_shape})
        for bits, style in ((4, "k-"), (16, "k:")):
            roof = [2 * m * n * k / floor(machine, Case(n, k, m), bits)[0] / 1e12 for m in rows]
            axis.plot(rows, roof, style, label=f"{bits}-bit limit", linewidth=1)
        for name in dict.fromkeys(r.contender for r in of_shape):
            points = sorted((r.case.m, 2 * r.case.m * n * k / r.median / 1e12) for r in of_shape if r.contender == name)
            axis.plot(*zip(*points, strict=True), "o-", label=name, markersize=3, linewidth=1)
        axis.set(xscale="log", yscale="log", title=f"{n}x{k}", xlabel="m", ylabel="TFLOP/s")
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def write(folder: Path, machine: Machine, results: Sequence[Result], note: str = "") -> None:
    """cuda.json, cuda.md and roofline.png of what there is."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"machine": dataclasses.asdict(machine), "note": note, "group": GROUP}
    figures["results"] = [dataclasses.asdict(result) for result in results]
    (folder / "cuda.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "cuda.md").write_text(markdown(machine, results, note))
    roofline(machine, results, folder / "roofline.png")


# ---- contenders


class Problem:
    """A random weight on the GPU, quantized once for all."""

    def __init__(self, n: int, k: int) -> None:
        from aoq.ops import int4_dequantize, int4_quantize

        generator = torch.Generator("cuda").manual_seed(n + k)
        self.w = (torch.randn(n, k, device="cuda", generator=generator) * 0.02).bfloat16()
        self.n, self.k = n, k
        self.qdata, self.scale, _ = int4_quantize(self.w, GROUP, "symmetric")
        self.codes = torch.stack((self.qdata & 15, self.qdata >> 4), -1).flatten(1)
        # Some rows in fp64 are enough to find a wrong kernel.
        self.some = torch.randperm(n, device="cuda", generator=generator)[:256]
        rows = (self.qdata[self.some], self.scale[self.some].double(), None, GROUP, k, torch.float64)
        self.exact = int4_dequantize(*rows)


class Contender:
    """One way to multiply. `__init__` raises ImportError or NotImplementedError, with why, where it cannot run."""

    name: str
    bits = 4
    tolerance = 0.01  # of the norm of the error to that of the result

    def weight(self, problem: Problem) -> Any:
        raise NotImplementedError

    def copy(self, weight: Any) -> Any:
        return weight.clone() if isinstance(weight, Tensor) else type(weight)(map(self.copy, weight))

    def nbytes(self, weight: Any) -> int:
        return weight.nbytes if isinstance(weight, Tensor) else sum(map(self.nbytes, weight))

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        raise NotImplementedError


class Aoq(Contender):
    name = "aoq int4_mm"

    def __init__(self, config: int = -1) -> None:
        self.config = config
        if config >= 0:
            self.name = f"aoq config {config}"

    def weight(self, problem: Problem) -> Any:
        from aoq.ops import int4_pack, tile_scale

        self.n = problem.n
        return int4_pack(problem.qdata, problem.k), tile_scale(problem.scale)

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = torch.ops.aoq.int4_mm.default(x, *weight, None, None, self.n, GROUP, self.config)
        return out


class TorchBf16(Contender):
    name, bits, tolerance = "torch bf16", 16, 0.2  # its weight is not quantized

    def weight(self, problem: Problem) -> Any:
        return problem.w

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        return torch.nn.functional.linear(x, weight)


class TorchInt4(Contender):
    name = "torch _weight_int4pack_mm"

    def weight(self, problem: Problem) -> Any:
        pairs = problem.codes[:, ::2] << 4 | problem.codes[:, 1::2]
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs.to(torch.uint8), 8)
        scale_and_zero = torch.stack((problem.scale, torch.zeros_like(problem.scale)), -1).transpose(0, 1).contiguous()
        return packed, scale_and_zero

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm(x, weight[0], GROUP, weight[1])
        return out


class Mslk(Contender):
    name, tolerance = "mslk bf16i4 shuffled", 0.2  # it quantizes by itself

    def __init__(self) -> None:
        import mslk.gemm  # noqa: F401
        from mslk.quantize.shuffle import quantize_int4_preshuffle

        self.quantize = quantize_int4_preshuffle

    def weight(self, problem: Problem) -> Any:
        codes, (scale, zero) = self.quantize(problem.w, dtype="bf16")
        return codes, scale, zero

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = torch.ops.mslk.bf16i4bf16_shuffled(x, *weight)
        return out


class Gemlite(Contender):
    name = "gemlite A16W4"

    def __init__(self) -> None:
        from gemlite.core import DType, GemLiteLinearTriton

        self.layer, self.dtype = GemLiteLinearTriton, DType.BF16

    def weight(self, problem: Problem) -> Any:
        layer = self.layer(4, GROUP, problem.k, problem.n, input_dtype=self.dtype, output_dtype=self.dtype)
        scale = problem.scale.reshape(-1, 1)
        codes = problem.codes.view(-1, GROUP).to(torch.uint8).view(problem.n, problem.k)
        layer.pack(codes, scale, torch.full_like(scale, 8), None)
        return [layer]

    def copy(self, weight: Any) -> Any:
        import copy

        return copy.deepcopy(weight)

    def nbytes(self, weight: Any) -> int:
        return sum(part.nbytes for part in (*weight[0].parameters(), *weight[0].buffers()))

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = weight[0](x)
        return out


PEERS: tuple[type[Contender], ...] = (TorchBf16, TorchInt4, Mslk, Gemlite)


def contenders(names: Sequence[str], configs: Sequence[int]) -> tuple[list[Contender], list[str]]:
    """Those that can run and have one of `names` in theirs, ours first; and why others cannot."""
    found: list[Contender] = [Aoq(), *(Aoq(config) for config in configs)]
    missing = []
    for peer in PEERS:
        if names and not any(name in peer.name for name in names):
            continue
        try:
            found.append(peer())
        except (ImportError, NotImplementedError) as error:
            missing.append(f"{peer.name}: {error}")
    return found, missing


# ---- measuring


def describe() -> Machine:
    """The device's limits, measured."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = min(_seconds(lambda: target.copy_(source)) for _ in range(5))
    a = torch.randn(8192, 8192, device="cuda").bfloat16()
    matmul = min(_seconds(lambda: a @ a) for _ in range(5))
    return Machine(torch.cuda.get_device_name(), 2 * source.nbytes / copy, 2 * 8192**3 / matmul)


def _seconds(call: Callable[[], object], calls: int = 3) -> float:
    call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(calls):
        call()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1e3 / calls


def relative_error(contender: Contender, problem: Problem, weight: Any, x: Tensor) -> float:
    """Of the result on fp64's, where memory that the allocator hands out is poisoned."""
    poison = [torch.full((x.shape[0], problem.n), math.nan, dtype=x.dtype, device="cuda") for _ in range(4)]
    del poison
    out = contender.multiply(x, weight)[:, problem.some].double()
    wanted = x.double() @ problem.exact.t()
    return float((out - wanted).norm() / wanted.norm()) if bool(out.isfinite().all()) else math.inf


class Timer:
    """How one contender's calls on a case are timed, warmed up and captured once."""

    def __init__(self, contender: Contender, weight: Any, x: Tensor, regime: str, flush: Tensor) -> None:
        self.regime, self.flush = regime, flush
        self.call = lambda i: contender.multiply(x, self.weights[i % len(self.weights)])
        copies = int(COLD_BYTES // contender.nbytes(weight)) + 2 if regime == "steady" else 1
        self.weights = [weight] + [contender.copy(weight) for _ in range(copies - 1)]
        for _ in range(3):
            self.call(0)
        self.calls = max(len(self.weights), 20) if regime == "steady" else 10
        if regime == "steady":
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for i in range(self.calls):
                    self.call(i)
            self.graph.replay()

    def seconds(self) -> float:
        """Of a call: in a replay, or the median of calls alone."""
        if self.regime == "steady":
            return _seconds(self.graph.replay, 2) / self.calls
        times = []
        for _ in range(self.calls):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.flush.zero_()
            events[0].record()
            self.call(0)
            events[1].record()
            torch.cuda.synchronize()
            times.append(events[0].elapsed_time(events[1]) / 1e3)
        return statistics.median(times)


def measure_case(case: Case, problem: Problem, found: Sequence[Contender], passes: int, flush: Tensor) -> list[Result]:
    x = torch.randn(case.m, case.k, device="cuda").bfloat16()
    results = []
    for regime in REGIMES:
        timers, own = [], []
        for contender in found:
            result = Result(contender.name, case, regime, contender.bits)
            results.append(result)
            try:
                weight = contender.weight(problem)
                result.error = relative_error(contender, problem, weight, x)
                if not result.error < contender.tolerance:
                    result.why = f"wrong at m = {case.m}, {case.n}x{case.k}: relative error {result.error:.3g}"
                    continue
                timers.append(Timer(contender, weight, x, regime, flush))
                own.append(result)
            except Exception as error:  # a peer's failure is a result
                result.why = (
                    f"m = {case.m}, {case.n}x{case.k}: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
                )
        for _, i in alternating(len(timers), passes):
            own[i].seconds.append(timers[i].seconds())
        del timers
        torch.cuda.empty_cache()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=[f"{n}x{k}" for n, k in SHAPES], metavar="NxK")
    parser.add_argument("--m", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=6, help="stop at the first case that begins later")
    parser.add_argument("--only", nargs="+", default=[], help="peers with one of these in their names")
    parser.add_argument(
        "--configs", type=int, nargs="+", default=[], help="plans of aoq's kernel besides its own choice"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench-cuda"))
    args = parser.parse_args()
    shapes = [(int(n), int(k)) for n, k in (shape.split("x") for shape in args.shapes)]

    begin = time.monotonic()
    machine = describe()
    found, missing = contenders(args.only, args.configs)
    print(f"{machine.name}: {machine.bandwidth / 1e12:.2f} TB/s, {machine.flops / 1e12:.0f} TFLOP/s bf16", flush=True)
    for line in missing:
        print(f"not here: {line}", flush=True)
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    results: list[Result] = []
    todo = cases(shapes, args.m)
    for i, case in enumerate(todo):
        if time.monotonic() - begin > 60 * args.minutes:
            break
        problem = Problem(case.n, case.k)
        results += measure_case(case, problem, found, args.passes, flush)
        del problem
        for result in results[-len(REGIMES) * len(found) :]:
            cell = _cell(machine, result, False) if result.seconds else result.why
            print(f"{case.n}x{case.k} m={case.m:<4} {result.regime:8} {result.contender:26} {cell}", flush=True)
        left = len(todo) - i - 1
        note = "; ".join(missing) + (f" Stopped early: {left} of {len(todo)} cases were not reached." if left else "")
        write(args.out, machine, results, note)
    print(f"{args.out}/cuda.md, cuda.json, roofline.png", flush=True)


if __name__ == "__main__":
    main()
