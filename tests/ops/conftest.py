import pytest

from aoq import _C


def isas_with_kernels(ops):
    """The ISAs, best first, under which one of `ops` has another kernel than under the next lower one.

    Under the others the same code would run again.
    """
    before, chosen = _C.isa(), {}
    for name in reversed(_C.isas()):
        _C.set_isa(name)
        chosen.setdefault(tuple(_C.kernels(op)[0] for op in ops), name)
    _C.set_isa(before)
    return list(reversed(chosen.values()))


def pytest_generate_tests(metafunc):
    """A class of tests has its `shapes` and `variants`; `isa` and `isas` are of the op that the file is named after."""
    for name in ("shape", "variant"):
        values = getattr(metafunc.cls, f"{name}s", None)
        if values is not None and name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=str)
    file = metafunc.module.__name__.rpartition(".")[2]
    isas = isas_with_kernels([op for op in _C.ops() if f"test_{op.replace('unpack', 'pack')}" == file] or _C.ops())
    wanted = metafunc.config.getoption("isa")
    isas = [name for name in isas if wanted in (None, name)]
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", isas, indirect=True)
    if "isas" in metafunc.fixturenames:
        metafunc.parametrize("isas", [isas] if isas else [], ids=["isas"] if isas else [])


def pytest_collection_modifyitems(config, items):
    """Of the ops' tests, --isa leaves those that run a kernel of that ISA."""
    if config.getoption("isa") is None:
        return
    params = [getattr(item, "callspec", None) and item.callspec.params for item in items]
    of_isa = [bool(p) and isinstance(p.get("isa", p.get("isas")), (str, list)) for p in params]
    config.hook.pytest_deselected(items=[item for item, kept in zip(items, of_isa, strict=True) if not kept])
    items[:] = [item for item, kept in zip(items, of_isa, strict=True) if kept]


@pytest.fixture(autouse=True)
def _restore_isa():
    before = _C.isa()
    yield
    _C.set_isa(before)


@pytest.fixture
def isa(request):
    """Runs the test under each ISA that the op has a kernel for; `isa` is its name."""
    _C.set_isa(request.param)
    return request.param
