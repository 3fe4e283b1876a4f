"""Where programs written for aoq 0.1 find what is in `aoq.storage.safetensors` now."""

from aoq.storage.safetensors import (
    flatten,
    is_quantized,
    is_torchao,
    load_file,
    part_name,
    save_file,
    unflatten,
    unflatten_one,
)

__all__ = [
    "flatten",
    "is_quantized",
    "is_torchao",
    "load_file",
    "part_name",
    "save_file",
    "unflatten",
    "unflatten_one",
]
