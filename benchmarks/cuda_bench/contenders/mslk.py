"""Meta's mslk: CUTLASS kernels for Hopper. It quantizes by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender, RowContender
from ..problem import Problem


class Int4(Contender):
    name, op = "mslk bf16i4 shuffled", "int4_mm"

    def ready(self, device: str) -> None:
        import mslk.gemm  # noqa: F401
        from mslk.quantize.shuffle import quantize_int4_preshuffle

        self.quantize = quantize_int4_preshuffle
        self.call = torch.ops.mslk.bf16i4bf16_shuffled

    def weight(self, problem: Problem) -> Any:
        codes, (scale, zero) = self.quantize(problem.w, dtype="bf16")
        return codes, scale, zero

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        out: Tensor = self.call(x, *weight)
        return out


class Fp8Int4(Contender):
    """x in fp8: of W4A8 the kind that mslk has."""

    op, peak = "int8_int4_mm", "fp8"

    def __init__(self, quantizes: bool) -> None:
        self.part = not quantizes
        self.name = f"mslk f8i4 shuffled{' + quantizer' if quantizes else ''}"

    def ready(self, device: str) -> None:
        import mslk.gemm  # noqa: F401
        from mslk.quantize.shuffle import quantize_int4_preshuffle
        from mslk.quantize.triton.fp8_quantize import quantize_fp8_row

        self.quantize_w, self.quantize = quantize_int4_preshuffle, quantize_fp8_row
        self.call = torch.ops.mslk.f8i4bf16_shuffled

    def weight(self, problem: Problem) -> Any:
        codes, (group_scale, row_scale) = self.quantize_w(problem.w)
        return codes, row_scale, group_scale

    def given(self, x: Tensor) -> Any:
        return self.quantize(x) if self.part else x

    def multiply(self, x: Any, weight: Any) -> Tensor:
        codes, scale = x if self.part else self.quantize(x)
        out: Tensor = self.call(codes, weight[0], scale, *weight[1:])
        return out


class Fp8(Contender):
    """Scales per row."""

    form, tolerance = "fp8", 0.05

    def __init__(self, quantizes: bool) -> None:
        self.op, self.part = "fp8_mm", not quantizes
        self.name = f"mslk f8f8 rowwise{' + quantizer' if quantizes else ''}"

    def ready(self, device: str) -> None:
        import mslk.gemm  # noqa: F401
        from mslk.quantize.triton.fp8_quantize import quantize_fp8_row

        self.quantize = quantize_fp8_row
        self.call = torch.ops.mslk.f8f8bf16_rowwise

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.fp8
        return codes, scale.flatten()

    def given(self, x: Tensor) -> Any:
        return self.quantize(x) if self.part else x

    def multiply(self, x: Any, weight: Any) -> Tensor:
        codes, scale = x if self.part else self.quantize(x)
        out: Tensor = self.call(codes, weight[0], scale, weight[1], use_fast_accum=True)
        return out


class Fp8Rows(RowContender):
    name, op = "mslk quantize_fp8_row", "fp8_quantize"

    def ready(self, device: str) -> None:
        from mslk.quantize.triton.fp8_quantize import quantize_fp8_row

        self.call = quantize_fp8_row

    def multiply(self, x: Any, weight: Any) -> Any:
        return self.call(*weight)

    def values(self, out: Any) -> tuple[Tensor, Tensor]:
        return out[0], out[1][:, None]


CONTENDERS: list[Contender] = [Int4(), Fp8Int4(True), Fp8Int4(False), Fp8(True), Fp8(False), Fp8Rows()]
