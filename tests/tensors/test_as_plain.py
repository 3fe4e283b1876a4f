"""Quantized tensors where code takes them for plain ones: what it calls, writes, assigns and saves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aoq import (
    AOBaseConfig,
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerGroup,
    PerRow,
    QuantizedTensor,
    quantize_,
)
from aoq.tensors import base
from widths import ONE

CONFIGS = {
    "int4": Int4WeightOnlyConfig(group_size=16),
    "intx-symmetric": IntxWeightOnlyConfig(ONE, PerGroup(16)),
    "int8": Int8DynamicActivationInt8WeightConfig(),
    "int8-asymmetric": Int8DynamicActivationInt8WeightConfig(MappingType.ASYMMETRIC),
    "int8-int4": Int8DynamicActivationInt4WeightConfig(group_size=16),
    "int8-weight": Int8WeightOnlyConfig(),
    "fp8": Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
    "fp8-tensor": Float8DynamicActivationFloat8WeightConfig(),
    "fp8-weight": Float8WeightOnlyConfig(torch.float8_e5m2),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> AOBaseConfig:
    return request.param


@pytest.fixture(autouse=True)
def nothing_said() -> Iterator[None]:
    """The log says things once; in each test anew."""
    said = set(base._warned)
    base._warned.clear()
    yield
    base._warned.update(said)


def quantized(config: AOBaseConfig, *shape: int) -> QuantizedTensor:
    return config.quantize(torch.randn(shape or (40, 72)))


def layers(config: AOBaseConfig) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(72, 40), nn.Linear(40, 24, bias=False)).requires_grad_(False)
    quantize_(made, config)
    return made


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    """Whether the parts and attributes are."""
    assert type(a) is type(b) and [getattr(a, name) for name in a.attrs] == [getattr(b, name) for name in b.attrs]
    assert (a.shape, a.dtype, a.transposed) == (b.shape, b.dtype, b.transposed)
    pairs = zip(a.parts(), b.parts(), strict=True)
    return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


X = torch.randn(3, 72)


# ---- ops


def test_what_has_no_kernel_runs_dequantized_and_is_said_once(
    config: AOBaseConfig, caplog: pytest.LogCaptureFixture
) -> None:
    w = quantized(config, 3, 40, 72).unpack()
    values, x = w.dequantize(), torch.randn(3, 72, 2)
    for operation in (
        lambda w: w + 1,
        lambda w: 1 - w,
        lambda w: torch.relu(w).sum(),
        lambda w: w.view(3, 72, 40),
        lambda w: w.permute(1, 0, 2),
        lambda w: w.expand(5, 3, 40, 72),
        lambda w: w.isfinite().all(),
        lambda w: torch.einsum("enk,ekm->nem", w, x),
        lambda w: torch.linalg.norm(w[0], dim=1),
        lambda w: w[:, torch.tensor([0, 2])],
    ):
        base._warned.clear()
        caplog.clear()
        out = operation(w)
        assert type(out) is Tensor and torch.equal(out, operation(values))
        said = len(caplog.records)
        assert said and "on a dequantized copy" in caplog.text
        operation(w)
        assert len(caplog.records) == said


def test_products_without_linear(config: AOBaseConfig, caplog: pytest.LogCaptureFixture) -> None:
    w, x = quantized(config), torch.randn(2, 72, 3)
    expected = nn.functional.linear(x.transpose(1, 2), w).transpose(1, 2)
    torch.testing.assert_close(w @ x, expected)
    torch.testing.assert_close(torch.matmul(w, x[0]), expected[0])
    torch.testing.assert_close(torch.mm(w, x[0]), expected[0])
    torch.testing.assert_close(x[0].t() @ w.t(), expected[0].t())
    bias = torch.randn(40)
    torch.testing.assert_close(torch.addmm(bias, x[0].t(), w.t()), expected[0].t() + bias)
    torch.testing.assert_close(torch.addmm(bias, x[0].t(), w.t(), beta=2, alpha=3), 3 * expected[0].t() + 2 * bias)
    experts = quantized(config, 3, 40, 72)
    some = experts[torch.tensor([2, 0])]
    assert isinstance(some, QuantizedTensor) and torch.equal(some[0].dequantize(), experts[2].dequantize())
    torch.testing.assert_close(torch.bmm(some, x), torch.stack([some[0] @ x[0], some[1] @ x[1]]))
    assert torch.equal(w[torch.tensor([[5, -1]])], w.dequantize()[torch.tensor([[5, -1]])])  # rows
    assert not caplog.text  # nothing is dequantized as a whole


# ---- writing


def test_all_values_in_one_dimension(config: AOBaseConfig) -> None:
    """Which is a view for whoever views it back, and a dequantized copy for others."""
    w = quantized(config)
    flat = w.view(-1)
    assert flat.shape == (2880,) and flat.detach().view(40, 72).qdata.data_ptr() == w.qdata.data_ptr()
    assert torch.equal(torch.cat([flat, torch.ones(2)]), torch.cat([w.dequantize().flatten(), torch.ones(2)]))
    assert torch.equal(flat.view(72, 40), w.dequantize().view(72, 40)) and torch.equal(w.flatten()[5:9], flat[5:9])
    with pytest.raises(NotImplementedError, match="cannot be written to through a view"):
        flat.zero_()


def test_plain_tensors_like_a_weight(config: AOBaseConfig, caplog: pytest.LogCaptureFixture) -> None:
    w = quantized(config).half()
    for out, shape in (
        (w.new_zeros(7), (7,)),
        (w.new_zeros(2, 5), (2, 5)),
        (w.new_empty(3), (3,)),
        (w.new_full((2,), 5), (2,)),
        (torch.zeros_like(w), (40, 72)),
        (torch.randn_like(w), (40, 72)),
    ):
        assert type(out) is Tensor and (out.shape, out.dtype) == (shape, torch.float16)
    assert isinstance(w.new_zeros(5, 72), QuantizedTensor) and not caplog.text  # as for a shard of it


def test_writing_quantizes_again(config: AOBaseConfig) -> None:
    w = quantized(config)
    alias, delta = w.data, torch.randn(40, 72)
    expected = w.requantize(w.dequantize() + delta)
    w += delta
    assert same(w, expected) and torch.equal(alias.dequantize(), w.dequantize()) and w.packed
    assert not w.zero_().dequantize().any() and not alias.dequantize().any()
    w.copy_(expected)
    w.t().mul_(-1)
    assert torch.equal(w.dequantize(), w.requantize(-expected.dequantize()).dequantize())
    torch.add(delta, delta, out=w)
    assert same(w, w.requantize(2 * delta))
    with pytest.raises(ValueError, match="finite"):
        w.add_(torch.inf)
    assert same(w, w.requantize(2 * delta))


def test_assigning_data(config: AOBaseConfig) -> None:
    layer = layers(config)[0]
    values = torch.randn(40, 72)
    layer.weight.data = values  # what merges adapters does so
    assert isinstance(layer.weight, nn.Parameter) and same(layer.weight, layer.weight.requantize(values))
    assert torch.equal(layer(X), nn.functional.linear(X, config.quantize(values), layer.bias))
    other = quantized(config, 24, 72).half()
    layer.weight.data = other
    assert (layer.weight.shape, layer.weight.dtype) == ((24, 72), torch.float16)
    assert layer.weight.qdata is other.qdata and layer.weight.dequantize().dtype == torch.float16
    with pytest.raises(ValueError, match="finite"):
        layer.weight.data = values * torch.inf
    assert layer.weight.qdata is other.qdata


def test_formats_do_not_mix() -> None:
    w = quantized(CONFIGS["int4"])
    with pytest.raises(TypeError, match="expected Int4Tensor or a plain tensor, got Int8Tensor"):
        w.data = quantized(CONFIGS["int8"])


def test_a_weight_asked_to_train_refuses(config: AOBaseConfig) -> None:
    made = layers(config)
    w = made[0].weight
    for ask in (made.requires_grad_, w.requires_grad_, lambda: setattr(w, "requires_grad", True)):
        with pytest.raises(RuntimeError, match=r"quantized weights are not trained.*LoRA"):
            ask()
    made.requires_grad_(False)
    assert not nn.Parameter(quantized(config)).requires_grad


def test_a_parameter_made_anew(config: AOBaseConfig) -> None:
    """As accelerate does: of the type of the one before."""
    w = nn.Parameter(quantized(config), requires_grad=False)
    again = type(w)(w.to("meta"), requires_grad=True)
    assert isinstance(again, nn.Parameter) and type(again) is type(w) and again.is_meta and not again.requires_grad


# ---- gradients and autocast


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(config: AOBaseConfig, reentrant: bool) -> None:
    made, x = layers(config), X.clone().requires_grad_()
    made(x).square().sum().backward()
    again = X.clone().requires_grad_()
    checkpoint(made, again, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(again.grad, x.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(config: AOBaseConfig, dtype: torch.dtype) -> None:
    made, x = layers(config)[0], X.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        out = made(x)
        assert out.dtype == made(x.detach()).dtype == made(x.detach().to(dtype)).dtype == dtype
        assert made(x.detach().double().float()).dtype == dtype
    assert torch.equal(out, made(x.detach().to(dtype)))
    out.sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, made.weight.dequantize().sum(0).expand(3, -1), rtol=0.01, atol=0.02)
    torch.compiler.reset()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype):
        assert torch.equal(compiled(X), out)


# ---- saving


@pytest.mark.parametrize("save", [lambda model, file: save_file(model.state_dict(), file), save_model])
def test_safetensors_itself_refuses(tmp_path, config: AOBaseConfig, save) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match=r"only their parts, got \w+Tensor\(shape=.*save_pretrained"):
        save(layers(config), tmp_path / "model.safetensors")
    assert not [*tmp_path.iterdir()]
