"""What torch itself has: bf16 and fp32 through oneDNN, ATen's int4 and int8 weights, int8 and fp8 from their parts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..contender import Contender, Problem, Selects


class TorchBf16(Contender):
    name = "torch bf16"
    op = "bf16"
    package = "torch"
    w_rounded = False
    matmuls: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    models = True
    dtype = "bfloat16"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def weight(self, problem: Problem) -> Any:
        return problem.w

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight)

    def quantize_model(self, model: torch.nn.Module, selects: Selects, group_size: int) -> None:
        pass


class TorchFp32(TorchBf16):
    """The same in fp32: the faster one where the CPU has no bf16 instructions, though it reads twice as much."""

    name = "torch fp32"
    model_dtype = "float32"
    matmuls = devices = ("cpu",)

    def weight(self, problem: Problem) -> Any:
        return problem.w.float()

    def prepare(self, x: Tensor) -> Tensor:
        return x.float()


class AtenInt4(Contender):
    name = "ATen int4"
    op = "int4_mm"
    form = "int4"
    package = "torch"

    def weight(self, problem: Problem) -> Any:
        if problem.group_size not in (32, 64, 128, 256):
            raise NotImplementedError(f"groups of {problem.group_size}: it has 32, 64, 128 and 256")
        codes, scale = problem.int4
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        scale_and_zero = torch.stack((scale, torch.zeros_like(scale)), -1).transpose(0, 1).contiguous()
        self.group_size = problem.group_size
        return packed, scale_and_zero

    def multiply(self, x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        packed, scale_and_zero = weight
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, self.group_size, scale_and_zero)
        return out


class TorchInt8(Contender):
    """A scale per row of x, then torch._int_mm, which is oneDNN's int8."""

    name = "torch _int_mm"
    op = "int8_mm"
    form = "int8"
    package = "torch"
    x_half_steps = 1
    w_rounded = False

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.int8
        return codes, scale.t().float()

    def multiply(self, x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        codes, scale = weight
        x_scale = x.abs().amax(-1, keepdim=True).float() / 127
        sums = torch._int_mm((x / x_scale).round_().to(torch.int8), codes.t())
        return (sums * x_scale).mul_(scale).bfloat16()


class AtenInt8Weight(Contender):
    name = "ATen int8 weight"
    op = "int8_weight_mm"
    form = "int8"
    package = "torch"
    w_rounded = False
    out_roundings = 2

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.int8
        return codes, scale.flatten()

    def multiply(self, x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int8pack_mm(x, *weight)
        return out


class TorchFp8(Contender):
    """A scale per row of x, then torch._scaled_mm, which is oneDNN's fp8."""

    name = "torch _scaled_mm"
    op = "fp8_mm"
    form = "fp8"
    package = "torch"
    x_relative = 2**-4
    w_rounded = False
    out_roundings = 2

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.fp8
        return codes, scale.t()

    def multiply(self, x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        codes, scale = weight
        x_scale = x.abs().amax(-1, keepdim=True).float().clamp_(min=1e-12) / 448
        x_codes = (x / x_scale).clamp_(-448, 448).to(codes.dtype)
        return torch._scaled_mm(x_codes, codes.t(), x_scale, scale, out_dtype=torch.bfloat16)


class TorchFp8Weight(Contender):
    """Weights become bf16 at each call."""

    name = "torch fp8 to bf16"
    op = "fp8_weight_mm"
    form = "fp8"
    package = "torch"
    out_roundings = 2

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.fp8
        return codes, scale.t()

    def multiply(self, x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        codes, scale = weight
        return linear(x, codes.bfloat16()).mul_(scale).bfloat16()
