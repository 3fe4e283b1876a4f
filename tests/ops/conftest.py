import pytest

from aoq import _C


def pytest_generate_tests(metafunc):
    """A class of tests has its `shapes` and `variants`."""
    for name in ("shape", "variant"):
        values = getattr(metafunc.cls, f"{name}s", None)
        if values is not None and name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=str)


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
