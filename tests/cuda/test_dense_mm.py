"""int8_mm and fp8_mm on CUDA without a GPU: CUTLASS's instances, their epilogues thread by thread, the choice."""

import re
import subprocess

import pytest
from instances import cutlass_kernels
from toolchain import CXX, ROOT, cuda_home

OPS = ("int8_mm", "fp8_mm")
H200 = (90, 132, 4300)  # compute capability, multiprocessors, bytes per ns


@pytest.fixture(scope="module")
def host_program(cute_flags, tmp_path_factory):
    """`host_program(name, *flags)`: what the program tests/cuda/<name>.cpp prints, given `stdin`."""
    if CXX is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("dense")

    def run(name, *flags, sources=(), stdin=""):
        program = folder / (name + "".join(flags))
        host = ROOT / "tests/cuda/host"
        # What CUTLASS says in a way that nvcc lets pass.
        lax = ["-w", "-fpermissive", f"-I{host}", "-include", host / "device.h"]
        command = [CXX, "-std=c++17", "-O1", *lax, *cute_flags, f"-I{ROOT / 'csrc'}", *flags]
        runtime = [f"-L{cuda_home() / 'lib64'}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        command += [ROOT / f"tests/cuda/{name}.cpp", *(ROOT / "csrc" / each for each in sources)]
        subprocess.run([*command, "-o", program, *runtime], check=True, timeout=900)
        done = subprocess.run([program], input=stdin, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    return run


def instances(op, architecture):
    """(codes of x, codes of w, tokens, rows, "true" or "false" for pairs and stream-K) of the op's kernels, by name."""
    names = cutlass_kernels(op, architecture)
    assert names
    for name in names:
        pattern = rf"{op}_cutlass_(\d+)x(\d+)(_pairs)?(_stream_k)?(?:_(e\dm\d)_(e\dm\d))?_sm\w+"
        tokens, rows, pairs, stream_k, *codes = re.fullmatch(pattern, name).groups()
        x, w = ("int8_t", "int8_t") if op == "int8_mm" else (f"float_{each or 'e4m3'}_t" for each in codes)
        yield x, w, tokens, rows, *("true" if part else "false" for part in (pairs, stream_k))


def test_hopper_kernels_on_the_host(host_program):
    """Each instance fits and takes what the plan gives it; its epilogue gives the right values.

    The epilogue's own code runs, for all threads, on sums laid out as wgmma leaves them. So does CUTLASS's scheduler,
    for all blocks: each step along k of each tile is made once, in no more turns than the plan counts.
    """
    *printed, last = host_program("dense_mm", "-DAOQ_SM90")
    hopper = (one for op in OPS for one in instances(op, "sm90a"))
    wanted = {f"{x} {tokens}x{rows} {pairs} {stream_k}" for x, _, tokens, rows, pairs, stream_k in hopper}
    assert {line.split(":")[0] for line in printed} == wanted
    # 70 x 264 values of each instance, two dtypes, with and without a zero point
    assert last == f"{len(wanted) * 4 * 70 * 264} values agree"


def test_other_kernels_on_the_host(host_program):
    *printed, last = host_program("dense_mm")
    shapes = {line.split(":")[0] for line in printed}
    for op, architecture in (("int8_mm", "sm80"), ("fp8_mm", "sm89")):
        for x, _, tokens, rows, *_ in instances(op, architecture):
            assert any(one.startswith(x[:-6]) and one.endswith(f" {tokens}x{rows}") for one in shapes)
    assert last == f"{6 * 6 * 150 * (264 + 37 + 66)} values agree"


@pytest.fixture(scope="module")
def chosen(host_program):
    """`chosen(cases)`: the kernel for each (op, m, n, k, device), with f32_out, x_e5m2, w_e5m2 if given."""

    def ask(cases):
        lines = []
        for op, m, n, k, device, *flags in cases:
            flags = [int(flag) for flag in (*flags, *[False] * (3 - len(flags)))]
            lines.append(" ".join(map(str, (m, n, k, *device, *flags, op))))
        sources = ("cuda/sm.cpp", "base/kernel.cpp", "base/isa.cpp")
        return host_program("dense_plan", sources=sources, stdin="\n".join(lines) + "\n")

    return ask


def test_the_choice(chosen):
    square, long_k = (8192, 8192), (4096, 14336)
    ladder = [(1, *square, "16x64"), (16, *square, "16x64"), (64, *square, "32x128_pairs")]
    ladder += [(128, *square, "64x192_pairs"), (8192, *square, "128x256_pairs")]
    # Tiles for few multiprocessors more than one turn: k is shared out too, where it is long.
    ladder += [(256, *long_k, "64x192_pairs"), (512, *long_k, "128x256_pairs_stream_k")]
    cases = [(op, m, n, k, H200) for op in OPS for m, n, k, _ in ladder]
    assert chosen(cases) == [f"{op}_cutlass_{tile}_sm90a" for op in OPS for *_, tile in ladder]


def test_what_hopper_does_not_take_has_another_kernel(chosen):
    odd = [("int8_mm", 100, 50257, 768, H200), ("int8_mm", 100, 4096, 768, H200, True)]
    odd += [("fp8_mm", 100, 50257, 768, H200), ("fp8_mm", 100, 4096, 768, H200, True)]
    assert all(name.endswith(("_sm80", "_sm89")) for name in chosen(odd))
    for x in (False, True):
        for w in (False, True):
            (name,) = chosen([("fp8_mm", 4, 4096, 4096, H200, False, x, w)])
            codes = f"_{'e5m2' if x else 'e4m3'}_{'e5m2' if w else 'e4m3'}_"
            assert codes in name if x or w else name.endswith("sm90a")


def test_each_architecture_has_a_kernel_for_each_shape(chosen):
    devices = [(80, 108, 2000), (86, 82, 936), (89, 128, 1008), H200, (100, 148, 8000), (120, 170, 1792)]
    shapes = [(m, n, k) for m in (1, 3, 17, 300, 10**6) for n in (1, 8, 100, 10**6) for k in (16, 4096)]
    cases = [(op, *shape, device, f32) for op in OPS for device in devices for shape in shapes for f32 in (False, True)]
    for case, name in zip(cases, chosen(cases), strict=True):
        assert (name == "none") == (case[0] == "fp8_mm" and case[4][0] < 89), case
        assert name == "none" or int(re.search(r"_sm(\d+)a?$", name)[1]) <= case[4][0]


LEFT_OUT = """
#include <cstdio>
#include "cuda/sm.h"
void function() {}
constexpr aoq::CudaKernel<void (*)()> kKernels[] = {
    {aoq::Sm::sm90a, "op_cutlass_64x64_sm90a", AOQ_CUTLASS_FUNCTION(function)},
    {aoq::Sm::sm80, "op_sm80", %s},
};
int main() {
  try {
    aoq::select(kKernels, 90);
    std::puts(aoq::last_kernel.load());
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
}
"""


@pytest.mark.parametrize(
    "flags, other, said",
    [
        (
            (),
            "nullptr",
            "op_cutlass_64x64_sm90a, which compute capability 9.0 needs, is made with CUTLASS, and aoq was built",
        ),
        ((), "function", "op_sm80"),
        (("-DAOQ_CUTLASS",), "function", "op_cutlass_64x64_sm90a"),
    ],
)
def test_an_op_says_which_kernel_was_left_out(tmp_path, flags, other, said):
    """What a build without CUTLASS answers: lines of a table without a function."""
    (tmp_path / "left_out.cpp").write_text(LEFT_OUT % other)
    sources = [
        tmp_path / "left_out.cpp",
        *(ROOT / "csrc" / name for name in ("cuda/sm.cpp", "base/kernel.cpp", "base/isa.cpp")),
    ]
    command = [CXX, "-std=c++17", f"-I{ROOT / 'csrc'}", *flags, *sources, "-o", tmp_path / "left_out"]
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run([tmp_path / "left_out"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(said)
