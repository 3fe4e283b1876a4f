import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
