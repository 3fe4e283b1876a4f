"""OpenVINO's compressed weights: u4 in groups, which its CPU plugin multiplies by x quantized to int8 in groups."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..contender import Contender, Indices, Problem


class OpenVinoU4(Contender):
    """x and the result are fp32, as exported models have them; it computes in bf16 where the machine has that."""

    name = "OpenVINO u4"
    op = "int8_int4_mm"
    package = "openvino"
    prepares = True
    x_half_steps = 1
    environment: ClassVar[dict[str, str]] = {"OMP_WAIT_POLICY": "PASSIVE"}  # it has threads of its own

    def __init__(self, threads: int, device: str = "cpu") -> None:
        import openvino

        super().__init__(threads, device)
        self.openvino: Any = openvino
        self.core = openvino.Core()
        self.options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}

    def weight(self, problem: Problem) -> Any:
        import numpy
        import openvino.opset13 as op

        codes, scale = problem.int4
        half, types = self.openvino.Type.f16, self.openvino.Type
        pairs = codes.view(-1, 2)
        self.memory = (pairs[:, 0] | pairs[:, 1] << 4).numpy()  # the model does not keep it alive
        shape = self.openvino.Shape([problem.n, scale.shape[1], problem.group_size])
        w = op.constant(self.openvino.Tensor(self.memory, shape, types.u4))
        zero = op.constant(numpy.full((problem.n, scale.shape[1], 1), 8, numpy.uint8), types.u4)
        scaled = op.multiply(
            op.subtract(op.convert(w, half), op.convert(zero, half)), op.constant(scale.half()[..., None].numpy())
        )
        w = op.convert(op.reshape(scaled, op.constant([problem.n, problem.k]), False), types.f32)
        x = op.parameter([-1, problem.k], types.f32)
        self.model = self.openvino.Model([op.matmul(x, w, False, True)], [x])
        self.model_bytes = codes.numel() // 2 + scale.nbytes
        return self.another(None)

    def exact(self, problem: Problem, weight: Any, rows: Indices) -> Tensor:
        """Its scales are fp16."""
        codes, scale = (part[rows] for part in problem.int4)
        return (codes.float() - 8) * scale.half().float().repeat_interleave(problem.group_size, 1)

    def another(self, weight: Any) -> Any:
        return self.core.compile_model(self.model, "CPU", self.options).create_infer_request()

    def nbytes(self, weight: Any) -> int:
        return self.model_bytes

    def prepare(self, x: Tensor) -> Any:
        return self.openvino.Tensor(x.float().numpy())

    def multiply(self, x: Any, weight: Any) -> Any:
        return weight.infer(x, share_inputs=True, share_outputs=True)

    def output(self, out: Any) -> Tensor:
        return torch.from_numpy(out[0].copy())
