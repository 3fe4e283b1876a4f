"""Weights of a few bits: which widths there are, and the one that stands for all where only the bits differ."""

from aoq.config import AOBaseConfig
from aoq.ops.dtypes import dtype_name
from aoq.tensors.formats import commands, ways
from aoq.tensors.intx import WIDTHS

ONE = min(WIDTHS, key=lambda width: abs(WIDTHS[width] - 3))  # codes in more than one plane, if there are any
OTHERS = [dtype_name(width) for width in WIDTHS if width != ONE]


def representative() -> dict[str, AOBaseConfig]:
    """The configs with a name on the command line, of those widths that of ONE alone."""
    others = {way.command for way in ways() if way.format.name in OTHERS}
    return {name: config for name, config in commands().items() if name not in others}
