"""SGLang's DeepGEMM: fp8 with scales for 128 of a row of x and 128x128 of w, compiled at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender, Problem


class DeepGemm(Contender):
    name, op, package, part, tolerance = "DeepGEMM blockwise", "fp8_mm", "sgl-deep-gemm", True, 0.06
    matmuls = ("cuda",)

    def __init__(self, threads: int, device: str = "cpu") -> None:
        import deep_gemm
        from deep_gemm.utils import layout, math

        super().__init__(threads, device)
        self.call = deep_gemm.fp8_gemm_nt
        self.to_x, self.to_w = math.per_token_cast_to_fp8, math.per_block_cast_to_fp8
        self.align = layout.get_mn_major_tma_aligned_tensor

    def weight(self, problem: Problem) -> Any:
        return self.to_w(problem.w, use_ue8m0=False)

    def prepare(self, x: Tensor) -> Any:
        codes, scale = self.to_x(x, use_ue8m0=False)
        return codes, self.align(scale)

    def multiply(self, x: Any, weight: Any) -> Tensor:
        out = torch.empty(x[0].shape[0], weight[0].shape[0], dtype=torch.bfloat16, device=x[0].device)
        self.call(x, weight, out)
        return out
