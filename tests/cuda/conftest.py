"""CUDA kernels without a GPU: compiled as plain C++ with simt/cuda_runtime.h, which runs their threads on the CPU."""

import ctypes
import importlib.util
import subprocess
from pathlib import Path

import pytest
from instances import instances
from toolchain import CXX, ROOT, cuda_home


@pytest.fixture(scope="session")
def simt_kernel(tmp_path_factory):
    """`simt_kernel(name, struct)`: the host function that launches kernel `name` on a pointer to `struct`."""
    if CXX is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("simt")

    def build(name, struct):
        library = folder / f"{name}.so"
        if not library.exists():
            if name in instances():  # what CMake makes of a template
                source = folder / f"{name}.cu"
                source.write_text(instances()[name])
            else:
                (source,) = (ROOT / "csrc").rglob(f"{name}.cu")
            flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
            flags += ["-Wno-unknown-pragmas"]  # unroll
            if name.endswith("_sm80"):
                flags += [f"-DSIMT_SHARED_BYTES={99 * 1024}"]  # sm_86 and sm_89 have no more
            include = [f"-I{ROOT / 'tests/cuda/simt'}", f"-I{ROOT / 'csrc'}"]
            sources = [source, ROOT / "csrc/cuda/pdl.cpp"]
            subprocess.run([CXX, *flags, *include, "-x", "c++", *sources, "-o", library], check=True, timeout=900)
        kind = struct.__name__
        symbol = f"_ZN3aoq{len(name)}{name}ERKNS_{len(kind)}{kind}EP11CUstream_st"
        function = getattr(ctypes.CDLL(str(library)), symbol)
        function.argtypes, function.restype = [ctypes.POINTER(struct), ctypes.c_void_p], None

        def call(**fields):
            args = struct(**fields)
            with args.fenced():
                function(ctypes.byref(args), None)

        return call

    return build


@pytest.fixture(scope="session")
def cute_flags():
    """What a host compiler needs to include CuTe."""
    cutlass, cuda = importlib.util.find_spec("cutlass_library"), cuda_home()
    if cutlass is None or cutlass.origin is None:
        pytest.skip("CuTe's headers: pip install --no-deps nvidia-cutlass==4.2.0.0")
    if cuda is None:
        pytest.skip("CUDA's headers are not installed")
    include = Path(cutlass.origin).parent / "source/include"
    return [f"-isystem{path}" for path in (include, cuda / "include", cuda / "include/cccl")]
