"""The ops: for each a typed wrapper, its fake kernel (shapes only, for tracing) and a PyTorch reference."""

from pathlib import Path

import torch

from aoq import _C

torch.ops.load_library(Path(_C.__file__).with_name("libaoq.so"))  # registers torch.ops.aoq.*

from aoq.ops.int4_mm import int4_mm, int4_mm_reference  # noqa: E402
from aoq.ops.int4_pack import int4_pack, int4_pack_reference, tile_scale, untile_scale  # noqa: E402
from aoq.ops.int4_quantize import int4_dequantize, int4_quantize, int4_quantize_reference  # noqa: E402
from aoq.ops.int4_unpack import int4_unpack, int4_unpack_reference  # noqa: E402

__all__ = [
    "int4_dequantize",
    "int4_mm",
    "int4_mm_reference",
    "int4_pack",
    "int4_pack_reference",
    "int4_quantize",
    "int4_quantize_reference",
    "int4_unpack",
    "int4_unpack_reference",
    "tile_scale",
    "untile_scale",
]
