"""A contender: one way to multiply by a quantized weight, or to quantize rows, and what it is given and judged by."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

Selects: TypeAlias = "Callable[[torch.nn.Module, str], bool]"
Indices: TypeAlias = "Tensor | slice"
ALL = slice(None)

FP8_MAX = 448.0  # of e4m3


class Problem:
    """A random weight [n, k] on `device`, in the forms that contenders start from.

    Args:
        group_size: neighbours along k that share an int4 scale; divides k.
    """

    def __init__(self, n: int, k: int, group_size: int, device: str = "cpu") -> None:
        self.n, self.k, self.group_size, self.device = n, k, group_size, device

    def _randn(self, rows: int, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(rows, self.k, generator=generator, device=self.device)

    @functools.cached_property
    def w(self) -> Tensor:
        """bf16 [n, k]."""
        return (self._randn(self.n, self.n * 31 + self.k) * 0.02).bfloat16()

    @functools.cached_property
    def int4(self) -> tuple[Tensor, Tensor]:
        """Codes 0..15 of 8 + w / scale, uint8 [n, k], and bf16 scales [n, k / group_size]."""
        groups = self.w.float().unflatten(1, (-1, self.group_size))
        scale = (groups.abs().amax(-1) / 7.5).bfloat16()
        codes = (groups / scale.float()[..., None]).round().add(8).clamp(0, 15)
        return codes.flatten(1).to(torch.uint8), scale

    @functools.cached_property
    def int8(self) -> tuple[Tensor, Tensor]:
        """Codes -127..127, int8 [n, k], and bf16 scales [n, 1]."""
        scale = (self.w.float().abs().amax(1, keepdim=True) / 127).bfloat16()
        return (self.w.float() / scale.float()).round().clamp(-127, 127).to(torch.int8), scale

    @functools.cached_property
    def fp8(self) -> tuple[Tensor, Tensor]:
        """e4m3 codes [n, k], and fp32 scales [n, 1]."""
        return self._fp8(self.w.float().abs().amax(1, keepdim=True))

    @functools.cached_property
    def fp8_tensor(self) -> tuple[Tensor, Tensor]:
        """e4m3 codes [n, k], and one fp32 scale."""
        return self._fp8(self.w.float().abs().amax())

    def _fp8(self, most: Tensor) -> tuple[Tensor, Tensor]:
        scale = most / FP8_MAX
        return (self.w.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale

    FORMS: ClassVar[tuple[str, ...]] = ("w", "int4", "int8", "fp8", "fp8_tensor")

    def exact(self, form: str, rows: Indices = ALL) -> Tensor:
        """What some rows of one of FORMS stand for, fp32 [rows, k]: to a rounding for fp8, else exactly."""
        if form == "w":
            return self.w[rows].float()
        codes, scale = getattr(self, form)
        codes = codes.view(torch.uint8)[rows].view(codes.dtype).float()
        scale = (scale[rows] if scale.dim() else scale).float()
        if form == "int4":
            codes, scale = codes - 8, scale.repeat_interleave(self.group_size, 1)
        exact: Tensor = codes * scale
        return exact

    def forget(self) -> None:
        """Frees what it holds; it is made again when asked for."""
        for name in self.FORMS:
            self.__dict__.pop(name, None)

    def x(self, m: int) -> Tensor:
        """Activations, bf16 [m, k]."""
        return self._randn(m, m).bfloat16()


class Rows:
    """Rows to quantize, bf16 [m, k]: what each quantizer reads."""

    def __init__(self, m: int, k: int, device: str = "cpu") -> None:
        generator = torch.Generator(device).manual_seed(m + k)

        def rows() -> Tensor:
            return torch.randn(m, k, device=device, generator=generator).bfloat16()

        self.x, self.other = rows(), rows()  # the residual, or up
        self.weight = (1 + 0.1 * torch.randn(k, device=device, generator=generator)).bfloat16()

    def exact(self, op: str, rows: Indices) -> Tensor:
        """What is quantized of some rows, fp64."""
        x, other = self.x[rows].double(), self.other[rows].double()
        if op == "rmsnorm_quantize":
            h = (self.x[rows].float() + self.other[rows].float()).bfloat16().double()
            return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight.double()
        return torch.nn.functional.silu(x) * other if op == "silu_mul_quantize" else x


class Contender:
    """One way to multiply. Made in the process that times it; whatever it imports, it imports in `__init__` or later.

    Raise ImportError in `__init__` when the peer is not there, NotImplementedError anywhere when it cannot do what is
    asked on this machine; the text says why.

    A weight may be anything; a tensor, a module, or tuples or lists of these can be copied and counted as they are.
    """

    name: ClassVar[str]  # in tables
    op: ClassVar[str]  # what it competes in, one of measure.OPS; "bf16" is what all are compared with
    package: ClassVar[str]  # the distribution whose version counts
    environment: ClassVar[dict[str, str]] = {}  # of its process
    prepares: ClassVar[bool] = False  # the first product of each weight and m does more than the others
    part: ClassVar[bool] = False  # does a part of the op: takes x quantized before, or only quantizes it

    # What it is judged by, in `wrongness`.
    form: ClassVar[str] = "w"  # of Problem.FORMS: what its weights stand for
    tolerance: ClassVar[float | None] = None  # of what quantizes w by rules of its own: see `wrongness`
    x_half_steps: ClassVar[float] = 0  # of int8 with a scale per row; 0: x as given
    x_relative: ClassVar[float] = 0  # of fp8: how much of a value it may be off by
    w_rounded: ClassVar[bool] = True  # dequantized weights become bf16
    out_roundings: ClassVar[float] = 1  # to bf16, of what is returned
    sum_relative: float = 2**-24  # of each addition

    how: dict[str, Any] = {}  # noqa: RUF012  # ours is to run: the options of measure.Entry

    def __init__(self, threads: int, device: str = "cpu") -> None:
        """Gets ready to compute on `threads` threads; torch has been told."""
        self.device = device

    def weight(self, problem: Problem) -> Any:
        """The weight as `multiply` takes it."""
        raise NotImplementedError

    def exact(self, problem: Problem, weight: Any, rows: Indices) -> Tensor:
        """What some rows of the weight stand for: [rows, k]."""
        return problem.exact(self.form, rows)

    def another(self, weight: Any) -> Any:
        """The same weight in other memory."""
        if type(weight) is Tensor:
            return weight.clone(memory_format=torch.preserve_format)
        return type(weight)(map(self.another, weight)) if isinstance(weight, tuple | list) else copy.deepcopy(weight)

    def nbytes(self, weight: Any) -> int:
        """Bytes that a multiplication reads of the weight."""
        if isinstance(weight, torch.nn.Module):
            return sum(map(self.nbytes, (*weight.parameters(), *weight.buffers())))
        if isinstance(weight, tuple | list):
            return sum(map(self.nbytes, weight))
        if hasattr(weight, "__tensor_flatten__"):
            return sum(self.nbytes(getattr(weight, name)) for name in weight.__tensor_flatten__()[0])
        return int(weight.nbytes) if isinstance(weight, Tensor) else 0

    def prepare(self, x: Tensor) -> Any:
        """bf16 activations [m, k] as `multiply` takes them; not timed, so only what a model would already have."""
        return x

    def multiply(self, x: Any, weight: Any) -> Any:
        """x @ w.T, quantizing x where that is part of it. This is what is timed."""
        raise NotImplementedError

    matmuls: ClassVar[tuple[str, ...]] = ("cpu",)  # the devices on which single products, or quantizers, are measured
    models: ClassVar[bool] = False  # whether `quantize_model` is there
    devices: ClassVar[tuple[str, ...]] = ("cpu",)  # that models can be for

    @classmethod
    def is_for(cls, device: str) -> bool:
        """Whether it takes part in anything there."""
        return device in cls.matmuls or (cls.models and device in cls.devices)

    def quantize_model(self, model: torch.nn.Module, selects: Selects, group_size: int) -> None:
        """Quantizes in place those linears of a transformers model that `selects` selects, by module and name."""
        raise NotImplementedError

    def output(self, out: Any) -> Tensor:
        """What `multiply` returned, [m, n]."""
        return torch.as_tensor(out)


class RowContender(Contender):
    """One way to quantize rows: its weight is what the op reads, `multiply` quantizes that."""

    matmuls = ("cuda",)
    tolerance = 0.05  # fp8 with three bits behind the point; int8 is well under

    def weight(self, rows: Rows) -> Any:  # type: ignore[override]
        fused = {"rmsnorm_quantize": (rows.x, rows.weight, rows.other), "silu_mul_quantize": (rows.x, rows.other)}
        return fused.get(self.op, (rows.x,))

    def expected(self, rows: Any, x: Tensor | None, some: Indices) -> Tensor:
        """What is quantized of some rows, fp64; x is what `multiply` is given."""
        exact: Tensor = rows.exact(self.op.partition(" ")[0], some)
        return exact

    def codes(self, out: Any) -> tuple[Tensor, Tensor]:
        """Codes and scales of what `multiply` returned."""
        codes, scale, *_ = out
        return codes, scale

    def output(self, out: Any) -> Tensor:
        """What the codes stand for."""
        codes, scale = self.codes(out)
        return codes.double() * scale.double()


def wrongness(contender: Contender, x: Tensor, exact: Tensor, out: Tensor) -> float:
    """The largest error of `out` = x @ exact.T in units of what the contender's roundings allow: above 1 is wrong.

    Roundings are independent errors in [-b, b]. By Hoeffding's inequality their sum exceeds 8 sqrt(sum of b^2) once in
    4e13; that much is allowed of x's and w's roundings and of the fp32 sums', then the roundings of the result.

    What has a `tolerance` instead may be off by that much of the result, by the norm of all its values.
    """
    if contender.tolerance is not None:
        return relative_error(out, x.double() @ exact.double().t()) / contender.tolerance
    if not bool(out.isfinite().all()):
        return math.inf
    x, exact, out = x.double(), exact.double(), out.double()
    expected = x @ exact.t()
    unit = torch.finfo(torch.bfloat16).eps / 2
    relative = contender.x_relative + unit * contender.w_rounded + contender.sum_relative * x.shape[1] ** 0.5
    x_error = contender.x_half_steps * x.abs().amax(1, keepdim=True) / 254
    allowed = 8 * (x_error * exact.norm(dim=1) + relative * (x.square() @ exact.square().t()).sqrt())
    allowed += contender.out_roundings * unit * (expected.abs() + allowed) + 1e-30
    return float(((out - expected).abs() / allowed).max())


def relative_error(out: Tensor, exact: Tensor) -> float:
    """The norm of the error to that of what is right; infinite where `out` is not finite."""
    if not bool(out.isfinite().all()):
        return math.inf
    return float((out.double() - exact.double()).norm() / exact.double().norm())


def cold_copies(nbytes: int, cold_bytes: int, most: int = 1024) -> int:
    """How many weights of `nbytes` are more than `cold_bytes`, but at most `most`."""
    return min(cold_bytes // max(nbytes, 1) + 1, most)


def some_of(count: int, most: int) -> Tensor:
    """Indices of up to `most` of `count` rows: the first, the last, and others at random."""
    if count <= most:
        return torch.arange(count)
    inner = torch.randperm(count - 2, generator=torch.Generator().manual_seed(count))[: most - 2] + 1
    return torch.cat((torch.tensor([0, count - 1]), inner)).sort().values
