"""quantize_: the walk over a model's modules, what the config says about each weight, and the report."""

from __future__ import annotations

import importlib
import logging
import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from aoq.config import AOBaseConfig, FqnToConfig, near
from aoq.ops.dtypes import FLOAT_DTYPES
from aoq.progress import track
from aoq.tensors.base import QuantizedTensor

logger = logging.getLogger("aoq")

Config = TypeVar("Config", bound=AOBaseConfig)
FilterFn = Callable[[nn.Module, str], bool]
Handler = Callable[[nn.Module, Config], nn.Module]

_HANDLERS: dict[type[AOBaseConfig], Handler[AOBaseConfig]] = {}

LEFT_OUT = "filter_fn leaves it out"
UNMATCHED = "neither a linear's weight nor named"
A_CONVOLUTION = "a convolution"


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight that `quantize_` replaced; `fqns` are all of its names (several if it is tied)."""

    fqns: tuple[str, ...]
    config: AOBaseConfig
    numel: int
    bytes_before: int
    bytes_after: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes_after / self.numel


@dataclass(frozen=True)
class SkippedWeight:
    """A parameter that `quantize_` left as it is; `wanted` if the config asked for it."""

    fqn: str
    reason: str
    wanted: bool
    numel: int = 0


@dataclass
class QuantizeReport:
    """What `quantize_` did. `print(report)` summarizes it."""

    quantized: list[QuantizedWeight] = field(default_factory=list)
    skipped: list[SkippedWeight] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what else there is to say, each a line

    @property
    def bytes_before(self) -> int:
        return sum(weight.bytes_before for weight in self.quantized)

    @property
    def bytes_after(self) -> int:
        return sum(weight.bytes_after for weight in self.quantized)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes_after / max(sum(weight.numel for weight in self.quantized), 1)

    def __str__(self) -> str:
        before, after = self.bytes_before / 1e6, self.bytes_after / 1e6
        lines = [
            f"quantized {len(self.quantized)} weights: {before:.1f} MB -> {after:.1f} MB, "
            f"{self.bits_per_weight:.2f} bits per weight"
        ]
        reasons = Counter(weight.reason for weight in self.skipped)
        lines += [f"left {count} as they are: {reason}" for reason, count in reasons.most_common()]
        return "\n".join(lines + self.notes)

    def log(self, chosen: bool = False) -> None:
        """Writes the report to the log "aoq" as one line, and a warning if little is quantized that was not `chosen`.

        Little is less than half of the weights, but for embeddings, that nothing was said about.
        """
        logger.info("%s", "; ".join(str(self).splitlines()))
        quantized = sum(weight.numel for weight in self.quantized)
        left = [weight for weight in self.skipped if weight.reason in (UNMATCHED, A_CONVOLUTION)]
        if chosen or sum(weight.numel for weight in left) <= quantized:
            return
        largest = max(left, key=lambda weight: weight.numel)
        logger.warning(
            "only %.0f%% of the weights are quantized: %d others are %s, such as %s%s",
            100 * quantized / (quantized + sum(weight.numel for weight in self.skipped)),
            len(left),
            " or ".join(sorted({weight.reason for weight in left})),
            largest.fqn,
            "" if largest.reason == A_CONVOLUTION else "; a FqnToConfig reaches them by their names",
        )


def quantize_(
    model: nn.Module,
    config: AOBaseConfig,
    filter_fn: FilterFn | None = None,
    *,
    device: torch.device | str | None = None,
    strict: bool = False,
    progress: bool = True,
) -> QuantizeReport:
    """Quantizes the weights of `model` in place, one at a time, in the order of their names.

    By default the weights of all linears, which are `nn.Linear` and transformers' `Conv1D`; `FqnToConfig` also reaches
    embeddings and 3-D parameters by name.
    Each weight is replaced before the next is touched, so memory stays under that of the model plus one layer.
    A weight with several names (tied) keeps them: it is quantized for all of them or, if some of its names are
    not selected and none is named in a `FqnToConfig`, skipped. A rule of None for one of them unties it.

    Args:
        config: what to quantize to.
        filter_fn: (module, fqn) -> whether to quantize this linear or embedding; not with `FqnToConfig`.
        device: moves each weight there before it is quantized, and at the end what is left of the model.
        strict: raise, before anything changes, if a linear or a parameter named exactly would be skipped.
        progress: show a bar if stderr is a terminal.

    Returns:
        What was quantized, and what was skipped and why.

    Raises:
        ValueError: `strict`, a rule that matches nothing, or a bad weight; the text names it. Weights before
            a bad one are quantized already.
        NotImplementedError: the config can be read but not quantized with.
    """
    if not isinstance(config, AOBaseConfig):
        raise TypeError(f"quantize_: config: expected a config, got {config!r}")
    if isinstance(config, FqnToConfig):
        if filter_fn is not None:
            raise ValueError("quantize_: filter_fn: expected None, since the names in the config select")
        check_rules(model, config)
    steps, skipped = plan(model, config, filter_fn)
    if strict and (unmet := [f"{weight.fqn}: {weight.reason}" for weight in skipped if weight.wanted]):
        raise ValueError(f"quantize_: {len(unmet)} weights would be skipped: {'; '.join(unmet)}")
    for each in {type(step.config) for step in steps} - _HANDLERS.keys():
        if each.quantize is AOBaseConfig.quantize:
            raise NotImplementedError(f"quantize_: this version of aoq reads {each.__name__} but has no kernels for it")

    report = QuantizeReport(skipped=skipped)
    for step in track(steps, "quantizing") if progress else steps:
        report.quantized.append(_quantize_step(model, step, device))
    if device is not None:
        model.to(device)
    show_quantized(model)
    _tell_transformers(model, report)
    report.log(chosen=filter_fn is not None)
    return report


def _tell_transformers(model: nn.Module, report: QuantizeReport) -> None:
    """Lets `save_pretrained` know how to save `model`, if it is one of transformers'."""
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is not None and isinstance(model, modeling.PreTrainedModel):
        integration = importlib.import_module("aoq.integrations.transformers")
        integration.attach(model, {fqn: weight.config for weight in report.quantized for fqn in weight.fqns})


