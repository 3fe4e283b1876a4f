"""The tensor contract, on the one format that exists."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aoq import Int4Tensor, Int4WeightOnlyConfig, MappingType, QuantizedTensor, quantize_

CONFIG = Int4WeightOnlyConfig(group_size=16)
SYMMETRIC = MappingType.SYMMETRIC


def quantized(*shape: int, config: Int4WeightOnlyConfig = CONFIG) -> Int4Tensor:
    return config.quantize(torch.randn(shape or (40, 72)))


def plain(*shape: int, config: Int4WeightOnlyConfig = CONFIG) -> Int4Tensor:
    return quantized(*shape, config=config).unpack()


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    """Whether two tensors have equal parts and attributes."""
    assert type(a) is type(b)
    if any(getattr(a, name) != getattr(b, name) for name in (*a.attrs, "weight_shape", "transposed", "dtype")):
        return False
    return all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(a.parts(), b.parts(), strict=True)
    )


def model(quantize: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(72, 40), nn.ReLU(), nn.Linear(40, 20, bias=False)).requires_grad_(False)
    if quantize:
        quantize_(layers, CONFIG)
    return layers


X = torch.randn(3, 72)


# ---- copies and views


def test_views_alias_and_copies_do_not() -> None:
    w = plain()
    for view in (w.detach(), w.data, w.view(40, 72), w.as_strided((40, 72), (72, 1)), w.t(), w[:], w.expand(40, -1)):
        assert [part.data_ptr() for part in view.parts()] == [part.data_ptr() for part in w.parts()]
    for other in (w.clone(), copy.deepcopy(w), w.to(torch.float16), torch.empty_like(w), w.new_zeros(w.shape)):
        assert not {part.data_ptr() for part in other.parts()} & {part.data_ptr() for part in w.parts()}


def test_views_in_inference_mode() -> None:
    w = plain()
    with torch.inference_mode():
        assert torch.equal(w.t().t()[8:24].detach().dequantize(), w.dequantize()[8:24])
        assert torch.equal(quantized()[16:32].unpack()[3:5].dequantize(), quantized()[16:32].dequantize()[3:5]) is False
        inside = plain()
        assert torch.equal(inside[8:24].dequantize(), inside.dequantize()[8:24])


@given(data=st.data(), n=st.integers(1, 40), k=st.integers(1, 80), symmetric=st.booleans())
def test_slices_are_slices_of_the_values(data: st.DataObject, n: int, k: int, symmetric: bool) -> None:
    w = plain(n, k, config=Int4WeightOnlyConfig(group_size=data.draw(st.sampled_from([8, 16, 24, 64, 128]))))
    if symmetric:
        w = w.rebuild((w.qdata, w.scale, None))
    dim = data.draw(st.integers(-2, 1))
    start = data.draw(st.integers(0, w.shape[dim] - 1))
    length = data.draw(st.integers(1, w.shape[dim] - start))
    try:
        part = w.narrow(dim, start, length)
    except ValueError as error:
        assert dim in (-1, 1) and str(error).startswith("slice: ")
        assert start % 8 or (start + length) % 2  # what a multiple of 8 begins and a whole byte ends is never refused
        return
    assert torch.equal(part.dequantize(), w.dequantize().narrow(dim, start, length))
    assert part.qdata.untyped_storage().data_ptr() == w.qdata.untyped_storage().data_ptr()
    packed = part.pack()
    assert torch.equal(packed.dequantize(), part.dequantize())


@pytest.mark.parametrize("tp", [2, 3, 4])
def test_shards_along_k_multiply_like_the_whole(tp: int) -> None:
    # k / tp = 48, 32, 24 with groups of 64: each shard but the first starts inside a group
    w, x = plain(20, 96, config=Int4WeightOnlyConfig(group_size=64)), torch.randn(5, 96)
    shards = w.chunk(tp, dim=1)
    out = sum(F.linear(part, shard) for part, shard in zip(x.chunk(tp, dim=1), shards, strict=True))
    torch.testing.assert_close(out, F.linear(x, w))


def test_a_regrouped_slice_cannot_be_copied_into() -> None:
    w = plain(20, 96, config=Int4WeightOnlyConfig(group_size=64))
    shard = w.narrow(1, 48, 48)
    assert shard.group_size == 16
    with pytest.raises(ValueError, match="dst: expected bounds that are multiples of a group"):
        shard.copy_(shard.clone())


def test_copying_into_a_slice_changes_the_whole() -> None:
    w, other = plain(40, 96), plain(40, 96)
    w.narrow(0, 8, 16).copy_(other.narrow(0, 8, 16))
    w.narrow(1, 32, 64)[20:].copy_(other[20:].narrow(1, 32, 64))
    expected = plain(40, 96).dequantize().zero_() + w.dequantize()
    expected[8:24], expected[20:, 32:] = other.dequantize()[8:24], other.dequantize()[20:, 32:]
    assert torch.equal(w.dequantize(), expected)
    assert torch.equal(w[8:24].scale, other[8:24].scale)


def test_copy_regroups_when_that_is_lossless() -> None:
    for group_size, other in ((64, 16), (96, 128), (128, 96)):
        source = plain(8, 96, config=Int4WeightOnlyConfig(group_size))
        target = quantized(8, 96, config=Int4WeightOnlyConfig(other))
        target.copy_(source)
        assert torch.equal(target.dequantize(), source.dequantize())


def test_copy_converts_between_layouts() -> None:
    for source, target in ((quantized(), plain()), (plain(), quantized())):
        packing = target.packing
        target.copy_(source)
        assert target.packing == packing
        assert torch.equal(target.dequantize(), source.dequantize())
    values = torch.empty(40, 72, dtype=torch.bfloat16)
    assert torch.equal(values.copy_(source), source.dequantize().bfloat16())


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (torch.randn(40, 72), TypeError, "expected Int4Tensor, got Tensor; quantize it first"),
        (quantized(40, 64), ValueError, r"expected shape \(40, 72\), got \(40, 64\)"),
        (quantized(config=Int4WeightOnlyConfig(group_size=24)), ValueError, "group_size: expected 16, got 24"),
        (quantized(config=Int4WeightOnlyConfig(16, mapping_type=SYMMETRIC)), ValueError, "expected zero_point"),
        (quantized().to("meta"), NotImplementedError, "no data"),
        (quantized(config=Int4WeightOnlyConfig(16, scale_dtype=torch.bfloat16)), None, ""),
    ],
)
def test_copy_refuses_what_does_not_fit(source: Tensor, error: type[Exception] | None, message: str) -> None:
    w = quantized()
    before = w.clone()
    if error is None:
        w.copy_(source)
        assert torch.equal(w.dequantize(), source.dequantize())
    else:
        with pytest.raises(error, match=message):
            w.copy_(source)
        assert same(w, before)


def test_copy_refuses_to_round_scales() -> None:
    with pytest.raises(TypeError, match=r"scale is torch.float32, which torch.bfloat16 cannot hold"):
        quantized(config=Int4WeightOnlyConfig(16, scale_dtype=torch.bfloat16)).copy_(quantized())


def test_select_unbind_and_split() -> None:
    w = plain(3, 40, 72)
    values = w.dequantize()
    assert torch.equal(w[1].dequantize(), values[1]) and torch.equal(w[-1, 5].dequantize(), values[-1, 5])
    assert [torch.equal(a.dequantize(), b) for a, b in zip(w, values, strict=True)] == [True] * 3
    pieces = w.split([10, 30], dim=1)
    assert [tuple(piece.shape) for piece in pieces] == [(3, 10, 72), (3, 30, 72)]
    assert torch.equal(pieces[1].dequantize(), values[:, 10:])
    assert [tuple(piece.shape) for piece in plain().split(16)] == [(16, 72), (16, 72), (8, 72)]
    assert torch.equal(w.view(120, 72).dequantize(), values.view(120, 72))
    for bad, error in (
        (lambda: w[3], IndexError),
        (lambda: w[..., 0], ValueError),
        (lambda: w[::2], ValueError),
        (lambda: w.split([10, 10], dim=1), ValueError),
        (lambda: w.view(3, 72, 40), ValueError),
        (lambda: w.permute(1, 0, 2), ValueError),
        (lambda: w.as_strided((3, 40), (40, 1)), ValueError),
        (lambda: w.expand(5, 3, 40, 72), ValueError),
        (lambda: w.new_zeros(3, 40, 71), ValueError),
    ):
        with pytest.raises(error):
            bad()


def test_tiled_tensors_slice_in_whole_tiles() -> None:
    w = quantized()
    for part, values in (
        (w[16:], w.dequantize()[16:]),
        (w[:32], w.dequantize()[:32]),
        (w[16:32], w.dequantize()[16:32]),
    ):
        assert part.packed and part.qdata.untyped_storage().data_ptr() == w.qdata.untyped_storage().data_ptr()
        assert torch.equal(part.dequantize(), values)
        torch.testing.assert_close(F.linear(X, part), X @ values.t())
    for bad in (lambda: w[8:], lambda: w[:20], lambda: w[:, 16:], lambda: w[3]):
        with pytest.raises(ValueError, match=r"unpack|plain"):
            bad()


def test_transposed() -> None:
    w = quantized()
    for turned in (w.t(), w.T, w.mT, w.transpose(-1, 0), w.permute(1, 0)):
        assert tuple(turned.shape) == (72, 40) and turned.stride() == (1, 72) and not turned.is_contiguous()
        assert torch.equal(turned.dequantize(), w.dequantize().t())
        torch.testing.assert_close(X @ turned, X @ w.dequantize().t())
        torch.testing.assert_close(torch.addmm(torch.ones(40), X, turned), 1 + X @ w.dequantize().t())
    assert same(w.t().t(), w)
    assert same(pickle.loads(pickle.dumps(w.t())), w.t())
    narrowed = w.unpack().t()[:, 8:24]
    assert torch.equal(narrowed.dequantize(), w.dequantize().t()[:, 8:24])
    y = torch.randn(3, 40)
    torch.testing.assert_close(y @ w, y @ w.dequantize())  # not transposed: dequantizes


def test_new_zeros_and_empty_like() -> None:
    w = quantized()
    zeros = w.new_zeros(48, 72)
    assert isinstance(zeros, Int4Tensor) and not zeros.dequantize().any() and tuple(zeros.shape) == (48, 72)
    empty = torch.empty_like(w, device="meta", dtype=torch.bfloat16)
    assert empty.is_meta and empty.dtype == torch.bfloat16 and not empty.packed
    assert torch.empty_like(w).packed


# ---- devices and dtypes


def test_dtype_is_what_dequantize_returns() -> None:
    w = quantized()
    half = w.to(torch.float16)
    assert half.dtype == half.dequantize().dtype == torch.float16
    assert same(half.float(), w)  # scales keep their precision
    assert F.linear(X.bfloat16(), half).dtype == torch.bfloat16  # out is in the dtype of x
    for dtype in (torch.float64, torch.int8):
        with pytest.raises(TypeError, match="dtype: expected bfloat16, float16 or float32"):
            w.to(dtype)


def test_module_to() -> None:
    layers = model()
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
    layers.to_empty(device="cpu").load_state_dict(model().state_dict())
    assert torch.equal(layers(X), model()(X))


def test_quantizing_meta_weights_gives_the_shapes_of_real_ones() -> None:
    real, meta = plain(3, 40, 72), CONFIG.quantize(torch.randn(3, 40, 72, device="meta"))
    assert [part.shape for part in meta.parts()] == [part.shape for part in real.parts()]
    assert [part.dtype for part in meta.parts()] == [part.dtype for part in real.parts()]
    assert same(torch.empty_like(meta, device="cpu").copy_(real), real)


def test_pinning() -> None:
    w = quantized()
    assert not w.is_pinned()
    if torch.cuda.is_available():
        assert w.pin_memory().is_pinned()


# ---- saving and sharing


def test_torch_save_writes_plain_and_loads_weights_only() -> None:
    file = io.BytesIO()
    torch.save(model().state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert same(state["0.weight"], model()[0].weight)
    reduced = model()[0].weight.__reduce_ex__(2)
    assert reduced[1][1][0].shape == (40, 36)  # the parts that are written are plain ones
    layers = model(quantize=False)
    layers.load_state_dict(state, assign=True)
    assert torch.equal(layers(X), model()(X))


@pytest.mark.parametrize("assign", [True, False])
def test_load_state_dict(assign: bool) -> None:
    state = {name: tensor.unpack() if "weight" in name else tensor for name, tensor in model().state_dict().items()}
    layers = model()
    for param in layers.parameters():
        param.copy_(torch.empty_like(param))
    layers.load_state_dict(state, assign=assign)
    assert torch.equal(layers(X), model()(X))
    assert layers[0].weight.packed is not assign


def test_load_state_dict_into_another_kind_of_model() -> None:
    layers = model(quantize=False)
    layers.load_state_dict(model().state_dict())
    assert torch.equal(layers[0].weight, model()[0].weight.dequantize())
    with pytest.raises(RuntimeError, match="quantize it first"):
        model().load_state_dict(model(quantize=False).state_dict())


def test_copies_of_a_model() -> None:
    layers = model()
    layers[2].weight.note = "kept"  # type: ignore[attr-defined]
    for other in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert torch.equal(other(X), layers(X))
        assert isinstance(other[0].weight, nn.Parameter) and not other[0].weight.requires_grad
        assert other[0].weight.qdata.data_ptr() != layers[0].weight.qdata.data_ptr()
    assert copy.deepcopy(layers)[2].weight.note == "kept"
    tied = nn.ModuleList([layers[0], nn.Linear(72, 40)])
    tied[1].weight = tied[0].weight
    assert (other := copy.deepcopy(tied))[0].weight is other[1].weight


def _zero_codes(w: Int4Tensor) -> None:
    w.qdata.zero_()


def test_processes_share_memory() -> None:
    layers = model().share_memory()
    w = layers[0].weight
    assert w.is_shared()
    process = torch.multiprocessing.get_context("spawn").Process(target=_zero_codes, args=(w,))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and not w.qdata.any()


def test_storage_and_bytes_tell_the_truth() -> None:
    w = quantized()
    assert w.untyped_storage().data_ptr() == w.qdata.data_ptr()
    assert w.nbytes == sum(part.nbytes for part in w.parts()) == 48 * 36 + 2 * 48 * 5 * 4
    assert w.bits_per_weight == pytest.approx(8 * w.nbytes / (40 * 72))
    assert plain().nbytes < w.nbytes  # tiles are padded


def test_repr_says_what_it_is() -> None:
    text = repr(quantized())
    for part in (
        "shape=(40, 72)",
        "torch.float32",
        "cpu",
        "group_size=16",
        "tiled",
        "bits_per_weight=10.13",
        "int4_mm_",
    ):
        assert part in text


def test_other_operations_say_what_to_do() -> None:
    for operation in (lambda: quantized() + 1, lambda: torch.relu(quantized()), lambda: quantized().sum()):
        with pytest.raises(NotImplementedError, match=r"does not implement aten.*; use its .dequantize\(\)"):
            operation()


# ---- tracing


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_in_one_graph(dynamic: bool) -> None:
    layers = model()
    torch.compiler.reset()
    compiled = torch.compile(layers, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (3, 5):
        x = torch.randn(rows, 72)
        torch.testing.assert_close(compiled(x), layers(x))


def test_compile_with_gradients() -> None:
    layers, x = model(), X.clone().requires_grad_()
    torch.compiler.reset()
    torch.compile(layers, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    expected = X.clone().requires_grad_()
    layers(expected).square().sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


def test_the_compile_cache_tells_tensors_apart() -> None:
    key = quantized()._stable_hash_for_caching()
    assert key == quantized()._stable_hash_for_caching()
    others = [
        plain(),
        quantized(48, 72),
        quantized().half(),
        quantized(config=Int4WeightOnlyConfig(8)),
        quantized().t(),
    ]
    assert key not in [other._stable_hash_for_caching() for other in others]


def test_compile_of_tensor_methods() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def split(w: Int4Tensor, x: Tensor) -> Any:
        first, second = w.split(16)[:2]
        return F.linear(x, first.detach()), x @ second.t()

    torch.compiler.reset()
    w = plain(48, 72)
    for out, part in zip(split(w, X), w.split(16)[:2], strict=True):
        torch.testing.assert_close(out, X @ part.dequantize().t())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(strict: bool, dynamic: bool) -> None:
    layers = model()
    shapes = ({0: torch.export.Dim("rows")},) if dynamic else None
    program = torch.export.export(layers, (X,), dynamic_shapes=shapes, strict=strict)
    assert sum(node.target is torch.ops.aoq.int4_mm.default for node in program.graph.nodes) == 2
    x = torch.randn(7, 72) if dynamic else X
    torch.testing.assert_close(program.module()(x), layers(x))


# ---- tensor parallelism


@pytest.mark.parametrize("dim", [0, 1])
def test_shards_in_dtensors_multiply(dim: int) -> None:
    from torch import distributed
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    w, x = plain(64, 96, config=Int4WeightOnlyConfig(group_size=64)), torch.randn(3, 96)
    expected = F.linear(x, w[:32]) if dim == 0 else F.linear(x[:, :48], w[:, :48])
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)  # the other rank is imagined
    try:
        mesh = init_device_mesh("cpu", (2,))
        shard = distribute_tensor(w, mesh, [Shard(dim)], src_data_rank=None)
        assert isinstance(shard.to_local(), Int4Tensor) and shard.shape == w.shape
        inputs = DTensor.from_local(x, mesh, [Replicate()]).redistribute(
            placements=[Replicate() if dim == 0 else Shard(1)]
        )
        torch.testing.assert_close(F.linear(inputs, shard).to_local(), expected)
    finally:
        distributed.destroy_process_group()
