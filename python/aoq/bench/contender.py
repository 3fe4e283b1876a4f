"""A contender: one way to multiply by a quantized weight, and what it is given and judged by."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

Selects: TypeAlias = "Callable[[torch.nn.Module, str], bool]"


class Problem:
    """A random weight [n, k], in the forms that contenders start from.

    Args:
        group_size: neighbours along k that share an int4 scale; divides k.
    """

    def __init__(self, n: int, k: int, group_size: int) -> None:
        self.n, self.k, self.group_size = n, k, group_size

    @functools.cached_property
    def w(self) -> Tensor:
        """bf16 [n, k]."""
        generator = torch.Generator().manual_seed(self.n * 31 + self.k)
        return (torch.randn(self.n, self.k, generator=generator) * 0.02).bfloat16()

    @functools.cached_property
    def int4(self) -> tuple[Tensor, Tensor]:
        """Codes 0..15 of 8 + w / scale, uint8 [n, k], and bf16 scales [n, k / group_size]."""
        groups = self.w.float().unflatten(1, (-1, self.group_size))
        scale = (groups.abs().amax(-1) / 7.5).bfloat16()
        codes = (groups / scale.float()[..., None]).round().add(8).clamp(0, 15)
        return codes.flatten(1).to(torch.uint8), scale

    @functools.cached_property
    def int4_exact(self) -> Tensor:
        """What `int4` stands for, fp32 [n, k], which holds it exactly."""
        codes, scale = self.int4
        return (codes.float() - 8) * scale.float().repeat_interleave(self.group_size, 1)

    @functools.cached_property
    def int8(self) -> tuple[Tensor, Tensor]:
        """Codes -127..127, int8 [n, k], and bf16 scales [n, 1]."""
        scale = (self.w.float().abs().amax(1, keepdim=True) / 127).bfloat16()
        return (self.w.float() / scale.float()).round().clamp(-127, 127).to(torch.int8), scale

    @functools.cached_property
    def fp8(self) -> tuple[Tensor, Tensor]:
        """e4m3 codes [n, k], and fp32 scales [n, 1]."""
        scale = self.w.float().abs().amax(1, keepdim=True) / 448
        return (self.w.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale

    @functools.cached_property
    def fp8_exact(self) -> Tensor:
        """What `fp8` stands for, fp32 [n, k], to a rounding."""
        codes, scale = self.fp8
        return codes.float() * scale

    @functools.cached_property
    def int8_exact(self) -> Tensor:
        """What `int8` stands for, fp32 [n, k], which holds it exactly."""
        codes, scale = self.int8
        return codes.float() * scale.float()

    def forget(self) -> None:
        """Frees what it holds; it is made again when asked for."""
        for name in ("w", "int4", "int4_exact", "int8", "int8_exact", "fp8", "fp8_exact"):
            self.__dict__.pop(name, None)

    def x(self, m: int) -> Tensor:
        """Activations, bf16 [m, k]."""
        return torch.randn(m, self.k, generator=torch.Generator().manual_seed(m)).bfloat16()


class Contender:
    """One way to multiply. Made in its own process; whatever it imports, it imports in `__init__` or later.

    Raise ImportError in `__init__` when the peer is not there, NotImplementedError anywhere when it cannot do what is
    asked on this machine; the text says why.
    """

    name: ClassVar[str]  # in tables
    op: ClassVar[str]  # what it competes in, one of measure.OPS; "bf16" is what the others are compared with
    package: ClassVar[str]  # the distribution whose version counts
    environment: ClassVar[dict[str, str]] = {}  # of its process
    prepares: ClassVar[bool] = False  # the first product of each weight and m does more than the others

    # How it rounds, for `allowed_error`.
    x_half_steps: ClassVar[float] = 0  # of int8 with a scale per row; 0: x as given
    x_relative: ClassVar[float] = 0  # of fp8: how much of a value it may be off by
    w_rounded: ClassVar[bool] = True  # dequantized weights become bf16
    out_roundings: ClassVar[float] = 1  # to bf16, of what is returned

    def __init__(self, threads: int) -> None:
        """Gets ready to compute on `threads` threads; torch has been told."""

    def weight(self, problem: Problem) -> tuple[Any, Tensor]:
        """The weight as `multiply` takes it, and what it stands for, exactly: [n, k]."""
        raise NotImplementedError

    def another(self, weight: Any) -> Any:
        """The same weight in other memory."""
        return weight.clone() if isinstance(weight, Tensor) else type(weight)(map(self.another, weight))

    def nbytes(self, weight: Any) -> int:
        """Bytes that a multiplication reads of the weight."""
        return weight.nbytes if isinstance(weight, Tensor) else sum(map(self.nbytes, weight))

    def prepare(self, x: Tensor) -> Any:
        """bf16 activations [m, k] as `multiply` takes them; not timed, so only what a model would already have."""
        return x

    def multiply(self, x: Any, weight: Any) -> Any:
        """x @ w.T, quantizing x where that is part of it. This is what is timed."""
        raise NotImplementedError

    matmuls: ClassVar[bool] = True  # whether single products are measured
    models: ClassVar[bool] = False  # whether `quantize_model` is there
    dtype: ClassVar[str] = ""  # of models: of what is not quantized; "": as asked for
    devices: ClassVar[tuple[str, ...]] = ("cpu",)  # that it can be for

    def quantize_model(self, model: torch.nn.Module, selects: Selects, group_size: int) -> None:
        """Quantizes in place those linears of a transformers model that `selects` selects, by module and name."""
        raise NotImplementedError

    def output(self, out: Any) -> Tensor:
        """What `multiply` returned, [m, n]."""
        return torch.as_tensor(out)


def wrongness(contender: Contender, x: Tensor, exact: Tensor, out: Tensor) -> float:
    """The largest error of `out` = x @ exact.T in units of what the contender's roundings allow: above 1 is wrong.

    Roundings are independent errors in [-b, b]. By Hoeffding's inequality their sum exceeds 8 sqrt(sum of b^2) once in
    4e13; that much is allowed of x's and w's roundings and of the fp32 sums', then the roundings of the result.
    """
    if not bool(out.isfinite().all()):
        return math.inf
    x, exact, out = x.double(), exact.double(), out.double()
    expected = x @ exact.t()
    unit = torch.finfo(torch.bfloat16).eps / 2
    relative = contender.x_relative + unit * contender.w_rounded + 2**-24 * x.shape[1] ** 0.5
    x_error = contender.x_half_steps * x.abs().amax(1, keepdim=True) / 254
    allowed = 8 * (x_error * exact.norm(dim=1) + relative * (x.square() @ exact.square().t()).sqrt())
    allowed += contender.out_roundings * unit * (expected.abs() + allowed) + 1e-30
    return float(((out - expected).abs() / allowed).max())


def cold_copies(nbytes: int, cold_bytes: int, most: int = 1024) -> int:
    """How many weights of `nbytes` are more than `cold_bytes`, but at most `most`."""
    return min(cold_bytes // max(nbytes, 1) + 1, most)


def some_of(count: int, most: int) -> Tensor:
    """Indices of up to `most` of `count` rows: the first, the last, and others at random."""
    if count <= most:
        return torch.arange(count)
    inner = torch.randperm(count - 2, generator=torch.Generator().manual_seed(count))[: most - 2] + 1
    return torch.cat((torch.tensor([0, count - 1]), inner)).sort().values