def report_loaded(model: nn.Module, configs: Mapping[str, AOBaseConfig], left: list[SkippedWeight]) -> QuantizeReport:
    """The report on a model that was quantized while it was loaded, by `configs`, but for `left`."""
    quantized: dict[int, QuantizedWeight] = {}
    for name, w in model.named_parameters(remove_duplicate=False):
        if isinstance(w, QuantizedTensor):
            names = (*quantized[id(w)].fqns, name) if id(w) in quantized else (name,)
            quantized[id(w)] = QuantizedWeight(names, configs[name], w.numel(), w.numel() * w.dtype.itemsize, w.nbytes)
    return QuantizeReport(list(quantized.values()), left)


def show_quantized(model: nn.Module) -> None:
    """Makes the modules of `model` that have quantized parameters say so when they are printed."""
    for module in model.modules():
        if any(isinstance(param, QuantizedTensor) for param in module._parameters.values()):
            module.extra_repr = _ExtraRepr(module)  # type: ignore[method-assign]


class _ExtraRepr:
    """What a module says between its brackets. It does not keep the module, and so its weights, alive."""

    def __init__(self, module: nn.Module) -> None:
        self.module = weakref.ref(module)

    def __call__(self) -> str:
        module = self.module()
        if module is None:
            return ""
        texts = [type(module).extra_repr(module)]
        for name, w in module._parameters.items():
            if isinstance(w, QuantizedTensor):
                texts.append(f"{name}={type(w).__name__}, {w.bits_per_weight:.2f} bits")
        return ", ".join(filter(None, texts))

    def __reduce__(self) -> tuple[Any, ...]:
        return _ExtraRepr, (self.module(),)


