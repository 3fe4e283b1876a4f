"""libaoq_cuda without a GPU: it loads beside a torch without CUDA and registers its ops."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aoq import _C

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import support_matrix

LIBRARY = Path(_C.__file__).with_name("libaoq_cuda.so")

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"CUDA kernels: {_C.build_info()['cuda']}")

WITHOUT_KERNELS = ("int8_pack", "int8_unpack")  # torch's own copies
CUTLASS = not _C.build_info()["cutlass"].startswith("no")
MADE_WITH_CUTLASS = {"int8_mm": 80, "fp8_mm": 89}  # and the compute capability that they need

REGISTERED = """
import json, torch, aoq
from aoq import _C
ops = [op for op in _C.ops() if torch._C._dispatch_has_kernel_for_dispatch_key("aoq::" + op, "CUDA")]
table = {}
for sm in ("", "sm80", "sm89"):
    _C.set_sm(sm)
    for capability in (75, 80, 89, 90, 100, 120):
        table[f"{sm} {capability}"] = {op: _C.cuda_kernels(op, capability) for op in ops}
print(json.dumps(table))
"""


def run(code, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def registered():
    """`registered(capability, sm)`: each op's kernels on such a device, under AOQ_SM=sm."""
    done = run(REGISTERED, AOQ_LOAD_CUDA="1")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    return lambda capability, sm="": table[f"{sm} {capability}"]


def test_ops_register(registered):
    ops = registered(90)
    assert {"int4_pack", "int4_unpack", "int4_quantize", "int8_pack", "int8_unpack"} <= set(ops)
    assert ops["int4_pack"] == ["int4_pack_sm80"]


def test_every_op_runs_from_compute_capability_8_on(registered):
    left_out = set() if CUTLASS else set(MADE_WITH_CUTLASS)
    for capability in (80, 90, 120):
        fp8 = {"fp8_mm"} if capability < 89 else set()  # tensor cores multiply fp8 from 8.9 on
        without = {op for op, kernels in registered(capability).items() if not kernels}
        assert without == set(WITHOUT_KERNELS) | left_out | fp8
    assert not any(registered(75).values())


def test_kernels_made_with_cutlass(registered):
    for op, least in MADE_WITH_CUTLASS.items():
        for capability in (80, 89, 90, 120):
            names = registered(capability)[op]
            assert bool(names) == (CUTLASS and capability >= least)
            assert all("_cutlass_" in name for name in names)


def test_it_is_not_too_large():
    """25 MB a format of one to four bits, which has binaries for four architectures and PTX, and 15 MB for all else."""
    assert LIBRARY.stat().st_size < 15e6 + 25e6 * len(support_matrix.nibble_formats())


def test_hopper_kernels_run_on_hopper_alone(registered):
    for capability in (80, 89, 100):
        assert not [name for names in registered(capability).values() for name in names if name.endswith("sm90a")]


def test_aoq_sm_limits_what_is_chosen(registered):
    assert all(name.endswith("sm80") for names in registered(90, "sm80").values() for name in names)
    assert not any(name.endswith("sm90a") for names in registered(90, "sm89").values() for name in names)
    done = run("import aoq", AOQ_SM="sm70")
    assert done.returncode != 0
    assert "AOQ_SM=sm70 is not an architecture that aoq has kernels for: sm80, sm89, sm90a" in done.stderr


def test_torch_without_cuda_does_not_load_it():
    import torch

    if torch.version.cuda:
        pytest.skip("this torch has CUDA")
    done = run("import aoq, aoq._C as c; print(c.cuda_kernels('int4_pack', 90))", AOQ_LOAD_CUDA="")
    assert done.stdout.strip() == "[]", done.stderr
