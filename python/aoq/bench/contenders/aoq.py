"""aoq's own ops: through F.linear on the tensors that its configs make, a contender for each way there is, and what
quantizes rows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

import aoq
from aoq import _C
from aoq.ops.mm import FORMATS
from aoq.tensors.formats import Way, ways

from ..contender import Contender, Indices, Problem, RowContender, Selects


def registered(op: str, device: str) -> Any:
    """torch.ops.aoq's `op`. Raises NotImplementedError if this build has no kernel of it for the device."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aoq::{op}", device.upper()):
        raise NotImplementedError(f"this build of aoq has no {device} kernel for {op}")
    return getattr(torch.ops.aoq, op).default


def arguments(op: Any, w: Any) -> tuple[Any, ...]:
    """What an op takes of a packed weight besides x, by the names in its schema; no bias."""
    zero_point, w_sum = (getattr(w, name, None) for name in ("zero_point", "w_sum"))
    kernel_scale = getattr(w, "kernel_scale", None)
    parts = [w.qdata, w.scale if kernel_scale is None else kernel_scale]
    if zero_point is not None or w_sum is not None:
        parts.append(w.scale.new_empty(0) if zero_point is None else zero_point)
    parts += [] if w_sum is None else [w_sum]
    known = {"packed": w.qdata, "parts": parts, "bias": None, "n": w.weight_shape[0], "format": w.format.name}
    attributes = {"w_dtype": "code_dtype", "x_dtype": "act_dtype", "granularity": "act_granularity"}
    names = (argument.name for argument in op._schema.arguments[1:])
    return tuple(
        known[name] if name in known else getattr(w, attributes.get(name, name))
        for name in names
        if name not in ("offsets", "config", "lb", "ub")
    )


class _Aoq(Contender):
    package = "aoq"
    matmuls: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    models = True
    devices = ("cpu", "cuda")
    way: Way

    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)
        if self.way.x == "fp8" and device == "cuda":
            self.sum_relative = 2.0**-13  # tensor cores keep fewer bits of sums of fp8 products

    def config(self, group_size: int) -> Any:
        config = self.way.config
        return config.with_options(group_size=group_size) if "group_size" in config.OPTIONS else config

    def weight(self, problem: Problem) -> Any:
        w = self.config(problem.group_size).quantize(problem.w)
        if not w.packed:
            raise NotImplementedError(f"this build of aoq has no {self.device} kernel for {w.mm_op}")
        self.call = registered(w.torch_op, self.device)
        if missing := self.how.keys() & {"config"} - {argument.name for argument in self.call._schema.arguments}:
            raise NotImplementedError(f"{w.torch_op} has no {min(missing)}")
        return w

    def another(self, weight: Any) -> Any:
        # As a model's weights are made: on the CPU on huge pages.
        return weight.unpack().pack() if self.device == "cpu" else weight.map(torch.clone)

    def nbytes(self, weight: Any) -> int:
        return int(weight.nbytes)

    def exact(self, problem: Problem, weight: Any, rows: Indices) -> Tensor:
        """Decoded here, not by aoq."""
        plain = weight.unpack()
        bits, k = self.way.format.bits, plain.shape[-1]
        qdata, scale = plain.qdata.view(torch.uint8)[rows], plain.scale.float()[rows]
        if getattr(plain, "row_scale", None) is not None:
            scale = scale * plain.row_scale[rows]
        # Code i of a row is bits [i * bits, (i + 1) * bits) of it, the lowest first.
        stream = torch.stack([qdata >> bit & 1 for bit in range(8)], -1).flatten(1)[:, : k * bits]
        codes = sum(stream[:, bit::bits].float() * 2**bit for bit in range(bits))
        assert isinstance(codes, Tensor)
        values, middle = FORMATS[self.way.format.name].values, 2 ** (bits - 1)
        if plain.qdata.dtype != torch.uint8:
            codes, middle = qdata.view(plain.qdata.dtype).float(), 0
        elif values:
            codes, middle = torch.tensor(values)[codes.int()], 0
        zero_point = getattr(plain, "zero_point", None)
        zero = torch.full_like(scale, middle) if zero_point is None else zero_point[rows].float()
        group = getattr(plain, "group_size", k)
        scale, zero = (part.repeat_interleave(group, 1)[:, :k] for part in (scale, zero))
        exact: Tensor = (codes - zero) * scale
        return exact

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        """As F.linear; with options as the op itself, which takes them."""
        if not self.how:
            return linear(x, weight)
        plan = {name: value for name, value in self.how.items() if name == "config"}
        _C.set_pdl("" if self.how.get("pdl", True) else "0")
        try:
            out: Tensor = self.call(x, *arguments(self.call, weight), **plan)
            return out
        finally:
            _C.set_pdl("")  # others take their turns in this process

    def quantize_model(self, model: torch.nn.Module, selects: Selects, group_size: int) -> None:
        aoq.quantize_(model, self.stored(self.config(group_size)), selects, progress=False)

    def stored(self, config: Any) -> Any:
        """With scales as a checkpoint of a bf16 model has them, whatever dtype the model computes in."""
        chosen = any(field.name == "scale_dtype" for field in dataclasses.fields(config))
        return dataclasses.replace(config, scale_dtype=torch.bfloat16) if chosen else config


