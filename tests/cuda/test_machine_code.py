"""What nvcc makes of the CUDA kernels that decide speed: registers, no spills, wide loads, instructions a weight."""

import collections
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from instances import instances, nibble_formats

from aoq import _C

ROOT = Path(__file__).parents[2]


def tool(name):
    """A CUDA program: on PATH, in CUDA's folder, or in the wheel of its name (cuobjdump runs nvdisasm)."""
    folders = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin"]
    wheels = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cu13")
    if wheels is not None:
        folders += [f"{folder}/bin" for folder in wheels.submodule_search_locations or ()]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


ONE_BINARY = _C.build_info()["cuda"].endswith("one binary each")
NVCC, CUOBJDUMP = tool("nvcc"), tool("cuobjdump")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")
STRUCTS = {name: struct for name, struct, *_ in nibble_formats()}

SKINNY = """
#include "formats/%(name)s.h"
#include "mm/cuda/nibble_mm_skinny.cuh"
namespace aoq::nibble_skinny { namespace {
template __global__ void multiply<ptx::Bf16, %(format)s, 8, 128, false, %(cluster)s>(const Args);
template __global__ void multiply<ptx::Bf16, %(format)s, 8, 128, true, %(cluster)s>(const Args);
template __global__ void multiply<ptx::F16, %(format)s, 16, 64, true, %(cluster)s>(const Args);
template __global__ void multiply<ptx::Bf16, %(format)s, 32, 128, true, %(cluster)s>(const Args);
template __global__ void multiply<ptx::Bf16, %(format)s, 32, 64, true, %(cluster)s>(const Args);
template __global__ void multiply<ptx::Bf16, %(format)s, 32, 32, true, %(cluster)s>(const Args);
template __global__ void multiply<ptx::Bf16, %(format)s, 8, 32, true, %(cluster)s>(const Args);
template __global__ void multiply<ptx::F16, %(format)s, 16, 8, false, %(cluster)s>(const Args);
} }
"""
SKINNY_INT8 = """
#include "formats/%(name)s.h"
#include "mm/cuda/nibble_mm_skinny.cuh"
namespace aoq::nibble_skinny { namespace {
template __global__ void multiply<ptx::S8, %(format)s, 8, 128, false, %(cluster)s>(const Args);
template __global__ void multiply<ptx::S8, %(format)s, 16, 32, true, %(cluster)s>(const Args);
template __global__ void multiply<ptx::S8, %(format)s, 32, 128, true, %(cluster)s>(const Args);
template __global__ void multiply<ptx::S8, %(format)s, 32, 32, true, %(cluster)s>(const Args);
template __global__ void multiply<ptx::S8, %(format)s, 16, 8, true, %(cluster)s>(const Args);
} }
"""
QUANTIZE = """
#include "rows/quantize_rows.cuh"
namespace aoq { namespace {
template __global__ void quantize<RowSource::given, Codes::e4m3, 2>(const QuantizeRows);
template __global__ void quantize<RowSource::rmsnorm, Codes::int8, 8>(const QuantizeRows);
} }
"""


