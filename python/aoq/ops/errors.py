"""C++ errors as the Python exceptions they name.

The kernels can only throw one exception type across the library boundary, so their texts start with the
name of the Python type: `ValueError: aoq::int4_mm: x: expected ..., got ...`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_TYPES: dict[str, type[Exception]] = {"ValueError": ValueError, "TypeError": TypeError}


def typed(error: RuntimeError) -> Exception:
    """The `ValueError` or `TypeError` that the text of `error` starts with; `error` itself if it names none."""
    kind, _, text = str(error).partition(": ")
    return _TYPES[kind](text) if kind in _TYPES else error


def raises_typed(fn: Callable[P, R]) -> Callable[P, R]:
    """Decorates an op's wrapper so that it raises `typed` errors."""

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fn(*args, **kwargs)
        except RuntimeError as error:
            raise typed(error) from None

    return wrapper
