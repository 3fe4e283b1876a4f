"""The machine's limits, and whether it is quiet just now: libaoq's probes (csrc/probe/probe.cpp).

Through ctypes, because workers also run in Pythons that `aoq._C` is not built for.
"""

from __future__ import annotations

import ctypes
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

LIBRARY = Path(__file__).parents[1] / "libaoq.so"


@dataclass(frozen=True)
class Gate:
    """What a quiet moment is: `iterations` of the best instruction take at most `seconds` on the slowest thread."""

    iterations: int
    seconds: float


class Probe:
    """libaoq's probes on `threads` threads of torch's pool.

    instructions: {instruction: what it multiplies, "int4" (by int8), "int8", "bf16" or "f32"} of this machine, best
    ISA first.

    Raises OSError where the library does not load: it needs torch >= 2.10.
    """

    def __init__(self, threads: int, library: Path = LIBRARY) -> None:
        self.threads = threads
        self._library = lib = ctypes.CDLL(str(library))
        count = ctypes.c_int64
        for function in (lib.aoq_peak_instruction, lib.aoq_peak_kind):
            function.argtypes, function.restype = [count], ctypes.c_char_p
        lib.aoq_peak.argtypes = [count, count, count, ctypes.POINTER(ctypes.c_double)]
        lib.aoq_stream.argtypes = [ctypes.c_void_p, count, count, ctypes.POINTER(ctypes.c_uint64)]
        lib.aoq_peak.restype = lib.aoq_stream.restype = ctypes.c_double
        self.instructions: dict[str, str] = {}
        while instruction := lib.aoq_peak_instruction(len(self.instructions)):
            self.instructions[instruction.decode()] = lib.aoq_peak_kind(len(self.instructions)).decode()

    def multiply_adds(self, instruction: str, iterations: int) -> tuple[float, float]:
        """(seconds of the slowest thread, multiply-adds of all together) of a loop of `instruction`."""
        done = ctypes.c_double()
        index = list(self.instructions).index(instruction)
        seconds = float(self._library.aoq_peak(index, self.threads, iterations, done))
        return seconds, float(done.value)

    def peak(self, instruction: str, seconds: float = 5e-3) -> float:
        """Operations a second, an addition and a multiplication counted as two: the best of some short loops."""
        iterations, rates = 1000, []
        while True:
            taken, done = self.multiply_adds(instruction, iterations)
            if taken > seconds / 10 or iterations >= 400_000:
                break
            iterations = min(4 * iterations, 400_000)
        for _ in range(5):
            taken, done = self.multiply_adds(instruction, iterations)
            rates.append(2 * done / taken)
        return max(rates)

    def bandwidth(self, memory: torch.Tensor, repeats: int = 4) -> float:
        """Bytes a second of reading `memory`, the best of `repeats`."""
        words = ctypes.c_uint64()
        nbytes = memory.nbytes // 64 * 64
        times = [self._library.aoq_stream(memory.data_ptr(), nbytes, self.threads, words) for _ in range(repeats)]
        return nbytes / float(min(times))

    def moment(self, iterations: int) -> float:
        """Seconds that the slowest thread takes just now."""
        return float(self._library.aoq_peak(0, self.threads, iterations, ctypes.c_double()))

    def gate(self, seconds: float = 3e-6) -> Gate:
        """A gate of about `seconds`; the usual moment passes it, one with a slower thread does not."""
        iterations = 16
        while statistics.median(self.moment(iterations) for _ in range(50)) < seconds / 2:
            iterations *= 2
        moments = sorted(self.moment(iterations) for _ in range(400))
        return Gate(iterations, 1.25 * moments[len(moments) // 10])
