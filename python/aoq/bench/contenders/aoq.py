"""aoq's own matmuls, through F.linear on the tensors that its configs make by default: one for each way there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

import aoq
from aoq.tensors.formats import Way, ways

from ..contender import Contender, Problem, Selects


class _Aoq(Contender):
    package = "aoq"
    models = True
    devices = ("cpu", "cuda")
    way: Way

    def config(self, group_size: int) -> Any:
        config = self.way.config
        return config.with_options(group_size=group_size) if "group_size" in config.OPTIONS else config

    def weight(self, problem: Problem) -> tuple[Any, Tensor]:
        quantized = self.config(problem.group_size).quantize(problem.w)
        return quantized, self.exact(quantized.unpack())

    def another(self, weight: Any) -> Any:
        return weight.unpack().pack()  # as a model's weights are made, on huge pages

    def exact(self, plain: Any) -> Tensor:
        """Decoded here, not by aoq."""
        bits, k = self.way.format.bits, plain.shape[-1]
        if bits == 8:
            whole: Tensor = plain.qdata.float() * plain.scale.float()
            return whole
        # Code i of a row is bits [i * bits, (i + 1) * bits) of it, the lowest first.
        stream = torch.stack([plain.qdata >> bit & 1 for bit in range(8)], -1).flatten(1)[:, : k * bits]
        codes = sum(stream[:, bit::bits].float() * 2**bit for bit in range(bits))
        zero = torch.full_like(plain.scale, 2 ** (bits - 1)) if plain.zero_point is None else plain.zero_point
        scale, zero = (part.float().repeat_interleave(plain.group_size, 1)[:, :k] for part in (plain.scale, zero))
        exact: Tensor = (codes - zero) * scale
        return exact

    def multiply(self, x: Tensor, weight: Any) -> Tensor:
        return linear(x, weight)

    def quantize_model(self, model: torch.nn.Module, selects: Selects, group_size: int) -> None:
        aoq.quantize_(model, self.stored(self.config(group_size)), selects, progress=False)

    def stored(self, config: Any) -> Any:
        """With scales as a checkpoint of a bf16 model has them, whatever dtype the model computes in."""
        return dataclasses.replace(config, scale_dtype=torch.bfloat16) if hasattr(config, "scale_dtype") else config


class _Int8Head(_Aoq):
    """Whole models only: the embedding and the output layer too, as int8 weights."""

    matmuls = False

    def quantize_model(self, model: Any, selects: Selects, group_size: int) -> None:
        from aoq.integrations.transformers import with_embedding

        head = self.stored(aoq.Int8WeightOnlyConfig())
        config = with_embedding(model, self.stored(self.config(group_size)), head)
        aoq.quantize_(model, config, progress=False)


def _contenders() -> Iterator[type[_Aoq]]:
    """AoqInt4, AoqInt8Int4, ..., and AoqInt4Int8Head, ... of codes that are narrower than the head's."""
    narrow: list[type[_Aoq]] = []
    for way in ways():
        fields = {
            "__module__": __name__,
            "way": way,
            "name": f"aoq {way.command.replace('-weight', ' weight')}",
            "op": way.op,
            "x_half_steps": float(way.x == "int8"),
            "x_relative": 2**-4 if way.x == "fp8" else 0,
            # Codes of 8 bits, and those that meet integers, are multiplied before they are scaled.
            "w_rounded": way.format.bits < 8 and way.x == "given",
        }
        made = type(f"Aoq{''.join(map(str.capitalize, way.command.split('-')))}", (_Aoq,), fields)
        yield made
        if way.format.bits < 8:
            narrow.append(made)
    for made in narrow:
        fields = {"__module__": __name__, "name": f"{made.name}, int8 head"}
        yield type(f"{made.__name__}Int8Head", (_Int8Head, made), fields)


globals().update({made.__name__: made for made in _contenders()})
