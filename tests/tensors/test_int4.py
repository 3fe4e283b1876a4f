import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aoq import Int4Tensor, Int4WeightOnlyConfig, MappingType, quantize_
from aoq.ops import int4_dequantize, int4_quantize_reference

FLOATS = [torch.bfloat16, torch.float16, torch.float32]
CONFIGS = [
    Int4WeightOnlyConfig(group_size=16),
    Int4WeightOnlyConfig(group_size=32, use_hqq=True),
    Int4WeightOnlyConfig(group_size=64, mapping_type=MappingType.SYMMETRIC),
    Int4WeightOnlyConfig(group_size=128, scale_dtype=torch.float32),
]
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-4}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dequantized_values_are_the_references(config: Int4WeightOnlyConfig, dtype: torch.dtype) -> None:
    weight = torch.randn(24, 100, dtype=dtype)
    w = config.quantize(weight)
    mapping = "hqq" if config.use_hqq else config.mapping_type.name.lower()
    qdata, scale, zero_point = int4_quantize_reference(weight, config.group_size, mapping, config.scale_dtype)
    expected = int4_dequantize(qdata, scale, zero_point, config.group_size, 100, dtype)
    assert (w.dtype, w.scale.dtype) == (dtype, config.scale_dtype or dtype)
    assert (w.zero_point is None) == (config.mapping_type is MappingType.SYMMETRIC)
    step = scale.float().max()
    # HQQ iterates with a power that each implementation approximates: a code may differ here and there.
    tolerance = {"atol": step, "rtol": 0} if config.use_hqq else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(w.dequantize().float(), expected.float(), **tolerance)


@pytest.mark.parametrize("config", CONFIGS)
def test_rounding_stays_within_half_a_step(config: Int4WeightOnlyConfig) -> None:
    weight = torch.randn(24, 100)
    w = config.quantize(weight).unpack()
    step = w.scale.repeat_interleave(config.group_size, 1)[:, :100]
    error = (w.dequantize() - weight).abs() / step
    if config.use_hqq:  # trades outliers for the others
        plain = Int4WeightOnlyConfig(config.group_size).quantize(weight)
        assert error.mean() < ((plain.dequantize() - weight).abs() / step).mean()
    else:
        assert error.max() <= 0.501


@given(
    m=st.integers(0, 9),
    n=st.integers(1, 50),
    k=st.integers(1, 150),
    config=st.sampled_from(CONFIGS),
    dtype=st.sampled_from(FLOATS),
    bias_dtype=st.sampled_from([None, *FLOATS]),
    lead=st.sampled_from([(), (2,), (2, 1)]),
)
def test_linear_multiplies_by_the_dequantized_values(
    m: int,
    n: int,
    k: int,
    config: Int4WeightOnlyConfig,
    dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    lead: tuple[int, ...],
) -> None:
    w = config.quantize(torch.randn(n, k))
    x = torch.randn(*lead, m, k, dtype=dtype)
    bias = None if bias_dtype is None else torch.randn(n, dtype=bias_dtype)
    out = F.linear(x, w, bias)
    expected = F.linear(x.double(), w.dequantize().double(), None if bias is None else bias.double())
    assert out.dtype == dtype and out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype] * k**0.5, rtol=TOLERANCE[dtype])
    assert torch.equal(F.linear(x, w.unpack(), bias), out)


def test_ways_to_call() -> None:
    w, x = CONFIGS[0].quantize(torch.randn(20, 64)), torch.randn(6, 64)
    assert torch.equal(F.linear(x[0], w), F.linear(x[:1], w)[0])
    assert torch.equal(F.linear(bias=None, weight=w, input=x), F.linear(x, w))
    torch.testing.assert_close(F.linear(x.t().contiguous().t(), w), F.linear(x, w))
    torch.testing.assert_close(F.linear(x[::2], w), F.linear(x, w)[::2])


def test_gradients_go_through() -> None:
    w = CONFIGS[0].quantize(torch.randn(20, 64))
    x, bias = torch.randn(2, 3, 64, requires_grad=True), torch.randn(20, requires_grad=True)
    F.linear(x, w, bias).square().sum().backward()
    expected_x, expected_bias = (t.detach().clone().requires_grad_() for t in (x, bias))
    F.linear(expected_x, w.dequantize(), expected_bias).square().sum().backward()
    torch.testing.assert_close(x.grad, expected_x.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bias.grad, expected_bias.grad, atol=1e-3, rtol=1e-3)
    only_bias = torch.zeros(20, requires_grad=True)
    F.linear(x.detach(), w, only_bias).sum().backward()
    assert torch.equal(only_bias.grad, torch.full((20,), 6.0))


