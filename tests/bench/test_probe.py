"""The probes of csrc/probe/probe*.cpp: each does the multiply-adds that it claims, at a speed that hardware has."""

import pytest
import torch

from aoq import _C
from aoq.bench.probe import Probe

PER_ITERATION = {  # multiply-adds of a loop's body
    "tdpbsud": 4 * 16 * 16 * 64,
    "tdpbf16ps": 4 * 16 * 16 * 32,
    "vdpbf16ps": 12 * 32,
    "vpdpbusd": 12 * 64,
    "vpmaddwd zmm": 12 * 32,
    "vfmadd zmm": 12 * 16,
    "vpdpbusd ymm": 12 * 32,
    "vpmaddubsw ymm": 12 * 8 * 32,
    "vpmaddwd ymm": 12 * 16,
    "vfmadd ymm": 12 * 8,
    "plain C++": 12,
}
ISAS = {
    "amx": ("tdpbsud", "tdpbf16ps"),
    "avx512vbmi": (),
    "avx512bf16": ("vdpbf16ps",),
    "avx512vnni": ("vpdpbusd",),
    "avx512": ("vpmaddwd zmm", "vfmadd zmm"),
    "avxvnni": ("vpdpbusd ymm",),
    "avx2": ("vpmaddubsw ymm", "vpmaddwd ymm", "vfmadd ymm"),
    "ref": ("plain C++",),
}


@pytest.fixture(params=(1, 2))
def probe(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield Probe(request.param)
    torch.set_num_threads(before)


def test_every_instruction_of_this_machine(probe):
    assert list(probe.instructions) == [name for isa in _C.isas() for name in ISAS[isa]]


def test_each_counts_what_it_multiplied(probe):
    for instruction in probe.instructions:
        for iterations in (0, 1, 100):
            seconds, done = probe.multiply_adds(instruction, iterations)
            assert done == iterations * PER_ITERATION[instruction] * probe.threads
            assert 0 <= seconds < 10


def test_counts_are_exact_up_to_the_limit():
    probe = Probe(1)
    for instruction in probe.instructions:
        if instruction.startswith("tdp") and _C.build_info()["amx"] != "native":
            continue  # emulated tiles take minutes
        assert probe.multiply_adds(instruction, 500_000)[1] == 500_000 * PER_ITERATION[instruction]


@pytest.mark.alone
def test_speeds_are_plausible(probe):
    """Wider instructions are not slower than narrow ones, and none does more than hardware could."""
    native = _C.build_info()["amx"] == "native"
    rates = {name: probe.peak(name, 1e-3) for name in probe.instructions if native or not name.startswith("tdp")}
    for name, rate in rates.items():
        cycles = rate / probe.threads / (2 * PER_ITERATION[name] / (4 if name.startswith("tdp") else 12))
        assert 1e7 < cycles < 2.5e10, f"{name}: {cycles:.3g} instructions a second"  # 4 a cycle at 6 GHz
    if "vfmadd ymm" in rates:
        assert rates["vfmadd ymm"] > rates["plain C++"]
    if "vpdpbusd" in rates:
        assert rates["vpdpbusd"] > rates["vfmadd zmm"]


def test_reading_memory(probe):
    memory = torch.ones(4_000_000, dtype=torch.int64)
    assert 1e8 < probe.bandwidth(memory) < 1e13


def test_the_whole_memory_is_read():
    """The exclusive or of what was read tells one changed word, wherever it is."""
    import ctypes

    words = ctypes.c_uint64()
    for threads in (1, 2, 3):
        probe = Probe(threads)
        for at in (0, 7, 8, 1000, 4095):
            memory = torch.zeros(4096, dtype=torch.int64)
            memory[at] = 12345
            probe._library.aoq_stream(memory.data_ptr(), memory.nbytes, threads, words)
            assert words.value == 12345


@pytest.mark.alone
def test_most_moments_pass_the_gate():
    probe = Probe(1)
    gate = probe.gate()
    assert gate.iterations >= 16
    assert 5e-7 < gate.seconds < 1e-3
    moments = [probe.moment(gate.iterations) for _ in range(400)]
    assert sum(moment <= gate.seconds for moment in moments) > 40
    # Twice the work is not a quiet moment.
    assert min(probe.moment(4 * gate.iterations) for _ in range(50)) > gate.seconds
