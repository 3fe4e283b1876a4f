"""Tensor formats: what a quantized weight stores and how it multiplies."""

from aoq.tensors import aten as aten  # before the formats, which inherit what it registers
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.int4 import Int4Tensor, Int4WeightOnlyConfig

__all__ = ["Int4Tensor", "Int4WeightOnlyConfig", "QuantizedTensor"]
