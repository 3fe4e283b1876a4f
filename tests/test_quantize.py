import copy
import gc
import itertools
import logging
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from aoq import (
    AOBaseConfig,
    FqnToConfig,
    Int4Tensor,
    Int4WeightOnlyConfig,
    QuantizeReport,
    dequantize_,
    quantize_,
    register_quantize_module_handler,
)
from aoq.quantize import _HANDLERS

CONFIG = Int4WeightOnlyConfig(group_size=16)
FINE = Int4WeightOnlyConfig(group_size=8)
IDS = torch.tensor([[1, 5, 30]])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.up = nn.Linear(32, 48)
        self.down = nn.Linear(48, 32, bias=False)
        self.experts = nn.Parameter(torch.randn(3, 32, 32))
        self.experts_bias = nn.Parameter(torch.randn(3, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(self.up(self.norm(x)).relu())
        return x + nn.functional.linear(x, self.experts[1])


class Model(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(32, 40, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def quantized(model: nn.Module) -> list[str]:
    params = model.named_parameters(remove_duplicate=False)
    return [name for name, param in params if isinstance(param, Int4Tensor)]


LINEARS = [f"blocks.{i}.{name}.weight" for i in range(2) for name in ("up", "down")]


def test_all_linears_by_default() -> None:
    model = Model()
    names = {name for name, _ in model.named_parameters()}
    before = sum(p.nbytes for n, p in model.named_parameters() if n in (*LINEARS, "head.weight"))
    out = model(IDS)
    report = quantize_(model, CONFIG)
    assert quantized(model) == [*LINEARS, "head.weight"]
    assert [weight.fqns for weight in report.quantized] == [(name,) for name in (*LINEARS, "head.weight")]
    assert {name for weight in report.quantized for name in weight.fqns} | {w.fqn for w in report.skipped} == names
    assert report.bytes_before == before
    assert report.bytes_after == sum(param.nbytes for param in model.parameters() if isinstance(param, Int4Tensor))
    assert report.bits_per_weight == pytest.approx(8 * report.bytes_after / sum(w.numel for w in report.quantized))
    assert all(weight.config is CONFIG for weight in report.quantized)
    reasons = {weight.fqn: weight.reason for weight in report.skipped}
    assert reasons["blocks.0.norm.weight"] == "a norm" and reasons["blocks.0.up.bias"] == "a bias"
    assert reasons["embed.weight"] == "an embedding that is not named"
    assert reasons["blocks.0.experts"] == "neither a linear's weight nor named"
    assert not any(weight.wanted for weight in report.skipped)
    assert "quantized 5 weights" in str(report) and "left 6 as they are: a bias" in str(report)
    assert (model(IDS) - out).norm() < 0.2 * out.norm()


def test_the_model_may_be_a_linear() -> None:
    layer = nn.Linear(32, 48)
    assert [weight.fqns for weight in quantize_(layer, CONFIG).quantized] == [("weight",)]
    assert isinstance(layer.weight, Int4Tensor) and isinstance(layer.weight, nn.Parameter)


def test_filter_fn() -> None:
    model = Model()
    report = quantize_(model, CONFIG, lambda module, fqn: isinstance(module, nn.Embedding) or "up" in fqn)
    assert quantized(model) == ["embed.weight", "blocks.0.up.weight", "blocks.1.up.weight"]
    assert {weight.fqn: weight.reason for weight in report.skipped}["head.weight"] == "filter_fn leaves it out"
    model = Model()
    quantize_(model, CONFIG, lambda module, fqn: True)
    assert quantized(model) == ["embed.weight", *LINEARS, "head.weight"]
    with pytest.raises(ValueError, match="filter_fn"):
        quantize_(model, FqnToConfig({"_default": CONFIG}), lambda module, fqn: True)


def test_k_that_no_group_divides_is_quantized() -> None:
    layer = nn.Linear(33, 10)
    assert not [weight for weight in quantize_(layer, Int4WeightOnlyConfig(128), strict=True).skipped if weight.wanted]
    assert layer(torch.randn(2, 33)).shape == (2, 10)


# ---- by name


def test_names_patterns_and_defaults() -> None:
    model = Model()
    rules = {
        "_default": CONFIG,
        "re:blocks.0.*": FINE,  # reaches norms, biases and experts: only what is a weight is quantized
        "blocks.1.down": None,
        "blocks.1.experts": FINE,
        "embed": FINE,
    }
    report = quantize_(model, FqnToConfig(rules))
    assert {name: weight.config.group_size for weight in report.quantized for name in weight.fqns} == {
        "embed.weight": 8,
        "blocks.0.experts": 8,
        "blocks.0.up.weight": 8,
        "blocks.0.down.weight": 8,
        "blocks.1.experts": 8,
        "blocks.1.up.weight": 16,
        "head.weight": 16,
    }
    reasons = {weight.fqn: weight.reason for weight in report.skipped}
    assert reasons["blocks.1.down.weight"] == "the config says None for blocks.1.down"
    assert reasons["blocks.0.norm.weight"] == "a norm"
    assert reasons["blocks.0.experts_bias"] == "a bias"
    assert model(IDS).isfinite().all()


def test_a_name_that_matches_nothing_lists_near_ones() -> None:
    for key, near in (("blocks.0.upp", "blocks.0.up"), ("re:blocks.0.upp", "blocks.0.up"), ("blocks", "blocks.0")):
        model = Model()
        with pytest.raises(ValueError, match=rf"'{key}' matches no parameter.*did you mean .*{near}\b"):
            quantize_(model, FqnToConfig({"_default": CONFIG, key: CONFIG}))
        assert not quantized(model)
    with pytest.raises(ValueError, match=r"'zzz' matches no parameter and no module with parameters$"):
        quantize_(Model(), FqnToConfig({"zzz": None}))


def test_parameters_that_are_named_but_cannot_be_quantized() -> None:
    config = FqnToConfig({"blocks.0.norm.weight": CONFIG, "head": CONFIG})
    report = quantize_(Model(), config)
    assert [weight.fqn for weight in report.skipped if weight.wanted] == ["blocks.0.norm.weight"]
    with pytest.raises(ValueError, match=r"1 weights would be skipped: blocks.0.norm.weight: a norm"):
        quantize_(Model(), config, strict=True)


# ---- what is skipped


def test_twice() -> None:
    model = Model()
    quantize_(model, CONFIG)
    parts = [param.qdata for param in model.parameters() if isinstance(param, Int4Tensor)]
    report = quantize_(model, FqnToConfig({"_default": FINE, "re:.*up": FINE}))
    assert not report.quantized
    assert {w.reason for w in report.skipped if w.wanted} == {"already quantized"}
    assert all(
        a is b.qdata for a, b in zip(parts, [p for p in model.parameters() if isinstance(p, Int4Tensor)], strict=True)
    )


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_cannot_be_quantized() -> None:
    model = nn.ModuleDict(
        {
            "lazy": nn.LazyLinear(4),
            "int8": nn.Linear(4, 4),
            "empty": nn.Linear(0, 4),
            "conv": nn.Conv1d(4, 4, 3),
            "parametrized": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "wide": nn.Linear(4, 4).double(),
        }
    )
    model["int8"].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    report = quantize_(model, CONFIG)
    assert not report.quantized
    reasons = {weight.fqn: weight.reason for weight in report.skipped if weight.fqn.endswith("weight")}
    assert reasons == {
        "lazy.weight": "not initialized",
        "int8.weight": "dtype torch.int8",
        "empty.weight": "shape (4, 0)",
        "conv.weight": "a convolution",
        "parametrized.weight": "its weight is not a parameter of its own (parametrized?)",
        "wide.weight": "dtype torch.float64",
    }
    with pytest.raises(ValueError, match="5 weights would be skipped"):
        quantize_(model, CONFIG, strict=True)


def test_strict_changes_nothing_when_it_raises() -> None:
    model = Model(tied=True)
    with pytest.raises(ValueError, match=r"head.weight: tied to embed.weight"):
        quantize_(model, CONFIG, strict=True)
    assert not quantized(model)


# ---- tied weights


def test_a_tied_weight_is_not_untied_silently() -> None:
    model = Model(tied=True)
    report = quantize_(model, CONFIG)
    assert quantized(model) == LINEARS and model.head.weight is model.embed.weight
    (skipped,) = (weight for weight in report.skipped if weight.fqn == "head.weight")
    assert skipped.wanted and "tied to embed.weight" in skipped.reason


@pytest.mark.parametrize("rules", [{"head": FINE}, {"embed.weight": FINE}, {"head": FINE, "embed": FINE}])
def test_naming_a_tied_weight_quantizes_it_for_all_its_names(rules: dict[str, AOBaseConfig]) -> None:
    model = Model(tied=True)
    report = quantize_(model, FqnToConfig({"_default": CONFIG, **rules}))
    assert model.head.weight is model.embed.weight and isinstance(model.head.weight, Int4Tensor)
    (weight,) = (weight for weight in report.quantized if weight.config is FINE)
    assert weight.fqns == ("embed.weight", "head.weight")
    assert model(IDS).isfinite().all()


def test_a_filter_that_selects_all_names_keeps_the_tie() -> None:
    model = Model(tied=True)
    quantize_(model, CONFIG, lambda module, fqn: True)
    assert model.head.weight is model.embed.weight and isinstance(model.head.weight, Int4Tensor)


def test_rules_that_disagree_untie() -> None:
    model = Model(tied=True)
    quantize_(model, FqnToConfig({"head": FINE, "embed": None}))
    assert isinstance(model.head.weight, Int4Tensor) and not isinstance(model.embed.weight, Int4Tensor)
    model = Model(tied=True)
    quantize_(model, FqnToConfig({"head": FINE, "embed": CONFIG}))
    assert (model.head.weight.group_size, model.embed.weight.group_size) == (8, 16)


def test_shared_modules() -> None:
    model = nn.ModuleList([nn.Linear(16, 16)])
    model.append(model[0])
    report = quantize_(model, FqnToConfig({"1": CONFIG}))
    assert [weight.fqns for weight in report.quantized] == [("0.weight", "1.weight")]


# ---- what it says


def test_the_report_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aoq")
    report = quantize_(Model(), CONFIG)
    assert [record.message for record in caplog.records] == ["; ".join(str(report).splitlines())]


def test_little_is_quantized(caplog: pytest.LogCaptureFixture) -> None:
    """Which is said where most of what could be quantized is neither a linear nor named."""
    model = Model()
    model.table = nn.Parameter(torch.zeros(100, 100))
    quantize_(model, CONFIG)
    assert "only 29% of the weights are quantized: 3 others" in caplog.text and "such as table; a Fqn" in caplog.text
    caplog.clear()
    quantize_(nn.Sequential(nn.Conv2d(16, 16, 3), nn.Linear(16, 16)), CONFIG)
    assert "1 others are a convolution, such as 0.weight" in caplog.text and "Fqn" not in caplog.text
    caplog.clear()
    quantize_(Model(), CONFIG, lambda module, fqn: fqn == "head")  # as asked
    assert not caplog.text


def test_modules_say_what_they_hold() -> None:
    model = Model()
    before = str(model)
    quantize_(model, CONFIG)
    bits = f"{model.blocks[0].up.weight.bits_per_weight:.2f}"
    text = f"(up): Linear(in_features=32, out_features=48, bias=True, weight=Int4Tensor, {bits} bits)"
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert str(each).count(text) == 1  # of two alike
    alive = weakref.ref(model)
    dequantize_(model)
    assert str(model) == before
    del model, each
    assert alive() is None  # without waiting for the garbage collector


# ---- errors


def test_a_bad_weight_is_named() -> None:
    model = Model()
    with torch.no_grad():
        model.blocks[1].up.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"blocks.1.up.weight: .*w: expected finite values"):
        quantize_(model, CONFIG)


@dataclass
class WithoutKernels(AOBaseConfig):
    """What a file may name."""


def test_a_config_without_kernels_changes_nothing() -> None:
    model = Model()
    config = FqnToConfig({"_default": CONFIG, "head": WithoutKernels()})
    with pytest.raises(NotImplementedError, match="reads WithoutKernels but has no kernels"):
        quantize_(model, config)
    assert not quantized(model)
    with pytest.raises(TypeError, match="config: expected a config"):
        quantize_(model, {"_type": "Int4WeightOnlyConfig"})  # type: ignore[arg-type]


# ---- module handlers


@dataclass
class SwapConfig(AOBaseConfig):
    factor: float = 2.0


@pytest.fixture
def handler() -> Iterator[list[nn.Module]]:
    seen: list[nn.Module] = []

    @register_quantize_module_handler(SwapConfig)
    def swap(module: nn.Module, config: SwapConfig) -> nn.Module:
        seen.append(module)
        new = nn.Linear(module.in_features, module.out_features, bias=False)
        new.factor = config.factor
        return new

    yield seen
    del _HANDLERS[SwapConfig]


def test_handlers_replace_modules(handler: list[nn.Module]) -> None:
    model = Model()
    before = model.head
    report = quantize_(model, FqnToConfig({"_default": CONFIG, "head": SwapConfig(3.0)}))
    assert handler == [before] and model.head is not before and model.head.factor == 3.0
    assert quantized(model) == LINEARS
    assert report.quantized[-1].fqns == ("head.weight",) and report.quantized[-1].bytes_after == 32 * 40 * 4
    with pytest.raises(ValueError, match="cannot replace the model itself"):
        quantize_(nn.Linear(4, 4), SwapConfig())


def test_handlers_see_a_shared_module_once(handler: list[nn.Module]) -> None:
    model = nn.ModuleList([nn.Linear(16, 16)])
    model.append(model[0])
    quantize_(model, SwapConfig())
    assert len(handler) == 1 and model[0] is model[1] and model[0].factor == 2.0


# ---- dequantize_, devices, memory, progress


def test_dequantize_restores_plain_parameters_and_ties() -> None:
    model = Model(tied=True).bfloat16()
    quantize_(model, FqnToConfig({"_default": CONFIG, "head": CONFIG}))
    values = model.head.weight.dequantize()
    dequantize_(model)
    assert not quantized(model) and model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, values) and model.head.weight.dtype == torch.bfloat16


def test_device_moves_the_whole_model() -> None:
    model = Model()
    report = quantize_(model, CONFIG, device="meta")
    assert {param.device.type for param in model.parameters()} == {"meta"}
    assert isinstance(report, QuantizeReport) and quantized(model) == [*LINEARS, "head.weight"]


MEMORY = """
import torch, aoq
from torch import nn

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

torch.set_num_threads(1)
aoq.quantize_(nn.Linear(256, 256).bfloat16(), aoq.Int4WeightOnlyConfig())
model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16) for _ in range(16)))
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
aoq.quantize_(model, aoq.Int4WeightOnlyConfig())
print(status("VmHWM") - before, status("VmRSS") - before, model[0].weight.nbytes)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="cannot reset the peak of memory")
def test_quantizing_streams() -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # so that what is freed goes back at once
    command = [sys.executable, "-c", MEMORY]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    peak, after, layer = map(int, out.split())
    assert peak < 2048 * 2048 * 2  # over the model: less than one layer of it
    assert after < -0.9 * 16 * (2048 * 2048 * 2 - layer)


def test_weights_are_freed_as_they_are_replaced() -> None:
    model = Model()
    pointers = []

    @dataclass
    class Watch(AOBaseConfig):
        def quantize(self, weight: torch.Tensor) -> Int4Tensor:
            gc.collect()
            pointers.append(sum(type(param) is nn.Parameter and param.dim() == 2 for param in gc.get_objects()))
            return CONFIG.quantize(weight)

    quantize_(model, Watch())
    assert [a - b for a, b in itertools.pairwise(pointers)] == [1] * (len(pointers) - 1)


def test_the_progress_bar_is_quiet_when_stderr_is_not_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    quantize_(Model(), CONFIG)
    assert capfd.readouterr() == ("", "")
