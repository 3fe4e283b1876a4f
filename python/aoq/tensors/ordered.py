"""Integers in groups whose columns do not lie in the weight's own order: GPTQ's act-order (`desc_act`, `g_idx`).

The columns of a group are neighbours in the codes, so that any kernel reads them, and x is gathered in their order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from aoq.tensors.int4 import Int4Tensor, Int4Weight
from aoq.tensors.intx import IntxTensor, IntxWeight
from aoq.tensors.packed import GroupedTensor, GroupedWeight
from aoq.tensors.parts import StoredPart


class OrderedWeight(GroupedWeight):
    """How a weight multiplies whose column i, in all other parts, is the weight's column `order[i]`."""

    order: Tensor

    def stored_parts(self) -> list[tuple[StoredPart, Any]]:
        return [(part, tensor) for part, tensor in super().stored_parts() if part.name != "order"]

    def linear_packed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return super().linear_packed(x.index_select(-1, self.order), bias)

    def rows(self, ids: Tensor) -> Tensor:
        return super().rows(ids).index_select(-1, self.order.argsort())

    @property
    def label(self) -> str:
        return f"{super().label} act-order"


class OrderedTensor(GroupedTensor):
    """Base of the tensors of such weights, which have two dimensions and no slices along k."""

    order: Tensor

    def check_attrs(self) -> None:
        super().check_attrs()
        if len(self.weight_shape) != 2:
            raise ValueError(f"{type(self).__name__}: expected shape [n, k], got {list(self.weight_shape)}")

    def pack(self) -> Self:
        if not self.packed and not self.is_meta:
            check_order(self.order)  # once, where a file may have had anything
        return super().pack()

    def dequantize(self) -> Tensor:
        return super().dequantize().index_select(-2 if self.transposed else -1, self.order.argsort())

    def requantize(self, values: Tensor) -> Self:
        if self.transposed:
            return self.t().requantize(values.transpose(-1, -2)).t()  # type: ignore[attr-defined, no-any-return]
        # A config makes the other parts, of columns in this tensor's order.
        made: Any = super().requantize(values.index_select(-1, self.order.to(values.device)))
        parts = [getattr(made, name, None) for name in self.tensors[: self.tensors.index("order")]]
        attrs = {name: getattr(made, name) for name in self.attrs}
        return self.rebuild([*parts, self.order], **attrs, dtype=made.dtype)

    def narrow_weight(self, dim: int, start: int, length: int) -> Self:
        if dim != 0:
            raise ValueError(f"slice: expected rows of a weight that has an order of its columns, got k of {self}")
        if self.packed:
            return super().narrow_weight(dim, start, length)
        named = zip(self.tensors, self.parts(), strict=True)
        parts = [part if part is None or name == "order" else part.narrow(0, start, length) for name, part in named]
        return self.rebuild(parts, shape=(length, self.weight_shape[1]))


def check_order(order: Tensor) -> None:
    """Raises ValueError unless `order` has every column once."""
    if not torch.equal(order.sort().values.long(), torch.arange(len(order), device=order.device)):
        raise ValueError("order: expected every column once")


class OrderedInt4Weight(OrderedWeight, Int4Weight):
    """How such an int4 weight multiplies."""


class OrderedInt4Tensor(OrderedInt4Weight, OrderedTensor, Int4Tensor):
    """An `Int4Tensor` [n, k] whose parts have its columns in another order.

    order: int32 [k], the weight's column that each of the codes' columns is.
    """

    tensors: ClassVar[tuple[str, ...]] = (*Int4Tensor.tensors, "order")


class OrderedIntxWeight(OrderedWeight, IntxWeight):
    """How such a weight of a few bits multiplies."""


class OrderedIntxTensor(OrderedIntxWeight, OrderedTensor, IntxTensor):
    """An `IntxTensor` [n, k] whose parts have its columns in another order.

    order: int32 [k], the weight's column that each of the codes' columns is.
    """

    tensors: ClassVar[tuple[str, ...]] = (*IntxTensor.tensors, "order")
