"""The process that serves all contenders of a GPU, which is not shared out: each is timed in turn, by the GPU's clock.

isolated  a call at a time, L2 flushed before each: what a lone layer costs
steady    calls of a CUDA graph, back to back, over copies of the weight that no cache holds: what a model's decoding
          costs; launches cost nothing there

A command says all that it needs, so that a new process goes on where one has crashed.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .contender import Contender, Problem, RowContender, Rows, cold_copies, relative_error, some_of, wrongness
from .contenders import contenders_in

Answer = dict[str, Any]

REGIMES = ("steady", "isolated")
MOST_COPIES = 400


def seconds_of(call: Callable[[], object], calls: int = 3) -> float:
    """Of a call, back to back on the device."""
    call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(calls):
        call()
    events[1].record()
    torch.cuda.synchronize()
    return float(events[0].elapsed_time(events[1])) / 1e3 / calls


def copy_bandwidth() -> float:
    """Bytes/s read and written by a large copy."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds_of(lambda: target.copy_(source)) for _ in range(5))


def peaks() -> dict[str, float]:
    """Operations/s of large matmuls on random data, by dtype; of a dtype that the device lacks none."""
    a = torch.randn(8192, 8192, device="cuda").bfloat16()
    one = torch.ones((), device="cuda")
    e4m3, codes = a.to(torch.float8_e4m3fn), (a * 40).clamp(-128, 127).to(torch.int8)
    ways: dict[str, Callable[[], Tensor]] = {
        "bf16": lambda: a @ a.t(),
        "fp8": lambda: torch._scaled_mm(e4m3, e4m3.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True),
        "int8": lambda: torch._int_mm(codes, codes.t()),
    }
    found = {}
    for name, way in ways.items():
        try:
            found[name] = 2 * 8192**3 / min(seconds_of(way) for _ in range(5))
        except RuntimeError as error:
            print(f"no {name} peak: {error}", file=sys.stderr)
    return found


class CudaTimer:
    """A contender's calls in a regime, warmed up, and in the steady one captured, once."""

    flush: Tensor | None = None  # more than L2, written between isolated calls

    def __init__(self, call: Callable[[int], object], copies: int, regime: str) -> None:
        self.call, self.regime = call, regime
        for _ in range(3):
            call(0)
        torch.cuda.synchronize()
        self.calls = max(copies, 20) if regime == "steady" else 10
        if regime == "steady":
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for i in range(self.calls):
                    call(i)
            self.graph.replay()
        elif CudaTimer.flush is None:
            CudaTimer.flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")

    def seconds(self) -> float:
        """Of a call: in a replay, or the median of calls alone."""
        if self.regime == "steady":
            return seconds_of(self.graph.replay, 2) / self.calls
        times = []
        for _ in range(self.calls):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            assert self.flush is not None
            self.flush.zero_()
            torch.cuda._sleep(2_000_000)  # a millisecond: the device waits for the launch, and Python is slow
            events[0].record()
            self.call(0)
            events[1].record()
            torch.cuda.synchronize()
            times.append(float(events[0].elapsed_time(events[1])) / 1e3)
        return statistics.median(times)


class CpuTimer:
    """In its place without a GPU, for tests: a call by the CPU's clock."""

    def __init__(self, call: Callable[[int], object], copies: int, regime: str) -> None:
        self.call, self.last = call, copies - 1

    def seconds(self) -> float:
        begun = time.perf_counter()
        self.call(self.last)
        return time.perf_counter() - begun


