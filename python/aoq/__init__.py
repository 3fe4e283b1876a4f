"""aoq: int4 and int8 weights for PyTorch models, with CPU kernels."""

from importlib.metadata import version
from typing import Any

from aoq.config import (
    AOBaseConfig,
    FqnToConfig,
    Int8WeightOnlyConfig,
    MappingType,
    ModuleFqnToConfig,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    config_from_dict,
    config_to_dict,
)
from aoq.integrations.on_import import on_import
from aoq.quantize import QuantizeReport, dequantize_, quantize_, register_quantize_module_handler
from aoq.tensors import (
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8Int4Tensor,
    Int8Tensor,
    QuantizedTensor,
)

__version__ = version("aoq")

__all__ = [
    "AOBaseConfig",
    "FqnToConfig",
    "Int4Tensor",
    "Int4WeightOnlyConfig",
    "Int8DynamicActivationInt4WeightConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "Int8Int4Tensor",
    "Int8Tensor",
    "Int8WeightOnlyConfig",
    "MappingType",
    "ModuleFqnToConfig",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PerToken",
    "QuantizeReport",
    "QuantizedTensor",
    "config_from_dict",
    "config_to_dict",
    "dequantize_",
    "quantize_",
    "register_quantize_module_handler",
]


def __getattr__(name: str) -> Any:
    if name == "AoqConfig":  # needs transformers, which `import aoq` does not
        from aoq.integrations.transformers import AoqConfig

        return AoqConfig
    raise AttributeError(f"module 'aoq' has no attribute {name!r}")


# Once transformers is there, before or after aoq, it knows quant_method "aoq".
on_import("transformers.modeling_utils", "aoq.integrations.transformers")
