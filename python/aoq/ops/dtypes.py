"""The dtypes that ops take."""

from __future__ import annotations

import torch

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # of activations, of weights to quantize, of scales
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def dtype_name(dtype: torch.dtype) -> str:
    """As errors name it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
