from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from aoq import Int4Tensor, Int4WeightOnlyConfig, MappingType
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


# ---- errors


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qdata": torch.zeros(20, 31, dtype=torch.uint8)}, r"qdata: expected shape \(20, 32\), got \(20, 31\)"),
        ({"qdata": torch.zeros(20, 32, dtype=torch.int8)}, "qdata: expected uint8, got int8"),
        ({"scale": torch.zeros(20, 3)}, r"scale: expected shape \(20, 4\)"),
        ({"scale": None}, "scale: expected a tensor, got None"),
        ({"scale": torch.zeros(20, 4, device="meta")}, "scale: expected device cpu, got meta"),
        (
            {"zero_point": torch.zeros(20, 4, dtype=torch.int32)},
            "zero_point: expected bfloat16 or float16 or float32, got int32",
        ),
        ({"group_size": 0}, "group_size: expected 1 or more"),
        ({"packing": "tiled"}, "qdata: expected shape"),
        ({"packing": "cuda-n16"}, "packing: expected 'plain' or 'cpu-n16', got 'cuda-n16'"),
        ({"packing": "wavy"}, "packing: expected 'plain' or 'cpu-n16', got 'wavy'"),
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


def test_what_the_cpu_packs_has_arrived_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from a GPU that nobody waits for is under way when the call returns."""
    to, waits = torch.Tensor.to, []

    def noted(part: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        waits.append(not kwargs.get("non_blocking"))
        return to(part, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    with FakeTensorMode():
        qdata, scale = torch.empty(32, 32, dtype=torch.uint8, device="cuda"), torch.empty(32, 2, device="cuda")
        w = Int4Tensor(qdata, scale, None, 32, "plain", shape=(32, 64), dtype=torch.float32)
        assert w.packs_elsewhere  # there are no kernels where there is no GPU
        moved = torch.ops.aten._to_copy(w, device="cpu", non_blocking=True)
    assert isinstance(moved, Int4Tensor) and moved.packed
    assert waits == [True, True]
