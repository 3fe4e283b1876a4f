"""What torch itself has on CUDA: its int4, int8 and fp8 matmuls, and quantizers that torch.compile makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contender import FP8_MAX, Contender, Problem, RowContender

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
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (x / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def to_fp8_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    scale = x.abs().amax().clamp(min=1e-12) / FP8_MAX
    return (x / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


class _Torch(Contender):
    package = "torch"
    matmuls = ("cuda",)


class TorchInt4Pack(_Torch):
    name, op, form, tolerance = "torch _weight_int4pack_mm", "int4_mm", "int4", 0.01

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.int4
        packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], 8)
        self.group_size = problem.group_size
        return packed, torch.stack((scale, torch.zeros_like(scale)), -1).transpose(0, 1).contiguous()

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm(x, weight[0], self.group_size, weight[1])
        return out


class TorchInt8Pack(_Torch):
    name, op, form, tolerance = "torch _weight_int8pack_mm", "int8_weight_mm", "int8", 0.01

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.int8
        return codes, scale.flatten()

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int8pack_mm(x, *weight)
        return out


class TorchScaledMm(_Torch):
    """CUTLASS: scales per row, and what quantizes x to them."""

    name, op, form, tolerance = "torch _scaled_mm rowwise + compiled quantizer", "fp8_mm", "fp8", 0.05
    quantize = staticmethod(to_fp8)

    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)
        self.quantizer = self.quantize if self.part else compiled(self.quantize)

    def weight(self, problem: Problem) -> Any:
        codes, scale = getattr(problem, self.form)
        return codes.t(), scale.t()

    def prepare(self, x: Tensor) -> Any:
        return self.quantizer(x) if self.part else x

    def multiply(self, x: Any, weight: Any) -> Tensor:
        codes, scale = x if self.part else self.quantizer(x)
        return torch._scaled_mm(codes, weight[0], scale, weight[1], out_dtype=torch.bfloat16, use_fast_accum=True)


class TorchScaledMmPart(TorchScaledMm):
    name, part = "torch _scaled_mm rowwise", True


class TorchScaledMmTensor(TorchScaledMm):
    """cuBLASLt: one scale each of x and w."""

    name, op, form = "torch _scaled_mm tensorwise + compiled quantizer", "fp8_mm tensor", "fp8_tensor"
    quantize = staticmethod(to_fp8_tensor)


class TorchScaledMmTensorPart(TorchScaledMmTensor):
    name, part = "torch _scaled_mm tensorwise", True


class TorchIntMm(_Torch):
    """cuBLASLt's int8 matmul to int32, then scales; compiled with what quantizes x."""

    name, op, form, tolerance = "torch _int_mm + compiled quantizer", "int8_mm", "int8", 0.05

    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)

        def whole(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
            x_codes, x_scale = to_int8(x)
            return (torch._int_mm(x_codes, codes) * (x_scale * scale)).bfloat16()

        self.whole = compiled(whole)

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.int8
        return codes.t(), scale.t()

    def multiply(self, x: Any, weight: Any) -> Any:
        return self.whole(x, *weight)


class TorchIntMmPart(TorchIntMm):
    """The sums alone; scaled to be checked."""

    name, part = "torch _int_mm to int32", True

    def weight(self, problem: Problem) -> Any:
        weight = super().weight(problem)
        self.scale = weight[1]
        return weight

    def prepare(self, x: Tensor) -> Any:
        codes, self.x_scale = to_int8(x)
        return codes

    def multiply(self, x: Any, weight: Any) -> Any:
        return torch._int_mm(x, weight[0])

    def output(self, out: Any) -> Tensor:
        scaled: Tensor = out * (self.x_scale * self.scale)
        return scaled


class _Compiled(RowContender):
    """What torch.compile makes of the formula, in one kernel where it can."""

    package = "torch"
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)
        quantize = self.quantize

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


for _op, _quantizers in (
    *(("int8_quantize", [to_int8]), ("fp8_quantize", [to_fp8]), ("fp8_quantize tensor", [to_fp8_tensor])),
    *((op, [to_fp8, to_int8]) for op in ("rmsnorm_quantize", "silu_mul_quantize")),
):
    for _quantize in _quantizers:
        _name = f"Compiled{_op.title().replace('_', '').replace(' ', '')}{_quantize.__name__.title()[3:]}"
        _fields = {
            "__module__": __name__,
            "op": _op,
            "name": f"torch.compile {_op}" + f", {_quantize.__name__[3:]}" * (len(_quantizers) > 1),
            "quantize": staticmethod(_quantize),
        }
        globals()[_name] = type(_name, (_Compiled,), _fields)
