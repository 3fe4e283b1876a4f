"""Integers in groups whose columns have an order of their own."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aoq import Int4WeightOnlyConfig, IntxWeightOnlyConfig, MappingType
from aoq.config import PerGroup
from aoq.storage.safetensors import load_file, save_file
from aoq.tensors.module import weight_module
from aoq.tensors.ordered import OrderedInt4Tensor, OrderedIntxTensor

N, K = 40, 72
CONFIGS = {
    "int4": Int4WeightOnlyConfig(group_size=16),
    "int4-symmetric": Int4WeightOnlyConfig(group_size=16, mapping_type=MappingType.SYMMETRIC),
    "int3": IntxWeightOnlyConfig(torch.int3, PerGroup(16), MappingType.ASYMMETRIC),  # type: ignore[attr-defined]
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def both(request: pytest.FixtureRequest) -> Any:
    """A weight in the plain layout, and its values, whose columns are those of an unordered one in another order."""
    inner: Any = request.param.quantize(torch.randn(N, K)).unpack()
    order = torch.randperm(K)
    values = torch.empty(N, K)
    values[:, order] = inner.dequantize()
    kind: Any = OrderedInt4Tensor if inner.format.bits == 4 else OrderedIntxTensor
    attrs = [getattr(inner, name) for name in inner.attrs]
    return kind(*inner.parts(), order.int(), *attrs, shape=(N, K), dtype=torch.float32), values


def test_values_and_products(both: Any) -> None:
    w, values = both
    x, bias = torch.randn(3, K), torch.randn(N)
    expected = F.linear(x.double(), values.double(), bias.double()).float()
    for each in (w, w.pack(), w.pack().unpack(), w.t().t()):
        assert torch.equal(each.dequantize(), values)
        torch.testing.assert_close(F.linear(x, each, bias), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(w.t().dequantize(), values.t())
    torch.testing.assert_close(x @ w.pack().t(), (expected - bias), rtol=1e-4, atol=1e-4)
    ids = torch.tensor([[0, 5], [39, 5]])
    assert torch.equal(F.embedding(ids, w), values[ids]) and torch.equal(F.embedding(ids, w.pack()), values[ids])
    module = weight_module(w.pack())
    torch.testing.assert_close(module.linear(x, bias), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(module.rows(ids), values[ids])


def test_gradients_pass_through(both: Any) -> None:
    w, values = both
    x = torch.randn(3, K, requires_grad=True)
    F.linear(x, w.pack()).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, values.sum(0).expand(3, K), rtol=1e-4, atol=1e-4)


def test_slices_of_rows(both: Any) -> None:
    w, values = both
    assert torch.equal(w[3:17].dequantize(), values[3:17])
    assert torch.equal(w.pack()[16:32].dequantize(), values[16:32])
    with pytest.raises(ValueError, match="expected rows of a weight that has an order of its columns"):
        w[:, :16]


def test_copies(both: Any, tmp_path: Path) -> None:
    w, values = both
    file = io.BytesIO()
    torch.save(w.pack(), file)
    file.seek(0)
    save_file({"a.weight": w.pack()}, tmp_path / "w.safetensors")
    saved = load_file(tmp_path / "w.safetensors")["a.weight"]
    for other in (w.clone(), copy.deepcopy(w.pack()), w.to(torch.float32, copy=True), saved):
        assert type(other) is type(w) and torch.equal(other.dequantize(), values)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is type(w) and loaded.packed and torch.equal(loaded.dequantize(), values)
    assert torch.equal(w.new_zeros(5, K).dequantize(), torch.zeros(5, K))


def test_it_is_quantized_again_as_it_is(both: Any) -> None:
    w, values = both
    again = w.requantize(values)
    assert torch.equal(again.order, w.order)
    torch.testing.assert_close(again.dequantize(), values, rtol=0.1, atol=0.1)


def test_an_order_that_is_none(both: Any) -> None:
    w, _ = both
    broken = w.rebuild([*w.parts()[:-1], torch.zeros(K, dtype=torch.int32)])
    with pytest.raises(ValueError, match="order: expected every column once"):
        broken.pack()
    with pytest.raises(ValueError, match="order: expected shape"):
        w.rebuild([*w.parts()[:-1], torch.zeros(3, dtype=torch.int32)])
