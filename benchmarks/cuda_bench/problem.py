"""What contenders are given: a random weight and activations, quantized once for all, and what is right."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .figures import GROUP

SOME = 256  # rows of a weight in fp64 are enough to find a wrong kernel


class Problem:
    """A weight [n, k] on `device`: in bf16, and as int4, int8 and fp8 of aoq's quantizers."""

    def __init__(self, n: int, k: int, device: str) -> None:
        self.n, self.k, self.device = n, k, device
        generator = torch.Generator(device).manual_seed(n + k)
        self.w = (torch.randn(n, k, device=device, generator=generator) * 0.02).bfloat16()
        self.some = torch.randperm(n, device=device, generator=generator)[:SOME]

    @functools.cached_property
    def int4(self) -> tuple[Tensor, Tensor]:
        """Two codes a byte [n, k / 2], bf16 scales [n, k / GROUP]: w = (code - 8) * scale."""
        from aoq.ops import int4_quantize

        qdata, scale, _ = int4_quantize(self.w, GROUP, "symmetric")
        return qdata, scale

    @functools.cached_property
    def int4_codes(self) -> Tensor:
        """A code a byte, uint8 [n, k]."""
        qdata = self.int4[0]
        return torch.stack((qdata & 15, qdata >> 4), -1).flatten(1)

    @functools.cached_property
    def int8(self) -> tuple[Tensor, Tensor]:
        """int8 codes [n, k], bf16 scales [n, 1]."""
        from aoq.ops import int8_quantize

        qdata, scale, _ = int8_quantize(self.w, "symmetric", torch.bfloat16)
        return qdata, scale

    @functools.cached_property
    def fp8(self) -> tuple[Tensor, Tensor]:
        """e4m3 codes [n, k], fp32 scales [n, 1]."""
        from aoq.ops import fp8_quantize

        return fp8_quantize(self.w, "row")

    @functools.cached_property
    def fp8_tensor(self) -> tuple[Tensor, Tensor]:
        """e4m3 codes [n, k], one fp32 scale."""
        from aoq.ops import fp8_quantize

        return fp8_quantize(self.w, "tensor")

    def exact(self, form: str) -> Tensor:
        """What the rows `some` of a form stand for, fp64 [SOME, k]."""
        if form == "w":
            return self.w[self.some].double()
        codes, scale = getattr(self, "int4" if form == "int4" else form)
        if form == "int4":
            codes = self.int4_codes[self.some].double() - 8
            return codes * scale[self.some].double().repeat_interleave(GROUP, 1)[:, : self.k]
        own = scale if scale.dim() == 0 else scale[self.some]
        return codes.view(torch.uint8)[self.some].view(codes.dtype).double() * own.double()

    def x(self, m: int) -> Tensor:
        """Activations, bf16 [m, k]."""
        generator = torch.Generator(self.device).manual_seed(m)
        return torch.randn(m, self.k, device=self.device, generator=generator).bfloat16()


@dataclass
class Rows:
    """Rows to quantize, bf16 [m, k]: what each quantizer reads."""

    m: int
    k: int
    device: str

    def __post_init__(self) -> None:
        generator = torch.Generator(self.device).manual_seed(self.m + self.k)

        def rows() -> Tensor:
            return torch.randn(self.m, self.k, device=self.device, generator=generator).bfloat16()

        self.x, self.other = rows(), rows()  # the residual, or up
        self.weight = (1 + 0.1 * torch.randn(self.k, device=self.device, generator=generator)).bfloat16()

    def exact(self, op: str) -> Tensor:
        """What is quantized, fp64, of some rows."""
        x, other = self.x[:SOME].double(), self.other[:SOME].double()
        if op == "rmsnorm_quantize":
            h = (self.x[:SOME].float() + self.other[:SOME].float()).bfloat16().double()
            return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight.double()
        if op == "silu_mul_quantize":
            return torch.nn.functional.silu(x) * other
        return x


def relative_error(out: Tensor, exact: Tensor) -> float:
    """The norm of the error to that of what is right; infinite where `out` is not finite."""
    if not bool(out.isfinite().all()):
        return math.inf
    return float((out.double() - exact).norm() / exact.norm())


def poison(*shapes: tuple[Any, ...], device: str) -> None:
    """Fills memory that the allocator will hand out next with NaN, so that what is not written shows."""
    filled = [torch.full(shape, math.nan, dtype=torch.bfloat16, device=device) for shape in shapes for _ in range(4)]
    del filled
