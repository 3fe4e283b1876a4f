"""Checkpoints that others wrote, read as aoq's tensors: a file per producer.

A reader says, from the headers of a checkpoint's files and its quantization settings, which weights there are, of which
stored tensors each is made, and how: codes and scales as they are, nothing is quantized again. `aoq convert` and
`aoq.integrations.checkpoints` both ask `foreign_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aoq.storage.checkpoint import read_config, read_json
from aoq.storage.producers.auto_round import AutoRoundReader
from aoq.storage.producers.awq import AwqReader
from aoq.storage.producers.base import ForeignCheckpoint, Reader, stored_tensors
from aoq.storage.producers.bitsandbytes import BitsAndBytesReader
from aoq.storage.producers.compressed_tensors import CompressedTensorsReader
from aoq.storage.producers.fp8 import Fp8Reader
from aoq.storage.producers.gptq import GptqReader
from aoq.storage.producers.hqq import HqqReader

# By the quant_method that a checkpoint's settings state.
READERS: dict[str, type[Reader]] = {
    "gptq": GptqReader,
    "awq": AwqReader,
    "compressed-tensors": CompressedTensorsReader,
    "auto-round": AutoRoundReader,
    "intel/auto-round": AutoRoundReader,
    "fp8": Fp8Reader,
    "bitsandbytes": BitsAndBytesReader,
    "hqq": HqqReader,
}

# Where producers wrote their settings before config.json had a place for them, and whose they are.
SETTINGS_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def settings_of(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The file that says how a checkpoint is quantized, and what it says: nothing if none does.

    The settings have a `quant_method`. Raises OSError, or ValueError for a file that is not JSON.
    """
    config = read_config(directory)
    # Models with a vision part may have it with that of the text.
    nested = config.get("text_config")
    for key in ("quantization_config", "compression_config"):
        found = config.get(key) or (nested.get(key) if isinstance(nested, Mapping) else None)
        if isinstance(found, Mapping) and found:
            default = {"compression_config": "compressed-tensors"}.get(key, "")
            return directory / "config.json", {"quant_method": default, **found}
    for name, method in SETTINGS_FILES.items():
        if (directory / name).is_file():
            return directory / name, {"quant_method": method, **read_json(directory / name)}
    return directory / "config.json", {}


def reader_of(settings: Mapping[str, Any], file: Path) -> type[Reader]:
    """What reads the checkpoints of the producer that `settings`, which `file` has, names. Raises ValueError."""
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in READERS:
        raise ValueError(f"{file}: quant_method: expected one of {', '.join(READERS)}, got {method!r}")
    return READERS[method]


def foreign_checkpoint(
    files: list[Path], settings: Mapping[str, Any], settings_file: Path, dtype: torch.dtype
) -> ForeignCheckpoint:
    """What is in a checkpoint's safetensors files, by their headers.

    Args:
        settings: how it is quantized, as `settings_file` has it.
        dtype: what quantized weights dequantize to.

    Raises:
        OSError, ValueError: a damaged file, or one whose tensors do not fit the settings, or a format that aoq does
            not have; the text names the file and the tensor.
    """
    return reader_of(settings, settings_file)(settings, settings_file, stored_tensors(files), dtype).read()
