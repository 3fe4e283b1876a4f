"""plans.cpp, compiled: what hosts plan for the kernels."""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import pytest
from kernel_args import I64, Args, Plan
from toolchain import CXX, ROOT


class Shape(Args):
    _fields_ = tuple((name, I64) for name in ("m", "n", "k", "group", "w_bits", "x_bytes"))


@functools.cache
def plans():
    if CXX is None:
        pytest.skip("no C++ compiler")
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{ROOT / 'csrc'}"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "plans.so"
        subprocess.run([CXX, *flags, ROOT / "tests/cuda/plans.cpp", "-o", library], check=True, timeout=300)
        functions = ctypes.CDLL(str(library))
    functions.skinny_cost.restype = ctypes.c_double
    functions.wide_pays.restype = functions.wgmma_pays.restype = functions.weight_differs.restype = ctypes.c_bool
    for name in ("skinny_workspace", "wide_workspace", "wgmma_workspace"):
        getattr(functions, name).restype = I64
    return functions


def skinny_plan(shape, log_warps_k, log_split, chunk=None, of="skinny_plan"):
    """The plan for few rows of a config; `chunk` instead of as much of x as fits."""
    out = (I64 * 2)()
    getattr(plans(), of)(ctypes.byref(shape), 4 * log_warps_k + log_split, out)
    return Plan(tokens=out[0], log_warps_k=log_warps_k, log_split=log_split, chunk=chunk or out[1])


def weight_plan(*config):
    """The same of 8-bit weights."""
    return skinny_plan(*config, of="weight_plan")


def skinny_workspace(shape, log_split, cluster, f32):
    return plans().skinny_workspace(ctypes.byref(shape), log_split, cluster, f32)


def wide_workspace(shape, split, planes, copies, zero):
    return plans().wide_workspace(ctypes.byref(shape), split, planes, copies, zero)


def wgmma_workspace(shape, planes, copies, zero):
    return plans().wgmma_workspace(ctypes.byref(shape), planes, copies, zero)
