"""vLLM: `vllm serve DIR` of an aoq checkpoint, or of another with `--quantization aoq`. Installing aoq is all it needs.

vLLM fuses layers (q_proj, k_proj and v_proj into qkv_proj), splits them among workers (tensor parallelism) and hands
each tensor of a checkpoint to the layer that it is for. Here a layer keeps what it is handed until it has all of it, in
the plain layout, cuts out its rows and columns and packs them. So memory holds the model and one layer, shards of a
fused layer may differ in format, and formats know nothing of vLLM.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aoq.checkpoint import StoredWeight, stored_weights, weight_files
from aoq.config import AOBaseConfig, FqnToConfig
from aoq.integrations.quantization_config import AoqConfig
from aoq.integrations.safetensors import unflatten_one
from aoq.quantize import check_names
from aoq.tensors.base import ACTIVATION_DTYPES, QuantizedTensor
from aoq.tensors.int4 import Int4WeightOnlyConfig
from aoq.tensors.module import WeightModule, weight_module

try:
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from vllm.model_executor.model_loader.weight_utils import download_weights_from_hf
except ImportError as error:
    import vllm

    raise ImportError(f"aoq needs vLLM 0.32 or later, this is {vllm.__version__}: {error}") from None

logger = logging.getLogger("aoq")

SHARDS = ("q", "k", "v", "index_q", "index_k")  # of attention, in order; shards of other layers have numbers


def register() -> None:
    """The entry point in `vllm.general_plugins`, which vLLM calls in each of its processes."""
    register_quantization_config("aoq")(AoqVllmConfig)


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
            w = unflatten_one(self.stored.name, self.stored.description, tensors, pack=False)
            return w if w.dtype == dtype else w.rebuild(w.parts(), dtype=dtype)
        loaded = tensors[self.stored.name].to(dtype)
        try:
            return self.config.quantize(loaded).unpack() if self.config else loaded
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.stored.name}: {error}") from error


class AoqVllmConfig(QuantizationConfig):  # type: ignore[misc]
    """What a checkpoint holds and how to quantize it, asked for by vLLM's names of layers."""

    def __init__(self, config: AoqConfig | None = None) -> None:
        super().__init__()
        if config is None:
            config = AoqConfig(Int4WeightOnlyConfig())
            logger.warning("aoq: quantizing to %r; --hf-overrides gives another config", config.quant_type)
        self.config = config
        self.model = ""
        self.revision: str | None = None
        self.tied = False
        self.quantizes = True  # the checkpoint holds no quantized weights
        self.stored: dict[str, StoredWeight] = {}  # by vLLM's names
        self.mappers: list[Any] = []  # from names in the checkpoint

    def __repr__(self) -> str:
        return f"AoqVllmConfig({self.config.to_dict()})"

    # ---- what vLLM asks

    def get_name(self) -> Any:
        return "aoq"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return list(ACTIVATION_DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []  # it is in config.json

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AoqVllmConfig:
        """From `quantization_config` of config.json, or of --hf-overrides."""
        return cls(AoqConfig(**config))

    @classmethod
    def from_config_dict_json(cls, config_dict_json: str) -> AoqVllmConfig:
        """From the JSON of a config: --hf-overrides '{"quantization_config_dict_json": "..."}'."""
        return cls(AoqConfig(json.loads(config_dict_json)))

    @classmethod
    def from_config_file(cls, config_file: str) -> AoqVllmConfig:
        """From a file with such JSON: --hf-overrides '{"quantization_config_file": "..."}'."""
        return cls.from_config_dict_json(Path(config_file).read_text(encoding="utf-8"))

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        self.model, self.revision = model_name, revision
        if Path(model_name).is_dir():  # read it before any worker starts: it may be broken
            self._read(Path(model_name))
        self.tied = bool(getattr(hf_config, "tie_word_embeddings", False))
        if self.tied and any(w.description and w.name.endswith("lm_head.weight") for w in self.stored.values()):
            # vLLM sees by itself that a plain lm_head was stored.
            self.tied = hf_config.tie_word_embeddings = hf_config.get_text_config().tie_word_embeddings = False

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        self.mappers.append(hf_to_vllm_mapper)
        self.stored = hf_to_vllm_mapper.apply_dict(self.stored)

    def get_quant_method(self, layer: Any, prefix: str) -> QuantizeMethodBase | None:
        if not self.stored:
            self._download()
        if isinstance(layer, RoutedExperts):
            self._check_experts(prefix)
        if not isinstance(layer, LinearBase | VocabParallelEmbedding):
            return None
        sources = self._sources(layer, prefix)
        if any(source.is_quantized for source in sources):
            return AoqMethod(prefix or sources[0].stored.name, sources)
        return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None

    # ---- which weights, and how

    def _read(self, directory: Path) -> None:
        self.stored = {weight.name: weight for weight in stored_weights(weight_files(directory)).values()}
        for mapper in self.mappers:
            self.stored = mapper.apply_dict(self.stored)
        self.quantizes = not any(weight.description for weight in self.stored.values())
        if self.quantizes and isinstance(self.config.quant_type, FqnToConfig):
            names = [weight.name for weight in self.stored.values()]
            check_names({*names, *(name.rpartition(".")[0] for name in names)}, self.config.quant_type)

    def _download(self) -> None:
        load = get_current_vllm_config().load_config
        files = ["*.safetensors", "*.safetensors.index.json"]
        self._read(Path(download_weights_from_hf(self.model, load.download_dir, files, self.revision)))

    def _sources(self, layer: Any, prefix: str) -> list[Source]:
        if isinstance(layer, VocabParallelEmbedding):
            return [self._embedding_source(layer, prefix)]
        parent, dot, name = prefix.rpartition(".")
        shards = [f"{parent}{dot}{shard}.weight" for shard in self.packed_modules_mapping.get(name, ())]
        if not any(shard in self.stored for shard in shards):
            shards = [f"{prefix}.weight"]
        stored = [self.stored.get(shard) or unknown(shard) for shard in shards]
        return [Source(weight, self._config(weight, "linear")) for weight in stored]

    def _embedding_source(self, layer: VocabParallelEmbedding, prefix: str) -> Source:
        is_head = isinstance(layer, ParallelLMHead)
        stored = self.stored.get(f"{prefix}.weight")
        if stored is None and (self.tied or not is_head):
            # Many of vLLM's models do not name their embedding: it is what has its shape, and is no output layer.
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
            raise ValueError(f"aoq: the config unties {' and '.join(names)}, which vLLM cannot do while it loads them")
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
                raise ValueError(f"{weight.name}: aoq does not run quantized experts in vLLM; leave them as they are")

    def _named(self, weight: StoredWeight) -> bool:
        return self._choice(weight.name.removesuffix(".weight"), "expert")[1]


class AoqMethod(LinearMethodBase):  # type: ignore[misc]
    """What a linear or an embedding with quantized weights does, from its creation on."""

    def __init__(self, prefix: str, sources: list[Source]) -> None:
        self.prefix, self.sources = prefix, sources
        self.loaded: dict[Any, dict[str, Tensor]] = {}  # by shard, by parameter; until all is there
        self.weights: list[WeightModule] = []  # with the rows of the weight in turn; once all is there
        self.tied_to: Any = None

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
        for name, dtype in self.params().items():
            param = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
            param.weight_loader = partial(self.load, layer, name)  # type: ignore[attr-defined]
            layer.register_parameter(name, param)

    def params(self) -> dict[str, torch.dtype]:
        """The parameters that vLLM loads into."""
        return {param: s.stored.parts[name] for s in self.sources for param, name in s.params.items()}

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
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
        is_last = layer.tp_rank == layer.tp_size - 1
        if not runs or k != self.input_size or (is_last and max(there + count for _, there, count in runs) != n):
            raise ValueError(f"{name}: shape {tuple(w.shape)} does not fit {self.prefix}, which is {self.shape} of it")
        try:
            w = w.narrow(1, column, self.shape[1])
            return [(here, w.narrow(0, there, count)) for here, there, count in runs]
        except ValueError as error:
            raise ValueError(f"{name}: cannot be split for tensor parallelism: {error}") from error

    def padded(self, pieces: list[tuple[int, Tensor]]) -> Iterator[Tensor]:
        """The pieces in turn, with rows of zeros where there are none: vLLM pads vocabularies."""
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
    attrs = [getattr(w, name) for name in w.attrs]
    return type(w), attrs, [None if part is None else part.dtype for part in w.parts()]


def placement(place: Callable[..., None], here: int, there: int, dim: int, *shard: Any) -> list[tuple[int, int, int]]:
    """Where a layer of vLLM puts the `there` rows (dim 0) or columns (dim 1) of a weight among its own `here`.

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
