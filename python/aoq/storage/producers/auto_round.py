"""AutoRound's checkpoints, which are laid out as GPTQ's, AWQ's or compressed-tensors', as `packing_format` says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aoq.storage.checkpoint import StoredWeight
from aoq.storage.producers.awq import awq_weight
from aoq.storage.producers.base import Reader
from aoq.storage.producers.gptq import gptq_weight

# What stored zero points lack, of those laid out as GPTQ's.
_ZERO_OFFSETS = {
    "auto_round:auto_gptq": 1,
    "auto_round:gptq": 1,
    "auto": 1,
    "auto_round": 0,
    "auto_round:gptqmodel": 0,
}
_AWQ = ("auto_round:auto_awq", "auto_round:awq")


class AutoRoundReader(Reader):
    method = "auto-round"
    roles = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    def check(self) -> None:
        self.packing = self.setting("packing_format", "backend", default="auto_round:auto_gptq")
        if self.packing not in (*_ZERO_OFFSETS, *_AWQ):
            known = ", ".join((*_ZERO_OFFSETS, *_AWQ))
            raise ValueError(f"{self.file}: packing_format: expected one of {known}, got {self.packing!r}")
        kind = self.setting("data_type", default="int")
        if kind != "int":
            raise ValueError(f"{self.file}: data_type: expected int, got {kind!r}")
        activations = self.setting("act_bits", default=16)
        if activations != 16:
            raise ValueError(
                f"{self.file}: act_bits: expected 16, as activations are used as given, got {activations!r}"
            )

    def settings_of(self, module: str) -> Mapping[str, Any]:
        """The settings of one module, of which `extra_config` may name some, or patterns of them."""
        extra = self.setting("extra_config", default={})
        for name, changes in extra.items():
            if name == module or _fully_matches(name, module):
                return {**self.settings, **(changes or {})}
        return self.settings

    def weight(self, module: str, roles: Mapping[str, str]) -> StoredWeight | None:
        settings = self.settings_of(module)
        self.need(module, roles, "qweight", "scales")
        bits, group = settings.get("bits", 4), settings.get("group_size", 128)
        if self.packing in _AWQ:
            self.need(module, roles, "qzeros")
            if bits != 4:
                raise self.error(roles["qweight"], f"bits: expected 4 as {self.packing} packs them, got {bits!r}")
            return awq_weight(self, module, roles, group)
        return gptq_weight(self, module, roles, bits, group, _ZERO_OFFSETS[self.packing], settings.get("sym", True))


def _fully_matches(pattern: str, module: str) -> bool:
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error:
        return False
