"""The ops' kernels by ISA and CUDA architecture, read from csrc/ops/*/kernels*.inc. Run it to update README."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- support matrix: scripts/support_matrix.py -->\n", "<!-- end of support matrix -->\n"


def kernels(op: str, table: str = "kernels.inc") -> list[tuple[str, str]]:
    """(isa, kernel) of each line of an op's table, best first."""
    path = ROOT / "csrc/ops" / op / table
    text = path.read_text() if path.exists() else ""
    shared = re.search(r'^#include "ops/(\w+)/kernels', text, re.MULTILINE)
    if shared:
        return kernels(shared[1], table)
    return re.findall(r"^AOQ_(?:CUTLASS_)?KERNEL\((\w+), (\w+)\)", text, re.MULTILINE)


def cuda_kernels(op: str) -> list[tuple[str, str]]:
    """(architecture, kernel) of each line of an op's CUDA tables, best first in each."""
    return [kernel for table in cuda_tables(op) for kernel in kernels(op, table)]


def cuda_tables(op: str) -> list[str]:
    """kernels_cuda.inc, and kernels_<plan>_cuda.inc where an op has kernels for other sizes."""
    return sorted(path.name for path in (ROOT / "csrc/ops" / op).glob("kernels*_cuda.inc"))


def ops() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob("csrc/ops/*/kernels.inc"))


def names(enum: str, header: str) -> list[str]:
    found = re.search(rf"enum class {enum} {{ (.*?) }}", (ROOT / header).read_text())
    assert found is not None
    return re.findall(r"(\w+)(?: = \d+)?(?:, |$)", found[1])


def table() -> str:
    tables = {op: {isa for isa, _ in kernels(op) + cuda_kernels(op)} for op in ops()}
    isas = names("Isa", "csrc/base/isa.h") + names("Sm", "csrc/cuda/sm.h")
    lines = ["| op | " + " | ".join(isas) + " |", "|---|" + "---|" * len(isas)]
    lines += [f"| `{op}` |" + "".join(" yes |" if isa in has else " |" for isa in isas) for op, has in tables.items()]
    return "\n".join(lines) + "\n"


def updated(readme: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text()))
