"""llama.cpp's matmuls, from the ggml that xllamacpp's wheel contains (built for AVX2), through ggml's C interface.

Weights go to its repacking buffers where they take the type, as llama.cpp does when it loads a model.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..contender import Contender, Problem

BLOCK = 32  # columns that share a scale, of weights and of x
F32, Q4_0, Q8_0 = 0, 2, 8  # enum ggml_type
_TENSOR, _EXTRA = 336, 320  # bytes of a ggml_tensor, and where its `extra` is: what knows how to multiply it repacked


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _ThreadpoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (_POINTER, [_InitParams]),
    "ggml_tensor_overhead": (_SIZE, []),
    "ggml_graph_overhead": (_SIZE, []),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, _INT, ctypes.c_int64, ctypes.c_int64]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_new_graph": (_POINTER, [_POINTER]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_get_data": (_POINTER, [_POINTER]),
    "ggml_threadpool_params_init": (None, [_POINTER, _INT]),
    "ggml_threadpool_new": (_POINTER, [_POINTER]),
    "ggml_backend_cpu_init": (_POINTER, []),
    "ggml_backend_cpu_reg": (_POINTER, []),
    "ggml_backend_cpu_set_n_threads": (None, [_POINTER, _INT]),
    "ggml_backend_cpu_set_threadpool": (None, [_POINTER, _POINTER]),
    "ggml_backend_reg_dev_get": (_POINTER, [_POINTER, _SIZE]),
    "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, ctypes.c_char_p]),
    "ggml_backend_alloc_ctx_tensors": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_graph_compute": (_INT, [_POINTER, _POINTER]),
}


@dataclass
class _Weight:
    tensor: int  # ggml_tensor*
    n: int
    rows: Tensor  # its bytes as a file has them
    graphs: dict[int, tuple[int, int]] = field(default_factory=dict)  # by tensor of x: graph, its result


class _Ggml(Contender):
    package = "xllamacpp"
    prepares = True  # a graph for each weight and x
    x_half_steps = 1
    w_rounded = False
    type: ClassVar[int]

    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)
        found = importlib.util.find_spec("xllamacpp")
        if found is None or not found.submodule_search_locations:
            raise ImportError("no module named 'xllamacpp'")
        (library,) = Path(next(iter(found.submodule_search_locations))).glob("*.so")
        self.ggml = ctypes.CDLL(str(library))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self.ggml, name)
            function.restype, function.argtypes = result, arguments
        if self.ggml.ggml_tensor_overhead() != _TENSOR + 32:  # with its ggml_object
            raise NotImplementedError(f"ggml_tensor: expected {_TENSOR} bytes, as in the version this was written for")
        self.backend = self.ggml.ggml_backend_cpu_init()
        self.ggml.ggml_backend_cpu_set_n_threads(self.backend, threads)
        params = _ThreadpoolParams()
        self.ggml.ggml_threadpool_params_init(ctypes.byref(params), threads)
        self.ggml.ggml_backend_cpu_set_threadpool(self.backend, self.ggml.ggml_threadpool_new(ctypes.byref(params)))

    def context(self, tensors: int) -> int:
        """What `tensors` tensors and a graph are made in; their data comes from buffers."""
        size = tensors * self.ggml.ggml_tensor_overhead() + self.ggml.ggml_graph_overhead()
        context: int = self.ggml.ggml_init(_InitParams(size, None, True))
        return context

    def repacking(self) -> list[int]:
        """The CPU's buffer types that change what is stored into them."""
        registry = self.ggml.ggml_backend_cpu_reg()
        address = self.ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        get = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
        types = get(self.ggml.ggml_backend_reg_dev_get(registry, 0))
        found: list[int] = []
        while types and types[len(found)]:
            found.append(types[len(found)])
        return found

    def store(self, rows: Tensor, n: int, k: int) -> _Weight:
        for kind in (*self.repacking(), None):
            context = self.context(1)
            tensor = self.ggml.ggml_new_tensor_2d(context, self.type, k, n)
            if kind is None:
                self.ggml.ggml_backend_alloc_ctx_tensors(context, self.backend)
                break
            self.ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
            if ctypes.c_void_p.from_address(tensor + _EXTRA).value:
                break  # it multiplies this type
        self.ggml.ggml_backend_tensor_set(tensor, rows.data_ptr(), 0, rows.nbytes)
        return _Weight(tensor, n, rows)

    def blocks(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Bytes of each block's codes, uint8 [n, k / 32, bytes], and its scale."""
        raise NotImplementedError

    def weight(self, problem: Problem) -> Any:
        if problem.k % BLOCK or problem.group_size % BLOCK:
            raise NotImplementedError(f"k and groups: expected multiples of {BLOCK}")
        codes, scale = self.blocks(problem)
        half = scale.half().view(torch.uint8).unflatten(-1, (-1, 2))
        rows = torch.cat((half, codes), -1).contiguous()
        return self.store(rows, problem.n, problem.k)

    def another(self, weight: _Weight) -> _Weight:
        k = weight.rows.shape[1] * BLOCK
        return self.store(weight.rows, weight.n, k)

    def nbytes(self, weight: _Weight) -> int:
        return weight.rows.nbytes

    def prepare(self, x: Tensor) -> Any:
        m, k = x.shape
        context = self.context(1)
        tensor = self.ggml.ggml_new_tensor_2d(context, F32, k, m)
        self.ggml.ggml_backend_alloc_ctx_tensors(context, self.backend)
        values = x.float().contiguous()
        self.ggml.ggml_backend_tensor_set(tensor, values.data_ptr(), 0, values.nbytes)
        return tensor, m

    def multiply(self, x: Any, weight: _Weight) -> Any:
        tensor, m = x
        if tensor not in weight.graphs:
            context = self.context(8)
            out = self.ggml.ggml_mul_mat(context, weight.tensor, tensor)
            graph = self.ggml.ggml_new_graph(context)
            self.ggml.ggml_build_forward_expand(graph, out)
            self.ggml.ggml_backend_alloc_ctx_tensors(context, self.backend)
            weight.graphs[tensor] = graph, out
        graph, out = weight.graphs[tensor]
        status = self.ggml.ggml_backend_graph_compute(self.backend, graph)
        if status:
            raise RuntimeError(f"ggml_backend_graph_compute: status {status}")
        return out, m, weight.n

    def output(self, out: Any) -> Tensor:
        tensor, m, n = out
        values = (ctypes.c_float * (m * n)).from_address(self.ggml.ggml_get_data(tensor))
        return torch.frombuffer(values, dtype=torch.float32).view(m, n)


class GgmlQ4(_Ggml):
    """Blocks of 32 codes, the first 16 in the low nibbles; scales of larger groups are repeated."""

    name = "llama.cpp Q4_0"
    op = "int8_int4_mm"
    form = "int4"
    type = Q4_0

    def blocks(self, problem: Problem) -> tuple[Tensor, Tensor]:
        codes, scale = problem.int4
        halves = codes.view(problem.n, -1, 2, BLOCK // 2)
        return halves[:, :, 0] | halves[:, :, 1] << 4, scale.repeat_interleave(problem.group_size // BLOCK, 1)


class GgmlQ8(_Ggml):
    name = "llama.cpp Q8_0"
    op = "int8_mm"
    form = "int8"
    type = Q8_0

    def blocks(self, problem: Problem) -> tuple[Tensor, Tensor]:
        codes, scale = problem.int8
        blocks = codes.view(torch.uint8).view(problem.n, -1, BLOCK)
        return blocks, scale.expand(-1, blocks.shape[1]).contiguous()
