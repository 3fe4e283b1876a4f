"""AOQ_ISA forces a kernel set: in a fresh process, what it names is what runs."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from aoq import _C

RUN = """
import torch, aoq
from aoq import _C
w = torch.randn(32, 64)
qdata, scale, _ = torch.ops.aoq.int4_quantize(w, 32, "symmetric")
print(_C.last_kernel())
packed = torch.ops.aoq.int4_pack(qdata, 64)
print(_C.last_kernel())
torch.ops.aoq.int4_mm(w.bfloat16(), packed, aoq.ops.tile_scale(scale), None, None, 32, 32)
print(_C.last_kernel(), _C.isa())
"""


KNOWN = ("ref", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "avx512vbmi", "amx")
MISSING = [isa for isa in reversed(KNOWN) if isa not in _C.isas()][:1]


def run(isa):
    environment = {**os.environ, "AOQ_ISA": isa}
    return subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def processes():
    """What a process under each AOQ_ISA did. Most of it is starting, so they run side by side."""
    values = [*_C.isas(), *MISSING, "avx1024", ""]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(values, pool.map(run, values), strict=True))


@pytest.mark.parametrize("isa", _C.isas())
def test_forced_isa_runs(processes, isa):
    done = processes[isa]
    assert done.returncode == 0, done.stderr
    # What an op has no kernel for runs on the next ISA down.
    multiplies = {"avxvnni": "avx2", "avx512vnni": "avx512", "avx512vbmi": "avx512bf16"}.get(isa, isa)
    narrow = "avx512" if isa.startswith("avx512") or isa == "amx" else multiplies
    assert done.stdout.split() == [f"int4_quantize_{narrow}", f"int4_pack_{narrow}", f"int4_mm_{multiplies}", isa]


def test_unknown_isa_is_an_import_error(processes):
    done = processes["avx1024"]
    assert done.returncode != 0
    assert f"AOQ_ISA=avx1024 is not an ISA that aoq knows: {', '.join(KNOWN)}" in done.stderr


def test_unsupported_isa_never_falls_back(processes):
    if not MISSING:
        pytest.skip("this machine has them all")
    done = processes[MISSING[0]]
    assert done.returncode != 0
    assert f"AOQ_ISA={MISSING[0]} is not supported by this machine; the best here is {_C.isas()[0]}" in done.stderr


def test_empty_is_unset(processes):
    assert processes[""].stdout.split()[-1] == _C.isas()[0]


def test_set_isa_refuses_what_the_variable_refuses():
    with pytest.raises(ValueError, match="not an ISA"):
        _C.set_isa("sse")
    assert _C.kernels("int4_mm")[-1] == "int4_mm_ref"
    with pytest.raises(ValueError, match="no op named int9_mm"):
        _C.kernels("int9_mm")
