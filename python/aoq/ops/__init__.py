"""The ops: for each a typed wrapper, its fake kernel (shapes only, for tracing) and a PyTorch reference."""

import os
from pathlib import Path

import torch

if torch.__version__ < "2.10":  # compared as versions are
    raise ImportError(f"aoq needs torch >= 2.10, got {torch.__version__}")

from aoq import _C

_libaoq_cuda = Path(_C.__file__).with_name("libaoq_cuda.so")

torch.ops.load_library(_libaoq_cuda.with_name("libaoq.so"))  # registers torch.ops.aoq.*
if (torch.version.cuda and _libaoq_cuda.exists()) or os.environ.get("AOQ_LOAD_CUDA") == "1":
    torch.ops.load_library(_libaoq_cuda)  # their CUDA kernels; what it raises is why there are none

from aoq.ops import autocast as autocast  # noqa: E402
from aoq.ops.fp8_mm import fp8_mm, fp8_mm_reference  # noqa: E402
from aoq.ops.fp8_quantize import fp8_dequantize, fp8_quantize, fp8_quantize_reference  # noqa: E402
from aoq.ops.fp8_weight_mm import fp8_weight_mm, fp8_weight_mm_reference  # noqa: E402
from aoq.ops.int4_mm import int4_mm, int4_mm_reference  # noqa: E402
from aoq.ops.int4_pack import int4_pack, int4_pack_reference  # noqa: E402
from aoq.ops.int4_quantize import (  # noqa: E402
    int4_dequantize,
    int4_quantize,
    int4_quantize_reference,
    intx_dequantize,
    intx_quantize,
    intx_quantize_reference,
)
from aoq.ops.int4_unpack import int4_unpack, int4_unpack_reference  # noqa: E402
from aoq.ops.int8_int4_mm import int8_int4_mm, int8_int4_mm_reference  # noqa: E402
from aoq.ops.int8_mm import int8_mm, int8_mm_reference  # noqa: E402
from aoq.ops.int8_pack import int8_pack, int8_pack_reference  # noqa: E402
from aoq.ops.int8_quantize import int8_dequantize, int8_quantize, int8_quantize_reference  # noqa: E402
from aoq.ops.int8_unpack import int8_unpack, int8_unpack_reference  # noqa: E402
from aoq.ops.int8_weight_mm import int8_weight_mm, int8_weight_mm_reference  # noqa: E402
from aoq.ops.intx_pack import intx_pack, intx_pack_reference, intx_unpack, intx_unpack_reference  # noqa: E402
from aoq.ops.mm import mm, mm_reference  # noqa: E402
from aoq.ops.packed import tile_scale, untile_scale  # noqa: E402
from aoq.ops.rmsnorm_quantize import rmsnorm_quantize, rmsnorm_quantize_reference  # noqa: E402
from aoq.ops.silu_mul_quantize import silu_mul_quantize, silu_mul_quantize_reference  # noqa: E402

__all__ = [
    "fp8_dequantize",
    "fp8_mm",
    "fp8_mm_reference",
    "fp8_quantize",
    "fp8_quantize_reference",
    "fp8_weight_mm",
    "fp8_weight_mm_reference",
    "int4_dequantize",
    "int4_mm",
    "int4_mm_reference",
    "int4_pack",
    "int4_pack_reference",
    "int4_quantize",
    "int4_quantize_reference",
    "int4_unpack",
    "int4_unpack_reference",
    "int8_dequantize",
    "int8_int4_mm",
    "int8_int4_mm_reference",
    "int8_mm",
    "int8_mm_reference",
    "int8_pack",
    "int8_pack_reference",
    "int8_quantize",
    "int8_quantize_reference",
    "int8_unpack",
    "int8_unpack_reference",
    "int8_weight_mm",
    "int8_weight_mm_reference",
    "intx_dequantize",
    "intx_pack",
    "intx_pack_reference",
    "intx_quantize",
    "intx_quantize_reference",
    "intx_unpack",
    "intx_unpack_reference",
    "mm",
    "mm_reference",
    "rmsnorm_quantize",
    "rmsnorm_quantize_reference",
    "silu_mul_quantize",
    "silu_mul_quantize_reference",
    "tile_scale",
    "untile_scale",
]
