"""Tensor formats: what a quantized weight stores and how it multiplies. A file here is a format that is known."""

import importlib
import pkgutil
from typing import Any

from aoq.tensors import aten as aten  # before the formats, which inherit what it registers
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.floatx import (
    FloatxTensor,
    FloatxWeightOnlyConfig,
    FPXWeightOnlyConfig,
    MXWeightOnlyConfig,
    NF4WeightOnlyConfig,
    NVFP4WeightOnlyConfig,
)
from aoq.tensors.formats import ways
from aoq.tensors.fp8 import Float8DynamicActivationFloat8WeightConfig, Float8Tensor, Float8WeightOnlyConfig
from aoq.tensors.int4 import (
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8Int4Tensor,
)
from aoq.tensors.int8 import Int8DynamicActivationInt8WeightConfig, Int8Tensor, Int8WeightOnlyConfig
from aoq.tensors.intx import Int8DynamicActivationIntxWeightConfig, IntxTensor, IntxWeightOnlyConfig

__all__ = [
    "FPXWeightOnlyConfig",
    "Float8DynamicActivationFloat8WeightConfig",
    "Float8Tensor",
    "Float8WeightOnlyConfig",
    "FloatxTensor",
    "FloatxWeightOnlyConfig",
    "Int4Tensor",
    "Int4WeightOnlyConfig",
    "Int8DynamicActivationInt4WeightConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "Int8DynamicActivationIntxWeightConfig",
    "Int8Int4Tensor",
    "Int8Tensor",
    "Int8WeightOnlyConfig",
    "IntxTensor",
    "IntxWeightOnlyConfig",
    "MXWeightOnlyConfig",
    "NF4WeightOnlyConfig",
    "NVFP4WeightOnlyConfig",
    "QuantizedTensor",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

# What formats make, also those that are not named above, where only type checkers miss them.
exported: dict[str, Any] = {
    made.__name__: made for made in (*QuantizedTensor.formats.values(), *(type(way.config) for way in ways()))
}
globals().update(exported)
__all__ += [name for name in exported if name not in __all__]
