"""torchao's checkpoints as a source of weights: safetensors, or the pickles of older releases."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from aoq.integrations.torchao_tensors import is_torchao as is_torchao_tensor
from aoq.integrations.torchao_tensors import tensor_from_parts, tensor_from_torchao
from aoq.integrations.transformers_names import model_names
from aoq.storage.checkpoint import open_safetensors, read_config, read_json, stored_weights, weight_files
from aoq.storage.safetensors import is_torchao, unflatten_one
from aoq.tensors.base import QuantizedTensor

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class TorchaoDirectory:
    """A directory that transformers wrote with a `TorchAoConfig`. Raises OSError or ValueError, naming the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = read_config(path).get("quantization_config") or {}
        if self.settings.get("quant_method") != "torchao":
            raise ValueError(f"{path}: expected a checkpoint of torchao's, got {self.settings.get('quant_method')!r}")
        self.skips: list[str] | None = self.settings.get("modules_to_not_convert")
        self.config: PreTrainedConfig = AutoConfig.from_pretrained(path)
        self.pickles = [path / name for name in _pickles(path)]
        self.files = [] if self.pickles else weight_files(path)
        self.stored = stored_weights(self.files)

    def weights(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Each weight by its name, those that torchao quantized as aoq tensors in the plain layout.

        Raises ValueError, naming the weight, for one that aoq has no format for.
        """
        looked_up = _embeddings(model)
        names = model_names(model, self.stored)
        for name, w in self._pickled() if self.pickles else self._stored():
            if is_torchao_tensor(w):
                try:
                    w = tensor_from_torchao(w, embedding=(names.get(name) or name) in looked_up)
                except ValueError as error:
                    raise ValueError(f"{self.path}: {name}: {error}") from error
            yield name, w.unpack() if isinstance(w, QuantizedTensor) else w

    def notes(self) -> list[str]:
        return []

    def _stored(self) -> Iterator[tuple[str, Tensor]]:
        with ExitStack() as stack:
            opened = [stack.enter_context(open_safetensors(file)) for file in self.files]
            holder = {key: file for file in opened for key in file.keys()}  # noqa: SIM118 (not a dict)
            for name, weight in self.stored.items():
                tensors = {part: holder[part].get_tensor(part) for part in weight.parts}
                if is_torchao(weight.description):
                    description = json.loads(weight.description)
                    parts = dict(zip(description["_tensor_data_names"], tensors.values(), strict=True))
                    yield name, tensor_from_parts(description, parts)
                elif weight.description:
                    yield name, unflatten_one(name, weight.description, tensors, pack=False)
                else:
                    yield name, tensors[name]

    def _pickled(self) -> Iterator[tuple[str, Tensor]]:
        for file in self.pickles:
            try:
                yield from torch.load(file, map_location="cpu", mmap=True, weights_only=True).items()
            except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
                raise ValueError(f"{file}: damaged, or of another release of torchao: {error}") from error


def _pickles(path: Path) -> list[str]:
    if (path / PICKLE_INDEX).is_file():
        return sorted(set(read_json(path / PICKLE_INDEX).get("weight_map", {}).values()))
    return [PICKLE] if (path / PICKLE).is_file() else []


def _embeddings(model: PreTrainedModel) -> set[str]:
    """The names of weights that are only looked up: embeddings that are tied to nothing."""
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    names = {f"{fqn}.weight" for fqn, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return names - tied
