"""ONNX Runtime's MatMulNBits, which at accuracy level 4 quantizes x to int8 in blocks."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..contender import Contender, Problem


class OrtMatMulNBits(Contender):
    """x and the result are fp32, what it is fastest with on CPUs."""

    name = "ORT MatMulNBits"
    op = "int8_int4_mm"
    form = "int4"
    package = "onnxruntime"
    x_half_steps = 1
    w_rounded = False
    environment: ClassVar[dict[str, str]] = {"OMP_WAIT_POLICY": "PASSIVE"}  # it has threads of its own

    def __init__(self, threads: int, device: str = "cpu") -> None:
        import onnx
        import onnxruntime

        super().__init__(threads, device)
        onnxruntime.set_default_logger_severity(3)
        self.onnx: Any = onnx
        self.runtime: Any = onnxruntime
        self.session_options = onnxruntime.SessionOptions()
        self.session_options.intra_op_num_threads = threads

    def weight(self, problem: Problem) -> Any:
        helper, group_size = self.onnx.helper, problem.group_size
        codes, scale = problem.int4
        pairs = codes.view(problem.n, -1, group_size // 2, 2)
        initializers = {"w": pairs[..., 0] | pairs[..., 1] << 4, "scale": scale.float().flatten()}
        node = helper.make_node(
            "MatMulNBits",
            ["x", *initializers],
            ["out"],
            domain="com.microsoft",
            K=problem.k,
            N=problem.n,
            bits=4,
            block_size=group_size,
            accuracy_level=4,
        )
        number = self.onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            [node],
            "linear",
            [helper.make_tensor_value_info("x", number, ["m", problem.k])],
            [helper.make_tensor_value_info("out", number, ["m", problem.n])],
            [self.onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in initializers.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        self.model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
        self.model_bytes = sum(tensor.nbytes for tensor in initializers.values())
        return self.another(None)

    def another(self, weight: Any) -> Any:
        return self.runtime.InferenceSession(self.model, self.session_options, providers=["CPUExecutionProvider"])

    def nbytes(self, weight: Any) -> int:
        return self.model_bytes

    def prepare(self, x: Tensor) -> Any:
        return {"x": self.runtime.OrtValue.ortvalue_from_numpy(x.float().numpy())}

    def multiply(self, x: Any, weight: Any) -> Any:
        return weight.run_with_ort_values(["out"], x)

    def output(self, out: Any) -> Tensor:
        return torch.from_numpy(out[0].numpy())
