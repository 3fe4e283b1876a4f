"""aoq's ops, on weights that its configs make; x is quantized by the op where the op's name says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..contender import Contender, Missing, RowContender
from ..figures import GROUP
from ..problem import Problem, relative_error


def registered(op: str, device: str) -> None:
    key = "CUDA" if device == "cuda" else "CPU"
    try:
        there = torch._C._dispatch_has_kernel_for_dispatch_key(f"aoq::{op}", key)
    except RuntimeError:
        there = False
    if not there:
        raise Missing(f"this build of aoq has no {key} kernel for it")


class Aoq(Contender):
    ours = True
    tolerance = 0.005  # of a bf16 result and fp32 sums: x and w count as what they are quantized to

    def __init__(self, op: str, form: str, pdl: bool = True, **options: Any) -> None:
        """pdl: whether a kernel may start before the one before it has ended, where it waits by itself.

        options: of the op, such as `config`, a plan instead of its own choice.
        """
        if op.startswith("fp8_mm"):
            self.tolerance = 0.03  # tensor cores keep fewer bits of sums of fp8 products
        self.op, self.form, self.pdl, self.options = op, form, pdl, options
        self.op_name = op.split()[0]
        self.name = f"aoq {op}" + "".join(f", {name} {value}" for name, value in options.items())
        self.name += "" if pdl else ", no PDL"

    def ready(self, device: str) -> None:
        import aoq

        registered(self.op_name, device)
        self.call = getattr(torch.ops.aoq, self.op_name).default
        known = {argument.name for argument in self.call._schema.arguments}
        if not known >= set(self.options):
            raise Missing(f"it has no {', '.join(set(self.options) - known)}")
        symmetric, per_tensor = aoq.MappingType.SYMMETRIC, aoq.PerTensor()
        self.config = {
            "int4_mm": lambda: aoq.Int4WeightOnlyConfig(GROUP, mapping_type=symmetric),
            "int8_int4_mm": lambda: aoq.Int8DynamicActivationInt4WeightConfig(
                GROUP, mapping_type=symmetric, act_mapping_type=symmetric
            ),
            "int8_mm": aoq.Int8DynamicActivationInt8WeightConfig,
            "fp8_mm": lambda: aoq.Float8DynamicActivationFloat8WeightConfig(granularity=aoq.PerRow()),
            "fp8_mm tensor": lambda: aoq.Float8DynamicActivationFloat8WeightConfig(granularity=per_tensor),
            "fp8_weight_mm": aoq.Float8WeightOnlyConfig,
            "int8_weight_mm": aoq.Int8WeightOnlyConfig,
        }[self.op]()

    def weight(self, problem: Problem) -> Any:
        w = self.config.quantize(problem.w)
        if not w.packed:
            raise Missing("its weights are not packed for this device")
        return w

    def copy(self, weight: Any) -> Any:
        return weight.map(torch.clone)

    def nbytes(self, weight: Any) -> int:
        return int(weight.nbytes)

    def multiply(self, x: Any, weight: Any) -> Tensor:
        # As F.linear would, without what Python adds to a call.
        if self.pdl:
            out: Tensor = self.call(x, *self.arguments(weight), **self.options)
            return out
        from aoq import _C

        _C.set_pdl("0")
        try:
            out = self.call(x, *self.arguments(weight), **self.options)
            return out
        finally:
            _C.set_pdl("")

    def arguments(self, w: Any) -> tuple[Any, ...]:
        n = w.weight_shape[0]
        if self.op == "int4_mm":
            return w.qdata, w.scale, w.zero_point, None, n, w.group_size
        if self.op == "int8_int4_mm":
            return w.qdata, w.scale, w.zero_point, w.w_sum, None, n, w.group_size
        if self.op == "int8_mm":
            return w.qdata, w.scale, w.w_sum, None, n
        if self.op == "fp8_weight_mm":
            return w.qdata, w.scale, None, n, w.code_dtype
        if self.op == "int8_weight_mm":
            return w.qdata, w.scale, None, n
        return w.qdata, w.scale, None, n, w.code_dtype, w.act_dtype, w.act_granularity

    def x_exact(self, x: Tensor) -> Tensor:
        from aoq.ops import fp8_quantize_reference, int8_quantize_reference

        if self.op in ("int8_mm", "int8_int4_mm"):
            codes, scale, _ = int8_quantize_reference(x)
        elif self.op.startswith("fp8_mm"):
            codes, scale = fp8_quantize_reference(x, "tensor" if self.op.endswith("tensor") else "row")
        else:
            return x.double()
        return codes.double() * scale.double()


class QuantizesX(Contender):
    """The part of an 8-bit matmul that quantizes x, alone: what is left is the matmul's."""

    ours = part = True
    tolerance = 0.05

    def __init__(self, op: str) -> None:
        self.op = op
        self.quantizer = "int8_quantize" if op.startswith("int8") else "fp8_quantize"
        self.arguments = ("tensor",) if op.endswith("tensor") else ()
        self.name = f"aoq {self.quantizer}"

    def ready(self, device: str) -> None:
        import aoq  # noqa: F401

        registered(self.quantizer, device)
        self.call = getattr(torch.ops.aoq, self.quantizer).default

    def weight(self, problem: Problem) -> Any:
        return ()

    def multiply(self, x: Any, weight: Any) -> Any:
        return self.call(x, *self.arguments)

    def error(self, problem: Problem, x: Tensor, out: Any) -> float:
        codes, scale, *_ = out
        return relative_error(codes.double() * scale.double(), x.double())


class Quantizer(RowContender):
    ours = True

    def __init__(self, op: str, dtype: torch.dtype) -> None:
        self.op, self.dtype = op, dtype
        self.op_name, _, self.granularity = op.partition(" ")
        fused = self.op_name in ("rmsnorm_quantize", "silu_mul_quantize")
        self.name = f"aoq {op}" + (f", {'int8' if dtype == torch.int8 else 'fp8'}" if fused else "")

    def ready(self, device: str) -> None:
        import aoq  # noqa: F401

        registered(self.op_name, device)
        self.call = getattr(torch.ops.aoq, self.op_name).default

    def multiply(self, x: Any, weight: Any) -> Any:
        if self.op_name == "rmsnorm_quantize":
            return self.call(*weight, 1e-6, self.dtype)
        if self.op_name == "silu_mul_quantize":
            return self.call(*weight, self.dtype)
        return self.call(*weight, *([self.granularity] if self.granularity else []))


def contenders(configs: Sequence[int], without_pdl: bool = False) -> list[Contender]:
    forms = {
        "int4_mm": "int4",
        "int8_int4_mm": "int4",
        "int8_mm": "int8",
        "fp8_mm": "fp8",
        "fp8_mm tensor": "fp8_tensor",
        "fp8_weight_mm": "fp8",
        "int8_weight_mm": "int8",
    }
    fp8 = torch.float8_e4m3fn
    return [
        *(Aoq(op, form) for op, form in forms.items()),
        *(Aoq(op, form, config=config) for op, form in forms.items() for config in configs),
        *(Aoq(op, form, pdl=False) for op, form in forms.items() if without_pdl),
        *(QuantizesX(op) for op in ("int8_mm", "fp8_mm", "fp8_mm tensor", "int8_int4_mm")),
        Quantizer("int8_quantize", torch.int8),
        Quantizer("fp8_quantize", fp8),
        Quantizer("fp8_quantize tensor", fp8),
        *(Quantizer(op, dtype) for op in ("rmsnorm_quantize", "silu_mul_quantize") for dtype in (fp8, torch.int8)),
    ]
