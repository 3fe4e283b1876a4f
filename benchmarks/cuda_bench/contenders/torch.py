"""What torch itself has: cuBLAS bf16, its int4, int8 and fp8 matmuls, and quantizers that torch.compile makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contender import Contender, RowContender
from ..figures import GROUP, OPS
from ..problem import Problem

FP8 = torch.float8_e4m3fn


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Each shape by itself, as the fastest code is."""
    torch._dynamo.config.recompile_limit = 1024
    made: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True)
    return made


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    scale = (x.abs().amax(-1, keepdim=True) / 127.5).clamp(min=2.0**-23)
    return (x / scale).round().clamp(-128, 127).to(torch.int8), scale


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return (x / scale).clamp(-448, 448).to(FP8), scale


def to_fp8_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    scale = x.abs().amax().clamp(min=1e-12) / 448
    return (x / scale).clamp(-448, 448).to(FP8), scale


class Bf16(Contender):
    name, bits, peak, tolerance = "torch bf16", 16, "bf16", 0.005

    def __init__(self, op: str) -> None:
        self.op = op

    def weight(self, problem: Problem) -> Any:
        return problem.w

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        return torch.nn.functional.linear(x, weight)


class Int4(Contender):
    name, op, form, tolerance = "torch _weight_int4pack_mm", "int4_mm", "int4", 0.01

    def weight(self, problem: Problem) -> Any:
        codes = problem.int4_codes
        pairs = codes[:, ::2] << 4 | codes[:, 1::2]
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs.to(torch.uint8), 8)
        scale = problem.int4[1]
        scale_and_zero = torch.stack((scale, torch.zeros_like(scale)), -1).transpose(0, 1).contiguous()
        return packed, scale_and_zero

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm(x, weight[0], GROUP, weight[1])
        return out


class Int8Weight(Contender):
    name, op, form, tolerance = "torch _weight_int8pack_mm", "int8_weight_mm", "int8", 0.01

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.int8
        return codes, scale.flatten()

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int8pack_mm(x, *weight)
        return out


class ScaledMm(Contender):
    """cuBLASLt where scales are per tensor, CUTLASS where they are per row."""

    tolerance = 0.05

    def __init__(self, op: str, quantizes: bool) -> None:
        self.op, self.part = op, not quantizes
        self.per_tensor = op.endswith("tensor")
        self.form = "fp8_tensor" if self.per_tensor else "fp8"
        self.name = f"torch _scaled_mm {'tensorwise' if self.per_tensor else 'rowwise'}"
        self.name += " + compiled quantizer" if quantizes else ""

    def ready(self, device: str) -> None:
        self.quantize = to_fp8_tensor if self.per_tensor else to_fp8
        if not self.part:
            self.quantize = compiled(self.quantize)

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.fp8_tensor if self.per_tensor else problem.fp8
        return codes.t(), scale if self.per_tensor else scale.t()

    def given(self, x: Tensor) -> Any:
        return self.quantize(x) if self.part else x

    def multiply(self, x: Any, weight: Any) -> Tensor:
        codes, scale = x if self.part else self.quantize(x)
        return torch._scaled_mm(codes, weight[0], scale, weight[1], out_dtype=torch.bfloat16, use_fast_accum=True)


class IntMm(Contender):
    """cuBLASLt's int8 matmul to int32, then scales; compiled with what quantizes x, or its sums alone."""

    op, form, tolerance = "int8_mm", "int8", 0.05

    def __init__(self, quantizes: bool) -> None:
        self.part = not quantizes
        self.name = "torch _int_mm" + (" + compiled quantizer" if quantizes else " to int32")

    def ready(self, device: str) -> None:
        def whole(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
            x_codes, x_scale = to_int8(x)
            return (torch._int_mm(x_codes, codes) * (x_scale * scale)).bfloat16()

        self.whole = compiled(whole)

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.int8
        return codes.t(), scale.t()

    def given(self, x: Tensor) -> Any:
        return to_int8(x)[0] if self.part else x

    def multiply(self, x: Any, weight: Any) -> Tensor:
        out: Tensor = torch._int_mm(x, weight[0]) if self.part else self.whole(x, *weight)
        return out

    def error(self, problem: Problem, x: Tensor, out: Tensor) -> float:
        if self.part:
            out = out * (to_int8(x)[1] * problem.int8[1].t())
        return super().error(problem, x, out)


class Compiled(RowContender):
    """What torch.compile makes of the formula, in one kernel where it can."""

    def __init__(self, op: str, dtype: torch.dtype) -> None:
        self.op, self.dtype = op, dtype
        fused = op in ("rmsnorm_quantize", "silu_mul_quantize")
        self.name = "torch.compile" + (f", {'int8' if dtype == torch.int8 else 'fp8'}" if fused else "")

    def ready(self, device: str) -> None:
        quantize = to_int8 if self.dtype == torch.int8 else to_fp8_tensor if self.op.endswith("tensor") else to_fp8

        def rmsnorm(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
            h = x + residual
            values = h.float()
            normed = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-6) * weight.float()
            return *quantize(normed), h

        def silu_mul(gate: Tensor, up: Tensor) -> tuple[Tensor, ...]:
            return quantize(torch.nn.functional.silu(gate.float()) * up.float())

        forms: dict[str, Any] = {"rmsnorm_quantize": rmsnorm, "silu_mul_quantize": silu_mul}
        self.call = compiled(forms.get(self.op, quantize))

    def multiply(self, x: Any, weight: Any) -> Any:
        return self.call(*weight)


CONTENDERS: list[Contender] = [
    *(Bf16(op) for op in OPS),
    Int4(),
    Int8Weight(),
    *(ScaledMm(op, quantizes) for op in ("fp8_mm", "fp8_mm tensor") for quantizes in (True, False)),
    IntMm(True),
    IntMm(False),
    Compiled("int8_quantize", torch.int8),
    Compiled("fp8_quantize", FP8),
    Compiled("fp8_quantize tensor", FP8),
    *(Compiled(op, dtype) for op in ("rmsnorm_quantize", "silu_mul_quantize") for dtype in (FP8, torch.int8)),
]
