"""What is special to the fp8 format."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aoq import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8Tensor,
    Float8WeightOnlyConfig,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    config_from_dict,
    config_to_dict,
)
from aoq.ops import fp8_dequantize, fp8_quantize, fp8_quantize_reference

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
WEIGHT_ONLY, DYNAMIC = Float8WeightOnlyConfig, Float8DynamicActivationFloat8WeightConfig


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("granularity", [PerRow(), PerTensor()])
def test_values_are_the_references(granularity: Any, dtype: torch.dtype) -> None:
    weight = torch.randn(3, 24, 100).bfloat16()
    w = WEIGHT_ONLY(dtype, granularity).quantize(weight)
    assert isinstance(w, Float8Tensor)
    for i in range(3):
        name = "row" if granularity == PerRow() else "tensor"
        qdata, scale = fp8_quantize_reference(weight[i], name, dtype)
        assert torch.equal(w[i].dequantize(), fp8_dequantize(qdata, scale, torch.bfloat16))
        assert torch.equal(w.unpack()[i].scale, scale.expand(24, 1))


@pytest.mark.parametrize("granularity", [PerRow(), PerTensor(), [PerTensor(), PerRow()]])
@pytest.mark.parametrize("bounds", [(None, None), (1.0, 2.0)])
def test_linear_quantizes_activations(granularity: Any, bounds: tuple[float | None, float | None]) -> None:
    w = DYNAMIC(E5M2, E4M3, granularity, *bounds).quantize(torch.randn(24, 100))
    x, bias = torch.randn(2, 5, 100), torch.randn(24)
    rows = x if granularity == PerRow() else x.flatten(0, 1)
    codes, scale = fp8_quantize(rows, "row" if granularity == PerRow() else "tensor", E5M2, *bounds)
    expected = fp8_dequantize(codes, scale, torch.float32).view_as(x) @ w.dequantize().t() + bias
    torch.testing.assert_close(F.linear(x, w, bias), expected, atol=1e-4, rtol=1e-4)
    assert F.linear(x[:, :0], w).shape == (2, 0, 24)


def test_zeros_stay_zeros() -> None:
    weight = torch.randn(16, 32)
    weight[3] = 0
    for granularity in (PerRow(), PerTensor()):
        w = DYNAMIC(granularity=granularity).quantize(weight)
        assert torch.equal(w.dequantize()[3], torch.zeros(32))
        assert torch.equal(F.linear(torch.zeros(2, 32), w), torch.zeros(2, 16))


def test_json_round_trip() -> None:
    for config in (
        WEIGHT_ONLY(),
        WEIGHT_ONLY(E5M2, PerTensor()),
        DYNAMIC(),
        DYNAMIC(E5M2, E4M3, PerRow(), 0.5, 2.0),
        DYNAMIC(granularity=[PerTensor(), PerRow()]),
    ):
        assert config_from_dict(config_to_dict(config)) == config


def test_configs_of_torchao() -> None:
    """As its release writes them, with fields that choose its kernels."""
    data = {
        "_type": "Float8DynamicActivationFloat8WeightConfig",
        "_version": 2,
        "_data": {
            "activation_dtype": {"_type": "torch.dtype", "_data": "float8_e4m3fn"},
            "weight_dtype": {"_type": "torch.dtype", "_data": "float8_e4m3fn"},
            "granularity": [{"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}] * 2,
            "mm_config": {"_type": "Float8MMConfig", "_version": 1, "_data": {"use_fast_accum": True}},
            "kernel_preference": {"_type": "KernelPreference", "_data": "AUTO"},
            "set_inductor_config": True,
            "version": 2,
        },
    }
    config = config_from_dict(data)
    assert isinstance(config, DYNAMIC) and config.granularity == [PerRow(), PerRow()]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: WEIGHT_ONLY(torch.int8), ValueError, "weight_dtype: expected float8_e4m3fn or float8_e5m2, got int8"),
        (lambda: DYNAMIC("fp8"), ValueError, "activation_dtype: expected .* got 'fp8'"),
        (
            lambda: WEIGHT_ONLY(torch.float8_e5m2, granularity=PerGroup(32)),
            ValueError,
            r"granularity: expected blocks of whole rows of e4m3, got PerGroup\(group_size=32\) of float8_e5m2",
        ),
        (lambda: WEIGHT_ONLY(granularity=PerGroup(4)), ValueError, "group_size: expected 8 or more, got 4"),
        (lambda: WEIGHT_ONLY(granularity=PerBlock((128,))), ValueError, "granularity: expected 2 sizes"),
        (
            lambda: DYNAMIC(granularity=[PerBlock((1, 128)), PerBlock((128, 128))]),
            ValueError,
            r"granularity: expected PerTensor\(\) or PerRow\(\)",
        ),
        (lambda: DYNAMIC(activation_value_lb=2.0, activation_value_ub=1.0), ValueError, "lb 2.0 and ub 1.0"),
        (lambda: WEIGHT_ONLY().quantize(torch.ones(4)), ValueError, "w: expected 2 or more dimensions"),
        (lambda: WEIGHT_ONLY().quantize(torch.full((4, 4), torch.nan)), ValueError, "w: expected finite values"),
        (lambda: DYNAMIC().quantize(torch.ones(4, 4, dtype=torch.int8)), TypeError, "w: expected bfloat16"),
    ],
)
def test_bad_configs_and_weights_are_refused(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_bad_parts_are_refused() -> None:
    qdata, scale = torch.zeros(4, 8).to(E4M3), torch.ones(4, 1)

    def tensor(*attrs: Any, scale: torch.Tensor = scale) -> Float8Tensor:
        return Float8Tensor(qdata, scale, *attrs, "plain", shape=(4, 8), dtype=torch.float32)

    assert torch.equal(tensor(E4M3, None, None, None, None).dequantize(), torch.zeros(4, 8))
    with pytest.raises(ValueError, match="code_dtype: expected float8_e4m3fn"):
        tensor(torch.int8, None, None, None, None)
    with pytest.raises(TypeError, match="qdata: expected float8_e5m2, got float8_e4m3fn"):
        tensor(E5M2, None, None, None, None)
    with pytest.raises(ValueError, match="act_granularity: expected 'row' or 'tensor', got None"):
        tensor(E4M3, E4M3, None, None, None)
    with pytest.raises(ValueError, match="act_granularity: expected None, got 'row'"):
        tensor(E4M3, None, "row", None, None)
    with pytest.raises(ValueError, match=r"scale: expected shape \(4, 1\), got \(4, 2\)"):
        tensor(E4M3, None, None, None, None, scale=torch.ones(4, 2))
