"""README's tables of formats, and of the ops' kernels by ISA and CUDA architecture. Run it to update them.

Formats are those of the aoq that is installed; kernels are read from csrc/ops/*/kernels*.inc and, where they are made
for each format, from csrc/formats/formats.inc, csrc/mm/kernels.inc and csrc/mm/cuda/nibble_mm.h.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- support matrix: scripts/support_matrix.py -->\n", "<!-- end of support matrix -->\n"
BEGIN_FORMATS, END_FORMATS = "<!-- formats: scripts/support_matrix.py -->\n", "<!-- end of formats -->\n"


def lines(path: str, macro: str) -> list[tuple[str, ...]]:
    """The arguments of each line of a table."""
    found = re.findall(rf"^{macro}\((.*)\)$", (ROOT / path).read_text(), re.MULTILINE)
    return [tuple(line.split(", ")) for line in found]


def mm_kernels(op: str) -> list[tuple[str, str]]:
    """(isa, kernel) of the matmuls that are made from the tables of formats and kernels; none of other ops."""
    for format, _, given, int8 in lines("csrc/formats/formats.inc", "AOQ_FORMAT"):
        if op in (given, int8):
            rows = lines("csrc/mm/kernels.inc", "AOQ_MM_KERNEL")
            x = "given" if op == given else "int8"
            return [
                (isa, f"{op}_{isa}") for kind, isa, of in rows if kind == x and (of == "all" or format.startswith(of))
            ]
    return []


def kernels(op: str, table: str = "kernels.inc") -> list[tuple[str, str]]:
    """(isa, kernel) of each line of an op's table, best first."""
    made = mm_kernels({"fp8_mm": "fp8_weight_mm"}.get(op, op)) if table == "kernels.inc" else []
    if made:
        return made
    path = ROOT / "csrc/ops" / op / table
    text = path.read_text() if path.exists() else ""
    return re.findall(r"^AOQ_(?:CUTLASS_)?KERNEL\((\w+), (\w+)\)", text, re.MULTILINE)


def cuda_kernels(op: str) -> list[tuple[str, str]]:
    """(architecture, kernel) of each line of an op's CUDA tables, best first in each."""
    return [kernel for table in cuda_tables(op).values() for kernel in table]


def cuda_tables(op: str) -> dict[str, list[tuple[str, str]]]:
    """Its CUDA tables: "", and "_<plan>" where it has kernels for other sizes."""
    files = sorted(path.name for path in (ROOT / "csrc/ops" / op).glob("kernels*_cuda.inc"))
    return {file[len("kernels") : -len("_cuda.inc")]: kernels(op, file) for file in files} or nibble_tables(op)


def nibble_formats() -> list[tuple[str, str, int, str, str]]:
    """(name, struct, bits of a code, op, op of int8 x) of the formats of one to four bits that have CUDA kernels."""
    found = []
    header = (ROOT / "csrc/mm/cuda/nibble_mm.h").read_text()
    listed = re.findall(r"^#define AOQ_NIBBLE_FORMATS (.*)", header, re.MULTILINE)[0].split()
    for name, struct, *ops in lines("csrc/formats/formats.inc", "AOQ_FORMAT"):
        if name in listed:
            (bits,) = re.findall(r": Affine<([1-4])>", (ROOT / f"csrc/formats/{name}.h").read_text())
            found.append((name, struct, int(bits), *ops))
    return found


def nibble_tables(op: str) -> dict[str, list[tuple[str, str]]]:
    """The CUDA tables of an op on such weights."""
    if not any(op in ops for _, _, _, *ops in nibble_formats()):
        return {}
    text = (ROOT / "csrc/mm/cuda/nibble_mm.h").read_text()
    tables = {}
    for plan, kernels in re.findall(r"^#define AOQ_NIBBLE_(\w+)\(with, mm\) (.*)", text, re.MULTILINE):
        found = [(sm, f"{op}{suffix}") for sm, suffix in re.findall(r"with\((\w+), mm##(\w+)\)", kernels)]
        tables["" if plan == "SKINNY" else f"_{plan.lower()}"] = found
    return tables


def ops() -> list[str]:
    """Those that have kernels, under the names of the kernels: int3_mm is what `mm` runs."""
    made = {op for row in lines("csrc/formats/formats.inc", "AOQ_FORMAT") for op in row[2:]} - {"none"}
    return sorted({path.parent.name for path in ROOT.glob("csrc/ops/*/kernels.inc")} | made | {"fp8_mm"})


def names(enum: str, header: str) -> list[str]:
    found = re.search(rf"enum class {enum} {{ (.*?) }}", (ROOT / header).read_text())
    assert found is not None
    return re.findall(r"(\w+)(?: = \d+)?(?:, |$)", found[1])


def table() -> str:
    tables = {op: {isa for isa, _ in kernels(op) + cuda_kernels(op)} for op in ops()}
    isas = [name for name, _ in lines("csrc/base/isas.inc", "AOQ_ISA")] + names("Sm", "csrc/cuda/sm.h")
    rows = ["| op | " + " | ".join(isas) + " |", "|---|" + "---|" * len(isas)]
    rows += [f"| `{op}` |" + "".join(" yes |" if isa in has else " |" for isa in isas) for op, has in tables.items()]
    return "\n".join(rows) + "\n"


def formats() -> str:
    from aoq.tensors.formats import ways

    # One row for those that differ by their width alone.
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for way in ways():
        name, _, rest = way.format.title.partition(" ")
        hqq = " (HQQ too)" if "use_hqq" in way.config.OPTIONS else ""
        alike = (rest + hqq, type(way.config).__name__, way.config.ACTIVATIONS)
        found.setdefault(alike, []).append((name, f"`{way.command}`"))
    rows = ["| weights | config | activations | `--config` |", "|---|---|---|---|"]
    for (rest, config, activations), alike in found.items():
        weights, commands = (", ".join(each) for each in zip(*alike, strict=True))
        rows.append(f"| {weights} {rest} | `{config}` | {activations} | {commands} |")
    return "\n".join(rows) + "\n"


def updated(text: str, begin: str, made: str, end: str) -> str:
    """A page with the part between the markers made anew."""
    before, rest = text.split(begin)
    return before + begin + made + end + rest.split(end)[1]


def pages() -> dict[Path, str]:
    """README and the page of kernels, as they have to be."""
    readme, page = ROOT / "README.md", ROOT / "docs/kernels/README.md"
    return {
        readme: updated(readme.read_text(), BEGIN_FORMATS, formats(), END_FORMATS),
        page: updated(page.read_text(), BEGIN, table(), END),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
