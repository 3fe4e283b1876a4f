"""Quantize a checkpoint on disk, or convert another's, weight by weight: a directory (or GGUF file) in, one out.

Memory holds one output shard and one source weight. The output gets its name only when it is whole; the source
is only read.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from aoq.config import AOBaseConfig, FqnToConfig
from aoq.cpu import auto_dtype, say_choice
from aoq.integrations.quantization_config import AoqConfig
from aoq.integrations.transformers import AoqQuantizer, empty_model, with_embedding
from aoq.integrations.transformers_foreign import check_weights, fitted
from aoq.integrations.transformers_names import model_names
from aoq.progress import track
from aoq.quantize import QuantizedWeight, QuantizeReport, SkippedWeight, quantize_weight
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
from aoq.storage.producers import READERS, SETTINGS_FILES, foreign_checkpoint, reader_of, settings_of
from aoq.storage.producers.base import ForeignWeight
from aoq.storage.safetensors import flatten, save_file
from aoq.tensors.base import QuantizedTensor

# Anything else in a source directory is copied: tokenizer, generation settings, licence, custom code.
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json")


# What `overwrite` takes away: what a checkpoint consists of, by any library that writes them. All else is the user's.
_CHECKPOINT_FILES = re.compile(
    r"(.*\.safetensors|.*\.(safetensors|bin)\.index\.json|pytorch_model.*\.bin|model.*\.(pt|pth|gguf)"
    r"|config\.json|generation_config\.json|quantize?_config\.json|(pre)?processor_config\.json"
    r"|preprocessor_config\.json|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|(tokenizer|spiece|sentencepiece\.bpe)\.model|merges\.txt|vocab\.txt|chat_template\.(jinja|json))"
)


class Source(Protocol):
    """Where weights come from."""

    config: PreTrainedConfig

    def names(self, model: PreTrainedModel) -> dict[str, str | None]:
        """Each weight's name, and the parameter of `model` that it alone makes, if there is one."""

    def weights(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Each weight by its name, read when asked for."""

    def save_extras(self, directory: Path) -> None:
        """Writes config.json, the tokenizer and whatever else goes with the weights."""


class SafetensorsDirectory:
    """A directory as `save_pretrained` writes it. Raises OSError or ValueError, naming the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = weight_files(path)
        if quantized := read_config(path).get("quantization_config"):
            hint = "; `aoq convert` reads it" if quantized.get("quant_method") in ("torchao", *READERS) else ""
            raise ValueError(f"{path}: is quantized already{hint}")
        self.stored = stored_weights(self.files)
        if any(weight.description for weight in self.stored.values()):
            raise ValueError(f"{path}: is quantized already, though its config.json does not say so")
        self.config: PreTrainedConfig = AutoConfig.from_pretrained(path)

    def names(self, model: PreTrainedModel) -> dict[str, str | None]:
        return model_names(model, self.stored)

    def weights(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        for file in self.files:
            with open_safetensors(file) as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    yield name, opened.get_tensor(name)

    def save_extras(self, directory: Path) -> None:
        _copy_extras(self.path, directory)


def quantize_checkpoint(
    source: str | Path,
    destination: str | Path,
    config: AOBaseConfig,
    *,
    skip: list[str] | None = None,
    include_embedding: bool = False,
    embedding: AOBaseConfig | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    max_shard_bytes: int = 2 << 30,
    overwrite: bool = False,
) -> QuantizeReport:
    """Writes `source`, quantized, to the directory `destination`, which `from_pretrained` loads.

    Args:
        source: a directory with config.json and safetensors files, or a GGUF file.
        destination: must not exist, unless `overwrite`: then the files of the checkpoint there are replaced, and no
            others.
        config, include_embedding: as in `AoqConfig`.
        embedding: the embedding and the output layer too, by a config of their own.
        skip: modules to leave as they are, by the rule of `AoqConfig.modules_to_not_convert`, besides those that stay
            as they are anyway.
        dtype: of floats before they are quantized, and of those that are not. By default as they are stored,
            bf16 for GGUF. "auto": the same, but what is not quantized becomes fp32 where that is bf16 and this CPU has
            no fast bf16.
        max_shard_bytes: how large a file may get, unless a single weight is larger.

    Returns:
        What was quantized, and what was not and why, by the names in the source.

    Raises:
        OSError: a missing file, an existing destination, a full disk; the text names it.
        ValueError: a damaged file, a weight that cannot be quantized, a `skip` that matches no module; the text names
            it. Or nothing in the source would be quantized.

        `destination` is then as it was before.
    """
    source, destination = Path(source), Path(destination)
    _check_shard(max_shard_bytes)
    _check_paths(source, destination, overwrite)
    opened = _open(source)
    # Of what is quantized before that, if not as it is stored; of what is not, and of what the rest dequantizes to.
    before = torch.bfloat16 if source.is_file() else None
    if dtype is not None and dtype != "auto":
        before = dtype
    kept = before
    stored: Any = before or opened.config.dtype
    if dtype == "auto" and stored is not None and auto_dtype(stored) is not stored:
        kept = auto_dtype(stored)
        say_choice(kept, stored)
    model = empty_model(opened.config)
    if embedding is not None:
        config = with_embedding(model, config, embedding)
    quantizer = AoqQuantizer(AoqConfig(config, include_embedding=include_embedding), pre_quantized=False)
    if skip:
        for text in AoqConfig(config, skip).unmatched_skips(model):
            raise ValueError(f"skip: {text}")
        quantizer.quantization_config.modules_to_not_convert = sorted({*quantizer.default_skips(model), *skip})
    quantizer.preprocess_model(model)
    names = opened.names(model)
    if quantizer.configs.keys().isdisjoint(names.values()):
        reasons = Counter(quantizer.skipped.values()).most_common()
        counts = "; ".join(f"{count}: {reason}" for reason, count in reasons)
        raise ValueError(f"{source}: none of its weights would be quantized ({counts})")

    report = QuantizeReport()
    with new_directory(destination, overwrite) as directory:
        opened.save_extras(directory)
        written = read_json(directory / "config.json")
        written["quantization_config"] = quantizer.quantization_config.to_dict()
        if kept is not None:
            written["dtype"] = str(kept).removeprefix("torch.")
        (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        shards = _Shards(directory, max_shard_bytes)
        for name, w in track(opened.weights(model), "Quantizing", total=len(names)):
            if before is not None and w.is_floating_point():
                w = w.to(before)
            param = names[name]
            chosen = quantizer.configs.get(param) if param else None
            if chosen is None:
                reason = quantizer.skipped.get(param, "") if param else "part of a parameter that transformers merges"
                report.skipped.append(SkippedWeight(name, reason, wanted=False))
                shards.add(name, w.to(kept) if kept is not None and w.is_floating_point() else w)
                continue
            try:
                owner = model.get_submodule(str(param).rpartition(".")[0])
                quantized: Any = quantize_weight(chosen, w, owner).to(kept or w.dtype)
                quantized = quantized.unpack()
            except (TypeError, ValueError) as error:
                raise ValueError(f"{source}: {name}: {error}") from error
            report.quantized.append(QuantizedWeight((name,), chosen, w.numel(), w.nbytes, quantized.nbytes))
            shards.add(name, quantized)
        shards.close()
    return report


class Quantized(Protocol):
    """A checkpoint whose weights are quantized already, by others."""

    config: PreTrainedConfig
    skips: list[str] | None  # modules that are not quantized, if the checkpoint says so

    @property
    def stored(self) -> Mapping[str, StoredWeight]:
        """All that is in it, by name."""

    def weights(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Each weight by its name, those that are quantized as aoq tensors in the plain layout."""

    def notes(self) -> list[str]:
        """What else there is to say, once all weights were read."""


class ForeignDirectory:
    """A directory of a producer that `aoq.storage.producers` knows. Raises OSError or ValueError, naming the file."""

    skips: list[str] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        file, self.settings = settings_of(path)
        reader_of(self.settings, file)  # before anything else is read
        self.config: PreTrainedConfig = AutoConfig.from_pretrained(path)
        self.files = weight_files(path)
        dtype: Any = self.config.dtype or self.config.get_text_config().dtype or torch.float16
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        self.found = foreign_checkpoint(self.files, self.settings, file, dtype)
        self.stored = self.found.weights
        self.formats: Counter[tuple[str, str]] = Counter()
        self.zero_biases = 0

    def weights(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        names = check_weights(model, self.stored)
        with ExitStack() as stack:
            opened = [stack.enter_context(open_safetensors(file)) for file in self.files]
            holder = {key: file for file in opened for key in file.keys()}  # noqa: SIM118 (not a dict)
            for name, weight in self.stored.items():
                tensors = {part: holder[part].get_tensor(part) for part in weight.parts}
                if isinstance(weight, ForeignWeight):
                    w = weight.read(tensors, pack=False)
                    self.formats[weight.format, w.label] += 1
                    yield name, fitted(w, model, str(names[name]))
                elif not self._is_spare_bias(name, tensors[name], names):
                    yield name, tensors[name]

    def _is_spare_bias(self, name: str, tensor: Tensor, names: Mapping[str, str | None]) -> bool:
        """Whether it is a quantized linear's bias of zeros that the model lacks. Raises ValueError for another bias."""
        module, _, last = name.rpartition(".")
        if last != "bias" or names[name] or not isinstance(self.stored.get(f"{module}.weight"), ForeignWeight):
            return False
        if tensor.any():
            raise ValueError(f"{self.path}: {name}: is not zero, but config.json describes a model without it")
        self.zero_biases += 1
        return True

    def notes(self) -> list[str]:
        lines = [
            f"{count} weights: {form} as {label}, codes and scales as they are"
            for (form, label), count in self.formats.items()
        ]
        lines += [f"not exact: {note}" for note in self.found.notes]
        left = Counter(self.found.left.values())
        if self.zero_biases:
            left["biases of zeros, which the model does not have"] = self.zero_biases
        return lines + [f"left out {count} tensors: {reason}" for reason, count in left.items()]


def convert_checkpoint(
    source: str | Path, destination: str | Path, *, max_shard_bytes: int = 2 << 30, overwrite: bool = False
) -> QuantizeReport:
    """Writes another library's checkpoint `source` as aoq's: the same codes and scales, nothing is quantized anew.

    Args:
        source: a directory of GPTQ's, AWQ's, compressed-tensors', AutoRound's or HQQ's, in safetensors; or one that
            transformers wrote with a `TorchAoConfig`, in safetensors or a pickle.
        destination, max_shard_bytes, overwrite: as in `quantize_checkpoint`.

    Returns:
        What was converted, its bytes in `source` and now, and what was not quantized there.

    Raises:
        ImportError: of a checkpoint of torchao's, torchao is not installed, or another release of it.
        OSError, ValueError: as `quantize_checkpoint`; and for a weight in a format that aoq does not have.
    """
    source, destination = Path(source), Path(destination)
    _check_shard(max_shard_bytes)
    _check_paths(source, destination, overwrite)
    opened = _open_quantized(source)
    model = empty_model(opened.config)
    report = QuantizeReport()
    configs: dict[str, AOBaseConfig] = {}
    with new_directory(destination, overwrite) as directory:
        _copy_extras(source, directory)
        shards = _Shards(directory, max_shard_bytes)
        for name, w in track(opened.weights(model), "Converting", total=len(opened.stored) or None):
            if isinstance(w, QuantizedTensor):
                configs[name.removesuffix(".weight")] = config_of(w)
                before = opened.stored[name].nbytes if name in opened.stored else w.nbytes
                report.quantized.append(QuantizedWeight((name,), config_of(w), math.prod(w.shape), before, w.nbytes))
            else:
                report.skipped.append(SkippedWeight(name, "not quantized there", wanted=False))
            shards.add(name, w)
        shards.close()
        if not configs:
            raise ValueError(f"{source}: has no quantized weights")
        report.notes = opened.notes()
        kinds = list(configs.values())
        config = kinds[0] if all(each == kinds[0] for each in kinds) else FqnToConfig(dict(configs))
        written = read_json(directory / "config.json")
        for key in ("quantization_config", "compression_config"):
            written.pop(key, None)
            if isinstance(written.get("text_config"), dict):
                written["text_config"].pop(key, None)
        written["quantization_config"] = AoqConfig(config, opened.skips).to_dict()
        (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        for other in SETTINGS_FILES:  # which described what the weights were
            (directory / other).unlink(missing_ok=True)
    return report


def _open_quantized(source: Path) -> Quantized:
    """Raises ImportError where torchao's checkpoint needs torchao."""
    settings = settings_of(source)[1]
    if not settings:
        raise ValueError(f"{source}: is not quantized: neither config.json nor {', '.join(SETTINGS_FILES)} says how")
    if settings["quant_method"] == "aoq":
        raise ValueError(f"{source}: is aoq's already")
    if settings["quant_method"] != "torchao":
        return ForeignDirectory(source)
    from aoq.integrations.torchao_checkpoint import TorchaoDirectory

    return TorchaoDirectory(source)


def config_of(w: QuantizedTensor) -> AOBaseConfig:
    """The config that makes tensors with parts like those of `w`."""
    return w.config()


def _open(source: Path) -> Source:
    if source.is_dir():
        return SafetensorsDirectory(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or directory")
    try:
        from aoq.integrations.gguf import GgufFile
    except ImportError as error:
        raise ImportError(f"{source}: reading GGUF needs the package gguf (pip install gguf): {error}") from error
    return GgufFile(source)


# ---- writing


def _copy_extras(source: Path, destination: Path) -> None:
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHT_FILES):
            shutil.copyfile(file, destination / file.name)


def _check_paths(source: Path, destination: Path, overwrite: bool) -> None:
    if destination.exists():
        if not overwrite:
            raise FileExistsError(f"{destination}: exists already")
        # Overwriting takes files away: only from a directory that looks like a checkpoint.
        if not (destination / "config.json").is_file():
            raise FileExistsError(f"{destination}: is not a checkpoint, so it is not overwritten")
    read, written = source.resolve(), destination.resolve()
    if read == written or read in written.parents or written in read.parents:
        raise ValueError(f"{destination}: overlaps the source {source}")


def _check_shard(max_bytes: float) -> None:
    if not 0 < max_bytes < math.inf:
        raise ValueError(f"max_shard_bytes: expected a number above 0, got {max_bytes}")


@contextmanager
def new_directory(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill, which becomes `destination` at the end, on disk; after an error nothing is left of it.

    If `overwrite`, it takes the place of the checkpoint there: other files and folders stay. What a symbolic link leads
    to is written, not the link. What runs that were killed have left behind is removed.
    """
    named, destination = destination, destination.resolve()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(destination)
        scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        lock = _lock(scratch)
    except OSError as error:
        raise OSError(f"{named}: cannot be made: {error.strerror}") from error
    try:
        directory = scratch / destination.name
        directory.mkdir()
        yield directory
        for path in (*directory.iterdir(), directory):
            _sync(path)
        if overwrite and destination.exists():
            destination.rename(scratch / _REPLACED)
        directory.rename(destination)
        _restore(scratch, destination)
        _sync(destination.parent)
    except OSError as error:
        _restore(scratch, destination)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or str(scratch) in str(error):  # not of the source: nobody but this function knows of the scratch
            text = str(error.strerror) if full else str(error).replace(str(scratch / destination.name), str(named))
            raise OSError(text if text.startswith(f"{named}") else f"{named}: cannot be written: {text}") from error
        raise
    except BaseException:
        _restore(scratch, destination)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


_REPLACED = "replaced"  # in a scratch directory: what was at the destination
_LOCK = "lock"  # in a scratch directory: whoever uses it has locked this file, until its process ends


def _lock(scratch: Path) -> int:
    """Locks a scratch directory. Raises OSError when another process has."""
    fd = os.open(scratch / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _clean_up(destination: Path) -> None:
    """Removes scratch directories of runs that were killed; what they had taken away is put back."""
    for scratch in destination.parent.glob(f".{glob.escape(destination.name)}.????????"):
        if not (scratch / _LOCK).is_file():  # another's, or one that is just being made
            continue
        try:
            lock = _lock(scratch)
        except OSError:  # in use
            continue
        _restore(scratch, destination)
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _restore(scratch: Path, destination: Path) -> None:
    """Puts back what was at `destination`: all of it unless something new is there, else what no checkpoint has."""
    replaced = scratch / _REPLACED
    if not replaced.exists():
        return
    if not destination.exists():
        replaced.rename(destination)
        return
    for path in replaced.iterdir():
        checkpoint = path.is_file() and _CHECKPOINT_FILES.fullmatch(path.name)
        if not checkpoint and not (destination / path.name).exists():
            path.rename(destination / path.name)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Shards:
    """Writes weights to model-00001-of-0000n.safetensors and an index of them, or to one model.safetensors."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = self.total_bytes = 0
        self.files: list[tuple[Path, list[str]]] = []  # each file written, under a name to begin with

    def add(self, name: str, w: Tensor) -> None:
        if self.pending and self.pending_bytes + w.nbytes > self.max_bytes:
            self._write()
        self.pending[name] = w
        self.pending_bytes += w.nbytes

    def _write(self) -> None:
        tensors, metadata = flatten(self.pending)
        file = self.directory / f"{len(self.files)}.safetensors"
        save_file(tensors, file, metadata)
        self.files.append((file, list(tensors)))
        self.total_bytes += self.pending_bytes
        self.pending, self.pending_bytes = {}, 0

    def close(self) -> None:
        self._write()
        if len(self.files) == 1:
            self.files[0][0].rename(self.directory / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for i, (file, names) in enumerate(self.files, start=1):
            renamed = file.rename(self.directory / f"model-{i:05d}-of-{len(self.files):05d}.safetensors")
            weight_map |= dict.fromkeys(names, renamed.name)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
