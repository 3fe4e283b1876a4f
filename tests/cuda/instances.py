"""The kernels that CMake makes of a template for each format (cmake/instances.cmake), made here for tests."""

import functools
import sys

from toolchain import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from support_matrix import cuda_kernels, nibble_formats, nibble_tables


def filled(template, **values):
    text = (ROOT / "csrc" / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    assert "@" not in text, text
    return text


@functools.cache
def instances():
    """The source of each kernel."""
    sources = {}
    for name, struct, _, *ops in nibble_formats():
        of = {"format": name, "Format": struct}
        for what in ("pack", "unpack"):
            kernel = f"{name}_{what}_sm80"
            values = {"kernel": kernel, "what": what, "What": what.capitalize()}
            sources[kernel] = filled("formats/nibbles_pack.cu.in", **of, **values)
        for op, x in zip(ops, ("", "_int8"), strict=True):
            for table, kernels in nibble_tables(op).items():
                plan = table[1:] or "skinny"
                for sm, kernel in kernels:
                    values = {"kernel": kernel, "plan": plan, "Plan": plan.capitalize(), "x": x, "sm": sm}
                    sources[kernel] = filled("mm/cuda/nibble_mm.cu.in", **of, **values)
    return sources


def cutlass_kernels(op, architecture):
    """The names of an op's kernels that are made with CUTLASS for an architecture."""
    return [name for sm, name in cuda_kernels(op) if sm == architecture and "_cutlass_" in name]
