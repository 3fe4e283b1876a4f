"""What torch functions and aten ops do on a QuantizedTensor of any format."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aoq.ops.packed import TILE_N
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.flat import FlatWeight

aten = torch.ops.aten

_SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__
_SET_REQUIRES_GRAD: Any = vars(torch._C.TensorBase)["requires_grad"].__set__


@QuantizedTensor.implements(F.linear, aten.linear.default)
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, QuantizedTensor) or isinstance(input, QuantizedTensor):
        raise TypeError("linear: x: expected a plain tensor, got a quantized one; use its .dequantize()")
    return weight.linear(input, bias)


@QuantizedTensor.implements(F.embedding)
def _embedding(ids: Tensor, w: QuantizedTensor, padding_idx: Any = None, max_norm: Any = None, **_: Any) -> Tensor:
    if max_norm is not None:
        raise ValueError("embedding: max_norm: expected None for a quantized weight, which it would change")
    return w.rows(ids)


@QuantizedTensor.implements(aten.embedding.default)
def _embedding_op(w: QuantizedTensor, ids: Tensor, *_: Any) -> Tensor:
    return w.rows(ids)


@QuantizedTensor.implements(torch.matmul, torch.mm, Tensor.matmul, Tensor.mm)
def _matmul(a: Tensor, b: Tensor) -> Any:
    out = _product(a, b)
    if out is NotImplemented:  # of vectors, or of a batch of weights
        with torch._C.DisableTorchFunctionSubclass():
            return torch.matmul(a, b)
    return out


@QuantizedTensor.implements(torch.addmm, aten.addmm.default)
def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    fused = (beta, alpha) == (1, 1) and bias.dim() == 1 and not isinstance(bias, QuantizedTensor)
    out = _product(a, b, bias) if fused else NotImplemented
    return beta * bias + alpha * (a @ b) if out is NotImplemented else out


@QuantizedTensor.implements(aten.mm.default)
def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Any:
    """`a @ b + bias`, one of them a 2-D weight, by the kernels of F.linear: `w @ x` is `(x.T @ w.T).T`."""
    if isinstance(b, QuantizedTensor):
        if not isinstance(a, QuantizedTensor) and b.dim() == 2 and a.dim():
            return b.product(a, bias) if b.transposed else _linear(a, b.t(), bias)
    elif isinstance(a, QuantizedTensor) and a.dim() == 2 and b.dim() > 1 and bias is None:
        return a.linear(b.transpose(-1, -2), None).transpose(-1, -2)
    return NotImplemented


@QuantizedTensor.implements(aten.bmm.default)
def _bmm(a: Tensor, b: Tensor) -> Any:
    if isinstance(a, QuantizedTensor) == isinstance(b, QuantizedTensor):
        return NotImplemented
    return torch.stack([_product(*pair) for pair in zip(a, b, strict=True)])


@QuantizedTensor.implements(aten._grouped_mm.default)
def _grouped_mm(x: Tensor, w: QuantizedTensor, offs: Tensor | None = None, *rest: Any, **kwargs: Any) -> Tensor:
    """Experts [e, k, n], each for its run of rows of x [m, k]; `offs` are the ends of the runs."""
    if offs is None or x.dim() != 2 or torch.compiler.is_compiling():  # traces cannot depend on offs
        grouped: Tensor = aten._grouped_mm.default(x, w.dequantize(), offs, *rest, **kwargs)
        return grouped
    ends = offs.tolist()
    runs = zip([0, *ends], ends, w.transpose(1, 2), strict=False)
    out = torch.cat([_linear(x[start:end], expert) for start, end, expert in runs])
    return torch.cat((out, out.new_zeros(len(x) - len(out), out.shape[1])))


@QuantizedTensor.implements(aten.detach.default, aten.alias.default)
def _alias(w: QuantizedTensor) -> QuantizedTensor:
    return w.map(Tensor.detach)


@QuantizedTensor.implements(_SET_DATA)
def _set_data(w: QuantizedTensor, value: Tensor) -> None:
    """A plain `value` is quantized as `w` is. `w` then shares the parts of the quantized one."""
    if not isinstance(value, QuantizedTensor):
        value = w.requantize(value)
    if type(value) is not type(w):
        raise TypeError(f"data: expected {type(w).__name__} or a plain tensor, got {type(value).__name__}")
    with torch._C.DisableTorchFunctionSubclass():
        _SET_DATA(w, value)  # the outside: shape, dtype and device
    for name in (*w.tensors, *w.attrs, "weight_shape", "transposed", "writable"):
        setattr(w, name, getattr(value, name))


@QuantizedTensor.implements(Tensor.requires_grad_, _SET_REQUIRES_GRAD)
def _set_requires_grad(w: QuantizedTensor, requires_grad: bool = True) -> QuantizedTensor:
    """Never: no gradient would arrive. What is no parameter stays as it is, for nn.Parameter(w) to be one."""
    if requires_grad and isinstance(w, torch.nn.Parameter):
        raise RuntimeError(f"requires_grad: quantized weights are not trained, train adapters (LoRA) beside them: {w}")
    return w


@QuantizedTensor.implements(aten.clone.default)
def _clone(w: QuantizedTensor, *, memory_format: Any = None) -> QuantizedTensor:
    return w.map(lambda part: part.clone(memory_format=torch.contiguous_format))


@QuantizedTensor.implements(aten._to_copy.default)
def _to_copy(
    w: QuantizedTensor,
    *,
    dtype: torch.dtype | None = None,
    device: Any = None,
    non_blocking: bool = False,
    **_: Any,
) -> QuantizedTensor:
    """Codes and scales keep their dtypes: only what `dequantize` returns changes."""
    dtype = dtype or w.dtype
    if device is None or torch.device(device) == w.device:
        return w.map(torch.clone, dtype=dtype)
    if torch.device(device).type == "meta":
        return w.map(lambda part: part.to(device), dtype=dtype).unpack()
    plain, packs = w.unpack(), w.packs_elsewhere
    # What is packed on the CPU has to have arrived there; a device that packs does so after its copies.
    waits = packs and torch.device(device).type == "cpu"
    moved = plain.map(lambda part: part.to(device, non_blocking=non_blocking and not waits), dtype=dtype)
    return moved.pack() if packs else moved


@QuantizedTensor.implements(aten.copy_.default)
def _copy_(dst: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    if not isinstance(dst, QuantizedTensor):
        return dst.copy_(src.dequantize(), non_blocking)
    if not isinstance(src, QuantizedTensor) and src.shape == dst.shape and torch.equal(src, dst.dequantize()):
        return dst  # as when DistributedDataParallel sends what all processes have
    if not isinstance(src, QuantizedTensor) or type(src) is not type(dst):
        raise TypeError(f"copy_: src: expected {type(dst).__name__}, got {type(src).__name__}; quantize it first")
    if (src.weight_shape, src.transposed) != (dst.weight_shape, dst.transposed):
        raise ValueError(f"copy_: src: expected shape {tuple(dst.shape)}, got {tuple(src.shape)}")
    if not dst.writable:
        raise ValueError(f"copy_: dst: expected whole groups along k, or a .clone(), got a slice within scales: {dst}")
    moved = src if src.device == dst.device else _to_copy(src, device=dst.device)
    moved = moved.matching(dst)
    for name in dst.attrs:
        if getattr(moved, name) != getattr(dst, name):
            raise ValueError(f"copy_: src: {name}: expected {getattr(dst, name)}, got {getattr(moved, name)}")
    pairs = [*zip(dst.parts(), moved.parts(), strict=True)]
    for name, (to, part) in zip(dst.tensors, pairs, strict=True):
        if (to is None) != (part is None):
            raise ValueError(f"copy_: src: expected {'no ' if to is None else ''}{name}")
        if to is not None and part is not None and torch.promote_types(to.dtype, part.dtype) != to.dtype:
            raise TypeError(f"copy_: src: {name} is {part.dtype}, which {to.dtype} cannot hold")
    for to, part in pairs:  # only now, so that a refusal changes nothing
        if to is not None and part is not None:
            to.copy_(part, non_blocking)
    return dst


@QuantizedTensor.implements(aten.empty_like.default)
def _empty_like(
    w: QuantizedTensor, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any
) -> QuantizedTensor:
    if device is not None and torch.device(device) != w.device:
        w = w.unpack()
    return w.map(lambda part: torch.empty_like(part, device=device), dtype=dtype or w.dtype)


@QuantizedTensor.implements(aten.new_zeros.default)
def _new_zeros(
    w: QuantizedTensor, size: Sequence[int], *, dtype: torch.dtype | None = None, device: Any = None, **_: Any
) -> Tensor:
    """Quantized zeros, codes and scales 0, where only leading dimensions differ from the tensor's own; others plain."""
    if w.transposed or len(size) != w.dim() or tuple(size)[-1:] != w.weight_shape[-1:]:
        return torch.zeros(size, dtype=dtype or w.dtype, device=device or w.device)
    w = w.unpack()

    def zeros(part: Tensor) -> Tensor:
        if part.dim() < w.dim():  # what all rows share
            return part.to(device or part.device, copy=True)
        return part.new_zeros((*size[:-1], part.shape[-1]), device=device)

    return w.map(zeros, shape=size, dtype=dtype or w.dtype)


