"""bitsandbytes' checkpoints: 4 bits that stand for NormalFloat quantiles, and int8 with a scale a row.

4 bits: `weight` uint8 [n * k / 2, 1], the high nibble first, in blocks of the flattened weight; `weight.absmax` a float
a block, or codes of 8 bits into `weight.nested_quant_map` times `weight.nested_absmax` of every so many blocks, plus an
offset; `weight.quant_map` what codes stand for; `weight.quant_state.bitsandbytes__nf4` JSON in bytes.

8 bits: `weight` int8 [n, k], `SCB` fp32 [n], w = code * SCB / 127.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aoq.ops.dtypes import FLOAT_DTYPES
from aoq.storage.checkpoint import StoredWeight
from aoq.storage.producers.base import Reader, Roles, small_floats
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.floatx import OF_NAME
from aoq.tensors.int8 import Int8Tensor

_STATE = "bitsandbytes__nf4"
_OTHER_STATE = "bitsandbytes__fp4"


class BitsAndBytesReader(Reader):
    method = "bitsandbytes"
    roles = frozenset(
        {"weight", "absmax", "quant_map", "nested_absmax", "nested_quant_map", _STATE, _OTHER_STATE}
        | {"SCB", "weight_format"}
    )

    def check(self) -> None:
        kind = self.setting("bnb_4bit_quant_type", default="nf4")
        if self.setting("load_in_4bit") and kind != "nf4":
            raise ValueError(f"{self.file}: bnb_4bit_quant_type: expected nf4, got {kind!r}")

    def module_of(self, module: str) -> str:
        return module.removesuffix(".quant_state").removesuffix(".weight")

    def weight(self, module: str, roles: Mapping[str, str]) -> StoredWeight | None:
        self.need(module, roles, "weight")
        where = roles["weight"]
        if "SCB" in roles:
            return self.int8(module, roles)
        if _OTHER_STATE in roles:
            raise self.error(where, "codes of bitsandbytes' fp4, whose values aoq has no table of")
        if _STATE not in roles:
            if self.stored[where][1].dtype in FLOAT_DTYPES:
                return None
            raise self.error(where, f"its {module}.weight.quant_state.{_STATE}, or {module}.SCB, is missing")
        self.need(module, roles, "absmax", "quant_map")
        state = self.state(roles[_STATE])
        (n, k), block = state["shape"], state["blocksize"]
        if k % block:
            raise self.error(where, f"blocks of {block} go across rows of {k}: expected whole blocks in each row")
        groups, nested = k // block, "nested_absmax" in roles
        self.expect(where, torch.uint8, (n * k // 2, 1), (n * k // 2,))
        self.expect(roles["quant_map"], torch.float32, (16,))
        self.expect(roles["absmax"], torch.uint8 if nested else FLOAT_DTYPES, (n * groups,))
        if nested:
            self.need(module, roles, "nested_quant_map")
            self.expect(roles["nested_quant_map"], torch.float32, (256,))
            self.expect(roles["nested_absmax"], torch.float32, (-(-n * groups // state["nested_blocksize"]),))

        def make(parts: Roles) -> QuantizedTensor:
            values = torch.tensor(OF_NAME["nf4"].values)
            if not torch.equal(parts["quant_map"], values):
                raise ValueError(f"quant_map: expected the values of nf4, got {parts['quant_map'].tolist()}")
            absmax = parts["absmax"]
            if nested:
                outer = parts["nested_absmax"].repeat_interleave(state["nested_blocksize"])[: n * groups]
                absmax = parts["nested_quant_map"][absmax.int()] * outer + state["nested_offset"]
            codes = parts["weight"].view(n, k // 2)
            qdata = codes >> 4 | codes << 4  # aoq's first code is the low nibble
            sizes: dict[str, Any] = {"group": block, "shape": (n, k), "dtype": self.dtype}
            return small_floats("nf4", qdata, absmax.float().view(n, groups), **sizes)

        ordered = {role: roles[role] for role in sorted(roles, key=lambda role: role != "weight")}
        return self.found(module, ordered, f"nf4 g{block}{', nested scales' if nested else ''}", (n, k), make)

    def state(self, name: str) -> dict[str, Any]:
        """What is stored of how a weight was quantized."""
        try:
            found = json.loads(bytes(self.values(_STATE)[name].tolist()))
            n, k = map(int, found["shape"])
            sizes = int(found["blocksize"]), int(found.get("nested_blocksize", 256))
            offset = float(found.get("nested_offset", 0))
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise self.error(name, f"expected JSON with shape and blocksize: {error!r}") from error
        if min(n, k, *sizes) < 1 or sizes[0] % 8:
            raise self.error(name, f"expected sizes of 1 or more and blocks of a multiple of 8, got {found}")
        return {"shape": (n, k), "blocksize": sizes[0], "nested_blocksize": sizes[1], "nested_offset": offset}

    def int8(self, module: str, roles: Mapping[str, str]) -> StoredWeight:
        where = roles["weight"]
        n, k = (*self.shape(where), 0, 0)[:2]
        self.expect(where, torch.int8, (n, k))
        self.expect(roles["SCB"], torch.float32, (n,), (n, 1))
        self.notes["int8 activations with outliers apart: used as given, which is more exact"] = None

        def make(parts: Roles) -> QuantizedTensor:
            scale: Tensor = (parts["SCB"] / 127).view(n, 1)
            fields = (parts["weight"].contiguous(), scale, None, None, "plain")
            return Int8Tensor(*fields, shape=(n, k), dtype=self.dtype)

        ordered = {role: roles[role] for role in ("weight", "SCB", "weight_format") if role in roles}
        return self.found(module, ordered, "int8 per row", (n, k), make)
