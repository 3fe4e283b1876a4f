"""The tensor contract, on every format."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aoq import (
    _C,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    MappingType,
    QuantizedTensor,
    quantize_,
)
from aoq.config import AOBaseConfig
from aoq.ops import fp8_dequantize, fp8_quantize, int4_quantize, int8_dequantize, int8_quantize
from aoq.tensors.formats import FORMATS, ways
from aoq.tensors.module import weight_module
from widths import representative

SYMMETRIC, ASYMMETRIC = MappingType
INT4 = Int4WeightOnlyConfig(group_size=16)
INT8 = Int8DynamicActivationInt8WeightConfig()
# All that there are, in groups of 16 where there are groups, and variants of their tensors.
CONFIGS = {
    **{name: config for name, config in representative().items() if "group_size" not in config.OPTIONS},
    **{
        name: config.with_options(group_size=16)
        for name, config in representative().items()
        if "group_size" in config.OPTIONS
    },
    "int8-asymmetric": Int8DynamicActivationInt8WeightConfig(ASYMMETRIC),
    "fp8-weight": Float8WeightOnlyConfig(torch.float8_e5m2),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> AOBaseConfig:
    return request.param


def quantized(config: AOBaseConfig, *shape: int) -> QuantizedTensor:
    return config.quantize(torch.randn(shape or (40, 72)))


def plain(config: AOBaseConfig, *shape: int) -> QuantizedTensor:
    return quantized(config, *shape).unpack()


def product(x: Tensor, w: QuantizedTensor) -> Tensor:
    """`x @ w.T` by PyTorch, of an x that is quantized as `w` wants it."""
    if mapping := getattr(w, "act_mapping", None):
        x = int8_dequantize(*int8_quantize(x, mapping), x.dtype)
    if dtype := getattr(w, "act_dtype", None):
        x = fp8_dequantize(*fp8_quantize(x, w.act_granularity, dtype), x.dtype)
    return x @ w.dequantize().t()


def addresses(w: QuantizedTensor) -> list[int]:
    return [part.data_ptr() for part in w.parts() if part is not None]


def equal(a: Tensor, b: Tensor) -> bool:
    """Of any dtype: PyTorch compares few floats of 8 bits."""
    small = a.is_floating_point() and a.itemsize == 1
    return a.dtype == b.dtype and (
        torch.equal(a.view(torch.uint8), b.view(torch.uint8)) if small else torch.equal(a, b)
    )


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    """Whether two tensors have equal parts and attributes."""
    assert type(a) is type(b)
    if any(getattr(a, name) != getattr(b, name) for name in (*a.attrs, "weight_shape", "transposed", "dtype")):
        return False
    return all(
        (x is None and y is None) or (x is not None and y is not None and equal(x, y))
        for x, y in zip(a.parts(), b.parts(), strict=True)
    )


def model(config: AOBaseConfig | None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(72, 40), nn.ReLU(), nn.Linear(40, 20, bias=False)).requires_grad_(False)
    if config is not None:
        quantize_(layers, config)
    return layers


X = torch.randn(3, 72)


# ---- copies and views


def test_views_alias_and_copies_do_not(config: AOBaseConfig) -> None:
    w = plain(config)
    for view in (w.detach(), w.data, w.view(40, 72), w.as_strided((40, 72), (72, 1)), w.t(), w[:], w.expand(40, -1)):
        assert addresses(view) == addresses(w)
    for other in (w.clone(), copy.deepcopy(w), w.to(torch.float16), torch.empty_like(w), w.new_zeros(w.shape)):
        assert not {*addresses(other)} & {*addresses(w)}


def test_views_in_inference_mode(config: AOBaseConfig) -> None:
    w, packed = plain(config), quantized(config)
    with torch.inference_mode():
        assert torch.equal(w.t().t()[8:24].detach().dequantize(), w.dequantize()[8:24])
        assert torch.equal(packed[16:32].unpack()[3:5].dequantize(), packed.dequantize()[19:21])
        inside = plain(config)
        assert torch.equal(inside[8:24].dequantize(), inside.dequantize()[8:24])


@given(
    data=st.data(),
    n=st.integers(1, 40),
    k=st.integers(1, 80),
    kind=st.sampled_from([Int4WeightOnlyConfig, Int8DynamicActivationInt4WeightConfig, None]),
    group_size=st.sampled_from([8, 16, 24, 64, 128]),
    mapping=st.sampled_from(MappingType),
)
def test_slices_are_slices_of_the_values(
    data: st.DataObject, n: int, k: int, kind: type | None, group_size: int, mapping: MappingType
) -> None:
    config = kind(group_size, mapping_type=mapping) if kind else Int8DynamicActivationInt8WeightConfig(mapping)
    w = plain(config, n, k)
    dim = data.draw(st.integers(-2, 1))
    start = data.draw(st.integers(0, w.shape[dim] - 1))
    length = data.draw(st.integers(1, w.shape[dim] - start))
    try:
        part = w.narrow(dim, start, length)
    except ValueError as error:
        assert kind is not None and dim in (-1, 1) and str(error).startswith("slice: ")
        assert start % 8 or (start + length) % 2  # what a multiple of 8 begins and a whole byte ends is never refused
        return
    assert torch.equal(part.dequantize(), w.dequantize().narrow(dim, start, length))
    assert part.qdata.untyped_storage().data_ptr() == w.qdata.untyped_storage().data_ptr()
    x = torch.randn(2, part.shape[1])
    torch.testing.assert_close(F.linear(x, part), product(x, part), atol=1e-3, rtol=1e-3)
    assert torch.equal(part.pack().dequantize(), part.dequantize())


GROUPS_OF_64 = [
    Int4WeightOnlyConfig(64),
    Int8DynamicActivationInt4WeightConfig(64),
    Int8DynamicActivationInt8WeightConfig(ASYMMETRIC),
]


@pytest.mark.parametrize("config", GROUPS_OF_64)
@pytest.mark.parametrize("tp", [2, 3, 4])
def test_shards_along_k_multiply_like_the_whole(tp: int, config: AOBaseConfig) -> None:
    # k / tp = 48, 32, 24 with groups of 64: each shard but the first starts inside a group
    w, x = plain(config, 20, 96), torch.randn(5, 96)
    shards, pieces = w.chunk(tp, dim=1), x.chunk(tp, dim=1)
    assert torch.equal(torch.cat([shard.dequantize() for shard in shards], 1), w.dequantize())
    out = sum(F.linear(piece, shard) for piece, shard in zip(pieces, shards, strict=True))
    torch.testing.assert_close(out, sum(map(product, pieces, shards)), atol=1e-4, rtol=1e-4)
    # Of activations quantized to int8, each shard has its own scales.
    torch.testing.assert_close(out, x @ w.dequantize().t(), atol=0.2 if hasattr(w, "act_mapping") else 1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", GROUPS_OF_64)
@pytest.mark.parametrize(("start", "end"), [(48, 96), (0, 48)])
def test_nothing_is_copied_into_a_slice_within_scales(start: int, end: int, config: AOBaseConfig) -> None:
    w = plain(config, 20, 96)
    shard, before = w[:, start:end], w.clone()
    for part in (shard, shard[4:8], shard.detach().t().t(), shard.view(20, 48)):
        with pytest.raises(ValueError, match="dst: expected whole groups along k"):
            part.copy_(part.clone())
    assert same(w, before)
    other = plain(config, 20, 96)[:, start:end]
    assert torch.equal(shard.clone().copy_(other).dequantize(), other.dequantize())


def test_copying_into_a_slice_changes_the_whole(config: AOBaseConfig) -> None:
    w, other = plain(config, 40, 96), plain(config, 40, 96)
    expected = w.dequantize()
    w.narrow(0, 8, 16).copy_(other.narrow(0, 8, 16))
    expected[8:24] = other.dequantize()[8:24]
    if hasattr(w, "group_size") and getattr(w, "row_scale", None) is None:
        w.narrow(1, 32, 64)[20:].copy_(other[20:].narrow(1, 32, 64))
        expected[20:, 32:] = other.dequantize()[20:, 32:]
    assert torch.equal(w.dequantize(), expected)
    assert equal(w[8:24].scale, other[8:24].scale)


def test_copying_into_tiles(config: AOBaseConfig) -> None:
    w, other = quantized(config), quantized(config)
    expected = product(X, w)
    w[16:32].copy_(other[16:32])
    expected[:, 16:32] = product(X, other)[:, 16:32]
    torch.testing.assert_close(F.linear(X, w), expected)


@pytest.mark.parametrize("kind", [Int4WeightOnlyConfig, Int8DynamicActivationInt4WeightConfig])
def test_copy_regroups_when_that_is_lossless(kind: type) -> None:
    for group_size, other in ((64, 16), (96, 128), (128, 96)):
        source, target = plain(kind(group_size), 8, 96), quantized(kind(other), 8, 96)
        target.copy_(source)
        assert torch.equal(target.dequantize(), source.dequantize())


def test_copy_converts_between_layouts(config: AOBaseConfig) -> None:
    for source, target in ((quantized(config), plain(config)), (plain(config), quantized(config))):
        packing = target.packing
        target.copy_(source)
        assert target.packing == packing
        assert torch.equal(target.dequantize(), source.dequantize())
        assert torch.equal(F.linear(X, target), F.linear(X, source))
    values = torch.empty(40, 72, dtype=torch.bfloat16)
    assert torch.equal(values.copy_(source), source.dequantize().bfloat16())


INT4_SYMMETRIC = Int4WeightOnlyConfig(16, mapping_type=SYMMETRIC)


@pytest.mark.parametrize(
    ("config", "source", "error", "message"),
    [
        (INT4, torch.randn(40, 72), TypeError, "expected Int4Tensor, got Tensor; quantize it first"),
        (INT8, quantized(INT4), TypeError, "expected Int8Tensor, got Int4Tensor; quantize it first"),
        (INT4, quantized(INT4, 40, 64), ValueError, r"expected shape \(40, 72\), got \(40, 64\)"),
        (INT4, quantized(Int4WeightOnlyConfig(24)), ValueError, "group_size: expected 16, got 24"),
        (INT4, quantized(INT4_SYMMETRIC), ValueError, "expected zero_point"),
        (INT4_SYMMETRIC, quantized(INT4), ValueError, "expected no zero_point"),
        (INT8, quantized(CONFIGS["int8-asymmetric"]), ValueError, "act_mapping: expected symmetric, got asymmetric"),
        (INT4, quantized(INT4).to("meta"), NotImplementedError, "no data"),
        (
            Int4WeightOnlyConfig(16, scale_dtype=torch.bfloat16),
            quantized(INT4),
            TypeError,
            "scale is torch.float32, which torch.bfloat16 cannot hold",
        ),
        (INT4, quantized(Int4WeightOnlyConfig(16, scale_dtype=torch.bfloat16)), None, ""),
    ],
)
def test_copy_refuses_what_does_not_fit(
    config: AOBaseConfig, source: Tensor, error: type[Exception] | None, message: str
) -> None:
    w = quantized(config)
    before = w.clone()
    if error is None:
        w.copy_(source)
        assert torch.equal(w.dequantize(), source.dequantize())
    else:
        with pytest.raises(error, match=message):
            w.copy_(source)
        assert same(w, before)


def test_a_weight_as_a_module(config: AOBaseConfig) -> None:
    w, x, bias, ids = quantized(config), torch.randn(3, 72), torch.randn(40), torch.tensor([[0, 39], [7, 8]])
    module = weight_module(w)
    assert [param.data_ptr() for param in module.parameters()] == [p.data_ptr() for p in w.parts() if p is not None]
    assert not any(isinstance(param, QuantizedTensor) for param in module.parameters())
    assert torch.equal(module.linear(x, bias), torch.nn.functional.linear(x, w, bias))
    assert torch.equal(module.rows(ids), torch.nn.functional.embedding(ids, w))
    torch.compiler.reset()  # else too many formats have been compiled as this one function
    compiled = torch.compile(lambda x: module.linear(x, None), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), torch.nn.functional.linear(x, w))


def test_cat(config: AOBaseConfig) -> None:
    w = plain(config)
    assert torch.equal(torch.cat([w[:24], w[24:]]).dequantize(), w.dequantize())
    batch = plain(config, 2, 40, 72)
    assert torch.equal(torch.cat([batch, batch], dim=-2).dequantize(), torch.cat([batch.dequantize()] * 2, dim=1))
    for others, dim, error in [([w.pack()], 0, ValueError), ([w], 1, ValueError), ([w.dequantize()], 0, TypeError)]:
        with pytest.raises(error, match="cat: "):
            torch.cat([w, *others], dim=dim)
    with pytest.raises(ValueError, match="cat: tensors: expected the same parts and attributes"):
        torch.cat([w, w.to(torch.bfloat16)])


def test_select_unbind_and_split(config: AOBaseConfig) -> None:
    w = plain(config, 3, 40, 72)
    values = w.dequantize()
    assert torch.equal(w[1].dequantize(), values[1]) and torch.equal(w[-1, 5].dequantize(), values[-1, 5])
    assert [torch.equal(a.dequantize(), b) for a, b in zip(w, values, strict=True)] == [True] * 3
    pieces = w.split([10, 30], dim=1)
    assert [tuple(piece.shape) for piece in pieces] == [(3, 10, 72), (3, 30, 72)]
    assert torch.equal(pieces[1].dequantize(), values[:, 10:])
    assert [tuple(piece.shape) for piece in plain(config).split(16)] == [(16, 72), (16, 72), (8, 72)]
    assert torch.equal(w.view(120, 72).dequantize(), values.view(120, 72))
    for bad, error in (
        (lambda: w[3], IndexError),
        (lambda: w[..., 0], ValueError),
        (lambda: w[::2], ValueError),
        (lambda: w.split([10, 10], dim=1), ValueError),
        (lambda: w.as_strided((3, 40), (40, 1)), ValueError),
    ):
        with pytest.raises(error):
            bad()


def test_tiled_tensors_slice_in_whole_tiles(config: AOBaseConfig) -> None:
    w = quantized(config)
    for part, values in (
        (w[16:], w.dequantize()[16:]),
        (w[:32], w.dequantize()[:32]),
        (w[16:32], w.dequantize()[16:32]),
    ):
        assert part.packed and part.qdata.untyped_storage().data_ptr() == w.qdata.untyped_storage().data_ptr()
        assert torch.equal(part.dequantize(), values)
        torch.testing.assert_close(F.linear(X, part), product(X, part))
    for bad in (lambda: w[8:], lambda: w[:20], lambda: w[:, 16:], lambda: w[3]):
        with pytest.raises(ValueError, match=r"unpack|plain"):
            bad()


def test_transposed(config: AOBaseConfig) -> None:
    w = quantized(config)
    for turned in (w.t(), w.T, w.mT, w.transpose(-1, 0), w.permute(1, 0)):
        assert tuple(turned.shape) == (72, 40) and turned.stride() == (1, 72) and not turned.is_contiguous()
        assert torch.equal(turned.dequantize(), w.dequantize().t())
        torch.testing.assert_close(X @ turned, product(X, w))
        torch.testing.assert_close(torch.addmm(torch.ones(40), X, turned), 1 + product(X, w))
    assert same(w.t().t(), w)
    assert same(pickle.loads(pickle.dumps(w.t())), w.t())
    narrowed = w.unpack().t()[:, 8:24]
    assert torch.equal(narrowed.dequantize(), w.dequantize().t()[:, 8:24])
    y = torch.randn(3, 40)
    torch.testing.assert_close(y @ w, y @ w.dequantize())  # not transposed: dequantizes


def test_new_zeros_and_empty_like(config: AOBaseConfig) -> None:
    w = quantized(config)
    zeros = w.new_zeros(48, 72)
    assert type(zeros) is type(w) and not zeros.dequantize().any() and tuple(zeros.shape) == (48, 72)
    empty = torch.empty_like(w, device="meta", dtype=torch.bfloat16)
    assert empty.is_meta and empty.dtype == torch.bfloat16 and not empty.packed
    assert torch.empty_like(w).packed


# ---- what formats say of themselves


def test_a_weight_says_what_made_it(config: AOBaseConfig) -> None:
    values = torch.randn(40, 72)
    w = config.quantize(values)
    assert same(w.config().quantize(values), w)

    def alike(format: Any) -> bool:  # e5m2 has e4m3's name on the command line
        return bool(format.name.partition("_")[0] == w.format.name.partition("_")[0])

    command = next(way.command for way in ways() if alike(way.format) and type(way.config) is type(config))
    assert w.label == command + (f" g{w.group_size}" if hasattr(w, "group_size") else "")
    assert w.format in FORMATS.values() and w.format.codes.name == "qdata"


# ---- multiplying and looking up


def test_ways_to_call(config: AOBaseConfig) -> None:
    w, x = config.quantize(torch.randn(20, 64)), torch.randn(6, 64)
    assert torch.equal(F.linear(x[0], w), F.linear(x[:1], w)[0])
    assert torch.equal(F.linear(bias=None, weight=w, input=x), F.linear(x, w))
    torch.testing.assert_close(F.linear(x.t().contiguous().t(), w), F.linear(x, w))
    torch.testing.assert_close(F.linear(x[::2], w), F.linear(x, w)[::2])


def test_gradients_go_through(config: AOBaseConfig) -> None:
    w = config.quantize(torch.randn(20, 64))
    x, bias, grad = (
        torch.randn(2, 3, 64, requires_grad=True),
        torch.randn(20, requires_grad=True),
        torch.randn(2, 3, 20),
    )
    F.linear(x, w, bias).backward(grad)
    torch.testing.assert_close(x.grad, grad @ w.dequantize())
    torch.testing.assert_close(bias.grad, grad.sum((0, 1)))
    only_bias = torch.zeros(20, requires_grad=True)
    F.linear(x.detach(), w, only_bias).sum().backward()
    assert torch.equal(only_bias.grad, torch.full((20,), 6.0))


def test_an_adapter_on_top_trains(config: AOBaseConfig) -> None:
    base = nn.Linear(64, 20).requires_grad_(False)
    quantize_(base, config)
    down, up = nn.Linear(64, 4, bias=False), nn.Linear(4, 20, bias=False)
    model, x, target = nn.Sequential(nn.Linear(64, 64), base), torch.randn(32, 64), torch.randn(32, 20)
    optimizer = torch.optim.Adam([*down.parameters(), *up.parameters(), *model[0].parameters()], 1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x) + up(down(x)), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and model[0].weight.grad.abs().sum() > 0


# ---- embeddings and experts


@pytest.mark.parametrize("packed", [True, False])
def test_embedding_looks_up_dequantized_rows(packed: bool, config: AOBaseConfig) -> None:
    w = config.quantize(torch.randn(50, 99))
    w = w if packed else w.unpack()
    ids = torch.tensor([[0, 49, 17], [16, 15, 17]])
    assert torch.equal(F.embedding(ids, w), w.dequantize()[ids])
    layer = nn.Embedding(50, 99, padding_idx=3)
    layer.weight = nn.Parameter(w, requires_grad=False)
    torch.compiler.reset()
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(ids), w.dequantize()[ids])
    assert torch.equal(torch.export.export(layer, (ids,)).module()(ids), w.dequantize()[ids])


@pytest.mark.parametrize("bad", [-1, 50, 1000])
def test_embedding_checks_its_ids(bad: int, config: AOBaseConfig) -> None:
    w = config.quantize(torch.randn(50, 64))
    with pytest.raises(RuntimeError, match="ids: expected indices below 50"):
        F.embedding(torch.tensor([0, bad]), w)
    with pytest.raises(ValueError, match="max_norm"):
        F.embedding(torch.tensor([0]), w, max_norm=1.0)


def test_experts(config: AOBaseConfig) -> None:
    w, x = config.quantize(torch.randn(4, 24, 64)), torch.randn(10, 64)
    torch.testing.assert_close(F.linear(x, w[2]), product(x, w[2]))
    batch = torch.randn(4, 3, 64)
    expected = torch.stack([product(*pair) for pair in zip(batch, w, strict=True)])
    torch.testing.assert_close(torch.bmm(batch, w.transpose(1, 2)), expected)
    torch.testing.assert_close(batch @ w.mT, expected)
    ends = torch.tensor([3, 3, 7, 10], dtype=torch.int32)  # the second expert has no rows
    grouped = F.grouped_mm(x, w.transpose(1, 2), offs=ends)
    torch.testing.assert_close(grouped, torch.cat([product(x[:3], w[0]), product(x[3:7], w[2]), product(x[7:], w[3])]))
    with pytest.raises(ValueError, match="w: expected 2 dimensions"):
        F.linear(x, w)


# ---- errors


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.full((4, 8), torch.nan), ValueError, "w: expected finite values"),
        (torch.tensor([[1.0, torch.inf]]), ValueError, "w: expected finite values"),
        (torch.zeros(8), ValueError, "w: expected 2 or more dimensions"),
        (torch.zeros(0, 8), ValueError, "w: expected 2 or more dimensions, none of them 0"),
        (torch.zeros(4, 8, dtype=torch.int8), TypeError, "w: expected bfloat16, float16 or float32, got int8"),
        (torch.zeros(4, 8, dtype=torch.float64), TypeError, "w: expected bfloat16, float16 or float32, got float64"),
    ],
)
def test_bad_weights(weight: Tensor, error: type[Exception], message: str, config: AOBaseConfig) -> None:
    with pytest.raises(error, match=message):
        config.quantize(weight)


def test_bad_activations(config: AOBaseConfig) -> None:
    w, x, bias = config.quantize(torch.randn(20, 64)), torch.randn(3, 64), torch.randn(20)
    for call, error, message in (
        (lambda: F.linear(x[:, :63], w), ValueError, r"x: expected shape \[..., 64\], got \(3, 63\)"),
        (lambda: F.linear(torch.tensor(1.0), w), ValueError, r"x: expected shape \[..., 64\], got \(\)"),
        (lambda: F.linear(x.double(), w), TypeError, "x: expected bfloat16, float16 or float32, got float64"),
        (lambda: F.linear(x.double().requires_grad_(), w), TypeError, "x: expected bfloat16"),
        (lambda: F.linear(x.to("meta"), w), ValueError, "expected the device of x, meta, got cpu"),
        (lambda: F.linear(x, w.to("meta")), ValueError, "x: expected the device of w, meta, got cpu"),
        (lambda: F.linear(x, w, bias[1:]), ValueError, r"bias: expected shape \[20\], got \[19\]"),
        (lambda: F.linear(x, w, bias.double()), TypeError, "bias: expected bfloat16"),
        (lambda: F.linear(x, w, bias.to("meta")), ValueError, "bias: expected the device of x, cpu, got meta"),
        (lambda: F.linear(w, w), TypeError, "x: expected a plain tensor"),
        (lambda: F.linear(w, x), TypeError, "x: expected a plain tensor"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_the_kernel_is_named() -> None:
    for config in CONFIGS.values():
        w = quantized(config)
        for dtype in (torch.float32, torch.bfloat16):
            F.linear(X[:1].to(dtype), w.to(dtype))
            assert _C.last_kernel() == w.to(dtype).kernel in _C.kernels(w.mm_op)
    code = "import torch, aoq; print(aoq.Int4WeightOnlyConfig(16).quantize(torch.randn(16, 16)).kernel)"
    environment = {**os.environ, "AOQ_ISA": "ref"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "int4_mm_ref"


def test_what_one_isa_packed_runs_under_every_other(config: AOBaseConfig) -> None:
    before, values = _C.isa(), torch.randn(40, 72)
    packed: dict[str, QuantizedTensor] = {}
    try:
        for isa in _C.isas():
            _C.set_isa(isa)
            packed[isa] = config.quantize(values)
        for isa in _C.isas():
            _C.set_isa(isa)
            expected = F.linear(X, packed[isa])
            torch.testing.assert_close(expected, product(X, packed[isa]), rtol=0.02, atol=0.02 * float(expected.std()))
            for w in packed.values():
                assert same(w.unpack(), packed[isa].unpack())
                # Sums of rows, which are no part of a checkpoint, are added up in another order.
                torch.testing.assert_close(F.linear(X, w), expected, rtol=1e-5, atol=1e-5 * float(expected.std()))
            assert _C.last_kernel() == _C.kernel(w.mm_op, len(X), "float32")
    finally:
        _C.set_isa(before)


# ---- devices and dtypes


def test_dtype_is_what_dequantize_returns(config: AOBaseConfig) -> None:
    w = quantized(config)
    half = w.to(torch.float16)
    assert half.dtype == half.dequantize().dtype == torch.float16
    assert same(half.float(), w)  # scales keep their precision
    assert F.linear(X.bfloat16(), half).dtype == torch.bfloat16  # out is in the dtype of x
    for dtype in (torch.float64, torch.int8):
        with pytest.raises(TypeError, match="dtype: expected bfloat16, float16 or float32"):
            w.to(dtype)


def test_default_dtype_does_not_matter(config: AOBaseConfig) -> None:
    """Frameworks set it while they load a model."""
    values = torch.randn(40, 72, dtype=torch.bfloat16)
    expected = config.quantize(values)
    torch.set_default_dtype(torch.bfloat16)
    try:
        w = config.quantize(values)
        again = w.unpack().pack()
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(w, expected) and same(again, expected)


def test_module_to(config: AOBaseConfig) -> None:
    layers = model(config)
    before = layers[0].weight.clone()
    layers.half()
    assert layers[0].weight.dtype == torch.float16 and isinstance(layers[0].weight, nn.Parameter)
    assert layers(X.half()).dtype == torch.float16
    layers.float()
    assert same(layers[0].weight, before)
    with pytest.raises(TypeError, match="dtype"):
        layers.double()
    layers.to("meta")
    assert layers[0].weight.is_meta and not layers[0].weight.packed
    assert layers(X.to("meta")).shape == (3, 20)
    layers.to_empty(device="cpu").load_state_dict(model(config).state_dict())
    assert torch.equal(layers(X), model(config)(X))


def test_quantizing_meta_weights_gives_the_shapes_of_real_ones(config: AOBaseConfig) -> None:
    real, meta = plain(config, 3, 40, 72), config.quantize(torch.randn(3, 40, 72, device="meta"))
    for part, other in zip(meta.parts(), real.parts(), strict=True):
        assert part is other is None or (part.shape, part.dtype) == (other.shape, other.dtype)
    assert same(torch.empty_like(meta, device="cpu").copy_(real), real)


def test_pinning(config: AOBaseConfig) -> None:
    w = quantized(config)
    assert not w.is_pinned()
    if torch.cuda.is_available():
        assert w.pin_memory().is_pinned()


# ---- saving and sharing


def test_torch_save_writes_plain_and_loads_weights_only(config: AOBaseConfig) -> None:
    file = io.BytesIO()
    torch.save(model(config).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert same(state["0.weight"], model(config)[0].weight)
    _, (saved,) = model(config)[0].weight.__reduce_ex__(2)
    assert all(part.shape[0] == 40 for part in saved["parts"].values())  # what is written is plain
    layers = model(None)
    layers.load_state_dict(state, assign=True)
    assert torch.equal(layers(X), model(config)(X))


@pytest.mark.parametrize("assign", [True, False])
def test_load_state_dict(assign: bool, config: AOBaseConfig) -> None:
    state = {
        name: tensor.unpack() if "weight" in name else tensor for name, tensor in model(config).state_dict().items()
    }
    layers = model(config)
    for param in layers.parameters():
        param.copy_(torch.empty_like(param))
    layers.load_state_dict(state, assign=assign)
    assert torch.equal(layers(X), model(config)(X))
    assert layers[0].weight.packed is not assign


def test_load_state_dict_into_another_kind_of_model(config: AOBaseConfig) -> None:
    layers = model(None)
    layers.load_state_dict(model(config).state_dict())
    assert torch.equal(layers[0].weight, model(config)[0].weight.dequantize())
    with pytest.raises(RuntimeError, match="quantize it first"):
        model(config).load_state_dict(model(None).state_dict())


def test_copies_of_a_model(config: AOBaseConfig) -> None:
    layers = model(config)
    layers[2].weight.note = "kept"  # type: ignore[attr-defined]
    for other in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert torch.equal(other(X), layers(X))
        assert isinstance(other[0].weight, nn.Parameter) and not other[0].weight.requires_grad
        assert other[0].weight.qdata.data_ptr() != layers[0].weight.qdata.data_ptr()
    assert copy.deepcopy(layers)[2].weight.note == "kept"
    tied = nn.ModuleList([layers[0], nn.Linear(72, 40)])
    tied[1].weight = tied[0].weight
    assert (other := copy.deepcopy(tied))[0].weight is other[1].weight


def _zero_codes(weights: list[QuantizedTensor]) -> None:
    for w in weights:
        w.qdata.zero_()


def test_processes_share_memory() -> None:
    weights = [model(config).share_memory()[0].weight for config in CONFIGS.values()]
    assert all(w.is_shared() and w.qdata.view(torch.uint8).any() for w in weights)
    process = torch.multiprocessing.get_context("spawn").Process(target=_zero_codes, args=(weights,))
    process.start()
    process.join(120)
    assert process.exitcode == 0 and not any(w.qdata.view(torch.uint8).any() for w in weights)


BYTES = {  # 3 tiles of rows; codes, scales, zero points, sums
    "int4": 48 * 36 + 2 * 48 * 5 * 4,
    "int8": 48 * 72 + 48 * 4,
    "int8-asymmetric": 48 * 72 + 48 * 4 + 40 * 4,
    "int8-int4": 48 * 36 + 48 * 5 * 4 + 40 * 4,
    "int8-weight": 48 * 72 + 48 * 4,
    "fp8": 48 * 72 + 48 * 4,
    "fp8-weight": 48 * 72 + 48 * 4,
}


@pytest.mark.parametrize(("name", "nbytes"), BYTES.items())
def test_storage_and_bytes_tell_the_truth(name: str, nbytes: int) -> None:
    w = quantized(CONFIGS[name])
    assert w.untyped_storage().data_ptr() == w.data_ptr() == w.qdata.data_ptr()
    assert w.numel() * w.element_size() == pytest.approx(nbytes)
    assert w.nbytes == sum(part.nbytes for part in w.parts() if part is not None) == nbytes
    assert w.bits_per_weight == pytest.approx(8 * nbytes / (40 * 72))
    assert w.unpack().nbytes < w.nbytes  # tiles are padded


def test_repr_says_what_it_is(config: AOBaseConfig) -> None:
    w = quantized(config)
    text = repr(w)
    for part in ("shape=(40, 72)", "torch.float32", "cpu", "cpu-n16", f"bits_per_weight={w.bits_per_weight:.2f}"):
        assert part in text
    assert f"kernel={w.kernel}" in text and text.startswith(type(w).__name__)
    assert ("group_size=16" in text) == hasattr(w, "group_size")
    assert ("act_mapping='" in text) == bool(getattr(w, "act_mapping", None))


# ---- tracing


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_in_one_graph(dynamic: bool, config: AOBaseConfig) -> None:
    layers = model(config)
    torch.compiler.reset()
    compiled = torch.compile(layers, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (3, 5):
        x = torch.randn(rows, 72)
        torch.testing.assert_close(compiled(x), layers(x))


def test_compile_with_gradients(config: AOBaseConfig) -> None:
    layers, x = model(config), X.clone().requires_grad_()
    torch.compiler.reset()
    torch.compile(layers, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    expected = X.clone().requires_grad_()
    layers(expected).square().sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


def test_the_compile_cache_tells_tensors_apart(config: AOBaseConfig) -> None:
    key = quantized(config)._stable_hash_for_caching()
    assert key == quantized(config)._stable_hash_for_caching()
    others = [
        plain(config),
        quantized(config, 48, 72),
        quantized(config).half(),
        *(quantized(other) for other in (Int4WeightOnlyConfig(8), *CONFIGS.values()) if other != config),
        quantized(config).t(),
    ]
    assert key not in [other._stable_hash_for_caching() for other in others]


def test_compile_of_tensor_methods(config: AOBaseConfig) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def split(w: QuantizedTensor, x: Tensor) -> Any:
        first, second = w.split(16)[:2]
        return F.linear(x, first.detach()), x @ second.t()

    torch.compiler.reset()
    w = plain(config, 48, 72)
    for out, part in zip(split(w, X), w.split(16)[:2], strict=True):
        torch.testing.assert_close(out, product(X, part))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(strict: bool, dynamic: bool, config: AOBaseConfig) -> None:
    layers = model(config)
    shapes = ({0: torch.export.Dim("rows")},) if dynamic else None
    program = torch.export.export(layers, (X,), dynamic_shapes=shapes, strict=strict)
    op = getattr(torch.ops.aoq, layers[0].weight.torch_op).default
    assert sum(node.target is op for node in program.graph.nodes) == 2
    x = torch.randn(7, 72) if dynamic else X
    torch.testing.assert_close(program.module()(x), layers(x))


def test_ahead_of_time(tmp_path: Path) -> None:
    """A package of AOTInductor's, for any number of rows."""
    layers = model(INT4)
    program = torch.export.export(layers, (X,), dynamic_shapes=({0: torch.export.Dim("rows", max=64)},))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    for x in (X, torch.randn(7, 72)):
        expected = layers(x)
        int4_quantize(torch.randn(16, 16), 16, "symmetric")  # another kernel, so that the last one is the package's
        torch.testing.assert_close(compiled(x), expected)
        assert _C.last_kernel() == _C.kernel("int4_mm", len(x), "float32")


# ---- tensor parallelism


@pytest.mark.parametrize("config", GROUPS_OF_64)
@pytest.mark.parametrize("dim", [0, 1])
def test_shards_in_dtensors_multiply(dim: int, config: AOBaseConfig) -> None:
    from torch import distributed
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    w, x = plain(config, 64, 96), torch.randn(3, 96)
    expected = F.linear(x, w[:32]) if dim == 0 else F.linear(x[:, :48], w[:, :48])
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)  # the other rank is imagined
    try:
        mesh = init_device_mesh("cpu", (2,))
        shard = distribute_tensor(w, mesh, [Shard(dim)], src_data_rank=None)
        assert isinstance(shard.to_local(), QuantizedTensor) and shard.shape == w.shape
        inputs = DTensor.from_local(x, mesh, [Replicate()]).redistribute(
            placements=[Replicate() if dim == 0 else Shard(1)]
        )
        torch.testing.assert_close(F.linear(inputs, shard).to_local(), expected)
    finally:
        distributed.destroy_process_group()
