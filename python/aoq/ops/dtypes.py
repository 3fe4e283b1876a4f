"""The dtypes that ops take, and what fake kernels check of them."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # of activations, of weights to quantize, of scales
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def dtype_name(dtype: torch.dtype) -> str:
    """As errors name it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def check_floats(op: str, name: str, x: Tensor) -> None:
    """Raises, as the kernels do, TypeError unless the operand `name` is bf16, fp16 or fp32.

    For fake kernels: a meta tensor is no surprise once it is real.
    """
    torch._check_type(
        x.dtype in FLOAT_DTYPES,
        lambda: f"aoq::{op}: {name}: expected bfloat16, float16 or float32, got {dtype_name(x.dtype)}",
    )


def check_rows(op: str, name: str, x: Tensor) -> None:
    """`check_floats`, and ValueError unless it is [..., k]."""
    check_floats(op, name, x)
    torch._check_value(x.dim() >= 1, lambda: f"aoq::{op}: {name}: expected shape [..., k], got a scalar")