class DeviceStand:
    """Serves contenders by name: {name: [file, class, options]}."""

    def __init__(self, threads: int, device: str, cold_bytes: int, contenders: dict[str, Any]) -> None:
        torch.set_num_threads(threads)
        self.device, self.cold_bytes, self.entries = device, cold_bytes, contenders
        self.threads = threads
        self.found: dict[str, Contender] = {}
        self.shape: Any = None  # of the weights that there are
        self.problem: Any = None
        self.weights: dict[str, list[Any]] = {}
        self.timers: dict[tuple[str, int, str], Any] = {}

    def hello(self) -> Answer:
        return {"torch": torch.__version__}

    def limits(self) -> Answer:
        if self.device != "cuda":
            return {"bandwidth": 1e10, "peaks": {"bf16": 1e12}}
        return {"bandwidth": copy_bandwidth(), "peaks": peaks()}

    def ready(self, contender: str) -> Answer:
        """Imports what it needs."""
        made = self._contender(contender)
        return {"version": importlib.metadata.version(made.package)}

    def check(self, contender: str, n: int, k: int, group_size: int, m: int) -> Answer:
        """How wrong the contender is, 1 being the limit, by some of a product; memory is poisoned before."""
        return self._careful(lambda: self._check(contender, (n, k, group_size), m))

    def turn(self, contender: str, n: int, k: int, group_size: int, m: int, regime: str) -> Answer:
        """Seconds of a call."""
        return self._careful(lambda: self._turn(contender, (n, k, group_size), m, regime))

    def _check(self, name: str, shape: tuple[int, int, int], m: int) -> Answer:
        contender, weights = self._contender(name), self._copies(name, shape, m)
        n, k, _ = shape
        x = self.problem.x(m) if n else None
        given = None if x is None else contender.prepare(x)
        poison = [torch.full((m, n or k), torch.nan, dtype=torch.bfloat16, device=self.device) for _ in range(4)]
        del poison  # the allocator hands it out again: what is not written shows
        out = contender.output(contender.multiply(given, weights[0]))
        rows = some_of(m, 64).to(self.device)
        if isinstance(contender, RowContender):
            assert contender.tolerance is not None
            wrong = relative_error(out[rows], contender.expected(self.problem, x, rows)) / contender.tolerance
        else:
            assert x is not None
            if out.shape != (m, n):
                raise ValueError(f"returned {tuple(out.shape)}, expected {(m, n)}")
            columns = some_of(n, 256).to(self.device)
            exact = contender.exact(self.problem, weights[0], columns)
            wrong = wrongness(contender, x[rows], exact, out[rows][:, columns])
        return {"wrongness": wrong, "bytes": contender.nbytes(weights[0]), "copies": len(weights)}

    def _turn(self, name: str, shape: tuple[int, int, int], m: int, regime: str) -> Answer:
        contender, weights, key = self._contender(name), self._copies(name, shape, m), (name, m, regime)
        if key not in self.timers:
            given = contender.prepare(self.problem.x(m)) if shape[0] else None
            kind = CudaTimer if self.device == "cuda" else CpuTimer
            self.timers[key] = kind(
                lambda i: contender.multiply(given, weights[i % len(weights)]), len(weights), regime
            )
        return {"seconds": self.timers[key].seconds()}

    def forget(self) -> Answer:
        """Frees graphs and what they hold of activations."""
        self.timers.clear()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return {}

    def _contender(self, name: str) -> Contender:
        if name not in self.found:
            file, cls, options = self.entries[name]
            self.found[name] = contenders_in(Path(file))[cls](self.threads, self.device)
            if options:
                self.found[name].how = options
        return self.found[name]

    def _copies(self, name: str, shape: tuple[int, int, int], m: int) -> list[Any]:
        """The weight and enough copies of it: one set for each contender, as long as the shape is the same."""
        n, k, group_size = shape
        wanted = shape if n else (m, k)
        if self.shape != wanted:
            self.weights.clear()
            self.forget()
            self.shape = wanted
            self.problem = Problem(n, k, group_size, self.device) if n else Rows(m, k, self.device)
        if name not in self.weights:
            contender = self._contender(name)
            weight = contender.weight(self.problem)
            nbytes = contender.nbytes(weight)
            copies = min(cold_copies(nbytes, self.cold_bytes), MOST_COPIES) if nbytes and n else 1
            self.weights[name] = [weight, *(contender.another(weight) for _ in range(copies - 1))]
        return self.weights[name]

    def _careful(self, call: Callable[[], Answer]) -> Answer:
        """What `call` returns. Ends the process if it has lost the device, which an error in a kernel does."""
        try:
            return call()
        except Exception as error:
            if self.device == "cuda":
                try:
                    torch.cuda.synchronize()
                except Exception:
                    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    os._exit(70)
            raise
