"""The tree is the architecture: what CONTRIBUTING and docs say of files and options, checked."""

import re
import sys
from pathlib import Path

import pytest
import typer

from aoq import _C
from aoq.cli import app

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
sys.path.insert(0, str(Path(__file__).parent / "cuda"))
import support_matrix
from instances import instances

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
OPS_DIR = CSRC / "ops"
OPS = support_matrix.ops()
ISAS = ("amx", "avx512vbmi", "avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "ref")  # best first
SMS = ("sm90a", "sm89", "sm80")  # best first
SEALED = sorted(
    [path for isa in ISAS[:-1] for path in CSRC.rglob(f"*_{isa}.cpp")]
    + [
        *CSRC.glob("mm/x_*.h"),
        *(CSRC / f"formats/{row[0]}.h" for row in support_matrix.lines("csrc/formats/formats.inc", "AOQ_FORMAT")),
    ]
)
ALLOWED = {"<immintrin.h>", "<cstdint>", "<cstring>", "<cmath>", "<cstddef>", "<type_traits>"}  # the last: types alone


def included(path, seen=None):
    """Everything that `path` includes, through our own headers, system headers in their brackets."""
    seen = set() if seen is None else seen
    for name in re.findall(r"^#include (\S+)", path.read_text(), re.MULTILINE):
        if name in seen:
            continue
        seen.add(name)
        if name.startswith('"'):
            included(CSRC / name.strip('"'), seen)
    return seen


def test_matmuls_are_listed_as_they_are_built():
    for op in (op for op in OPS if support_matrix.mm_kernels(op)):
        listed = [name for isa, name in support_matrix.kernels(op) if isa in _C.isas()]
        assert _C.kernels(op) == listed[len(listed) - len(_C.kernels(op)) :]
        assert op not in _C.ops() or (OPS_DIR / op).exists()


def test_there_are_ops():
    assert {"int4_mm", "int4_pack", "int4_unpack", "int4_quantize"} <= set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_one_folder_one_file_one_test(op):
    op = op if (OPS_DIR / op).exists() else "mm"  # formats without an op of their own
    assert (OPS_DIR / op / f"{op}.cpp").exists()
    assert (ROOT / "python/aoq/ops" / f"{op}.py").exists()
    assert any((ROOT / "tests/ops").glob(f"test_{op.replace('unpack', 'pack')}.py"))


@pytest.mark.parametrize("op", OPS)
def test_a_kernel_is_its_file_and_one_line(op):
    cpu, cuda = support_matrix.kernels(op), support_matrix.cuda_tables(op)
    made = op == "fp8_mm" or support_matrix.mm_kernels(op)  # from mm/kernel.cpp.in
    on_cpu = {"fp8_mm": "fp8_weight_mm"}.get(op, op)  # runs the other's kernels
    for owner, listed, suffix, targets in ((on_cpu, {"": cpu}, "cpp", ISAS), (op, cuda, "cu", SMS)):
        for plan, table in listed.items():
            assert all(re.fullmatch(rf"{owner}{plan}_(\w+_)?{target}", name) for target, name in table)
            order = [target for target, _ in table]
            assert order == sorted(order, key=targets.index), "best first"
        files = {path.stem for path in OPS_DIR.glob(f"{owner}/{owner}_*.{suffix}")} - {f"{owner}_cuda"}
        names = {name for table in listed.values() for _, name in table if "_cutlass_" not in name}
        assert files == (set() if suffix == "cpp" and made else names - instances().keys())
    assert cpu[-1][0] == "ref"
    own = op if (OPS_DIR / op).exists() else "mm"
    assert (OPS_DIR / own / f"{own}_cuda.cpp").exists() or not cuda, "CUDA kernels have an entry"
    text = "".join(path.read_text() for path in (OPS_DIR / op).glob("kernels*_cuda.inc"))
    with_cutlass = re.findall(r"^AOQ_CUTLASS_KERNEL\(\w+, (\w+)\)", text, re.MULTILINE)
    names = [name for table in cuda.values() for _, name in table]
    assert with_cutlass == [name for name in names if "_cutlass_" in name], "its name says how it is built"


@pytest.mark.parametrize("path", SEALED, ids=lambda path: path.name)
def test_isa_files_are_sealed(path):
    """An inline function that an AVX-512 file shares with others could be linked into them, and run on older CPUs."""
    names = included(path)
    assert {name for name in names if name.startswith("<")} <= ALLOWED
    for name in names:
        if not name.startswith('"'):
            continue
        text = (CSRC / name.strip('"')).read_text()
        outside = re.sub(r"^namespace \{.*?^\}  // namespace$", "", text, flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"^\s*inline\b|^template|^\s*constexpr [^=;]*\(|\) (const )?\{$", outside, re.MULTILINE), (
            f"{name} is not sealed"
        )


DOCS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
FOLDERS = "benchmarks|cmake|csrc|docs|examples|python|scripts|tests|third_party"


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: str(doc.relative_to(ROOT)))
def test_docs_name_files_that_there_are(doc):
    text = doc.read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
        file = doc.parent / target if target else doc
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE) if anchor else ()
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in headings]
    for path in re.findall(rf"`(?:\w+ )?((?:{FOLDERS})/[\w./-]+)(?: [^`]*)?`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: str(doc.relative_to(ROOT)))
def test_docs_name_options_that_there_are(doc):
    commands = typer.main.get_command(app).commands
    scripts = {name: (ROOT / name).read_text() for name in ("benchmarks/cuda.py", "benchmarks/vllm_throughput.py")}
    text = doc.read_text().replace("\\\n", " ")
    for line in re.findall(r"^.*$|`[^`]+`", text, re.MULTILINE):
        for command, rest in re.findall(r"\baoq (\w+)((?: [^#|;`]*)?)", line):
            known = (
                {option for param in commands[command].params for option in param.opts} if command in commands else ()
            )
            assert not known or set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= {*known, "--help"}, line
        for script, rest in re.findall(r"python (benchmarks/\w+\.py)([^#|;`]*)", line):
            assert all(f'"{option}"' in scripts[script] for option in re.findall(r"(?<!\S)--[a-z-]+", rest)), line


def test_nothing_is_built_for_the_build_machine():
    for path in (ROOT / "CMakeLists.txt", *ROOT.glob("cmake/*")):
        assert "march=native" not in path.read_text()


def test_tables_are_generated():
    for path, text in support_matrix.pages().items():
        assert path.read_text() == text, "run scripts/support_matrix.py"


def test_pre_commit_checks_what_make_lint_does():
    lint = re.search(r"^lint = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    pinned = set(re.findall(r'"([\w-]+==[\d.]+)"', lint))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert {name.split("==")[0] for name in pinned} == {"ruff", "mypy", "clang-format"}
    assert set(re.findall(r"[\w-]+==[\d.]+", hooks)) == {name for name in pinned if not name.startswith("mypy")}


def test_prefetches_are_in_assembly():
    """GCC drops calls of functions that do nothing but _mm_prefetch, unless it inlines them: simd/prefetch.h."""
    for path in (*SEALED, *CSRC.rglob("*.h")):
        assert "_mm_prefetch" not in re.sub("//.*", "", path.read_text()), path.name
