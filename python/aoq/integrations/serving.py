"""What vLLM and SGLang, whose layers are designed alike, have in common: how a layer gets and runs quantized weights.

Both fuse layers (q_proj, k_proj and v_proj into qkv_proj), split them among workers (tensor parallelism) and hand each
tensor of a checkpoint to the layer that it is for. Here a layer keeps what it is handed until it has all of it, in the
plain layout, cuts out its rows and columns and packs them. So memory holds the model and one layer, shards of a fused
layer may differ in format, and formats know nothing of the framework.
"""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aoq.config import AOBaseConfig, FqnToConfig
from aoq.integrations.quantization_config import AoqConfig
from aoq.ops.dtypes import FLOAT_DTYPES
from aoq.quantize import check_names
from aoq.storage.checkpoint import StoredWeight, stored_weights, weight_files
from aoq.tensors.base import QuantizedTensor
from aoq.tensors.int4 import Int4WeightOnlyConfig
from aoq.tensors.module import WeightModule, weight_module

logger = logging.getLogger("aoq")

SHARDS = ("q", "k", "v", "index_q", "index_k")  # of attention, in order; shards of other layers have numbers
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]  # the files to download


def unknown(name: str) -> StoredWeight:
    """What stands for a weight that the checkpoint does not have under this name."""
    dtype = torch.get_default_dtype()
    return StoredWeight(name, "", (), dtype, 0, {name: dtype})