def _implement_factory(op: Any) -> None:
    """Plain tensors that have only shape, dtype or device of a quantized one."""

    @QuantizedTensor.implements(op)
    def make(w: QuantizedTensor, *args: Any, **kwargs: Any) -> Any:
        return op(torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device=w.device), *args, **kwargs)


for _name in ("new_empty", "new_full", "new_ones", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"):
    _implement_factory(getattr(aten, _name).default)


@QuantizedTensor.implements(aten._pin_memory.default)
def _pin_memory(w: QuantizedTensor, device: Any = None) -> QuantizedTensor:
    return w.pin_memory()


@QuantizedTensor.implements(aten.is_pinned.default)
def _is_pinned(w: QuantizedTensor, device: Any = None) -> bool:
    return w.is_pinned()


@QuantizedTensor.implements(aten.view.default, aten._unsafe_view.default)
def _view(w: QuantizedTensor, size: Sequence[int]) -> Any:
    size = torch.empty(w.shape, device="meta").view(size).shape  # resolves -1
    if size == w.shape:
        return _alias(w)
    if len(size) == 1:
        return FlatWeight(w)
    if w.packed or w.transposed or size[-1:] != w.shape[-1:]:
        return NotImplemented
    return w.map(lambda part: part.view(*size[:-1], part.shape[-1]), shape=size)


@QuantizedTensor.implements(aten.expand.default)
def _expand(w: QuantizedTensor, size: Sequence[int], *, implicit: bool = False) -> Any:
    return _alias(w) if torch.empty(w.shape, device="meta").expand(*size).shape == w.shape else NotImplemented


@QuantizedTensor.implements(aten.as_strided.default)
def _as_strided(
    w: QuantizedTensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> QuantizedTensor:
    if (tuple(size), tuple(stride), storage_offset or 0) != (tuple(w.shape), w.stride(), 0):
        raise ValueError(f"as_strided: expected the tensor's own size and stride, got {tuple(size)}, {tuple(stride)}")
    return _alias(w)


@QuantizedTensor.implements(aten.t.default)
def _t(w: QuantizedTensor) -> QuantizedTensor:
    return w.map(Tensor.detach, transposed=not w.transposed)


@QuantizedTensor.implements(aten.transpose.int)
def _transpose(w: QuantizedTensor, dim0: int, dim1: int) -> Any:
    dims = list(range(w.dim()))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return _permute(w, dims)


@QuantizedTensor.implements(aten.permute.default)
def _permute(w: QuantizedTensor, dims: Sequence[int]) -> Any:
    dims, last = [dim % w.dim() for dim in dims], w.dim() - 1
    if dims == [*range(w.dim())]:
        return _alias(w)
    return _t(w) if dims == [*range(last - 1), last, last - 1] else NotImplemented


@QuantizedTensor.implements(aten.slice.Tensor)
def _slice(
    w: QuantizedTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> QuantizedTensor:
    if step != 1:
        raise ValueError(f"slice: step: expected 1, got {step}")
    start, end, _ = slice(start, end).indices(w.shape[dim])
    return narrow(w, dim, start, max(end - start, 0))


@QuantizedTensor.implements(aten.split.Tensor)
def _split(w: QuantizedTensor, split_size: int, dim: int = 0) -> list[QuantizedTensor]:
    size = w.shape[dim]
    if w.packed and split_size < size and split_size % TILE_N and w.dim() - dim % w.dim() <= 2:
        w = w.unpack()  # pieces that are no whole tiles are copies
    return [narrow(w, dim, start, min(split_size, size - start)) for start in range(0, size, split_size)]


@QuantizedTensor.implements(aten.split_with_sizes.default)
def _split_with_sizes(w: QuantizedTensor, split_sizes: Sequence[int], dim: int = 0) -> list[QuantizedTensor]:
    if sum(split_sizes) != w.shape[dim]:
        raise ValueError(f"split: split_sizes: expected a sum of {w.shape[dim]}, got {list(split_sizes)}")
    starts = itertools.accumulate(split_sizes, initial=0)
    return [narrow(w, dim, start, size) for start, size in zip(starts, split_sizes, strict=False)]


@QuantizedTensor.implements(aten.cat.default)
def _cat(ws: Sequence[Tensor], dim: int = 0) -> QuantizedTensor:
    first, dim = ws[0], dim % ws[0].dim()
    for w in ws:
        if not isinstance(w, QuantizedTensor) or not isinstance(first, QuantizedTensor) or type(w) is not type(first):
            raise TypeError(f"cat: tensors: expected one format, got {type(first).__name__} and {type(w).__name__}")
        if w.packed or w.transposed or dim == w.dim() - 1:
            raise ValueError(f"cat: dim: expected one before k, of plain tensors, got {dim} of {w}")
        if w.__tensor_flatten__()[0] != first.__tensor_flatten__()[0] or any(
            getattr(w, name) != getattr(first, name) for name in (*w.attrs, "dtype")
        ):
            raise ValueError(f"cat: tensors: expected the same parts and attributes, got {first} and {w}")
    assert isinstance(first, QuantizedTensor)
    shape = list(first.weight_shape)
    shape[dim] = sum(w.shape[dim] for w in ws)
    parts = zip(*(w.parts() for w in ws if isinstance(w, QuantizedTensor)), strict=True)
    return first.rebuild([None if column[0] is None else torch.cat(column, dim) for column in parts], shape=shape)


@QuantizedTensor.implements(aten.select.int)
def _select(w: QuantizedTensor, dim: int, index: int) -> QuantizedTensor:
    dim, size = dim % w.dim(), w.shape[dim]
    if not -size <= index < size:
        raise IndexError(f"select: index: expected one of {size}, got {index}")
    if dim >= w.dim() - 2 and (w.packed or w.transposed or dim == w.dim() - 1):
        raise ValueError(f"select: dim: expected one before k, of a plain tensor, got {dim} of {w}")
    shape = w.weight_shape[:dim] + w.weight_shape[dim + 1 :]
    return w.map(lambda part: part.select(dim, index), shape=shape)


@QuantizedTensor.implements(aten.index.Tensor)
def _index(w: QuantizedTensor, indices: Sequence[Tensor | None]) -> Any:
    """Some of the experts of a 3-D weight, or rows of a 2-D one, by their numbers."""
    first, rest = indices[0], indices[1:]
    if first is None or any(index is not None for index in rest) or first.dtype not in (torch.int64, torch.int32):
        return NotImplemented
    if w.dim() == 2:
        return NotImplemented if w.transposed else w.rows(torch.where(first < 0, first + len(w), first))
    return w.map(lambda part: part[first], shape=(*first.shape, *w.weight_shape[1:]))


@QuantizedTensor.implements(aten.unbind.int)
def _unbind(w: QuantizedTensor, dim: int = 0) -> list[QuantizedTensor]:
    return [_select(w, dim, index) for index in range(w.shape[dim])]


def narrow(w: QuantizedTensor, dim: int, start: int, length: int) -> QuantizedTensor:
    """The `length` indices of `dim` from `start`: a view, but for scales that had to be repeated."""
    dim, size = dim % w.dim(), w.dim()
    if w.transposed:
        dim = {size - 1: size - 2, size - 2: size - 1}.get(dim, dim)
    if (start, length) == (0, w.weight_shape[dim]):
        return _alias(w)
    if dim < size - 2:  # before n and k: a dimension of every part
        shape = (*w.weight_shape[:dim], length, *w.weight_shape[dim + 1 :])
        return w.map(lambda part: part.narrow(dim, start, length), shape=shape)
    return w.narrow_weight(dim, start, length)
