"""C++ errors as the Python exceptions they name.

The kernels can only throw one exception type across the library boundary, so their texts start with the
name of the Python type: `ValueError: aoq::int4_mm: x: expected ..., got ...`. What torch itself refuses before a kernel
is called names neither type nor operand: `explained` finds both.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from aoq.ops.checks import MOST
from aoq.ops.dtypes import FLOAT_DTYPES, FP8_DTYPES, dtype_name

P = ParamSpec("P")
R = TypeVar("R")

_TYPES: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "TypeError": TypeError,
    "OutOfMemoryError": torch.OutOfMemoryError,
}


def typed(error: RuntimeError) -> Exception:
    """The exception that the text of `error` starts with; `error` itself if it names none."""
    if str(error) == "std::bad_alloc":
        return torch.OutOfMemoryError("aoq: no memory for what a kernel keeps meanwhile")
    kind, _, text = str(error).partition(": ")
    return _TYPES[kind](text) if kind in _TYPES else error


def explained(op: OpOverload, operands: Mapping[str, Any], error: RuntimeError) -> Exception:
    """What `error`, raised by `op` of these operands, is about: `typed`, or an operand that torch did not pass on."""
    found = typed(error)
    if found is not error:
        return found
    x_device = None
    for argument in op._schema.arguments:
        if argument.name not in operands:
            continue
        value, where = operands[argument.name], f"{op._schema.name}: {argument.name}"
        wrong = _what_is_wrong(str(argument.real_type), value)
        if wrong is not None:
            return type(wrong)(f"{where}: {wrong}")
        if isinstance(value, Tensor):
            x_device = x_device or value.device
            if value.device != x_device:
                return ValueError(f"{where}: expected the device of x, {x_device}, got {value.device}")
    return error


def _what_is_wrong(kind: str, value: object) -> Exception | None:
    """Why torch takes `value` for no argument of this type of a schema, if that is so."""
    got = type(value).__name__
    if value is None:
        return None if kind.startswith("Optional") else TypeError(f"expected {_NAMES[kind]}, got None")
    kind = kind.removeprefix("Optional[").removesuffix("]")
    if kind == "Tensor":
        if not isinstance(value, Tensor):
            return TypeError(f"expected a tensor, got {got}")
        if value.is_nested or value.layout != torch.strided:
            return TypeError(f"expected a strided tensor, got {'a nested one' if value.is_nested else value.layout}")
        if value.is_quantized:
            return TypeError(f"expected no quantized tensor, got {value.dtype}")
        # torch itself copies views that are lazily negated or conjugated before an op sees them.
        huge = any(isinstance(size, int) and size > MOST for size in (value.numel(), *value.shape))
        return ValueError(f"expected at most 2^48 elements, got shape {list(value.shape)}") if huge else None
    if kind == "ScalarType":
        if not isinstance(value, torch.dtype):
            return TypeError(f"expected a dtype, got {got}")
        known = value in (*FLOAT_DTYPES, *FP8_DTYPES, torch.int8)
        return None if known else TypeError(f"expected a dtype of floats, fp8 or int8, got {dtype_name(value)}")
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return None
    try:
        if kind == "int":
            short = -(2**63) <= operator.index(value) < 2**63  # type: ignore[arg-type]
            return None if short else ValueError("expected an integer of 64 bits, got a longer one")
        if kind == "float" and not isinstance(value, (str, bytes)):
            float(value)  # type: ignore[arg-type]
            return None
        if kind == "str" and isinstance(value, str):
            value.encode()
            return None
    except (OverflowError, UnicodeError) as error:
        return ValueError(f"expected {_NAMES[kind]} that torch can pass on, got one that it cannot: {error}")
    except (TypeError, RuntimeError):
        pass
    return None if kind == "bool" and isinstance(value, bool) else TypeError(f"expected {_NAMES[kind]}, got {got}")


_NAMES = {
    "Tensor": "a tensor",
    "ScalarType": "a dtype",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a bool",
}


def raises_typed(fn: Callable[P, R]) -> Callable[P, R]:
    """Decorates the wrapper of the op of its name, whose arguments it has, so that it raises `explained` errors."""

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fn(*args, **kwargs)
        except RuntimeError as error:
            operands = inspect.signature(fn).bind(*args, **kwargs).arguments
            raise explained(getattr(torch.ops.aoq, fn.__name__).default, operands, error) from None

    return wrapper
