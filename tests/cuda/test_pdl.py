"""AOQ_PDL: whether kernels may start before the one before them has ended, which a benchmark sets call by call."""

import ctypes
import os
import subprocess
import sys

import pytest
from toolchain import CXX, ROOT

from aoq import _C

# What `launch` of mm/cuda/packed_mm.cuh asks of CUDA, which is replaced: {programmatic, blocks that ran}.
SOURCE = """
#include "mm/cuda/packed_mm.cuh"
static int ran;
static void count() { ran += threadIdx.x == 0; }
extern "C" void launched(const char* value, unsigned cluster, int* out) {
  aoq::set_pdl(value);
  ran = 0;
  aoq::launch(count, {dim3(4), 32, 0, nullptr, cluster});
  out[0] = simt::programmatic;
  out[1] = ran;
}
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    if CXX is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("pdl")
    (folder / "pdl.cpp").write_text(SOURCE)
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    flags += ["-Wno-unknown-pragmas", "-Wno-unused-function"]
    include = [f"-I{ROOT / 'tests/cuda/simt'}", f"-I{ROOT / 'csrc'}"]
    sources = [folder / "pdl.cpp", ROOT / "csrc/cuda/pdl.cpp"]
    subprocess.run([CXX, *flags, *include, *sources, "-o", folder / "pdl.so"], check=True, timeout=300)
    library = ctypes.CDLL(str(folder / "pdl.so"))

    def call(value, cluster):
        out = (ctypes.c_int * 2)()
        library.launched(value.encode(), cluster, out)
        return tuple(out)

    return call


def test_launches_are_programmatic_unless_it_is_off(launched):
    assert launched("", 2) == launched("1", 2) == (1, 4)
    assert launched("0", 2) == (0, 4), "the cluster stays"
    assert launched("1", 0) == (0, 4), "kernels that need no cluster do not wait by themselves"


def test_every_programmatic_launch_asks():
    """A launch that does not would count in both figures."""
    launching = ("programmaticStreamSerializationAllowed", "gemm.run(stream, nullptr")
    found = [path for path in ROOT.glob("csrc/**/*.cu*") if any(text in path.read_text() for text in launching)]
    assert sorted(path.name for path in found) == ["dense_mm_sm90.cuh", "packed_mm.cuh"]
    assert all("pdl()" in path.read_text() for path in found)


def test_what_it_may_be():
    _C.set_pdl("")
    with pytest.raises(ValueError, match="set_pdl=maybe: expected 0 or 1"):
        _C.set_pdl("maybe")
    environment = {**os.environ, "AOQ_PDL": "no"}
    done = subprocess.run([sys.executable, "-c", "import aoq"], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "AOQ_PDL=no: expected 0 or 1" in done.stderr
