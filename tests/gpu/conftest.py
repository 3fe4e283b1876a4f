"""Tests that need a CUDA device: `make gpu` runs them, on any machine that has one.

With AOQ_GPU_TESTS_ON=cpu they call the CPU's kernels, for tests/cuda/test_gpu_tests.py: a test that fails there is
wrong itself. They need pytest and what aoq depends on, no more: a machine with a GPU may have nothing else.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # rounding.py; tests/conftest.py is the suite's own
from operands import DEVICE, capability, runs

from aoq import _C


def pytest_configure(config):
    config.addinivalue_line("markers", "queued: needs launches that do not block (no CUDA_LAUNCH_BLOCKING=1)")


def pytest_collection_modifyitems(items):
    here = torch.cuda.is_available()
    for item in items:
        if not here and (DEVICE == "cuda" or item.get_closest_marker("queued")):
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture(autouse=True)
def alike():
    """A test begins as if it were the only one."""
    torch.manual_seed(0)


@pytest.fixture(params=["sm90a", "sm89", "sm80"])
def sm(request):
    """Runs the test as if the device had no newer architecture than `sm`; skips what chooses no other kernel."""
    names = {op: _C.cuda_kernels(op, capability()) for op in _C.ops()}
    own = [name for kernels in names.values() for name in kernels if name.endswith(request.param)]
    if request.param != "sm80" and not own:
        pytest.skip(f"this device has no kernels of its own for {request.param}")
    _C.set_sm(request.param)
    yield request.param
    _C.set_sm("")


@pytest.fixture(params=["0", "1"], ids=["without_pdl", "with_pdl"])
def pdl(request):
    """Kernels that wait for the one before them, and that start while it ends; with AOQ_PDL=0 the first alone."""
    if request.param == "1" and os.environ.get("AOQ_PDL") == "0":
        pytest.skip("AOQ_PDL=0")
    _C.set_pdl(request.param)
    yield request.param
    _C.set_pdl(os.environ.get("AOQ_PDL", ""))


@pytest.fixture(params=_C.ops())
def op(request):
    """Each op that has CUDA kernels, after `sm` where a test asks for both."""
    if not runs(request.param):
        pytest.skip(f"{request.param} has no CUDA kernels for this device")
    return request.param