def is_linear(module: nn.Module) -> bool:
    """Whether `module` multiplies by its weight and does nothing else."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is GPT-2's linear, whose weight is [k, n]."""
    return any(
        (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D") for kind in type(module).__mro__
    )


def quantize_weight(config: AOBaseConfig, weight: Tensor, module: nn.Module) -> QuantizedTensor:
    """`weight` of `module`, quantized in groups of what is multiplied with each other, and of the same shape.

    A weight [..., k, n] becomes the transpose of a quantized [..., n, k].
    """
    # Experts of transformers say so of themselves.
    if (is_conv1d(module) and weight.dim() == 2) or (
        getattr(module, "is_transposed", False) is True and weight.dim() == 3
    ):
        return config.quantize(weight.transpose(-1, -2).contiguous()).transpose(-1, -2)  # type: ignore[return-value]
    return config.quantize(weight)


def dequantize_(model: nn.Module) -> None:
    """Replaces every quantized parameter of `model` by its values in its activation dtype; ties stay."""
    plain: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            if isinstance(param, QuantizedTensor):
                if id(param) not in plain:
                    plain[id(param)] = nn.Parameter(param.dequantize(), requires_grad=False)
                setattr(module, name, plain[id(param)])
        if isinstance(vars(module).get("extra_repr"), _ExtraRepr):
            del module.extra_repr
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if type(quantizer).__module__ == "aoq.integrations.transformers":
        quantizer.remove_quantization_config(model)


def register_quantize_module_handler(
    config_type: type[Config],
) -> Callable[[Handler[Config]], Handler[Config]]:
    """Decorates a function (module, config) -> module that replaces whole modules for a type of config.

    It takes the place of `config.quantize` for the modules that `quantize_` selects.
    """

    def register(handler: Handler[Config]) -> Handler[Config]:
        _HANDLERS[config_type] = handler  # type: ignore[assignment]
        return handler

    return register


# ---- the plan: which weights, and how. It holds modules, never weights, which must be free to go -------


@dataclass
class _Candidate:
    """One name of a parameter."""

    module_fqn: str
    module: nn.Module
    name: str
    config: AOBaseConfig | None = None
    reason: str = ""  # why not, if there is no config
    named: bool = False  # by a rule, not by a default or a filter
    wanted: bool = False
    numel: int = 0

    @property
    def fqn(self) -> str:
        return f"{self.module_fqn}.{self.name}" if self.module_fqn else self.name


@dataclass
class _Step:
    """A parameter to quantize, with all of its names that take part."""

    owners: list[_Candidate]
    config: AOBaseConfig

    @property
    def fqns(self) -> tuple[str, ...]:
        return tuple(owner.fqn for owner in self.owners)


def plan(model: nn.Module, config: AOBaseConfig, filter_fn: FilterFn | None) -> tuple[list[_Step], list[SkippedWeight]]:
    names: dict[int, list[_Candidate]] = {}  # of each parameter
    missing: list[_Candidate] = []
    for module_fqn, module in model.named_modules(remove_duplicate=False):
        for name, param in module._parameters.items():
            if param is not None:
                candidate = _Candidate(module_fqn, module, name)
                _decide(candidate, param, config, filter_fn)
                names.setdefault(id(param), []).append(candidate)
        if isinstance(module, nn.Linear) and module._parameters.get("weight") is None:
            reason = "its weight is not a parameter of its own (parametrized?)"
            missing.append(_Candidate(module_fqn, module, "weight", reason=reason, wanted=True))
    steps: list[_Step] = []
    for owners in names.values():
        steps += _agree(owners)
    skipped = [owner for owners in names.values() for owner in owners if owner.config is None] + missing
    return steps, [SkippedWeight(owner.fqn, owner.reason, owner.wanted, owner.numel) for owner in skipped]


def _decide(candidate: _Candidate, param: Tensor, config: AOBaseConfig, filter_fn: FilterFn | None) -> None:
    """Sets the candidate's config, or the reason why it has none."""
    module, name = candidate.module, candidate.name
    linear = is_linear(module) and name == "weight"
    candidate.numel = 0 if is_lazy(param) else param.numel()
    chosen: AOBaseConfig | None = None
    if isinstance(config, FqnToConfig):
        key = config.find(candidate.module_fqn, name, linear)
        candidate.named = key not in (None, "_default")
        if key is not None:
            chosen = config.fqn_to_config[key]
            candidate.reason = f"the config says None for {key}"
        exact = candidate.named and not str(key).startswith("re:")
    else:
        exact = False
        selects = linear if filter_fn is None else filter_fn(module, candidate.module_fqn)
        if linear or (name == "weight" and isinstance(module, nn.Embedding)):
            candidate.reason = LEFT_OUT if filter_fn else ""
            chosen = config if selects else None
    unsuitable = _unsuitable(module, name, param)
    candidate.wanted = chosen is not None and (linear or exact)
    if chosen is None or unsuitable:
        unmatched = "an embedding that is not named" if isinstance(module, nn.Embedding) else UNMATCHED
        candidate.reason = unsuitable or candidate.reason or unmatched
    else:
        candidate.config = chosen


def _unsuitable(module: nn.Module, name: str, param: Tensor) -> str:
    """Why no config can quantize this parameter, or nothing."""
    if isinstance(param, QuantizedTensor):
        return "already quantized"
    if is_lazy(param):
        return "not initialized"
    if name.endswith("bias"):
        return "a bias"
    if "norm" in type(module).__name__.lower() and not isinstance(module, (nn.Linear, nn.Embedding)):
        return "a norm"
    if isinstance(module, nn.modules.conv._ConvNd):
        return A_CONVOLUTION
    if is_traceable_wrapper_subclass(param):
        return f"a {type(param).__name__}"
    if param.dim() < 2 or param.numel() == 0:
        return f"shape {tuple(param.shape)}"
    if param.dtype not in FLOAT_DTYPES:
        return f"dtype {param.dtype}"
    return ""


def _agree(owners: list[_Candidate]) -> list[_Step]:
    """The steps for one parameter, whose names may be selected differently."""
    chosen = [owner for owner in owners if owner.config is not None]
    named = [owner for owner in chosen if owner.named]
    if not named and len(chosen) < len(owners):
        others = ", ".join(owner.fqn for owner in owners if owner.config is None)
        for owner in chosen:
            owner.config, owner.reason = None, f"tied to {others}, which is not selected: name one of them"
        return []
    if named and all(owner.config == named[0].config for owner in named):
        for owner in owners:
            if owner.config is not None or not owner.named:  # a rule of None unties
                owner.config = named[0].config
    steps: list[_Step] = []
    for owner in owners:
        if owner.config is None:
            continue
        if step := next((step for step in steps if step.config == owner.config), None):
            step.owners.append(owner)
        else:
            steps.append(_Step([owner], owner.config))
    return steps


def check_rules(model: nn.Module, config: FqnToConfig) -> None:
    """Raises ValueError if a rule matches no parameter and no module with parameters."""
    names: dict[str, None] = {}
    for module_fqn, module in model.named_modules(remove_duplicate=False):
        for name in module._parameters:
            names |= {module_fqn: None, f"{module_fqn}.{name}" if module_fqn else name: None}
    check_names(names, config)


def check_names(names: Collection[str], config: FqnToConfig) -> None:
    """Raises ValueError if a rule matches none of the `names` of parameters and modules."""
    for key in config.fqn_to_config:
        if key == "_default" or key in names:
            continue
        if key.startswith("re:") and any(re.fullmatch(key[3:], name) for name in names):
            continue
        hint = near(key.removeprefix("re:"), names)
        raise ValueError(f"quantize_: config: {key!r} matches no parameter and no module with parameters{hint}")


# ---- doing it ------------------------------------------------------------------------------------------


def _quantize_step(model: nn.Module, step: _Step, device: torch.device | str | None) -> QuantizedWeight:
    owner = step.owners[0]
    if type(step.config) in _HANDLERS:
        return _replace_modules(model, step)
    weight = owner.module._parameters[owner.name]
    assert weight is not None
    source = weight.detach() if device is None else weight.detach().to(device)
    try:
        quantized = quantize_weight(step.config, source, owner.module)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{owner.fqn}: {error}") from error
    param = nn.Parameter(quantized, requires_grad=False)
    for each in step.owners:
        setattr(each.module, each.name, param)
    return QuantizedWeight(step.fqns, step.config, weight.numel(), weight.nbytes, quantized.nbytes)


def _replace_modules(model: nn.Module, step: _Step) -> QuantizedWeight:
    weight = step.owners[0].module._parameters[step.owners[0].name]
    assert weight is not None
    replaced: dict[int, nn.Module] = {}
    for owner in step.owners:
        module = owner.module
        if id(module) not in replaced:
            replaced[id(module)] = _HANDLERS[type(step.config)](module, step.config)
        new = replaced[id(module)]
        if new is not module:
            if not owner.module_fqn:
                raise ValueError(
                    f"quantize_: the handler of {type(step.config).__name__} cannot replace the model itself"
                )
            parent, _, child = owner.module_fqn.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    after = sum(tensor.nbytes for tensor in (*new.parameters(), *new.buffers()))
    return QuantizedWeight(step.fqns, step.config, weight.numel(), weight.nbytes, after)
