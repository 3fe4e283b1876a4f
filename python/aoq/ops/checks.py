"""What fake kernels check of operands: the same as csrc/base/check.h and the ops' entries, in the same order and words.

So a call that is traced, or made of meta tensors, raises what it would with values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aoq.ops.dtypes import FLOAT_DTYPES, FP8_DTYPES, dtype_name

MOST = 2**48  # elements of a tensor: kMaxSize in check.h


class Checks:
    """Of the operands of one op. Raises ValueError or TypeError that name op, operand, what was wanted, what came."""

    def __init__(self, op: str) -> None:
        self.op = op

    def value(self, ok: bool, operand: str, text: Callable[[], str]) -> None:
        """ValueError unless `ok`."""
        torch._check_value(ok, lambda: f"aoq::{self.op}: {operand}: {text()}")

    def type(self, ok: bool, operand: str, text: Callable[[], str]) -> None:
        """TypeError unless `ok`."""
        torch._check_type(ok, lambda: f"aoq::{self.op}: {operand}: {text()}")

    def tensor(self, got: Tensor | None, operand: str) -> None:
        """None is passed on where a schema has a tensor."""
        self.type(got is not None, operand, lambda: "expected a tensor, got None")

    def dtype(self, got: torch.dtype, operand: str, wanted: Sequence[torch.dtype], names: str = "") -> None:
        """Of a tensor, or as an argument: one of those wanted, which errors call `names`."""
        self.type(got in wanted, operand, lambda: f"expected {names or dtype_name(wanted[0])}, got {dtype_name(got)}")

    def floats(self, got: torch.dtype, operand: str) -> None:
        """bf16, fp16 or fp32."""
        self.dtype(got, operand, FLOAT_DTYPES, "bfloat16, float16 or float32")

    def fp8(self, got: torch.dtype | None, operand: str) -> None:
        """Of codes; None is the default."""
        if got is not None:
            self.dtype(got, operand, FP8_DTYPES, "float8_e4m3fn or float8_e5m2")

    def shape(self, got: Tensor, operand: str, *wanted: int) -> None:
        """Exactly this shape."""
        same = got.dim() == len(wanted) and all(a == b for a, b in zip(got.shape, wanted, strict=True))
        self.value(same, operand, lambda: f"expected shape {list(wanted)}, got {list(got.shape)}")

    def at_least_one(self, got: int, operand: str) -> None:
        """Of a size that is an argument."""
        self.value(got > 0, operand, lambda: f"expected at least 1, got {got}")

    def size(self, got: int | Tensor, operand: str) -> None:
        """No larger than a machine could hold."""
        sizes = (got.numel(), *got.shape) if isinstance(got, Tensor) else (got,)
        # What is symbolic is of tensors that there are, and a guard would bound it for ever.
        ok = all(size <= MOST for size in sizes if isinstance(size, int))
        shape = list(got.shape) if isinstance(got, Tensor) else []
        elements = f" elements, got shape {shape}" if isinstance(got, Tensor) else f", got {got}"
        self.value(ok, operand, lambda: f"expected at most 2^48{elements}")

    def same_device(self, got: Tensor, operand: str, x: Tensor) -> None:
        """As `x`, the op's first operand."""
        self.value(got.device == x.device, operand, lambda: f"expected the device of x, {x.device}, got {got.device}")

    def rows(self, x: Tensor, operand: str) -> int:
        """Floats [..., k]; returns k."""
        self.tensor(x, operand)
        self.floats(x.dtype, operand)
        self.value(x.dim() >= 1, operand, lambda: "expected shape [..., k], got a scalar")
        self.value(x.shape[-1] > 0, operand, lambda: f"expected k > 0 in shape [..., k], got {list(x.shape)}")
        self.size(x, operand)
        return x.shape[-1]

    def group(self, group_size: int, k: int) -> int:
        """The group size that kernels see, at most k."""
        self.value(
            group_size > 0 and (group_size % 8 == 0 or group_size >= k),
            "group_size",
            lambda: f"expected a multiple of 8, or at least k = {k}, got {group_size}",
        )
        return min(group_size, k)

    def mapping(self, mapping: str, codes: torch.dtype) -> None:
        """Of 8-bit codes."""
        known = mapping in ("symmetric", "asymmetric")
        self.value(known, "mapping", lambda: f"expected symmetric or asymmetric, got {mapping}")
        fits = mapping == "symmetric" or codes == torch.int8
        self.value(fits, "mapping", lambda: f"expected symmetric for fp8 codes, got {mapping}")

    def granularity(self, granularity: str) -> None:
        """Of fp8 scales."""
        known = granularity in ("row", "tensor")
        self.value(known, "granularity", lambda: f"expected row or tensor, got {granularity}")

    def bounds(self, lb: float | None, ub: float | None) -> None:
        """Of the absmax that makes a scale."""
        low, high = 0 if lb is None else lb, torch.inf if ub is None else ub
        self.value(low >= 0 and high >= low, "lb", lambda: f"expected 0 <= lb <= ub, got lb {low} and ub {high}")