class _Fp8(_Aoq):
    """On CUDA with a scale for each row of x, as peers are fastest with one of all: that is `_Fp8Tensor`."""

    def config(self, group_size: int) -> Any:
        config: Any = self.way.config
        return config if self.device == "cpu" else dataclasses.replace(config, granularity=aoq.PerRow())


class _Fp8Tensor(_Aoq):
    matmuls, models = ("cuda",), False


class _Int8Head(_Aoq):
    """Whole models only: the embedding and the output layer too, as int8 weights."""

    matmuls = ()

    def quantize_model(self, model: Any, selects: Selects, group_size: int) -> None:
        from aoq.integrations.transformers import with_embedding

        head = self.stored(aoq.Int8WeightOnlyConfig())
        config = with_embedding(model, self.stored(self.config(group_size)), head)
        aoq.quantize_(model, config, progress=False)


class _Quantizer(RowContender):
    """A quantizer of rows, by itself."""

    package = "aoq"
    dtype: torch.dtype

    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)
        op, _, granularity = self.op.partition(" ")
        self.call = registered(op, device)
        fused: dict[str, tuple[Any, ...]] = {
            "rmsnorm_quantize": (1e-6, self.dtype),
            "silu_mul_quantize": (self.dtype,),
        }
        self.rest = fused.get(op, (granularity,) if granularity else ())

    def multiply(self, x: Any, weight: Any) -> Any:
        return self.call(*weight, *self.rest)


class _QuantizesX(RowContender):
    """The part of a matmul that quantizes x: what is left is the multiplication's."""

    package = "aoq"
    part = True
    quantizer: str

    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)
        self.call = registered(self.quantizer, device)
        self.rest = ("tensor",) if self.op.endswith(" tensor") else ()

    def weight(self, rows: Any) -> Any:
        return ()

    def expected(self, rows: Any, x: Tensor | None, some: Indices) -> Tensor:
        assert x is not None
        return x[some].double()

    def multiply(self, x: Any, weight: Any) -> Any:
        return self.call(x, *self.rest)


def _made(name: str, /, *bases: type, **fields: Any) -> Any:
    return type(name, bases, {"__module__": __name__, **fields})


def _matmuls() -> Iterator[type[Contender]]:
    """AoqInt4, AoqInt8Int4, ...; of codes that are narrower than a head's AoqInt4Int8Head, ...; quantizers of x."""
    narrow: list[type[_Aoq]] = []
    for way in ways():
        stem = f"Aoq{''.join(map(str.capitalize, way.command.split('-')))}"
        fields = {
            "way": way,
            "x_half_steps": float(way.x == "int8"),
            "x_relative": 2**-4 if way.x == "fp8" else 0,
            # Rows' scales, and those of codes that meet integers, come after the multiplication.
            "w_rounded": FORMATS[way.format.name].grouped and way.x == "given",
        }
        kinds = {"": _Fp8, " tensor": _Fp8Tensor} if way.x == "fp8" else {"": _Aoq}
        for kind, base in kinds.items():
            op, name = way.op + kind, f"aoq {way.command.replace('-weight', ' weight')}{kind}"
            made = _made(stem + kind.strip().capitalize(), base, name=name, op=op, **fields)
            yield made
            if way.format.bits < 8:
                narrow.append(made)
            if way.x != "given":
                quantizer = f"{way.x}_quantize"
                name = f"aoq {quantizer}, of {op}"
                yield _made(f"{made.__name__}QuantizesX", _QuantizesX, name=name, op=op, quantizer=quantizer)
    for made in narrow:
        yield _made(f"{made.__name__}Int8Head", _Int8Head, made, name=f"{made.name}, int8 head")


def _quantizers() -> Iterator[type[Contender]]:
    int8, fp8 = torch.int8, torch.float8_e4m3fn
    for op, dtypes in (
        *(("int8_quantize", [int8]), ("fp8_quantize", [fp8]), ("fp8_quantize tensor", [fp8])),
        *((op, [fp8, int8]) for op in ("rmsnorm_quantize", "silu_mul_quantize")),
    ):
        for dtype in dtypes:
            kind = f", {'int8' if dtype is int8 else 'fp8'}" if len(dtypes) > 1 else ""
            stem = "".join(map(str.capitalize, re.findall("[a-z0-9]+", op + kind)))
            yield _made(f"Aoq{stem}", _Quantizer, name=f"aoq {op}{kind}", op=op, dtype=dtype)


globals().update({made.__name__: made for made in (*_matmuls(), *_quantizers())})
