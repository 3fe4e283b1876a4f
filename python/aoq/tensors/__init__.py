"""Tensor formats: what a quantized weight stores and how it multiplies."""

from aoq.tensors import aten as aten  # before the formats, which inherit what it registers
from aoq.tensors import int8_int4 as int8_int4  # pickles of aoq 0.1 name it
from aoq.tensors.base import QuantizedTensor
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
    "Float8DynamicActivationFloat8WeightConfig",
    "Float8Tensor",
    "Float8WeightOnlyConfig",
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
    "QuantizedTensor",
]
