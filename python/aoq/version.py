"""Which aoq this is, and how it is named in the files that it writes."""

from __future__ import annotations

import re
from importlib.metadata import version

NAME = "aoq"
__version__ = version(NAME)


def producer() -> str:
    """What a file states that this aoq writes: "aoq 0.2.0"."""
    return f"{NAME} {__version__}"


def written_by_newer(stated: str) -> str:
    """What to add to an error about a file of the producer `stated`: both versions, if it is a newer aoq than this."""
    name, _, other = stated.partition(" ")
    if name != NAME or _release(other) <= _release(__version__):
        return ""
    return f"; it was written by {stated} and this is {producer()}: upgrade aoq"


def _release(text: str) -> tuple[int, ...]:
    """(0, 1, 2) of "0.1.2.dev3": what comes first of it, in numbers, without zeros at the end."""
    found = re.match(r"\d+(\.\d+)*?(?=(\.0+)*(?![\d.]*\d))", text)
    return tuple(map(int, found[0].split("."))) if found else ()
