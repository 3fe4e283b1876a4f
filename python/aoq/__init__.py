"""aoq: int4, int8 and fp8 weights for PyTorch models, with kernels for CPUs and CUDA."""

import aoq_autoload
from aoq.config import (
    AOBaseConfig,
    FqnToConfig,
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
from aoq.integrations.quantization_config import AoqConfig
from aoq.quantize import QuantizeReport, dequantize_, quantize_, register_quantize_module_handler
from aoq.tensors import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8Tensor,
    Float8WeightOnlyConfig,
    FloatxTensor,
    FloatxWeightOnlyConfig,
    FPXWeightOnlyConfig,
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8Int4Tensor,
    Int8Tensor,
    Int8WeightOnlyConfig,
    IntxTensor,
    IntxWeightOnlyConfig,
    MXWeightOnlyConfig,
    NF4WeightOnlyConfig,
    NVFP4WeightOnlyConfig,
    QuantizedTensor,
)
from aoq.tensors import exported as _exported
from aoq.version import __version__ as __version__

__all__ = [
    "AOBaseConfig",
    "AoqConfig",
    "FPXWeightOnlyConfig",
    "Float8DynamicActivationFloat8WeightConfig",
    "Float8Tensor",
    "Float8WeightOnlyConfig",
    "FloatxTensor",
    "FloatxWeightOnlyConfig",
    "FqnToConfig",
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
    "MappingType",
    "ModuleFqnToConfig",
    "NF4WeightOnlyConfig",
    "NVFP4WeightOnlyConfig",
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

globals().update(_exported)  # formats that are not named above
__all__ += [name for name in _exported if name not in __all__]

# transformers and diffusers know quant_method "aoq" from now on, whichever is imported first.
aoq_autoload.register()
