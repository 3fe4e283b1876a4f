"""Under `torch.autocast`, matmuls take `x` in its dtype, and so return it, as F.linear does. Weights stay as they are.

The dispatcher calls these rules only while autocast is on: otherwise they cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

_KEYS = (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA)
_OFF = torch._C.DispatchKeySet(_KEYS[0]) | torch._C.DispatchKeySet(_KEYS[1])

_library = torch.library.Library("aoq", "IMPL")  # the rules last as long as this does


def add_rule(op: OpOverload) -> None:
    """Gives a matmul its rule."""

    def cast_x(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        if x.is_floating_point() and x.dtype is not torch.float64:  # which autocast leaves to F.linear too
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch._C._ExcludeDispatchKeyGuard(_OFF):
            out: Tensor = op(x, *rest, **options)
        return out

    for key in _KEYS:
        _library.impl(op._schema.name.partition("::")[2], cast_x, key.name)
