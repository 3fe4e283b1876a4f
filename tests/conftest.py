import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from aoq import cpu

hypothesis.settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.load_profile("quick")

# In the background of a script Ctrl-C is ignored, and processes that tests start and stop would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" not in config.option.markexpr:  # whatever else is selected
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--isa", help="of the ops' tests, run those of this ISA's own kernels: avx2, amx, ...")


@pytest.fixture(autouse=True, scope="session")
def fast_bf16() -> Iterator[None]:
    """Dtypes are the same on every machine: as on a CPU for which none is changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "cpu_features", lambda *_: frozenset({"avx512_bf16"}))
        yield


@pytest.fixture(autouse=True)
def alike() -> Iterator[None]:
    """A test begins as if it were the only one."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
