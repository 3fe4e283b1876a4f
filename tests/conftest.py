import signal

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.load_profile("quick")

# In the background of a script Ctrl-C is ignored, and processes that tests start and stop would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
