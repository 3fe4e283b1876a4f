"""State dicts with quantized tensors as safetensors, which hold plain tensors and string metadata.

A quantized `model.layers.0.mlp.up_proj.weight` is stored in the plain layout as tensors
`model.layers.0.mlp.up_proj._weight_qdata`, `..._weight_scale`, ... and, under its own name in the metadata, as JSON

    {"_type": "Int4Tensor", "_version": 1, "_producer": "aoq 0.2.0",
     "_data": {attributes, shape, dtype}, "_tensor_data_names": ["qdata", "scale"]}

`_version` is that of the format, 1 where there is none; files of aoq 0.1 state neither it nor a producer. Attributes
that a file lacks have defaults, and a format's `upgrade` reads what older versions of it wrote.

A weight [k, n], such as GPT-2's, is stored as its transpose, which `"transposed": true` in `_data` says.

Beside these, under `aoq.sha256`, are the SHA-256 of each tensor's bytes as they lie in the file: JSON by name.

torchao's files are alike: its tensors are read as aoq's, and in its files aoq's types are named `aoq.Int4Tensor`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor

from aoq.config import decode, encode
from aoq.tensors.base import QuantizedTensor, tensor_from_fields
from aoq.version import NAME, producer, written_by_newer

HASHES = "aoq.sha256"  # in the metadata

TORCHAO_PREFIX = "aoq."  # of aoq's types in torchao's files, which have types of the same names

# What torchao, which states no producer, calls the tensors that it writes.
TORCHAO_TYPES = {
    "Float8Tensor",
    "Int4PlainInt32Tensor",
    "Int4Tensor",
    "Int4TilePackedTo4dTensor",
    "Int8Tensor",
    "IntxUnpackedToInt8Tensor",
    "MXTensor",
    "NVFP4Tensor",
}


def part_name(fqn: str, part: str) -> str:
    """What the part `part` of the quantized tensor `fqn` is stored as."""
    module, dot, param = fqn.rpartition(".")
    return f"{module}{dot}_{param}_{part}"


def part_names(fqn: str, description: str) -> list[str]:
    """What the parts of the quantized tensor `fqn` are stored as, by its metadata."""
    return [part_name(fqn, part) for part in json.loads(description)["_tensor_data_names"]]


def flatten(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The plain tensors and the metadata that stand for `state_dict`. What is tied in it stays tied."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    plain: dict[Any, QuantizedTensor] = {}
    for fqn, tensor in state_dict.items():
        if not isinstance(tensor, QuantizedTensor):
            tensors[fqn] = tensor
            continue
        parts = [part for part in tensor.parts() if part is not None]
        same = fqn if tensor.device.type == "meta" else (tensor.weight_shape, *(part.data_ptr() for part in parts))
        if same not in plain:
            plain[same] = tensor.unpack()
        w = plain[same]
        names = [name for name in w.tensors if getattr(w, name) is not None]
        tensors |= {part_name(fqn, name): getattr(w, name) for name in names}
        data = {name: getattr(w, name) for name in w.attrs} | {"shape": w.weight_shape, "dtype": w.dtype}
        if tensor.transposed:
            data["transposed"] = True
        description = {
            "_type": type(w).__name__,
            "_version": w.VERSION,
            "_producer": producer(),
            "_data": encode(data, fqn),
            "_tensor_data_names": names,
        }
        metadata[fqn] = json.dumps(description)
    return tensors, metadata


def sha256(tensor: Tensor) -> str:
    """Of the tensor's bytes, row after row, as safetensors writes them."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata that say what `tensors` are, for `verify`: of those whose values are here."""
    plain = {name: t for name, t in tensors.items() if type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta}
    return {HASHES: json.dumps({name: sha256(tensor) for name, tensor in plain.items()})}


def stored_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """What `hashes` wrote, or nothing. Raises ValueError for what it never wrote."""
    try:
        found = json.loads(metadata.get(HASHES, "{}"))
    except ValueError as error:
        raise ValueError(f"{HASHES}: not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{HASHES}: expected hashes by name, got {metadata[HASHES]}")
    return found


def check_hash(name: str, tensor: Tensor, expected: str) -> None:
    """Raises ValueError, naming the tensor, unless it is what was written."""
    if (got := sha256(tensor)) != expected:
        raise ValueError(f"{name}: its data are not those that were written: expected SHA-256 {expected}, got {got}")


def unflatten(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, pack: bool = True) -> dict[str, Tensor]:
    """The state dict that `flatten` took apart.

    Args:
        pack: whether quantized tensors come in their device's layout; plain ones can be sliced anywhere.

    Raises:
        ValueError: a part or its description is missing or does not fit; the text names the tensor.
    """
    return _assemble(tensors.keys(), tensors.__getitem__, metadata, pack)


def unflatten_one(fqn: str, description: str, tensors: Mapping[str, Tensor], *, pack: bool = True) -> QuantizedTensor:
    """The quantized tensor `fqn` from its metadata and a dict with its parts; raises as `unflatten`."""
    return _assemble_one(fqn, description, tensors.keys(), tensors.__getitem__, pack)


