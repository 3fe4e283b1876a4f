"""The ops' kernels by ISA, read from csrc/*/kernels.inc. Run it to bring README's table up to date."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- support matrix: scripts/support_matrix.py -->\n", "<!-- end of support matrix -->\n"


def kernels(op: str) -> list[tuple[str, str]]:
    """(isa, kernel) of each line of an op's table, best first."""
    text = (ROOT / "csrc" / op / "kernels.inc").read_text()
    return re.findall(r"^AOQ_KERNEL\((\w+), (\w+)\)", text, re.MULTILINE)


def ops() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob("csrc/*/kernels.inc"))


def table() -> str:
    tables = {op: {isa for isa, _ in kernels(op)} for op in ops()}
    order = re.search(r"enum class Isa \{ (.*?) \}", (ROOT / "csrc/core/isa.h").read_text())
    assert order is not None
    isas = order[1].split(", ")
    lines = ["| op | " + " | ".join(isas) + " |", "|---|" + "---|" * len(isas)]
    lines += [f"| `{op}` |" + "".join(" yes |" if isa in has else " |" for isa in isas) for op, has in tables.items()]
    return "\n".join(lines) + "\n"


def updated(readme: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text()))
