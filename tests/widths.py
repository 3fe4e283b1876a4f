"""Weights of a few bits: which widths there are, and the one that stands for all where only the bits differ."""

from aoq.config import AOBaseConfig
from aoq.tensors.floatx import OF_NAME
from aoq.tensors.formats import commands, ways
from aoq.tensors.intx import BY_BITS, WIDTHS

ONE = min(WIDTHS, key=lambda width: abs(WIDTHS[width] - 3))  # codes in more than one plane, if there are any
FLOATS = ("nvfp4", "fp8-grouped")  # stand for all small floats and tables: each kind of codes, scales and sizes
OTHERS = [form.name for bits, form in BY_BITS.items() if bits != WIDTHS[ONE]]


def representative() -> dict[str, AOBaseConfig]:
    """The configs with a name on the command line, of widths that of ONE alone, of small floats FLOATS."""
    others = {way.command for way in ways() if way.format.name in OTHERS}
    others |= {way.command for way in ways() if way.format.name in OF_NAME} - {*FLOATS}
    return {name: config for name, config in commands().items() if name not in others}
