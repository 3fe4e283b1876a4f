"""torchao as front end: importing this makes aoq the kernels behind torchao's own configs.

    import aoq.integrations.torchao
    torchao.quantization.quantize_(model, torchao.quantization.Int4WeightOnlyConfig(group_size=64))

From then on `quantize_`, and whatever calls it (transformers' `TorchAoConfig`, vLLM's `--quantization torchao`), makes
aoq tensors of linears and embeddings wherever aoq has kernels for the config on the weight's device, and torchao's of
all else. Checkpoints in safetensors hold them beside torchao's, and torchao's are read as aoq tensors.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchao.dtypes
from torch import Tensor, nn
from torchao.core.config import ALLOWED_AO_MODULES
from torchao.prototype.safetensors import safetensors_support, safetensors_utils
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerGroup,
)
from torchao.quantization.transform_module import _QUANTIZE_CONFIG_HANDLER, register_quantize_module_handler
from torchao.utils import DummyModule

from aoq.config import AOBaseConfig
from aoq.integrations.torchao_tensors import (
    CONFIGS,
    Unsupported,
    config_from_torchao,
    is_torchao,
    tensor_from_parts,
    tensor_from_torchao,
)
from aoq.storage.safetensors import TORCHAO_PREFIX, flatten, part_name, unflatten_one
from aoq.tensors.base import QuantizedTensor, tensor_from_fields

logger = logging.getLogger("aoq")

Handler = Callable[..., nn.Module]


# ---- quantize_


def _quantize_with_aoq(config_type: type) -> None:
    """Puts aoq before torchao's own handler of a type of config."""
    own = _QUANTIZE_CONFIG_HANDLER[config_type]
    if getattr(own, "by_aoq", False):
        return

    @functools.wraps(own)
    def quantize(module: nn.Module, config: Any, *, parameter_name: str = "weight", **fields: Any) -> nn.Module:
        weight = getattr(module, parameter_name)
        if isinstance(weight, QuantizedTensor):  # tied, and quantized under another name
            return module
        embedding = isinstance(module, nn.Embedding)
        # AWQ and SmoothQuant give a DummyModule, for a tensor to which they add scales that aoq's do not have.
        ours = weight.dim() in (2, 3) and not isinstance(module, (DummyModule, nn.modules.conv._ConvNd))
        chosen = config_from_torchao(config, weight.shape[-1], embedding) if ours and not fields else None
        if chosen is not None and _has_kernels(chosen, weight):
            _set(module, parameter_name, chosen.quantize(weight.detach()))
            return module
        if parameter_name != "weight":
            if "parameter_name" not in inspect.signature(own).parameters:
                raise NotImplementedError(f"{config_type.__name__} quantizes weights only, not {parameter_name}")
            fields["parameter_name"] = parameter_name
        module = own(module, config, **fields)
        made = getattr(module, parameter_name)
        if ours and is_torchao(made) and (converted := _converted(made, embedding)) is not None:
            _set(module, parameter_name, converted)
        return module

    quantize.__signature__ = inspect.signature(quantize, follow_wrapped=False)  # type: ignore[attr-defined]
    quantize.by_aoq = True  # type: ignore[attr-defined]
    register_quantize_module_handler(config_type)(quantize)


def _set(module: nn.Module, name: str, w: QuantizedTensor) -> None:
    setattr(module, name, nn.Parameter(w, requires_grad=False))


def _has_kernels(config: AOBaseConfig, weight: Tensor) -> bool:
    """Whether aoq multiplies by such weights on the device of `weight`."""
    if weight.device.type in ("cpu", "meta"):
        return True
    op = getattr(config.quantize(torch.empty_like(weight, device="meta")), "torch_op", "")
    has: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"aoq::{op}", weight.device.type.upper())
    return has


