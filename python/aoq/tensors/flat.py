"""FlatWeight: the values of a quantized weight in one dimension, for what collects parameters without looking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from aoq.tensors.base import QuantizedTensor

aten = torch.ops.aten


class FlatWeight(torch.Tensor):
    """`weight.view(-1)`: dequantized only when something is done with it, but for being viewed as the weight again."""

    weight: QuantizedTensor

    @staticmethod
    def __new__(cls, weight: QuantizedTensor) -> FlatWeight:
        size = [math.prod(weight.shape)]
        made: FlatWeight = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, size, dtype=weight.dtype, device=weight.device
        )
        made.weight = weight
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FlatWeight({self.weight!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        flat = args[0] if args and isinstance(args[0], FlatWeight) else None
        if flat is not None and func in (aten.detach.default, aten.alias.default):
            return FlatWeight(flat.weight)
        if flat is not None and func is aten.view.default and _size(flat, args[1]) == flat.weight.shape:
            return flat.weight.detach()
        if any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments):
            raise NotImplementedError(
                f"{func}: a quantized weight cannot be written to through a view of another shape"
            )

        def plain(value: Any) -> Any:
            return value.weight.dequantize().reshape(-1) if isinstance(value, FlatWeight) else value

        return func(*tree_map(plain, args), **tree_map(plain, kwargs))


def _size(flat: Tensor, size: Sequence[int]) -> torch.Size:
    return torch.empty(flat.shape, device="meta").view(size).shape