class Kernels:
    """The kernels of a cubin: `resources` by name, (registers, bytes on the stack); `loop`, the one that multiplies."""

    def __init__(self, folder, source, sm, *flags):
        (folder / "kernels.cu").write_text(source)
        command = [NVCC, "-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}", "-Xptxas", "-v", *flags]
        command += [f"-gencode=arch=compute_{sm},code=[sm_{sm}]", "-cubin", "-o", "kernels.cubin", "kernels.cu"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert "setmaxnreg" not in done.stderr, "ptxas ignores it: " + done.stderr
        assert "Performance Loss" not in done.stderr, "ptxas makes wgmma wait for each other: " + done.stderr
        pattern = r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill.*?Used (\d+) reg"
        found = re.findall(pattern, done.stderr, re.DOTALL)
        self.resources = {name: (int(used), int(stack) + int(spills)) for name, stack, spills, used in found}
        self.cubin = folder / "kernels.cubin"

    def code(self):
        """(address, instruction) of all, by kernel."""
        if CUOBJDUMP is None:
            pytest.skip("no cuobjdump")
        code = subprocess.run([CUOBJDUMP, "-sass", self.cubin], capture_output=True, text=True, check=True).stdout
        functions = (text.partition("\n") for text in code.split("Function : ")[1:])
        return {name: re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", body) for name, _, body in functions}

    def loop(self, part, multiply="HMMA"):
        """Instructions of the innermost loop with `multiply` of the kernel whose mangled name has `part`."""
        (lines,) = (lines for name, lines in self.code().items() if re.search(part, name))
        at = {int(address, 16): i for i, (address, _) in enumerate(lines)}
        loops = []
        for i, (address, text) in enumerate(lines):
            jump = re.search(r"BRA\S* .*?0x([0-9a-f]+)", text)
            if jump and int(jump[1], 16) <= int(address, 16):
                body = [re.sub(r"^@!?U?P\w+ ", "", line) for _, line in lines[at[int(jump[1], 16)] : i + 1]]
                if any(line.startswith(multiply) for line in body):
                    loops.append(body)
        return min(loops, key=len)


def skinny(folder, source, name, sm):
    values = {"name": name, "format": STRUCTS[name], "cluster": "true" if sm == "90a" else "false"}
    return Kernels(folder, source % values, sm)


@pytest.fixture(scope="module")
def hopper(tmp_path_factory):
    return skinny(tmp_path_factory.mktemp("sm90a"), SKINNY, "int4", "90a")


def test_int4_mm_has_no_spills_on_hopper(hopper):
    kernels = {name: used for name, used in hopper.resources.items() if "multiply" in name}
    assert len(kernels) == SKINNY.count("template")
    # 65536 registers a multiprocessor: a block of 256 threads fits with 255 each.
    assert all(registers <= 255 and stack == 0 for registers, stack in kernels.values()), kernels


@pytest.mark.parametrize("sm", ("80", "86", "89"))
def test_int4_mm_has_no_spills_on_ampere_and_ada(tmp_path, sm):
    kernels = skinny(tmp_path, SKINNY, "int4", sm).resources
    assert all(stack == 0 for name, (_, stack) in kernels.items() if "multiply" in name), kernels


def test_int4_mm_reads_nothing_before_the_kernel_before_has_ended(hopper, wgmma):
    """ptxas takes loads of the constant path to before the wait, wherever the source has them."""
    for kernels, read in ((hopper, "LDG"), (wgmma, "UTMALDG"), (wgmma, "UBLKCP")):
        for name, lines in kernels.code().items():
            if "multiply" in name:
                code = [text for _, text in lines]
                (wait,) = (i for i, text in enumerate(code) if "ACQBULK" in text)
                assert not [text for text in code[:wait] if read in text], name
                assert any("UBLKPF" in text or "UTMAPF" in text for text in code[:wait]), name
                assert not [text for text in code if "LDG" in text and "CONSTANT" in text], name


def test_int4_mm_main_loop_on_hopper(hopper):
    """One token: 16 wide loads for 512 weights a lane, and few enough instructions to keep up with memory."""
    body = hopper.loop(r"Bf16E\w+4Int4ELi8ELi128ELb0")
    opcodes = collections.Counter(line.split()[0].split(".")[0] for line in body)
    wide = sum(line.startswith("LDG.E") and ".128" in line and ".NA" in line for line in body)
    weights = 32 * wide  # four-bit codes in sixteen bytes
    assert wide == 16 and opcodes["HMMA"] == weights / 8
    assert not opcodes["LDL"] + opcodes["STL"] + opcodes["STS"] + opcodes["BAR"]
    elsewhere = ("LDG", "LDSM", "HMMA", "BRA", "BSSY", "BSYNC", "WARPSYNC", "NOP")
    arithmetic = sum(count for opcode, count in opcodes.items() if opcode not in elsewhere)
    assert arithmetic / weights <= 1.8, opcodes


@pytest.mark.parametrize("sm", ("80", "86", "89", "90"))
def test_wide_int4_mm(tmp_path, sm):
    """No spills, two blocks of 64 tokens at a time, and a loop that is mostly tensor-core instructions."""
    kernels = Kernels(tmp_path, instances()["int4_mm_wide_sm80"], sm)
    multiply = {name: used for name, used in kernels.resources.items() if "multiply" in name}
    assert len(multiply) == 4 and all(stack == 0 for _, stack in multiply.values()), multiply
    for name, (registers, _) in multiply.items():
        assert registers <= (128 if "ELi64E" in name else 255), multiply
    body = kernels.loop(r"Bf16E\w+4Int4ELi128E")
    opcodes = collections.Counter(line.split()[0].split(".")[0] for line in body)
    # 64 columns: four atoms of two tiles of rows and eight of tokens, two k32 of eight tokens, two tiles of words
    assert (opcodes["HMMA"], opcodes["LDSM"], opcodes["LDGSTS"]) == (64, 16, 7)
    assert sum(line.startswith("LDS.128") for line in body) == 2
    assert sum(line.startswith("LDGSTS") and ".128" in line for line in body) == 5


@pytest.fixture(scope="module")
def wgmma(tmp_path_factory):
    return Kernels(tmp_path_factory.mktemp("wgmma"), instances()["int4_mm_wgmma_sm90a"], "90a")


def test_int4_mm_wgmma_has_no_spills(wgmma):
    kernels = {name: used for name, used in wgmma.resources.items() if "multiply" in name}
    assert len(kernels) == 2 * 6 * 3 * 2, "types of x, tiles, spans, with and without zero points"
    # What 384 threads start with; two warpgroups take 232 of them each later.
    assert all(registers == 168 and stack == 0 for registers, stack in kernels.values()), kernels


def test_int4_mm_wgmma_main_loop(wgmma):
    """256 rows x 128 tokens x 128 columns: 32 wgmma a warpgroup, each weight decoded once, each sum scaled once."""
    body = wgmma.loop(r"Bf16E\w+4Int4ELi128ELi2ELi128ELb0", "HGMMA")
    opcodes = collections.Counter(line.split()[0].split(".")[0] for line in body)
    assert opcodes["HGMMA"] == 32 and opcodes["HFMA2"] == 2 * 128 * 64 / 2 / 128 and opcodes["FFMA"] == 128
    assert sum(line.startswith("LDS.128") for line in body) == 4
    assert not opcodes["LDL"] + opcodes["STL"] + opcodes["STS"] + opcodes["BAR"]
    # A scheduler issues two warps' instructions while its tensor core multiplies for 2048 clocks.
    assert 2 * len(body) <= 1200, opcodes


def test_int4_mm_wgmma_stores_whole_sectors(wgmma):
    """Sixteen bytes a lane from shared memory, eight to out; else bf16s one by one."""
    (code,) = (code for name, code in wgmma.code().items() if re.search(r"Bf16E\w+4Int4ELi128ELi2ELi128ELb0", name))
    stores = {re.search(r"STG\.\S+", text)[0] for _, text in code if "STG" in text}
    assert "STG.E.64" in stores and stores <= {"STG.E.64", "STG.E.U16", "STG.E"}, stores
    loads = collections.Counter(re.search(r"LDS\S*", text)[0] for _, text in code if "LDS" in text)
    assert loads["LDS.128"] > 4, "those of the main loop"


def test_wide_int8_int4_mm(tmp_path):
    kernels = Kernels(tmp_path, instances()["int8_int4_mm_wide_sm80"], "80")
    multiply = {name: used for name, used in kernels.resources.items() if "multiply" in name}
    (wide,) = (used for name, used in multiply.items() if "ELi128E" in name)
    (narrow,) = (used for name, used in multiply.items() if "ELi64E" in name)
    # two blocks of 64 tokens at a time
    assert wide[1] == 0 and narrow[0] <= 128 and narrow[1] == 0, multiply
    opcodes = collections.Counter(line.split()[0].split(".")[0] for line in kernels.loop(r"S8E\w+4Int4ELi128E", "IMMA"))
    # 128 columns: twice as many multiplications a stage as of 64, of twice the columns
    assert (opcodes["IMMA"], opcodes["LDSM"], opcodes["LDGSTS"]) == (64, 16, 10)


@pytest.mark.parametrize("sm", ("80", "90a"))
def test_int8_int4_mm(tmp_path, sm):
    """One token: a third of int4_mm's decoding, so that memory binds all the more."""
    kernels = skinny(tmp_path, SKINNY_INT8, "int4", sm)
    multiply = {name: used for name, used in kernels.resources.items() if "multiply" in name}
    assert len(multiply) == SKINNY_INT8.count("template") and all(stack == 0 for _, stack in multiply.values()), (
        multiply
    )
    body = kernels.loop(r"S8E\w+4Int4ELi8ELi128ELb0", "IMMA")
    opcodes = collections.Counter(line.split()[0].split(".")[0] for line in body)
    wide = sum(line.startswith("LDG.E") and ".128" in line for line in body)
    weights = 32 * wide
    assert wide == 16 and opcodes["IMMA"] == weights / 16
    elsewhere = ("LDG", "LDSM", "IMMA", "BRA", "BSSY", "BSYNC", "WARPSYNC", "NOP")
    arithmetic = sum(count for opcode, count in opcodes.items() if opcode not in elsewhere)
    assert arithmetic / weights <= 1.0, opcodes


def test_int8_int4_mm_wgmma(tmp_path):
    kernels = Kernels(tmp_path, instances()["int8_int4_mm_wgmma_sm90a"], "90a")
    multiply = {name: used for name, used in kernels.resources.items() if "multiply" in name}
    assert len(multiply) == 6 * 3 * 2, "tiles, spans, with and without zero points"
    assert all(registers == 168 and stack == 0 for registers, stack in multiply.values()), multiply
    body = kernels.loop(r"S8E\w+4Int4ELi128ELi2ELi128ELb0", "IGMMA")
    opcodes = collections.Counter(line.split()[0].split(".")[0] for line in body)
    # Half of int4_mm's multiplications, the same sums; while the tensor cores multiply for 1024 clocks.
    assert opcodes["IGMMA"] == 16 and opcodes["FFMA"] == 128 and 2 * len(body) <= 1024, opcodes


WEIGHT_MM = ("int8_weight_mm", 1, "Int8"), ("fp8_weight_mm", 2, "Fp8E4m3")  # op, formats, one of them


@pytest.mark.parametrize("op, formats, one", WEIGHT_MM)
@pytest.mark.parametrize("sm", ("80", "90"))
def test_weight_mm(tmp_path, sm, op, formats, one):
    """Two blocks a multiprocessor; in bf16 six or seven operations for four weights, two of them multiply-adds."""
    kernels = Kernels(tmp_path, (ROOT / f"csrc/ops/{op}/{op}_sm80.cu").read_text(), sm)
    multiply = {name: used for name, used in kernels.resources.items() if "multiply" in name}
    assert len(multiply) == 6 * formats and all(used[0] <= 128 and used[1] == 0 for used in multiply.values()), multiply
    body = kernels.loop(rf"Bf16E\w+{one}ELi8E")
    opcodes = collections.Counter(line.split()[0].split(".")[0] for line in body)
    wide = sum(line.startswith("LDG.E") and ".128" in line and ".NA" in line for line in body)
    weights = 16 * wide
    assert wide == 16 and opcodes["HMMA"] == weights / 8 and opcodes["HFMA2"] + opcodes["HMUL2"] == weights / 2
    assert not opcodes["LDL"] + opcodes["STL"] + opcodes["STS"] + opcodes["BAR"]
    elsewhere = ("LDG", "LDS", "HMMA", "BRA", "BSSY", "BSYNC", "WARPSYNC", "NOP", "CALL")
    arithmetic = sum(count for opcode, count in opcodes.items() if opcode not in elsewhere)
    assert arithmetic / weights <= 2.5, opcodes


@pytest.mark.parametrize("op, formats, one", WEIGHT_MM)
@pytest.mark.parametrize("sm", ("80", "90"))
def test_wide_weight_mm(tmp_path, sm, op, formats, one):
    """No spills, two blocks of 64 tokens at a time, and a loop that loads sixteen bytes at a time and decodes once."""
    kernels = Kernels(tmp_path, (ROOT / f"csrc/ops/{op}/{op}_wide_sm80.cu").read_text(), sm)
    multiply = {name: used for name, used in kernels.resources.items() if "multiply" in name}
    assert len(multiply) == 4 * formats and all(stack == 0 for _, stack in multiply.values()), multiply
    for name, (registers, _) in multiply.items():
        assert registers <= (128 if "ELi64E" in name else 255), multiply
    body = kernels.loop(rf"Bf16E\w+{one}ELi128E")
    opcodes = collections.Counter(line.split()[0].split(".")[0] for line in body)
    # 64 columns: four atoms of two tiles of rows and eight of tokens, 64 codes of a lane
    assert (opcodes["HMMA"], opcodes["PRMT"], opcodes["HFMA2"] + opcodes["HMUL2"]) == (64, 32, 32), opcodes
    assert sum(line.startswith("LDS.128") for line in body) == 4 + 16
    assert sum(line.startswith("LDGSTS") and ".128" in line for line in body) == opcodes["LDGSTS"] == 6
    assert not opcodes["LDL"] + opcodes["STL"] + opcodes["STS"]
    # A scheduler issues two warps' instructions while an sm_80's tensor core multiplies for 1024 clocks.
    assert 2 * len(body) <= 800, opcodes


def test_quantizers_have_no_spills(tmp_path):
    kernels = Kernels(tmp_path, QUANTIZE, "90", "-fmad=false")
    assert all(stack == 0 for name, (_, stack) in kernels.resources.items() if "quantize" in name), kernels.resources


# ---- kernels made with CUTLASS: as they are in the library, because they take long to compile


@pytest.fixture(scope="module")
def disassembler():
    """`disassembler(*arguments)`: what cuobjdump says of libaoq_cuda."""
    if _C.build_info()["cutlass"].startswith("no"):
        pytest.skip(_C.build_info()["cutlass"])
    if CUOBJDUMP is None:
        pytest.skip("no cuobjdump")
    library = Path(_C.__file__).with_name("libaoq_cuda.so")
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(CUOBJDUMP).parent), os.environ["PATH"]])}

    def run(*arguments):
        command = [CUOBJDUMP, *arguments, library]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=900).stdout

    return run


