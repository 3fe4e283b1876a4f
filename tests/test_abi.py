"""One build for every torch from 2.10 on; `make test-torch-2.10` runs it beside that one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aoq import _C

LIBRARIES = sorted(Path(_C.__file__).parent.glob("libaoq*.so"))


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_open_symbols_are_of_the_stable_abi(library):
    """Any other symbol of torch would tie the library to one version of it; CUDA's runtime is inside."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    listed = subprocess.run([nm, "-DC", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    names = [line.split(maxsplit=1)[1] for line in listed.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    for name in names:
        ours, stable = name.startswith("aoq::"), re.match(r"(aoti_torch|torch)_\w+$", name)
        system = "@" in name or name.startswith(("_ITM_", "__gmon_start__", "__cxa_", "_Unwind_"))
        assert ours or stable or system, name


def test_an_older_torch_is_an_import_error():
    code = """
import torch
torch.__version__ = torch.torch_version.TorchVersion("2.9.1+cpu")
import aoq
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: aoq needs torch >= 2.10, got 2.9.1+cpu"
