"""Tests that need a CUDA device: `make gpu` runs them, on any machine that has one."""

import pytest
import torch
from operands import capability, runs

from aoq import _C


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


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


@pytest.fixture(params=_C.ops())
def op(request):
    """Each op that has CUDA kernels, after `sm` where a test asks for both."""
    if not runs(request.param):
        pytest.skip(f"{request.param} has no CUDA kernels for this device")
    return request.param
