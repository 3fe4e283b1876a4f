"""Where programs written for aoq 0.1 find what is in `aoq.storage.checkpoint` now."""

from aoq.storage.checkpoint import (
    INDEX,
    WEIGHTS,
    StoredWeight,
    open_safetensors,
    read_config,
    read_json,
    stored_weights,
    weight_files,
)

__all__ = [
    "INDEX",
    "WEIGHTS",
    "StoredWeight",
    "open_safetensors",
    "read_config",
    "read_json",
    "stored_weights",
    "weight_files",
]
