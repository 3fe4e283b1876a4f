"""weight_module: a quantized weight as a module of plain parameters, for frameworks that compile whole models.

torch.compile takes tensor subclasses apart at every call, and takes much longer to compile them. A module like this one
is traced as the op and its operands. It runs by the mixin that the tensor's class runs by.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from aoq.tensors.base import QuantizedTensor
from aoq.tensors.packed import PackedWeight


def weight_module(w: Tensor) -> WeightModule:
    """A module that multiplies by `w`, quantized or not, and looks up its rows; its parameters are the parts of `w`."""
    return _module_class(type(w))(w) if isinstance(w, QuantizedTensor) else WeightModule(w)


class WeightModule(nn.Module):
    """A weight that is not quantized, and the base of the others."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(w, requires_grad=False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, self.weight, bias)

    def rows(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight)


class QuantizedModule(WeightModule):
    """The parts of a quantized weight as parameters, its attributes as fields. The mixin that runs it comes before."""

    def __init__(self, w: QuantizedTensor) -> None:
        nn.Module.__init__(self)
        for name, part in zip(w.tensors, w.parts(), strict=True):
            self.register_parameter(name, None if part is None else nn.Parameter(part, requires_grad=False))
        for name in (*w.attrs, "weight_shape", "transposed", "dtype"):
            setattr(self, name, getattr(w, name))


@functools.cache
def _module_class(kind: type[QuantizedTensor]) -> type[QuantizedModule]:
    mixins = [base for base in kind.__mro__ if issubclass(base, PackedWeight) and not issubclass(base, Tensor)]
    if not mixins:
        raise TypeError(f"weight_module: w: expected a tensor that is a PackedWeight, got {kind.__name__}")
    names = {"tensors": kind.tensors, "attrs": kind.attrs}
    return type(f"{kind.__name__.removesuffix('Tensor')}Module", (mixins[0], QuantizedModule), names)
