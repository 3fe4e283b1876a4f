"""The structs that kernels take, as csrc/<op>/<op>.h declares them."""

import ctypes

import torch

I64, POINTER = ctypes.c_int64, ctypes.c_void_p


class Args(ctypes.Structure):
    """The one struct that a kernel takes; tensors become pointers and must outlive it."""

    def __init__(self, **fields):
        super().__init__(**{k: v.data_ptr() if hasattr(v, "data_ptr") else v for k, v in fields.items()})


class Int4Pack(Args):
    _fields_ = (("n", I64), ("k", I64), ("qdata", POINTER), ("packed", POINTER))


class Int4Unpack(Args):
    _fields_ = (("n", I64), ("k", I64), ("packed", POINTER), ("qdata", POINTER))


class Int4Quantize(Args):
    _fields_ = (
        *(("n", I64), ("k", I64), ("group", I64), ("mapping", ctypes.c_int8), ("w", POINTER)),
        *(("w_dtype", ctypes.c_int8), ("w_stride", I64), ("qdata", POINTER), ("scale", POINTER)),
        *(("zero_point", POINTER), ("scale_dtype", ctypes.c_int8), ("bad_row", POINTER)),
    )


DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAPPINGS = {"symmetric": 0, "asymmetric": 1, "hqq": 2}
