"""Where the compilers are."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
CXX = shutil.which("g++") or shutil.which("c++")


def cuda_home():
    """The CUDA toolkit, or None."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and Path(nvcc).resolve().parents[1]]
    return next((Path(home) for home in homes if home and (Path(home) / "include/cuda_runtime.h").exists()), None)
