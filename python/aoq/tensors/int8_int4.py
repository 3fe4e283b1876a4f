"""Where programs, and pickles of aoq 0.1, find what is in `aoq.tensors.int4` now."""

import torch

from aoq.tensors.int4 import Int8DynamicActivationInt4WeightConfig, Int8Int4Tensor

__all__ = ["Int8DynamicActivationInt4WeightConfig", "Int8Int4Tensor"]

torch.serialization.add_safe_globals([(Int8Int4Tensor, f"{__name__}.Int8Int4Tensor")])
