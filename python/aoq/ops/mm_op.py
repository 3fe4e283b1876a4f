"""Ops that multiply by a packed weight of one format, with an argument for each of its parts: `mm` does it for all.

An `MmOp` makes what an op of the library needs in Python: its fake kernel, its gradient, its rule under autocast, and
its reference. Which parts it takes, its schema says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aoq.ops import autocast
from aoq.ops.checks import Checks
from aoq.ops.formats import FORMATS, Format, fp8_format
from aoq.ops.fp8_quantize import fp8_quantize_reference
from aoq.ops.int8_quantize import int8_quantize_reference
from aoq.ops.packed import Operands, check_config, mm_reference, packed_mm, packed_mm_fake


class MmOp:
    """`torch.ops.aoq.<name>(x, *parts, bias, *sizes, config=-1)`; sizes are n and what else the op takes.

    Args:
        format: by name; None for fp8, whose argument `w_dtype` says which.
        x_as: "given", or what x is quantized to: "int8" or "fp8".
    """

    def __init__(self, name: str, format: str | None, x_as: str = "given") -> None:
        self.name, self.x_as = name, x_as
        self.format = None if format is None else FORMATS[format]
        self.op = getattr(torch.ops.aoq, name).default
        arguments = self.op._schema.arguments
        names = [argument.name for argument in arguments]
        self.parts, self.sizes = names[1 : names.index("bias")], names[names.index("bias") + 1 : -1]
        self.defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
        self.names = names
        torch.library.register_fake(f"aoq::{name}")(self._fake)
        autocast.add_rule(self.op)

    def __call__(self, x: Tensor, weight: Operands, bias: Tensor | None, *sizes: Any) -> Tensor:
        """The product, with typed errors; differentiable once in `x` and `bias`."""
        return packed_mm(self.op, self._dequantize, x, weight, bias, *sizes)

    def reference(self, x: Tensor, weight: Operands, bias: Tensor | None, *sizes: Any) -> Tensor:
        """The op in PyTorch: fp64 products and sums of exactly dequantized x and w."""
        given = self._named(x, *weight, bias, *sizes)
        w = self._weight(given, x.shape[-1], torch.float64, reference=True)
        if self.x_as == "int8":
            return int8_mm_reference(x, w, given["w_sum"], bias)
        values = x.double()
        if self.x_as == "fp8":
            names = ("granularity", "x_dtype", "lb", "ub")
            codes, x_scale = fp8_quantize_reference(x, *(given[name] for name in names))
            values = codes.double() * x_scale.double()
        return mm_reference(values, w, bias, x.dtype)

    def _named(self, *operands: Any, **options: Any) -> dict[str, Any]:
        return self.defaults | dict(zip(self.names, operands, strict=False)) | options

    def _format_of(self, given: dict[str, Any]) -> Format:
        return fp8_format(given["w_dtype"]) if self.format is None else self.format

    def _weight(self, given: dict[str, Any], k: int, dtype: torch.dtype, reference: bool = False) -> Tensor:
        parts = given["packed"], given["scale"], given.get("zero_point")
        return self._format_of(given).weight(*parts, given["n"], given.get("group_size"), k, dtype, reference)

    def _dequantize(self, *operands: Any) -> Tensor:
        *parts_and_sizes, k, dtype = operands
        given = dict(zip([*self.parts, *self.sizes], parts_and_sizes, strict=False))
        return self._weight(self.defaults | given, k, dtype)

    def _fake(self, *operands: Any, **options: Any) -> Tensor:
        given = self._named(*operands, **options)
        check, x = Checks(self.name), given["x"]
        check_config(check, given["config"], x)
        if self.format is None:
            check.fp8(given["w_dtype"], "w_dtype")
        if self.x_as == "fp8":
            check.granularity(given["granularity"])
            check.fp8(given["x_dtype"], "x_dtype")
            check.bounds(given["lb"], given["ub"])
        format = self._format_of(given)
        operand = [given[name] for name in ("packed", "scale", "bias", "n")]
        others = [given.get(name) for name in ("group_size", "zero_point", "w_sum")]
        return packed_mm_fake(check, format.packed_shape, format.packed_dtype, x, *operand, *others)


def int8_mm_reference(x: Tensor, w: Tensor, w_sum: Tensor | None, bias: Tensor | None) -> Tensor:
    """`x`, quantized to int8 per row, times an fp64 `w` [n, k]; `w_sum` and `bias` as in `int8_mm`."""
    codes, x_scale, x_zero = int8_quantize_reference(x, "symmetric" if w_sum is None else "asymmetric")
    out = codes.double() @ w.t()
    if w_sum is not None:
        out = out - x_zero.double() * w_sum.double()
    out = out * x_scale.double()
    return (out if bias is None else out + bias.double()).to(x.dtype)
