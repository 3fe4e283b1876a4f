"""How contenders are timed on a GPU, and its limits measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .contender import Contender, Missing, first_line
from .figures import QUANTIZERS, REGIMES, Case, Machine, Result, alternating
from .problem import Problem, Rows, poison

COLD_BYTES = 4 * 60e6  # copies of a weight are more than this
MOST_COPIES = 400
PATIENCE = 60.0  # seconds that a peer may take to get ready in all: it may compile and tune at each first call


def seconds_of(call: Callable[[], object], calls: int = 3) -> float:
    """Of a call, back to back on the device."""
    call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(calls):
        call()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1e3 / calls


def describe() -> Machine:
    """The device's limits, measured on random data; a matmul that it lacks has none."""
    bandwidth = copy_bandwidth()
    a = torch.randn(8192, 8192, device="cuda").bfloat16()
    one = torch.ones((), device="cuda")
    e4m3, codes = a.to(torch.float8_e4m3fn), (a * 40).clamp(-128, 127).to(torch.int8)
    ways: dict[str, Callable[[], Tensor]] = {
        "bf16": lambda: a @ a.t(),
        "fp8": lambda: torch._scaled_mm(e4m3, e4m3.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True),
        "int8": lambda: torch._int_mm(codes, codes.t()),
    }
    flops = {}
    for name, way in ways.items():
        try:
            flops[name] = 2 * 8192**3 / min(seconds_of(way) for _ in range(5))
        except RuntimeError as error:
            print(f"no {name} peak: {first_line(error)}", flush=True)
    return Machine(torch.cuda.get_device_name(), bandwidth, flops)


def copy_bandwidth() -> float:
    """Bytes/s read and written."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds_of(lambda: target.copy_(source)) for _ in range(5))


class Timer:
    """One contender's calls on a case in a regime, warmed up and captured once."""

    def __init__(self, contender: Contender, weights: Sequence[Any], x: Any, regime: str, flush: Tensor) -> None:
        self.regime, self.flush = regime, flush
        self.call = lambda i: contender.multiply(x, weights[i % len(weights)])
        for _ in range(3):
            self.call(0)
        torch.cuda.synchronize()
        self.calls = max(len(weights), 20) if regime == "steady" else 10
        if regime == "steady":
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for i in range(self.calls):
                    self.call(i)
            self.graph.replay()

    def seconds(self) -> float:
        """Of a call: in a replay, or the median of calls alone."""
        if self.regime == "steady":
            return seconds_of(self.graph.replay, 2) / self.calls
        times = []
        for _ in range(self.calls):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.flush.zero_()
            torch.cuda._sleep(2_000_000)  # a millisecond: the device waits for the launch, and Python is slow
            events[0].record()
            self.call(0)
            events[1].record()
            torch.cuda.synchronize()
            times.append(events[0].elapsed_time(events[1]) / 1e3)
        return statistics.median(times)


class Block:
    """A weight, and the contenders that multiply by it, for one m after the other."""

    def __init__(
        self,
        op: str,
        n: int,
        k: int,
        found: Sequence[Contender],
        device: str = "cuda",
        cold_bytes: float = COLD_BYTES,
        timer: Callable[..., Any] = Timer,
        spent: dict[int, float] | None = None,
        doing: Callable[[Contender], None] = lambda contender: None,
    ) -> None:
        self.op, self.n, self.k, self.device, self.cold_bytes, self.timer = op, n, k, device, cold_bytes, timer
        self.found = [contender for contender in found if contender.op == op]
        self.spent = {} if spent is None else spent  # seconds of getting ready, by id(contender)
        self.doing = doing  # told whose turn it is
        self.flush = torch.empty(256 * 2**20 if device == "cuda" else 1, dtype=torch.uint8, device=device)
        self.weights: dict[int, list[Any]] = {}
        self.problem: Any = None if op in QUANTIZERS else Problem(n, k, device)

    def copies(self, contender: Contender, problem: Any) -> list[Any]:
        """The weight and enough copies of it; kept, as long as the problem is."""
        if self.op not in QUANTIZERS and id(contender) in self.weights:
            return self.weights[id(contender)]
        weight = contender.weight(problem)
        count = min(int(self.cold_bytes // max(contender.nbytes(weight), 1)) + 2, MOST_COPIES)
        count = count if contender.nbytes(weight) else 1
        self.weights[id(contender)] = [weight, *(contender.copy(weight) for _ in range(count - 1))]
        return self.weights[id(contender)]

    def measure(self, m: int, passes: int) -> list[Result]:
        case = Case(self.op, self.n, self.k, m)
        problem = self.problem or Rows(m, self.k, self.device)
        x = problem.x(m) if self.problem else None
        results = []
        for regime in REGIMES:
            timers, own = [], []
            for contender in self.found:
                result = Result(contender.name, case, regime, contender.bits, contender.peak, contender.part)
                results.append(result)
                begun = time.monotonic()
                self.doing(contender)
                if not contender.ours and self.spent.get(id(contender), 0.0) > PATIENCE:
                    result.why = f"took over {PATIENCE:.0f} s to get ready for the cases before"
                    continue
                try:
                    weights = self.copies(contender, problem)
                    given = contender.given(x) if self.problem else None
                    poison((m, self.n or self.k), device=self.device)
                    result.error = contender.error(problem, x, contender.multiply(given, weights[0]))
                    if not result.error < contender.tolerance:
                        result.why = f"wrong at m = {m}, {case.shape}: relative error {result.error:.3g}"
                        continue
                    timers.append(self.timer(contender, weights, given, regime, self.flush))
                    own.append((contender, result))
                except Exception as error:  # a peer's failure is a result
                    text = (
                        first_line(error)
                        if isinstance(error, Missing)
                        else f"{type(error).__name__}: {first_line(error)}"
                    )
                    result.why = f"m = {m}, {case.shape}: {text}"
                    if self.device == "cuda":
                        torch.cuda.synchronize()  # raises where the device is lost to this process
                finally:
                    self.spent[id(contender)] = self.spent.get(id(contender), 0.0) + time.monotonic() - begun
            for _, i in alternating(len(timers), passes):
                contender, result = own[i]
                self.doing(contender)
                result.seconds.append(timers[i].seconds())
            del timers
            if self.device == "cuda":
                torch.cuda.empty_cache()
        return results