def test_an_adapter_on_top_trains() -> None:
    base = nn.Linear(64, 20).requires_grad_(False)
    quantize_(base, CONFIGS[0])
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


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("packed", [True, False])
def test_embedding_looks_up_dequantized_rows(config: Int4WeightOnlyConfig, packed: bool) -> None:
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
def test_embedding_checks_its_ids(bad: int) -> None:
    w = CONFIGS[0].quantize(torch.randn(50, 64))
    with pytest.raises(RuntimeError, match="ids: expected indices below 50"):
        F.embedding(torch.tensor([0, bad]), w)
    with pytest.raises(ValueError, match="max_norm"):
        F.embedding(torch.tensor([0]), w, max_norm=1.0)


def test_experts() -> None:
    w, x = CONFIGS[0].quantize(torch.randn(4, 24, 64)), torch.randn(10, 64)
    values = w.dequantize()
    torch.testing.assert_close(F.linear(x, w[2]), F.linear(x, values[2]))
    batch = torch.randn(4, 3, 64)
    torch.testing.assert_close(torch.bmm(batch, w.transpose(1, 2)), torch.bmm(batch, values.transpose(1, 2)))
    torch.testing.assert_close(batch @ w.mT, batch @ values.mT)
    ends = torch.tensor([3, 3, 7, 10], dtype=torch.int32)  # the second expert has no rows
    grouped = F.grouped_mm(x, w.transpose(1, 2), offs=ends)
    experts = torch.tensor([0, 0, 0, 2, 2, 2, 2, 3, 3, 3])
    torch.testing.assert_close(grouped, torch.einsum("mk,mnk->mn", x, values[experts]))
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
def test_bad_weights(weight: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CONFIGS[0].quantize(weight)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_group_size(device: str) -> None:
    with pytest.raises(ValueError, match="group_size: expected a multiple of 8, or at least k = 64, got 12"):
        Int4WeightOnlyConfig(group_size=12).quantize(torch.zeros(4, 64, device=device))
    assert Int4WeightOnlyConfig(group_size=12).quantize(torch.zeros(4, 11, device=device)).unpack().scale.shape == (
        4,
        1,
    )


def test_scales_that_overflow() -> None:
    config = Int4WeightOnlyConfig(group_size=16, scale_dtype=torch.float16)
    with pytest.raises(ValueError, match="whose scale float16 holds"):
        config.quantize(torch.full((2, 16), 1e7))
    assert Int4WeightOnlyConfig(group_size=16).quantize(torch.full((2, 16), 1e7)).dequantize().isfinite().all()


def test_bad_activations() -> None:
    w, x, bias = CONFIGS[0].quantize(torch.randn(20, 64)), torch.randn(3, 64), torch.randn(20)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qdata": torch.zeros(20, 31, dtype=torch.uint8)}, r"qdata: expected shape \(20, 32\), got \(20, 31\)"),
        ({"qdata": torch.zeros(20, 32, dtype=torch.int8)}, "qdata: expected uint8"),
        ({"scale": torch.zeros(20, 3)}, r"scale: expected shape \(20, 4\)"),
        ({"scale": None}, "scale: expected a tensor, got None"),
        ({"scale": torch.zeros(20, 4, device="meta")}, "scale: expected device cpu, got meta"),
        ({"zero_point": torch.zeros(20, 4, dtype=torch.int32)}, "zero_point: expected uint8 codes and float scales"),
        ({"group_size": 0}, "group_size: expected 1 or more"),
        ({"packing": "tiled"}, "qdata: expected shape"),
        ({"packing": "wavy"}, "packing: expected 'plain' or 'tiled', got 'wavy'"),
        ({"shape": (20, 66)}, "qdata: expected shape"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    w = CONFIGS[0].quantize(torch.randn(20, 64)).unpack()
    arguments = {name: getattr(w, name) for name in (*w.tensors, *w.attrs)} | {"shape": (20, 64), "dtype": w.dtype}
    arguments |= changes
    positional = [arguments.pop(name) for name in (*w.tensors, *w.attrs)]
    with pytest.raises((ValueError, TypeError), match=message):
        Int4Tensor(*positional, **arguments)


def test_regroup() -> None:
    w = CONFIGS[2].quantize(torch.randn(20, 100)).unpack()
    assert torch.equal(w.regroup(8).dequantize(), w.dequantize())
    for bad in (w.pack(), w):
        with pytest.raises(ValueError, match="group_size: expected a multiple of 8 that divides 64"):
            bad.regroup(24 if bad is w else 8)


def test_the_kernel_is_named() -> None:
    from aoq import _C

    w = CONFIGS[0].quantize(torch.randn(20, 64))
    assert w.kernel == _C.kernels("int4_mm")[0] == f"int4_mm_{_C.isa()}"
    code = "import torch, aoq; print(aoq.Int4WeightOnlyConfig(16).quantize(torch.randn(16, 16)).kernel)"
    environment = {**os.environ, "AOQ_ISA": "ref"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "int4_mm_ref"
