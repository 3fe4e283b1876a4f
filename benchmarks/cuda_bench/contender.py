"""A contender: one way to do a case. The files in contenders/ define them; where its peer is missing, it says so."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .problem import Problem, Rows, relative_error


class Missing(Exception):
    """Why a contender cannot run here."""


class Contender:
    """One way to multiply, for `op`. Whatever it imports, it imports in `ready`.

    A weight is a tensor, a module, or a tuple or list of these; copies of it are what the steady regime rotates over.
    """

    name: str
    op: str
    bits: int | None = None  # of its weights, where they are not the op's
    peak: str | None = None  # likewise
    part = False  # takes x quantized before, or only quantizes it
    ours = False
    form = "w"  # of Problem: what its weight stands for
    tolerance = 0.2  # of the norm of the error to that of the result; by default it quantizes by itself

    def ready(self, device: str) -> None:
        """Gets ready to run on `device`; raises, with why, where it cannot."""

    def weight(self, problem: Problem) -> Any:
        raise NotImplementedError

    def given(self, x: Tensor) -> Any:
        """bf16 x as `multiply` takes it; not timed."""
        return x

    def multiply(self, x: Any, weight: Any) -> Tensor:
        raise NotImplementedError

    def copy(self, weight: Any) -> Any:
        import copy

        if type(weight) is Tensor:
            return weight.clone(memory_format=torch.preserve_format)
        return type(weight)(map(self.copy, weight)) if isinstance(weight, (tuple, list)) else copy.deepcopy(weight)

    def nbytes(self, weight: Any) -> int:
        if isinstance(weight, torch.nn.Module):
            return sum(self.nbytes(part) for part in (*weight.parameters(), *weight.buffers()))
        if isinstance(weight, (tuple, list)):
            return sum(map(self.nbytes, weight))
        if not isinstance(weight, Tensor):
            return 0
        if hasattr(weight, "__tensor_flatten__"):
            return sum(self.nbytes(getattr(weight, name)) for name in weight.__tensor_flatten__()[0])
        return int(weight.nbytes)

    def x_exact(self, x: Tensor) -> Tensor:
        """What x becomes, fp64, where that is known; judged strictly then."""
        return x.double()

    def error(self, problem: Problem, x: Tensor, out: Tensor) -> float:
        if out.shape != (x.shape[0], problem.n):
            raise ValueError(f"returned {tuple(out.shape)}, expected {(x.shape[0], problem.n)}")
        return relative_error(out[:, problem.some], self.x_exact(x) @ problem.exact(self.form).t())


class RowContender(Contender):
    """One way to quantize rows: `weight` is what the op reads, `multiply` quantizes it."""

    tolerance = 0.05  # fp8 with three bits behind the point; int8 is well under

    def weight(self, rows: Rows) -> Any:  # type: ignore[override]
        fused = {
            "rmsnorm_quantize": (rows.x, rows.weight, rows.other),
            "silu_mul_quantize": (rows.x, rows.other),
        }
        return fused.get(self.op, (rows.x,))

    def values(self, out: Any) -> tuple[Tensor, Tensor]:
        """Codes and scales of what `multiply` returned."""
        codes, scale, *_ = out
        return codes, scale

    def error(self, rows: Rows, x: Tensor, out: Any) -> float:  # type: ignore[override]
        exact = rows.exact(self.op.split()[0])
        codes, scale = self.values(out)
        count = exact.shape[0]
        return relative_error(codes[:count].double() * (scale if scale.numel() == 1 else scale[:count]).double(), exact)


def contenders(
    device: str, only: Sequence[str] = (), configs: Sequence[int] = (), without_pdl: bool = False
) -> tuple[list[Contender], list[str]]:
    """Those that can run on `device`, aoq's and those with one of `only` in their names, and why others cannot.

    configs: plans of aoq's kernels to time besides those that they choose.
    without_pdl: whether to time its matmuls also without programmatic dependent launch.
    """
    from . import contenders as package

    found: list[Contender] = []
    missing = []
    names = sorted(
        (module.name for module in pkgutil.iter_modules(package.__path__)), key=lambda name: (name != "aoq", name)
    )
    for name in names:
        module = importlib.import_module(f"{package.__name__}.{name}")
        for contender in module.contenders(configs, without_pdl) if name == "aoq" else module.CONTENDERS:
            if only and name != "aoq" and not any(part in contender.name for part in only):
                continue
            try:
                contender.ready(device)
                found.append(contender)
            except Exception as error:  # peers fail in many ways where they miss something
                missing.append(f"{contender.op}, {contender.name}: {first_line(error)}")
    return found, missing


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