def _converted(w: Tensor, embedding: bool = False) -> QuantizedTensor | None:
    """torchao's tensor as aoq's, or None where aoq has no kernels for it."""
    if w.device.type != "cpu":
        return None
    try:
        return tensor_from_torchao(w, embedding).pack()
    except Unsupported as error:
        logger.info("left to torchao: %s", error)
        return None


def convert_(model: nn.Module) -> list[str]:
    """Replaces torchao's quantized parameters on the CPU by aoq's with the same values, where aoq has kernels for them.

    Returns the names of those replaced. Ties stay.
    """
    replaced: dict[int, nn.Parameter] = {}
    names: list[str] = []
    for fqn, module in model.named_modules(remove_duplicate=False):
        for name, param in module.named_parameters(recurse=False):
            if not is_torchao(param):
                continue
            if id(param) not in replaced:
                converted = _converted(param, isinstance(module, nn.Embedding))
                if converted is None:
                    continue
                replaced[id(param)] = nn.Parameter(converted, requires_grad=False)
            setattr(module, name, replaced[id(param)])
            names.append(f"{fqn}.{name}" if fqn else name)
    return names


# ---- configs as older releases wrote them, which guides and checkpoints still do


def _accept_older_fields(config_type: type, upgrade: Callable[[dict[str, Any]], None]) -> None:
    """Lets `upgrade` rename or drop the keyword arguments of a type of config."""
    init = config_type.__init__  # type: ignore[misc]
    if getattr(init, "by_aoq", False):
        return

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **fields: Any) -> None:
        upgrade(fields)
        known = inspect.signature(init).parameters
        if dropped := sorted(fields.keys() & _NO_EFFECT - known.keys()):
            logger.warning("%s: no effect here: %s", config_type.__name__, ", ".join(dropped))
        init(self, *args, **{name: value for name, value in fields.items() if name not in dropped})

    __init__.by_aoq = True  # type: ignore[attr-defined]
    config_type.__init__ = __init__  # type: ignore[misc]


_NO_EFFECT = {"layout", "zero_point_domain", "preserve_zero"}  # chose a kernel, or what it could hold


def _upgrade_int4(fields: dict[str, Any]) -> None:
    if fields.pop("use_hqq", False):
        fields["int4_choose_qparams_algorithm"] = "hqq"
    fields.pop("version", None)


def _upgrade_int8_weight_only(fields: dict[str, Any]) -> None:
    group_size = fields.pop("group_size", None)
    if group_size is not None:
        fields["granularity"] = PerGroup(group_size)
    fields.pop("version", None)


def _drop_version(fields: dict[str, Any]) -> None:
    fields.pop("version", None)


class Layout:
    """A layout of weights in older releases of torchao. It chose a kernel, so it has no effect here."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


_LAYOUTS = (
    "Int4CPULayout",
    "Int8DynamicActInt4WeightCPULayout",
    "MarlinSparseLayout",
    "PlainLayout",
    "QDQLayout",
    "SemiSparseLayout",
    "TensorCoreTiledLayout",
)


# ---- safetensors: torchao's functions with aoq tensors beside torchao's, in time linear in their number


def _register(kind: type[QuantizedTensor]) -> None:
    """Lets torchao build a format from its parts and attributes by name."""

    def build(*, shape: list[int], dtype: torch.dtype, **fields: Any) -> QuantizedTensor:
        return tensor_from_fields(kind.__name__, fields, shape=shape, dtype=dtype).pack()

    build.__name__ = TORCHAO_PREFIX + kind.__name__
    if build.__name__ not in safetensors_utils.ALLOWED_CLASSES:
        safetensors_utils.ALLOWED_CLASSES[build.__name__] = build
        safetensors_utils.ALLOWED_TENSORS_SUBCLASSES.append(build.__name__)


_flatten_torchao = safetensors_support.flatten_tensor_state_dict


def flatten_tensor_state_dict(tensors_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The plain tensors and the metadata that stand for a state dict with quantized tensors of torchao and aoq."""
    ours = {name: w for name, w in tensors_dict.items() if isinstance(w, QuantizedTensor)}
    tensors, metadata = _flatten_torchao({name: w for name, w in tensors_dict.items() if name not in ours})
    parts, descriptions = flatten(ours)
    stored: set[int] = set()
    for name, part in parts.items():
        tied = part.data_ptr() in stored
        tensors[name] = part.clone() if tied else part  # safetensors writes no memory twice
        stored.add(part.data_ptr())
    for name, text in descriptions.items():
        description = json.loads(text)
        metadata[name] = json.dumps(description | {"_type": TORCHAO_PREFIX + description["_type"]})
    metadata["tensor_names"] = json.dumps(list(tensors_dict))
    return tensors, metadata


