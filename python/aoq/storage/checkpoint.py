"""Checkpoint directories on disk: which files hold the weights, and what is in them, without loading any."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from aoq.config import decode
from aoq.ops.dtypes import dtype_name
from aoq.progress import track
from aoq.storage.safetensors import check_hash, is_quantized, is_torchao, part_name, stored_hashes, unflatten_one
from aoq.tensors.base import QuantizedTensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredWeight:
    """A weight as a checkpoint holds it.

    name: as in the checkpoint.
    format: of a quantized weight, such as "int4 g64", or a dtype, such as "bfloat16".
    shape, dtype: the weight's; of a quantized one, what it dequantizes to.
    nbytes: on disk, scales included.
    parts: the dtypes of the tensors that it is stored as, by name.
    description: the metadata of a quantized weight, or what else says that it is one; or nothing.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    parts: Mapping[str, torch.dtype]
    description: str = ""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def read(self, tensors: Mapping[str, torch.Tensor], *, pack: bool = True) -> QuantizedTensor:
        """The weight, if it is quantized, from a dict with the tensors in `parts`; raises as `unflatten`."""
        return unflatten_one(self.name, self.description, tensors, pack=pack)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises ValueError, naming the file, when there is none."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"{file}: not JSON that anybody wrote: nested too deep") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(data).__name__}")
    return data


def read_config(directory: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Raises FileNotFoundError, or ValueError when it is not JSON."""
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory}: no config.json in it")
    return read_json(directory / "config.json")


@contextmanager
def open_safetensors(file: Path) -> Iterator[Any]:
    """`safe_open` on the CPU. Raises FileNotFoundError, or ValueError for a damaged file, naming it."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged, or not a safetensors file: {error}") from error


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order.

    Raises FileNotFoundError, or ValueError when a file lacks weights that the index says it has, or when the index
    names what is no file of this directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    if not (directory / INDEX).exists():
        if not (directory / WEIGHTS).exists():
            raise FileNotFoundError(f"{directory}: neither {WEIGHTS} nor {INDEX} in it")
        return [directory / WEIGHTS]
    listed: dict[str, set[str]] = {}
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{directory / INDEX}: weight_map: expected files by weight, got {weight_map!r}")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _stays_inside(file_name):
            raise ValueError(
                f"{directory / INDEX}: weight_map: {name}: expected a file in the same directory, got {file_name!r}"
            )
        listed.setdefault(file_name, set()).add(name)
    for file_name, names in listed.items():
        with open_safetensors(directory / file_name) as tensors:
            missing = names.difference(tensors.keys())
        if missing:
            raise ValueError(f"{directory / file_name}: lacks {min(missing)}, which {INDEX} says it has")
    return [directory / file_name for file_name in sorted(listed)]


def _stays_inside(file_name: str) -> bool:
    """Whether a path in a checkpoint's own files is one of a file in the checkpoint's directory, however it is read."""
    path = PurePosixPath(file_name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and "\0" not in file_name


def verify(files: Iterable[Path]) -> tuple[int, int]:
    """Compares every tensor with the hash that was written with it.

    Returns how many are as they were written, and how many no hash was written of: by older releases, or by others.
    Raises ValueError, naming the file and the tensor, for the first that is not.
    """
    verified = unknown = 0
    for file in files:
        with open_safetensors(file) as opened:
            try:
                expected = stored_hashes(opened.metadata() or {})
                for name in track(sorted(opened.keys()), f"Verifying {file.name}"):
                    if name in expected:
                        check_hash(name, opened.get_tensor(name), expected[name])
                    verified, unknown = verified + (name in expected), unknown + (name not in expected)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
    return verified, unknown


def tensor_headers(file: Path) -> dict[str, torch.Tensor]:
    """Every tensor in a safetensors file by name, without its data; raises as `stored_weights`."""
    with open_safetensors(file) as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        return {
            name: torch.empty(part.get_shape(), dtype=_dtype(file, part.get_dtype()), device="meta")
            for name, part in parts.items()
        }


def stored_weights(files: Iterable[Path]) -> dict[str, StoredWeight]:
    """Every weight in a checkpoint's safetensors files, from their headers alone.

    Raises FileNotFoundError, or ValueError for a damaged file or a quantized weight that is not whole.
    """
    tensors: dict[str, torch.Tensor] = {}
    described: dict[str, tuple[Path, str]] = {}
    for file in files:
        tensors |= tensor_headers(file)
        with open_safetensors(file) as opened:
            metadata = opened.metadata() or {}
        described |= {fqn: (file, text) for fqn, text in metadata.items() if is_quantized(text)}
    weights: dict[str, StoredWeight] = {}
    for fqn, (file, text) in described.items():
        if is_torchao(text):
            weights[fqn] = _torchao_weight(fqn, file, text, tensors)
            continue
        try:
            w = unflatten_one(fqn, text, tensors, pack=False)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        parts = {part_name(fqn, part): t.dtype for part, t in zip(w.tensors, w.parts(), strict=True) if t is not None}
        weights[fqn] = StoredWeight(fqn, w.label, tuple(w.shape), w.dtype, w.nbytes, parts, text)
    for part in [part for weight in weights.values() for part in weight.parts]:
        tensors.pop(part, None)
    for name, tensor in tensors.items():
        if name.endswith("_qdata"):
            raise ValueError(f"{name}: no metadata describes this part of a quantized weight")
        dtype, parts = tensor.dtype, {name: tensor.dtype}
        weights[name] = StoredWeight(name, dtype_name(dtype), tuple(tensor.shape), dtype, tensor.nbytes, parts)
    return weights


def _torchao_weight(fqn: str, file: Path, text: str, tensors: Mapping[str, torch.Tensor]) -> StoredWeight:
    description = json.loads(text)
    parts = tuple(part_name(fqn, part) for part in description["_tensor_data_names"])
    if missing := [part for part in parts if part not in tensors]:
        raise ValueError(f"{file}: {fqn}: its part {missing[0]} is missing")
    data, qdata = description["_data"], tensors[part_name(fqn, "qdata")]
    shape = data.get("shape") or qdata.shape
    scale = part_name(fqn, "scale_and_zero" if "scale_and_zero" in description["_tensor_data_names"] else "scale")
    dtype = decode(data["dtype"], fqn) if "dtype" in data else tensors[scale].dtype
    nbytes = sum(tensors[part].nbytes for part in parts)
    format = f"torchao {description['_type'].removesuffix('Tensor')}"
    return StoredWeight(fqn, format, tuple(shape), dtype, nbytes, {part: tensors[part].dtype for part in parts}, text)


def _dtype(file: Path, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(f"{file}: has tensors of type {name}; known: {', '.join(_DTYPES)}")
    return _DTYPES[name]