@dataclass(frozen=True)
class Source:
    """A weight of the checkpoint that a layer, or a shard of a fused one, is made of."""

    stored: StoredWeight
    config: AOBaseConfig | None  # what to quantize it to; None if it is quantized already, or stays as it is

    @property
    def is_quantized(self) -> bool:
        """Whether it is, or is going to be."""
        return bool(self.stored.description or self.config)

    @property
    def params(self) -> dict[str, str]:
        """The tensor's name in the checkpoint for each of a layer's parameters that hold this weight."""
        return {name.rpartition(".")[2]: name for name in self.stored.parts}

    def read(self, params: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The weight, in the plain layout, from what the parameters were loaded with."""
        tensors = {name: params[param] for param, name in self.params.items()}
        if self.stored.description:
            w = self.stored.read(tensors, pack=False)
            return w if w.dtype == dtype else w.rebuild(w.parts(), dtype=dtype)
        loaded = tensors[self.stored.name].to(dtype)
        try:
            return self.config.quantize(loaded).unpack() if self.config else loaded
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.stored.name}: {error}") from error


@dataclass(frozen=True)
class Framework:
    """What a framework calls its layers.

    linear, embedding, head, experts: its classes of layers; a head is an embedding too.
    unquantized: makes what a linear does whose weights are not quantized.
    override: the option of its server that gives another config.
    """

    name: str
    linear: type[nn.Module]
    embedding: type[nn.Module]
    head: type[nn.Module]
    experts: type[nn.Module]
    unquantized: Callable[[], Any]
    override: str


class ServingConfig(ABC):
    """What a checkpoint holds and how to quantize it, asked for by the framework's names of layers.

    The framework's base class of such configs comes after it.
    """

    framework: ClassVar[Framework]
    method: ClassVar[type[ServingMethod]]
    packed_modules_mapping: Mapping[str, list[str]]  # the shards of fused layers; of the framework's base class

    def __init__(self, config: AoqConfig | None = None) -> None:
        super().__init__()
        if config is None:
            config = AoqConfig(Int4WeightOnlyConfig())
            override = self.framework.override
            logger.warning("aoq: quantizing to %r; %s gives another config", config.quant_type, override)
        self.config = config
        self.model = ""
        self.revision: str | None = None
        self.tied = False
        self.quantizes = True  # the checkpoint holds no quantized weights
        self.stored: dict[str, StoredWeight] = {}  # by the framework's names
        self.mappers: list[Any] = []  # from names in the checkpoint

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.to_dict()})"

    # ---- what the framework asks

    def get_name(self) -> Any:
        return "aoq"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return list(FLOAT_DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []  # it is in config.json

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        if not self.stored:
            self._read(self._download())
        if isinstance(layer, self.framework.experts):
            self._check_experts(prefix)
        is_linear = isinstance(layer, self.framework.linear)
        if not is_linear and not isinstance(layer, self.framework.embedding):
            return None
        sources = self._sources(layer, prefix)
        if any(source.is_quantized for source in sources):
            return self.method(prefix or sources[0].stored.name, sources)
        return self.framework.unquantized() if is_linear else None

    # ---- which weights, and how

    @abstractmethod
    def _download(self) -> Path:
        """The directory of a model that is none itself."""

    def find(self, model: str, hf_config: Any, revision: str | None = None) -> None:
        """Where the checkpoint is. Read at once if it is a directory: it may be broken, and no worker has started."""
        self.model, self.revision = model, revision
        if Path(model).is_dir():
            self._read(Path(model))
        self.tied = bool(getattr(hf_config, "tie_word_embeddings", False))
        if self.tied and self._stores_head():
            self.tied = hf_config.tie_word_embeddings = hf_config.get_text_config().tie_word_embeddings = False

    def _stores_head(self) -> bool:
        """Whether an output layer is stored that is not the embedding: one of them, or both, is quantized."""
        heads = [w for w in self.stored.values() if w.name.endswith("lm_head.weight")]
        return any(w.shape == head.shape and w.description for head in heads for w in self.stored.values())

    def map_names(self, mapper: Any) -> None:
        """By `mapper`, a model of the framework has other names for its layers than the checkpoint."""
        self.mappers.append(mapper)
        self.stored = mapper.apply_dict(self.stored)

    def _read(self, directory: Path) -> None:
        self.stored = {weight.name: weight for weight in stored_weights(weight_files(directory)).values()}
        for mapper in self.mappers:
            self.stored = mapper.apply_dict(self.stored)
        self.quantizes = not any(weight.description for weight in self.stored.values())
        if self.quantizes and isinstance(self.config.quant_type, FqnToConfig):
            names = [weight.name for weight in self.stored.values()]
            check_names({*names, *(name.rpartition(".")[0] for name in names)}, self.config.quant_type)

    def _sources(self, layer: Any, prefix: str) -> list[Source]:
        if isinstance(layer, self.framework.embedding):
            return [self._embedding_source(layer, prefix)]
        parent, dot, name = prefix.rpartition(".")
        shards = [f"{parent}{dot}{shard}.weight" for shard in self.packed_modules_mapping.get(name, ())]
        if not any(shard in self.stored for shard in shards):
            shards = [f"{prefix}.weight"]
        stored = [self.stored.get(shard) or unknown(shard) for shard in shards]
        return [Source(weight, self._config(weight, "linear")) for weight in stored]

    def _embedding_source(self, layer: Any, prefix: str) -> Source:
        is_head = isinstance(layer, self.framework.head)
        stored = self.stored.get(f"{prefix}.weight")
        if stored is None and (self.tied or not is_head):
            # Many models do not name their embedding: it is what has its shape, and is no output layer.
            shape = (layer.org_vocab_size, layer.embedding_dim)
            found = [w for w in self.stored.values() if w.shape == shape and "head" not in w.name]
            stored = found[0] if len(found) == 1 else None
        if stored is None:
            return Source(unknown(f"{prefix}.weight"), None)
        return Source(stored, self._config(stored, "head" if is_head else "embedding"))

    def _config(self, stored: StoredWeight, kind: str) -> AOBaseConfig | None:
        """What to quantize a "linear", an "embedding" or a "head" to."""
        if not self.quantizes:
            return None
        names = {stored.name.removesuffix(".weight"): kind}
        if self.tied and kind != "linear":
            names |= {name: "embedding" for name in names} | {"lm_head": "head"}
        choices = [self._choice(*named) for named in names.items()]
        choices = [choice for choice in choices if choice[1]] or choices  # what rules name comes first
        configs = [config for config, _ in choices]
        if all(config == configs[0] for config in configs):
            return configs[0]
        if choices[0][1]:
            untied = " and ".join(names)
            raise ValueError(
                f"aoq: the config unties {untied}, which {self.framework.name} cannot do while it loads them"
            )
        return None

    def _choice(self, module: str, kind: str) -> tuple[AOBaseConfig | None, bool]:
        """The config of a weight, and whether a rule names it."""
        config: AOBaseConfig | None = self.config.quant_type
        named = False
        selected = kind != "embedding" or self.config.include_embedding
        if isinstance(config, FqnToConfig):
            key = config.find(module, "weight", is_linear=kind != "embedding")
            selected, named = key is not None, key not in (None, "_default")
            config = config.fqn_to_config[key] if key is not None else None
        by_default = kind == "head" and self.config.modules_to_not_convert is None and not self.config.include_embedding
        skipped = (by_default or self.config.skips(module)) and not named
        return config if selected and not skipped else None, named

    def _check_experts(self, prefix: str) -> None:
        """Raises if experts are quantized, or would have to be."""
        for name, weight in self.stored.items():
            if name.startswith(f"{prefix}.") and (weight.description or (self.quantizes and self._named(weight))):
                framework = self.framework.name
                raise ValueError(f"{name}: aoq does not run quantized experts in {framework}; leave them as they are")

    def _named(self, weight: StoredWeight) -> bool:
        return self._choice(weight.name.removesuffix(".weight"), "expert")[1]


class ServingMethod(ABC):
    """What a linear or an embedding with quantized weights does, from its creation on.

    The framework's base class of such methods comes after it.
    """

    def __init__(self, prefix: str, sources: list[Source]) -> None:
        self.prefix, self.sources = prefix, sources
        self.loaded: dict[Any, dict[str, Tensor]] = {}  # by shard, by parameter; until all is there
        self.weights: list[WeightModule] = []  # with the rows of the weight in turn; once all is there
        self.tied_to: Any = None  # the layer whose weights this one shares

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **attrs: Any,
    ) -> None:
        self.shape = (sum(output_partition_sizes), input_size_per_partition)
        self.input_size, self.dtype, self.place = input_size, params_dtype, attrs["weight_loader"]
        for name in self.params():
            # Of a dtype that no framework packs by itself.
            param = nn.Parameter(torch.empty(0, dtype=torch.uint8), requires_grad=False)
            param.weight_loader = partial(self.load, layer, name)  # type: ignore[attr-defined]
            layer.register_parameter(name, param)

    def params(self) -> set[str]:
        """The parameters that the framework loads into."""
        return {param for source in self.sources for param in source.params}

    @abstractmethod
    def rank(self, layer: Any) -> tuple[int, int]:
        """Which of how many workers, among which the layer is split, this is."""

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """Makes an output layer share the weights of the embedding; returns it."""
        for name in self.params():
            setattr(layer, name, getattr(embed_tokens, name))
        self.tied_to = embed_tokens
        return layer

    # ---- loading

    def load(self, layer: Any, name: str, param: nn.Parameter, loaded: Tensor, shard: Any = None) -> None:
        """Takes what the checkpoint has for the layer's parameter `name`, or for one shard of it."""
        self.loaded.setdefault(shard, {})[name] = loaded
        if sum(map(len, self.loaded.values())) < sum(len(source.params) for source in self.sources):
            return
        pieces: list[tuple[int, Tensor]] = []
        for source, key in zip(self.sources, sorted(self.loaded, key=shard_order), strict=True):
            pieces += self.cut(layer, source.stored.name, source.read(self.loaded.pop(key), self.dtype), key)
        self.weights = []
        for _, group in itertools.groupby(self.padded(pieces), key=kind):
            alike = [*group]
            w = (torch.cat(alike) if len(alike) > 1 else alike[0]).to(param.device)
            self.weights.append(weight_module(w.pack() if isinstance(w, QuantizedTensor) else w))

    def cut(self, layer: Any, name: str, w: Tensor, shard: Any) -> list[tuple[int, Tensor]]:
        """The rows that the layer has of the weight `name`, and where each run of them starts."""
        (n, k), shards = w.shape, () if shard is None else (shard,)
        try:
            runs = placement(self.place, self.shape[0], n, 0, *shards)
            column = 0
            if self.shape[1] != k:
                ((_, column, _),) = placement(self.place, self.shape[1], k, 1, *shards)
        except (AssertionError, IndexError, RuntimeError):
            runs = []
        rank, size = self.rank(layer)
        is_last = rank == size - 1
        if not runs or k != self.input_size or (is_last and max(there + count for _, there, count in runs) != n):
            raise ValueError(f"{name}: shape {tuple(w.shape)} does not fit {self.prefix}, which is {self.shape} of it")
        try:
            w = w.narrow(1, column, self.shape[1])
            return [(here, w.narrow(0, there, count)) for here, there, count in runs]
        except ValueError as error:
            raise ValueError(f"{name}: cannot be split for tensor parallelism: {error}") from error

    def padded(self, pieces: list[tuple[int, Tensor]]) -> Iterator[Tensor]:
        """The pieces in turn, with rows of zeros where there are none: vocabularies are padded."""
        end = 0
        for start, w in sorted(pieces, key=lambda piece: piece[0]):
            if start > end:
                yield w.new_zeros(start - end, w.shape[1])
            yield w
            end = start + len(w)
        if end < self.shape[0]:
            yield w.new_zeros(self.shape[0] - end, w.shape[1])

    def process_weights_after_loading(self, layer: Any) -> None:
        if self.tied_to is not None:
            self.weights = self.tied_to.quant_method.weights
        if not self.weights:
            names = [name for source in self.sources for name in source.stored.parts]
            raise ValueError(f"{self.prefix}: the checkpoint lacks one of {', '.join(names)}")
        for name in self.params():
            layer._parameters.pop(name, None)
        for i, weight in enumerate(self.weights):
            layer.add_module(f"weight_{i}" if i else "weight", weight)

    # ---- running

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(self.weights) == 1:
            return layer.weight.linear(x, bias)  # type: ignore[no-any-return]
        out = torch.cat([weight.linear(x, None) for weight in self.weights], -1)
        return out if bias is None else out + bias

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        return layer.weight.rows(input_)  # type: ignore[no-any-return]


def shard_order(shard: Any) -> int:
    """Where a shard of a fused layer comes among the others."""
    if isinstance(shard, tuple):
        return shard_order(shard[0])
    return 0 if shard is None else SHARDS.index(shard) if isinstance(shard, str) else shard


def kind(w: Tensor) -> Any:
    """What tensors have in common that make one."""
    if not isinstance(w, QuantizedTensor):
        return None if type(w) in (Tensor, nn.Parameter) else id(w)  # subclasses of others may have no cat
    if "order" in w.tensors:
        return id(w)  # each gathers x in an order of its own
    attrs = [getattr(w, name) for name in w.attrs]
    return type(w), attrs, [None if part is None else part.dtype for part in w.parts()]


def placement(place: Callable[..., None], here: int, there: int, dim: int, *shard: Any) -> list[tuple[int, int, int]]:
    """Where a layer puts the `there` rows (dim 0) or columns (dim 1) of a weight among its own `here`.

    Its own loader tells, when given their numbers. Returns runs: the first here, the first there, how many.
    """
    param = nn.Parameter(torch.zeros((here, 1) if dim == 0 else (1, here), dtype=torch.int32), requires_grad=False)
    setattr(param, "output_dim" if dim == 0 else "input_dim", dim)
    numbers = torch.arange(1, there + 1, dtype=torch.int32)
    place(param, numbers.unsqueeze(1 - dim), *shard)
    own = param.data.flatten().nonzero().flatten()
    others = param.data.flatten()[own] - 1
    starts = [0, *((own.diff() != 1) | (others.diff() != 1)).nonzero().flatten().add(1).tolist()]
    ends = [*starts[1:], len(own)]
    return [(int(own[a]), int(others[a]), b - a) for a, b in zip(starts, ends, strict=True)]