def save_file(state_dict: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes `state_dict` as safetensors; the file is complete or not there at all.

    Tied tensors are written once for each of their names. Raises OSError naming the file if it cannot be written.
    """
    path = Path(path)
    tensors, descriptions = flatten(state_dict)
    stored: set[int] = set()
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if pointer in stored else tensor.contiguous()
        stored.add(pointer)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        stated = {"format": "pt", **(metadata or {}), **descriptions, **hashes(tensors)}
        safetensors_torch.save_file(tensors, partial, stated)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load_file(
    path: str | Path, device: torch.device | str = "cpu", *, pack: bool = True, verify: bool = False
) -> dict[str, Tensor]:
    """Reads a state dict that `save_file` wrote, one weight at a time.

    Args:
        pack: as in `unflatten`.
        verify: compare what is read with the hashes in the file, which older ones lack.

    Raises:
        FileNotFoundError, ValueError: no such file, or one that is truncated or does not fit its metadata; the
            text names the file and the tensor.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            expected = stored_hashes(metadata) if verify else {}

            def get(name: str) -> Tensor:
                tensor: Tensor = file.get_tensor(name)
                if name in expected:
                    check_hash(name, tensor, expected[name])
                return tensor

            return _assemble(file.keys(), get, metadata, pack)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def is_quantized(description: str) -> bool:
    """Whether a metadata value describes a quantized tensor."""
    return '"_tensor_data_names"' in description


def is_torchao(description: str) -> bool:
    """Whether a metadata value describes one of torchao's own quantized tensors."""
    try:
        return is_quantized(description) and _library(_parse("", description)) == "torchao"
    except ValueError:
        return False  # nobody's


def _assemble(
    names: Iterable[str], get: Callable[[str], Tensor], metadata: Mapping[str, str], pack: bool
) -> dict[str, Tensor]:
    left = dict.fromkeys(names)
    state_dict: dict[str, Tensor] = {}
    for fqn, description in metadata.items():
        if is_quantized(description):
            state_dict[fqn] = _assemble_one(fqn, description, left.keys(), get, pack)
            for part in json.loads(description)["_tensor_data_names"]:
                del left[part_name(fqn, part)]
    for name in left:
        if name.endswith("_qdata"):
            raise ValueError(f"{name}: no metadata describes this part of a quantized tensor")
        state_dict[name] = get(name)
    return state_dict


def _parse(fqn: str, description: str) -> dict[str, Any]:
    """The description as JSON that has what it has to, whoever wrote it."""
    try:
        parsed: dict[str, Any] = json.loads(description)
        name, data, parts = (parsed[key] for key in ("_type", "_data", "_tensor_data_names"))
        fits = isinstance(name, str) and isinstance(data, dict) and isinstance(parts, list)
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f"{fqn}: expected _type, _data and _tensor_data_names, got {description}")
    return parsed


def _library(parsed: Mapping[str, Any]) -> str:
    """Whose tensor a description is of: "aoq", "torchao", or another name that it states."""
    name = parsed["_type"]
    if "_producer" in parsed:
        return str(parsed["_producer"]).partition(" ")[0]
    # aoq 0.1 stated nothing, but always had a packing, which no tensor of torchao's has.
    if name.startswith(TORCHAO_PREFIX) or "packing" in parsed["_data"] or name not in TORCHAO_TYPES:
        return NAME
    return "torchao"


def _assemble_one(
    fqn: str, description: str, names: Container[str], get: Callable[[str], Tensor], pack: bool
) -> QuantizedTensor:
    parsed = _parse(fqn, description)
    writer = str(parsed.get("_producer", ""))
    newer = written_by_newer(writer)
    library = _library(parsed)
    parts: dict[str, Tensor] = {}
    for part in parsed["_tensor_data_names"]:
        name = part_name(fqn, part)
        if name not in names:
            raise ValueError(f"{fqn}: its part {name} is missing{newer}")
        parts[part] = get(name)
    try:
        w = _from_torchao(parsed, parts) if library == "torchao" else _from_parts(parsed, parts, writer)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{fqn}: {error}") from error
    return w.pack() if pack else w


def _from_parts(parsed: dict[str, Any], parts: Mapping[str, Tensor], writer: str) -> QuantizedTensor:
    data, version = dict(parsed["_data"]), parsed.get("_version", 1)
    shape, newer = data.pop("shape", None), written_by_newer(writer)
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"expected a shape, got {shape!r}{newer}")
    if type(version) is not int or version < 1:
        raise ValueError(f"_version: expected 1 or more, got {version!r}{newer}")
    try:
        attrs = {name: decode(value, name) for name, value in data.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}{newer}") from error
    if "dtype" not in attrs:
        raise ValueError(f"expected _data with shape and dtype, got {parsed['_data']!r}{newer}")
    if both := parts.keys() & attrs.keys():
        raise ValueError(f"expected {min(both)} in _data or in _tensor_data_names, got it in both{newer}")
    dtype, transposed = attrs.pop("dtype"), attrs.pop("transposed", False) is True
    name = parsed["_type"].removeprefix(TORCHAO_PREFIX)
    fields = {**parts, **attrs}
    return tensor_from_fields(
        name, fields, shape=shape, dtype=dtype, transposed=transposed, version=version, writer=writer
    )


def _from_torchao(parsed: dict[str, Any], parts: Mapping[str, Tensor]) -> QuantizedTensor:
    try:
        from aoq.integrations.torchao_tensors import tensor_from_parts, tensor_from_torchao
    except ImportError as error:
        raise ImportError(
            f"reading torchao's {parsed['_type']} needs torchao (pip install aoq[torchao]): {error}"
        ) from error
    return tensor_from_torchao(tensor_from_parts(parsed, parts))
