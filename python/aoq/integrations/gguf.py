"""GGUF files as a source of weights: one dequantized tensor at a time, under transformers' names.

Names, config and tokenizer come from transformers' own GGUF support, the block formats from the `gguf` package. A file
is parsed once, which takes seconds for a large vocabulary: transformers, which parses it for each thing it is asked,
is given what there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import torch
from gguf import GGUFReader, dequantize
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map


class GgufFile:
    """A GGUF file, opened. Raises ValueError when it is damaged or transformers does not know its architecture."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.reader = GGUFReader(path)
            with self._parsed():
                self.config: PreTrainedConfig = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        except Exception as error:  # what a damaged file runs into first is anyone's guess
            raise ValueError(f"{path}: damaged, or not a GGUF file that transformers reads: {error}") from error
        if not self.config.architectures:
            with torch.device("meta"):
                self.config.architectures = [type(AutoModelForCausalLM.from_config(self.config)).__name__]

    def names(self, model: PreTrainedModel) -> dict[str, str | None]:
        """Each weight of `model` that the format has a name for, and itself."""
        return {name: name for name in self._mapping(model)[1].values()}

    def weights(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Each weight of `model` in the file, in fp32, read when asked for."""
        processor, names = self._mapping(model)
        # The processor collects here what the file has in several tensors: whole once all were read.
        collected: dict[str, dict[str, Tensor]] = {"tensors": {}}
        for stored in self.reader.tensors:
            processed = processor.process(
                weights=dequantize(stored.data, stored.tensor_type),
                name=stored.name,
                tensor_key_mapping=names,
                parsed_parameters=collected,
            )
            if processed.name in names:
                yield names[processed.name], torch.from_numpy(processed.weights.copy())
        yield from collected["tensors"].items()

    def save_extras(self, directory: Path) -> None:
        """Writes config.json, generation_config.json and the tokenizer, if the file has one."""
        self.config.save_pretrained(directory)
        GenerationConfig.from_model_config(self.config).save_pretrained(directory)
        if "tokenizer.ggml.model" in self.reader.fields:
            with self._parsed():
                tokenizer = AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
            tokenizer.save_pretrained(directory)

    @contextmanager
    def _parsed(self) -> Iterator[None]:
        """Whoever opens the file in it gets the reader that there is."""

        def reader(path: str, *args: Any) -> GGUFReader:
            return self.reader if Path(path).samefile(self.path) else GGUFReader(path, *args)

        with mock.patch.object(gguf, "GGUFReader", reader):
            yield

    def _mapping(self, model: PreTrainedModel) -> tuple[TensorProcessor, dict[str, str]]:
        """What adapts this architecture's tensors, and the model's name for each of them."""
        architecture = bytes(self.reader.fields["general.architecture"].parts[-1]).decode()
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=self.config.to_dict())
        return processor, get_gguf_hf_weights_map(model, processor)
