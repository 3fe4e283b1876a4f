import pytest

from aoq import _C


@pytest.fixture(autouse=True)
def _restore_isa():
    before = _C.isa()
    yield
    _C.set_isa(before)


@pytest.fixture(params=_C.isas())
def isa(request):
    """Runs the test under each ISA of this machine; `isa` is its name."""
    _C.set_isa(request.param)
    return request.param
