"""compressed-tensors' checkpoints, as llm-compressor and others write them.

`config_groups` say how the modules in their `targets` are quantized, in one format or one a group:

- pack-quantized: `weight_packed` int32 [n, ceil(k * bits / 32)], codes one after the other from the lowest bit on, with
  2^(bits - 1) added. Zero points are packed along n in the same way.
- int-quantized: `weight` int8. float-quantized: `weight` float8_e4m3fn, a scale a row, weight, group or block.
- nvfp4-pack-quantized, mxfp4-pack-quantized: `weight_packed` uint8 [n, k / 2], fp4 e2m1, the low nibble first;
  `weight_scale` e4m3 [n, k / 16] over `weight_global_scale`, or e8m0 as uint8 [n, k / 32]. mxfp8-quantized: the same
  scales of `weight` float8_e4m3fn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aoq.ops.bits import from_codes, to_codes
from aoq.ops.dtypes import FLOAT_DTYPES
from aoq.storage.checkpoint import StoredWeight
from aoq.storage.producers.base import Reader, Roles, integers, small_floats, stream
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.fp8 import Float8Tensor

FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
)
_KV_CACHE = {"k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point", "q_zero_point"}

Group = Mapping[str, Any]


class CompressedTensorsReader(Reader):
    method = "compressed-tensors"
    roles = frozenset(
        {
            "weight",
            "weight_packed",
            "weight_scale",
            "weight_zero_point",
            "weight_shape",
            "weight_g_idx",
            "weight_global_scale",
            "input_scale",
            "input_zero_point",
            "input_global_scale",
        }
    )

    def check(self) -> None:
        for name in ("transform_config", "sparsity_config"):
            value = self.setting(name)
            if value and not (isinstance(value, Mapping) and value.get("format") == "dense"):
                kinds = value.get("config_groups", value) if isinstance(value, Mapping) else value
                found = ", ".join(map(str, kinds)) if isinstance(kinds, Mapping) else repr(kinds)
                raise ValueError(
                    f"{self.file}: {name}: aoq does not transform activations or keep sparse codes: {found}"
                )
        groups = self.setting("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise ValueError(f"{self.file}: config_groups: expected groups by name, got {groups!r}")
        self.groups: list[tuple[str, Group]] = []
        for name, group in groups.items():
            if not isinstance(group, Mapping) or not isinstance(group.get("targets"), Sequence):
                raise ValueError(f"{self.file}: config_groups: {name}: expected targets, got {group!r}")
            if group.get("output_activations"):
                raise ValueError(f"{self.file}: config_groups: {name}: aoq does not quantize output_activations")
            self.groups.append((name, group))
        for target in [*self.ignored(), *(target for _, group in self.groups for target in group["targets"])]:
            try:
                re.compile(str(target).removeprefix("re:"))
            except re.error as error:
                raise ValueError(f"{self.file}: {target}: bad pattern: {error}") from error
        for name in self.stored:
            if name.rpartition(".")[2] in _KV_CACHE:
                self.left[name] = "scales of a quantized KV cache, which aoq leaves to the framework"

    def ignored(self) -> list[str]:
        return list(self.setting("ignore", default=()))

    def group_of(self, module: str, where: str) -> tuple[str, Group]:
        """The config group of a module: one that names it, else one whose pattern matches, else one of its class."""
        for kind in ("exact", "pattern"):
            for name, group in self.groups:
                for target in group["targets"]:
                    if _matches(target, module, kind):
                        return name, group
        # Classes, which a file does not say: all that is quantized are linears, but for embeddings.
        rest = [(name, group) for name, group in self.groups if any(_is_class(target) for target in group["targets"])]
        if len(rest) > 1:
            kind = "Embedding" if "embed" in module.rpartition(".")[2] else "Linear"
            rest = [(name, group) for name, group in rest if kind in group["targets"]]
        if not rest:
            raise self.error(where, "is quantized, but no config group's targets match it")
        return rest[0]

    def weight(self, module: str, roles: Mapping[str, str]) -> StoredWeight | None:
        floats = "weight" in roles and self.stored[roles["weight"]][1].dtype in FLOAT_DTYPES
        if roles.keys() <= {"weight"} and floats:
            return None
        codes = roles.get("weight_packed") or roles.get("weight")
        where = codes or next(iter(roles.values()))
        if codes is None:
            self.need(module, roles, "weight")
        if floats:
            state = self.setting("quantization_status", default="none")
            raise self.error(where, f"has scales but no codes: expected a compressed checkpoint, got status {state}")
        if any(_matches(target, module, kind) for target in self.ignored() for kind in ("exact", "pattern")):
            raise self.error(where, f"is quantized, but {self.file.name} says that it is not: ignore")
        name, group = self.group_of(module, where)
        form = group.get("format") or self.setting("format")
        if form not in FORMATS:
            raise self.error(where, f"format: expected one of {', '.join(FORMATS)}, got {form!r} ({name})")
        weights = group.get("weights")
        if not isinstance(weights, Mapping):
            raise self.error(where, f"is quantized, but {name} does not say how its weights are")
        # The codes go first: a weight is named after them where something is wrong with it.
        ordered = {role: roles[role] for role in sorted(roles, key=lambda role: roles[role] != codes)}
        if weights.get("type") == "float":
            floats_of = self.float4 if "weight_packed" in ordered else self.float8
            return floats_of(module, ordered, weights, group.get("input_activations"))
        return self.integer(module, ordered, weights, group.get("input_activations"))

    # ---- integers

    def integer(self, module: str, roles: Mapping[str, str], weights: Group, inputs: Group | None) -> StoredWeight:
        self.need(module, roles, "weight_scale")
        where, packed = next(iter(roles.values())), "weight_packed" in roles
        bits = weights.get("num_bits", 8)
        if weights.get("type", "int") != "int":
            raise self.error(where, f"type: expected int, got {weights.get('type')!r} of {bits} bits")
        if type(bits) is not int or not 1 <= bits <= 8:
            raise self.error(where, f"num_bits: expected 1 to 8, got {bits!r}")
        n, width = (*self.shape(where), 0, 0)[:2]
        k = width if not packed else self._columns(module, roles, width, bits)
        self.expect(where, torch.int32 if packed else torch.int8, (n, width))
        size, groups, shapes = self._strategy(where, weights, n, k)
        self.expect(roles["weight_scale"], FLOAT_DTYPES, *shapes)
        self.check_width(where, bits, (n, k), size)
        symmetric = weights.get("symmetric", True)
        if not symmetric:
            self.need(module, roles, "weight_zero_point")
        zeros_packed = packed and weights.get("strategy") in ("group", "channel")
        if "weight_zero_point" in roles and not symmetric:
            if zeros_packed:
                self.expect(roles["weight_zero_point"], torch.int32, (-(-n * bits // 32), groups))
            else:
                self.expect(roles["weight_zero_point"], torch.int8, *shapes)
        if "weight_g_idx" in roles:
            self.expect(roles["weight_g_idx"], (torch.int32, torch.int64), (k,))
        act_mapping = self._int8_activations(where, inputs, roles)
        middle, mask = 1 << (bits - 1), (1 << bits) - 1

        def codes(part: Tensor) -> Tensor:
            if packed:
                return stream(part)[:, : -(-k * bits // 8)]
            if bits < 8 and bool(((part < -middle) | (part >= middle)).any()):
                raise ValueError(f"expected codes of {bits} bits, got others")
            return torch.cat(
                [from_codes(((rows.int() + middle) & mask).to(torch.uint8), bits) for rows in part.split(256)]
            )

        def make(parts: Roles) -> QuantizedTensor:
            zeros = None
            if not symmetric:
                stored = parts["weight_zero_point"]
                if zeros_packed:
                    zeros = to_codes(stream(stored.t()), n, bits)[:, :n].t()
                else:
                    zeros = (stored.int() + middle).reshape(-1, groups).expand(n, groups)
            g_idx = parts.get("weight_g_idx")
            if g_idx is not None and bool((g_idx == -1).all()):
                g_idx = None  # as a module has it that was never given an order
            return integers(
                codes(parts["weight_packed" if packed else "weight"]),
                parts["weight_scale"].reshape(-1, groups).expand(n, groups),
                zeros,
                bits=bits,
                group=size,
                shape=(n, k),
                dtype=self.dtype,
                act_mapping=act_mapping,
                g_idx=g_idx,
            )

        x = "" if act_mapping is None else ", x to int8"
        return self.found(module, roles, f"{bits}-bit {_grouped(weights, size)}{x}", (n, k), make)

    def _columns(self, module: str, roles: Mapping[str, str], width: int, bits: int) -> int:
        """k of a packed weight, of which the last word of a row may have less than it has room for."""
        self.need(module, roles, "weight_shape")
        where, name = roles["weight_packed"], roles["weight_shape"]
        self.expect(name, (torch.int64, torch.int32), (2,))
        shape = self.values("weight_shape")[name].tolist()
        if shape[0] != self.shape(where)[0] or shape[1] < 1:
            raise self.error(name, f"expected [{self.shape(where)[0]}, k] by {where}, got {shape}")
        words = -(-shape[1] * bits // 32)
        if width != words:
            older = width == -(-shape[1] // (32 // bits))
            text = ", as releases before 0.20 pack them: aoq reads those that fill words" if older else ""
            raise self.error(
                where, f"expected {words} words a row for {shape[1]} codes of {bits} bits, got {width}{text}"
            )
        return int(shape[1])

    def _strategy(self, where: str, weights: Group, n: int, k: int) -> tuple[int, int, tuple[tuple[int, ...], ...]]:
        """The size of groups, how many a row has, and the shapes that scales may have."""
        strategy, size = weights.get("strategy"), weights.get("group_size")
        if strategy is None:
            strategy = "group" if isinstance(size, int) and size > 0 else "channel" if size == -1 else "tensor"
        if strategy == "group":
            if type(size) is not int or size < 1:
                raise self.error(where, f"group_size: expected 1 or more, got {size!r}")
            groups = -(-k // size)
            return min(size, k), groups, ((n, groups),)
        if strategy == "channel":
            return k, 1, ((n, 1), (n,))
        if strategy == "tensor":
            return k, 1, ((1,), (), (1, 1))
        raise self.error(where, f"strategy: expected group, channel or tensor, got {strategy!r}")

    def _int8_activations(self, where: str, inputs: Group | None, roles: Mapping[str, str]) -> str | None:
        """How integers have activations quantized."""
        if not inputs:
            return None
        if inputs.get("type", "int") != "int" or inputs.get("num_bits", 8) != 8:
            kind = f"{inputs.get('type')} of {inputs.get('num_bits')} bits"
            raise self.error(where, f"input_activations: expected int of 8 bits beside integers, got {kind}")
        if inputs.get("dynamic") is not True:
            raise self.error(where, "input_activations: aoq has dynamic int8 activations only, got static ones")
        if inputs.get("strategy", "token") != "token":
            got = inputs.get("strategy")
            raise self.error(where, f"input_activations: aoq has int8 activations per token only, got {got!r}")
        return "symmetric" if inputs.get("symmetric", True) else "asymmetric"

    # ---- fp8

    def float8(self, module: str, roles: Mapping[str, str], weights: Group, inputs: Group | None) -> StoredWeight:
        self.need(module, roles, "weight_scale")
        where = roles["weight"]
        if weights.get("num_bits", 8) != 8:
            raise self.error(where, f"num_bits: expected floats of 8 bits, got {weights.get('num_bits')!r}")
        n, k = (*self.shape(where), 0, 0)[:2]
        self.expect(where, torch.float8_e4m3fn, (n, k))
        if weights.get("strategy") in ("block", "group"):
            return self.float8_blocks(module, roles, weights, inputs)
        shapes = self._strategy(where, weights, n, k)[2]
        self.expect(roles["weight_scale"], FLOAT_DTYPES, *shapes)
        acts: tuple[Any, ...] = (None, None, None, None)
        if inputs and (inputs.get("type") != "float" or inputs.get("num_bits", 8) != 8):
            raise self.error(where, f"input_activations: expected floats of 8 bits beside fp8, got {inputs!r}")
        if inputs and inputs.get("dynamic") is True:
            granularity = {"token": "row", "tensor": "tensor"}.get(str(inputs.get("strategy", "token")))
            if granularity is None:
                got = inputs.get("strategy")
                raise self.error(where, f"input_activations: expected token or tensor, got {got!r}")
            acts = (torch.float8_e4m3fn, granularity, None, None)
        elif inputs:
            self.notes[
                "static fp8 activations: aoq has none, so activations are used as given, which is more exact"
            ] = None

        def make(parts: Roles) -> QuantizedTensor:
            scale = parts["weight_scale"].reshape(-1, 1).expand(n, 1).contiguous()
            fields = (parts["weight"].contiguous(), scale, torch.float8_e4m3fn, *acts, "plain")
            return Float8Tensor(*fields, shape=(n, k), dtype=self.dtype)

        x = "" if acts[0] is None else ", x to fp8"
        return self.found(module, roles, f"fp8 {_grouped(weights, k)}{x}", (n, k), make)

    def float8_blocks(
        self, module: str, roles: Mapping[str, str], weights: Group, inputs: Group | None
    ) -> StoredWeight:
        """A scale for each group of columns, or each block of rows and columns."""
        where = roles["weight"]
        n, k = self.shape(where)
        block: Any = [1, weights.get("group_size")]
        if weights.get("strategy") == "block":
            block = weights.get("block_structure")
        whole = isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
        if not whole or block[1] % 8:
            raise self.error(where, f"block_structure: expected rows and a multiple of 8 columns, got {block!r}")
        rows, group = block
        self.expect(roles["weight_scale"], (*FLOAT_DTYPES, torch.uint8), (-(-n // rows), -(-k // group)))
        self.note_activations(inputs)

        def make(parts: Roles) -> QuantizedTensor:
            sizes: dict[str, Any] = {"group": group, "rows": rows, "shape": (n, k), "dtype": self.dtype}
            return small_floats("fp8_e4m3_grouped", parts["weight"], _scales(parts), **sizes)

        return self.found(module, roles, f"fp8 in blocks of {rows}x{group}", (n, k), make)

    def float4(self, module: str, roles: Mapping[str, str], weights: Group, inputs: Group | None) -> StoredWeight:
        self.need(module, roles, "weight_scale")
        where, second = roles["weight_packed"], "weight_global_scale" in roles
        if weights.get("num_bits") != 4:
            raise self.error(where, f"num_bits: expected packed floats of 4 bits, got {weights.get('num_bits')!r}")
        n, width = (*self.shape(where), 0, 0)[:2]
        k, group = 2 * width, self.group_size(weights, 16 if second else 32)
        self.expect(where, torch.uint8, (n, width))
        if group < 1 or group % 8:
            raise self.error(where, f"group_size: expected a multiple of 8, got {group!r}")
        dtypes = (torch.float8_e4m3fn,) if second else (torch.uint8, torch.float8_e8m0fnu)
        self.expect(roles["weight_scale"], dtypes, (n, -(-k // group)))
        if second:
            self.expect(roles["weight_global_scale"], torch.float32, (1,), ())
        self.note_activations(inputs)

        def make(parts: Roles) -> QuantizedTensor:
            # Scales are over this one.
            row_scale = 1 / parts["weight_global_scale"] if second else None
            sizes: dict[str, Any] = {"group": group, "shape": (n, k), "dtype": self.dtype, "row_scale": row_scale}
            return small_floats("fp4_e2m1", parts["weight_packed"], _scales(parts), **sizes)

        return self.found(module, roles, f"{'nvfp4' if second else 'mxfp4'} g{group}", (n, k), make)

    def group_size(self, weights: Group, default: int) -> int:
        size = weights.get("group_size")
        return size if type(size) is int else default

    def note_activations(self, inputs: Group | None) -> None:
        if inputs:
            kind = f"{inputs.get('type', 'int')}{inputs.get('num_bits', 8)}"
            self.notes[f"{kind} activations: used as given beside these weights, which is more exact"] = None


def _scales(parts: Roles) -> Tensor:
    """Powers of two may be stored as the bytes of their exponents."""
    scale = parts["weight_scale"]
    return scale.view(torch.float8_e8m0fnu) if scale.dtype == torch.uint8 else scale


def _matches(target: str, module: str, kind: str) -> bool:
    """Whether a target is this module's name ("exact") or a pattern that its name begins with ("pattern")."""
    if kind == "exact":
        return target == module
    return target.startswith("re:") and re.match(target[3:], module) is not None


def _is_class(target: str) -> bool:
    return not target.startswith("re:") and "." not in target


def _grouped(weights: Group, size: int) -> str:
    return {"channel": "per row", "tensor": "per tensor"}.get(str(weights.get("strategy")), f"g{size}")