def unflatten_tensor_state_dict(
    tensors_data_dict: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict that `flatten_tensor_state_dict` took apart, and the parts of tensors that are not whole yet.

    torchao's tensors come as aoq's, with the same values, where aoq has kernels for them.
    """
    if "tensor_names" not in metadata:
        raise ValueError("no torchao tensors: the metadata has no tensor_names")
    left = dict(tensors_data_dict)
    state_dict: dict[str, Tensor] = {}
    for name in dict.fromkeys(_owner(key, metadata) for key in tensors_data_dict):
        description = json.loads(metadata[name])
        if description["_type"] == "Tensor":
            state_dict[name] = left.pop(name)
            continue
        keys = {part: part_name(name, part) for part in description["_tensor_data_names"]}
        if not left.keys() >= set(keys.values()):
            continue
        parts = {key: left.pop(key) for key in keys.values()}
        if description["_type"].startswith(TORCHAO_PREFIX):
            state_dict[name] = unflatten_one(name, metadata[name], parts)
            continue
        w = tensor_from_parts(description, {part: parts[key] for part, key in keys.items()})
        converted = _converted(w)
        state_dict[name] = w if converted is None else converted
    return state_dict, left


def _owner(key: str, metadata: Mapping[str, str]) -> str:
    """The tensor that the stored tensor `key` is, or is a part of: a._b_c may be part c of a.b, or b_c of a."""
    if key in metadata:
        return key
    module, dot, last = key.rpartition(".")
    cuts = [i for i, letter in enumerate(last) if letter == "_" and i]
    for cut in cuts:
        name = f"{module}{dot}{last[1:cut]}"
        if name in metadata and last[cut + 1 :] in json.loads(metadata[name]).get("_tensor_data_names", ()):
            return name
    raise ValueError(f"{key}: no metadata describes this tensor")


def _replace_everywhere(name: str, replacement: Callable[..., Any]) -> None:
    """Puts `replacement` for torchao's function of that name, also where it has been imported by name."""
    original = getattr(safetensors_support, name)
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, replacement)


# ---- importing this


for _type in CONFIGS:
    _quantize_with_aoq(_type)
ALLOWED_AO_MODULES.add("torchao.prototype.quantization.int4")  # so that its configs can be read back
_accept_older_fields(Int4WeightOnlyConfig, _upgrade_int4)
_accept_older_fields(Int8WeightOnlyConfig, _upgrade_int8_weight_only)
for _type in (
    Int8DynamicActivationInt8WeightConfig,
    Float8WeightOnlyConfig,
    Float8DynamicActivationFloat8WeightConfig,
):
    _accept_older_fields(_type, _drop_version)
for _name in _LAYOUTS:
    if not hasattr(torchao.dtypes, _name):
        setattr(torchao.dtypes, _name, type(_name, (Layout,), {"__module__": "torchao.dtypes"}))
for _kind in QuantizedTensor.formats.values():
    _register(_kind)
_replace_everywhere("flatten_tensor_state_dict", flatten_tensor_state_dict)
_replace_everywhere("unflatten_tensor_state_dict", unflatten_tensor_state_dict)
