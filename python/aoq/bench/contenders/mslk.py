"""Meta's mslk: CUTLASS kernels for Hopper. It quantizes by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender, Problem, RowContender


class _Mslk(Contender):
    package = "mslk-cuda"
    matmuls = ("cuda",)
    tolerance = 0.2

    def __init__(self, threads: int, device: str = "cpu") -> None:
        import mslk.gemm  # noqa: F401
        from mslk.quantize.shuffle import quantize_int4_preshuffle
        from mslk.quantize.triton.fp8_quantize import quantize_fp8_row

        super().__init__(threads, device)
        self.to_int4, self.to_fp8 = quantize_int4_preshuffle, quantize_fp8_row

    def prepare(self, x: Tensor) -> Any:
        return self.to_fp8(x) if self.part else x


class Int4(_Mslk):
    name, op = "mslk bf16i4 shuffled", "int4_mm"

    def weight(self, problem: Problem) -> Any:
        codes, (scale, zero) = self.to_int4(problem.w, dtype="bf16")
        return codes, scale, zero

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = torch.ops.mslk.bf16i4bf16_shuffled(x, *weight)
        return out


class Fp8Int4(_Mslk):
    """x in fp8: of W4A8 the kind that mslk has."""

    name, op = "mslk f8i4 shuffled + quantizer", "int8_int4_mm"

    def weight(self, problem: Problem) -> Any:
        codes, (group_scale, row_scale) = self.to_int4(problem.w)
        return codes, row_scale, group_scale

    def multiply(self, x: Any, weight: Any) -> Tensor:
        codes, scale = x if self.part else self.to_fp8(x)
        out: Tensor = torch.ops.mslk.f8i4bf16_shuffled(codes, weight[0], scale, *weight[1:])
        return out


class Fp8Int4Part(Fp8Int4):
    name, part = "mslk f8i4 shuffled", True


class Fp8(_Mslk):
    """Scales per row."""

    name, op, form, tolerance = "mslk f8f8 rowwise + quantizer", "fp8_mm", "fp8", 0.05

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.fp8
        return codes, scale.flatten()

    def multiply(self, x: Any, weight: Any) -> Tensor:
        codes, scale = x if self.part else self.to_fp8(x)
        out: Tensor = torch.ops.mslk.f8f8bf16_rowwise(codes, weight[0], scale, weight[1], use_fast_accum=True)
        return out


class Fp8Part(Fp8):
    name, part = "mslk f8f8 rowwise", True


class Fp8Rows(RowContender):
    name, op, package = "mslk quantize_fp8_row", "fp8_quantize", "mslk-cuda"

    def __init__(self, threads: int, device: str = "cpu") -> None:
        from mslk.quantize.triton.fp8_quantize import quantize_fp8_row

        super().__init__(threads, device)
        self.call = quantize_fp8_row

    def multiply(self, x: Any, weight: Any) -> Any:
        return self.call(*weight)

    def codes(self, out: Any) -> tuple[Tensor, Tensor]:
        return out[0], out[1][:, None]