@pytest.fixture(scope="module")
def kernels(disassembler):
    """(architecture, mangled name, bytes on the stack) of each kernel of the library."""
    found = []
    for binary in disassembler("-res-usage").split("Fatbin elf code:")[1:]:
        architecture = re.search(r"arch = (\S+)", binary)[1]
        each = re.findall(r"Function (\S+):\s+REG:\d+ STACK:(\d+)", binary)
        found += [(architecture, name, int(stack)) for name, stack in each if "aoq" in name]
    return found


@pytest.fixture(scope="module")
def dense_kernels(kernels):
    """Those of int8_mm and fp8_mm."""
    return [kernel for kernel in kernels if re.search(r"cutlass.*\d(Finish|FinishAndStore)I", kernel[1])]


def test_dense_matmuls_have_no_spills(dense_kernels):
    built = {"sm_80", "sm_89", "sm_90a"} | (set() if ONE_BINARY else {"sm_90"})
    assert {architecture for architecture, *_ in dense_kernels} == built
    assert sum(architecture == "sm_90a" for architecture, *_ in dense_kernels) == 18
    assert not [kernel for kernel in dense_kernels if kernel[2]]


def test_dense_matmuls_use_the_tensor_cores_of_their_architecture(dense_kernels, disassembler):
    """wgmma on Hopper, mma.sync on Ampere and Ada. Hopper's mma.sync has no fp8: there, codes are widened to fp16."""

    def kind_of(name):
        return "fp8" if "float_e" in name else "int8"

    chosen = {}
    for architecture, name, _ in dense_kernels:
        chosen.setdefault((architecture, kind_of(name)), name)
    code = disassembler("-sass", "-fun", ",".join(sorted(set(chosen.values()))))
    opcodes = {}
    for binary in code.split("Fatbin elf code:")[1:]:
        architecture = re.search(r"arch = (\S+)", binary)[1]
        for function in binary.split("Function : ")[1:]:
            kind = architecture, kind_of(function.partition("\n")[0])
            opcodes.setdefault(kind, set()).update(re.findall(r"\b[A-Z]*MMA\.[\w.]+", function))
    expected = {
        ("sm_90a", "fp8"): "QGMMA.64",
        ("sm_90a", "int8"): "IGMMA.64",
        ("sm_80", "int8"): "IMMA.16832.S8.S8",
        ("sm_89", "fp8"): "QMMA.16832.F32.E",
        ("sm_90", "int8"): "IMMA.16832.S8.S8",
        ("sm_90", "fp8"): "HMMA.16816.F32",
    }
    if ONE_BINARY:
        expected = {kind: opcode for kind, opcode in expected.items() if kind[0] != "sm_90"}
    assert set(opcodes) == set(expected)
    for kind, opcode in expected.items():
        assert opcodes[kind] and all(name.startswith(opcode) for name in opcodes[kind]), (kind, opcodes[kind])
