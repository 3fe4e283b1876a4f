"""What is special to the formats that quantize activations to int8."""

import io
import json
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aoq import (
    AOBaseConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8Int4Tensor,
    Int8Tensor,
    MappingType,
    PerGroup,
    PerRow,
    PerTensor,
    config_from_dict,
    config_to_dict,
    quantize_,
)
from aoq.ops import int8_dequantize, int8_quantize, int8_quantize_reference
from aoq.storage.safetensors import flatten, unflatten

SYMMETRIC, ASYMMETRIC = MappingType
FLOATS = [torch.bfloat16, torch.float16, torch.float32]
INT8, INT4 = Int8DynamicActivationInt8WeightConfig, Int8DynamicActivationInt4WeightConfig
CONFIGS = [INT8(SYMMETRIC), INT8(ASYMMETRIC), INT4(), INT4(16, ASYMMETRIC, SYMMETRIC), INT4(128, ASYMMETRIC)]
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", FLOATS)
def test_int8_values_are_the_references(dtype: torch.dtype) -> None:
    weight = torch.randn(24, 100, dtype=dtype)
    w = INT8().quantize(weight).unpack()
    qdata, scale, _ = int8_quantize_reference(weight, "symmetric", dtype)
    assert torch.equal(w.qdata, qdata) and torch.equal(w.scale, scale) and w.scale.dtype == dtype
    assert torch.equal(w.dequantize(), int8_dequantize(qdata, scale, None, dtype))
    if dtype == torch.float32:  # else the rounding of the scale and of the value adds to it
        assert ((w.dequantize() - weight).abs() <= 0.5 * scale * (1 + 1e-4)).all()


@pytest.mark.parametrize("mapping", MappingType)
def test_int4_values_are_those_of_int4_weights(mapping: MappingType) -> None:
    weight = torch.randn(3, 24, 100)
    w, other = (kind(32, mapping_type=mapping).quantize(weight) for kind in (INT4, Int4WeightOnlyConfig))
    assert isinstance(w, Int8Int4Tensor) and torch.equal(w.dequantize(), other.dequantize())


@given(
    m=st.integers(0, 9),
    n=st.integers(1, 50),
    k=st.integers(1, 150),
    config=st.sampled_from(CONFIGS),
    weight_dtype=st.sampled_from(FLOATS),
    dtype=st.sampled_from(FLOATS),
    bias_dtype=st.sampled_from([None, *FLOATS]),
    lead=st.sampled_from([(), (2,), (2, 1)]),
)
def test_linear_multiplies_the_dequantized_values(
    m: int,
    n: int,
    k: int,
    config: Any,
    weight_dtype: torch.dtype,
    dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    lead: tuple[int, ...],
) -> None:
    w = config.quantize(torch.randn(n, k, dtype=weight_dtype)).float()
    x = torch.randn(*lead, m, k, dtype=dtype)
    bias = None if bias_dtype is None else torch.randn(n, dtype=bias_dtype)
    out = F.linear(x, w, bias)
    exact = int8_dequantize(*int8_quantize(x, config.act_mapping_type.name.lower()), torch.float64)
    expected = F.linear(exact, w.dequantize().double(), None if bias is None else bias.double())
    assert out.dtype == dtype and out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype] * k**0.5, rtol=TOLERANCE[dtype])
    assert torch.equal(F.linear(x, w.unpack(), bias), out)


def test_asymmetric_activations_suit_one_sided_x() -> None:
    weight, x = torch.randn(64, 256), torch.rand(32, 256) + 2
    errors = [(F.linear(x, INT8(mapping).quantize(weight)) - x @ weight.t()).norm() for mapping in MappingType]
    assert errors[1] < errors[0]


# ---- the sums of rows


@pytest.mark.parametrize("config", [INT8(ASYMMETRIC), INT4(), INT4(128, ASYMMETRIC)])
def test_sums_of_rows(config: AOBaseConfig) -> None:
    for shape in ((40, 300), (600, 32), (3, 20, 40), (2, 2, 17, 9)):
        w = config.quantize(torch.randn(shape) + 0.1)
        assert w.w_sum.shape == shape[:-1] and w.w_sum.dtype == torch.float32
        torch.testing.assert_close(w.w_sum, w.dequantize().sum(-1), atol=1e-3, rtol=1e-5)
        assert w.unpack().w_sum is None
        assert torch.equal(w.unpack().pack().w_sum, w.w_sum)


@pytest.mark.parametrize("config", [INT8(SYMMETRIC), INT4(act_mapping_type=SYMMETRIC)])
def test_symmetric_activations_need_no_sums(config: AOBaseConfig) -> None:
    assert config.quantize(torch.randn(40, 300)).w_sum is None


@pytest.mark.parametrize("config", [INT8(ASYMMETRIC), INT4()])
def test_sums_follow_slices(config: AOBaseConfig) -> None:
    w = config.quantize(torch.randn(3, 48, 128))
    for part in (w[:, 16:48], w[1], w[1][16:], w.unpack()[1, 5:9].pack(), w.unpack()[..., 32:64].pack()):
        torch.testing.assert_close(part.w_sum, part.dequantize().sum(-1), atol=1e-4, rtol=1e-5)
    assert w[:, 16:48].w_sum.untyped_storage().data_ptr() == w.w_sum.untyped_storage().data_ptr()


@pytest.mark.parametrize("config", CONFIGS)
def test_files_hold_no_sums(config: AOBaseConfig) -> None:
    w = config.quantize(torch.randn(40, 64, dtype=torch.bfloat16))
    tensors, metadata = flatten({"a.weight": w})
    zero_point = ["zero_point"] if getattr(w, "zero_point", None) is not None else []
    assert [*tensors] == [f"a._weight_{name}" for name in ["qdata", "scale", *zero_point]]
    description = json.loads(metadata["a.weight"])
    assert description["_type"] == type(w).__name__
    assert description["_data"]["act_mapping"] == config.act_mapping_type.name.lower()
    loaded = unflatten(tensors, metadata)["a.weight"]
    file = io.BytesIO()
    torch.save(w, file)
    file.seek(0)
    for other in (loaded, torch.load(file, weights_only=True)):
        assert other.packed and (other.w_sum is None) == (w.w_sum is None)
        assert w.w_sum is None or torch.equal(other.w_sum, w.w_sum)
    assert 8 * sum(part.nbytes for part in tensors.values()) / (40 * 64) == w.unpack().bits_per_weight


# ---- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qdata": torch.zeros(20, 63, dtype=torch.int8)}, r"qdata: expected shape \(20, 64\), got \(20, 63\)"),
        ({"qdata": torch.zeros(20, 64, dtype=torch.uint8)}, "qdata: expected int8, got uint8"),
        ({"scale": torch.zeros(20)}, r"scale: expected shape \(20, 1\)"),
        ({"scale": None}, "scale: expected a tensor, got None"),
        ({"scale": torch.zeros(20, 1, device="meta")}, "scale: expected device cpu, got meta"),
        ({"w_sum": torch.zeros(20)}, "w_sum: expected None, got a tensor"),
        ({"act_mapping": "none"}, "act_mapping: expected 'symmetric' or 'asymmetric', got 'none'"),
        ({"packing": "tiled"}, "qdata: expected shape"),
        ({"packing": "cuda-n16"}, "packing: expected 'plain' or 'cpu-n16', got 'cuda-n16'"),
        ({"packing": "wavy"}, "packing: expected 'plain' or 'cpu-n16', got 'wavy'"),
        ({"shape": (20, 66)}, "qdata: expected shape"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    w = INT8(ASYMMETRIC).quantize(torch.randn(20, 64)).unpack()
    arguments = {name: getattr(w, name) for name in (*w.tensors, *w.attrs)} | {"shape": (20, 64), "dtype": w.dtype}
    arguments |= changes
    positional = [arguments.pop(name) for name in (*w.tensors, *w.attrs)]
    with pytest.raises((ValueError, TypeError), match=f"Int8Tensor: {message}"):
        Int8Tensor(*positional, **arguments)


def test_tiled_sums_that_do_not_fit() -> None:
    w = INT4().quantize(torch.randn(20, 64))
    *parts, w_sum = w.parts()
    for bad, message in (
        (None, "w_sum: expected a tensor, got None"),
        (w_sum[1:], r"w_sum: expected shape \(20,\), got \(19,\)"),
        (w_sum.double(), "w_sum: expected float32, got float64"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"Int8Int4Tensor: {message}"):
            w.rebuild((*parts, bad))


def test_a_row_that_is_not_finite_is_named() -> None:
    weight = torch.randn(2, 4, 16)
    weight[1, 2, 5] = torch.inf
    with pytest.raises(ValueError, match="w: expected finite values, got NaN or infinity in row 6"):
        INT8().quantize(weight)


def test_a_nonfinite_token_stays_alone() -> None:
    x = torch.randn(5, 64)
    x[3, 7] = torch.nan
    for config in CONFIGS:
        out = F.linear(x, config.quantize(torch.randn(20, 64)))
        assert out[3].isnan().all() and out[[0, 1, 2, 4]].isfinite().all()


# ---- configs


@pytest.mark.parametrize("config", [*CONFIGS, INT8(ASYMMETRIC, PerRow(-1), weight_only_decode=True)])
def test_json_both_ways(config: AOBaseConfig) -> None:
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_json_of_other_versions_and_torchao(caplog: pytest.LogCaptureFixture) -> None:
    data = {
        "layout": {"_type": "PlainLayout", "_data": {}},
        "act_mapping_type": {"_type": "MappingType", "_data": "ASYMMETRIC"},
        "weight_only_decode": True,
        "granularity": {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}},
        "set_inductor_config": True,
        "version": 2,
    }
    name = "Int8DynamicActivationInt8WeightConfig"
    with caplog.at_level(logging.WARNING, logger="aoq"):
        config = config_from_dict({"_type": name, "_version": 2, "_data": data})
    assert config == INT8(ASYMMETRIC, weight_only_decode=True)
    assert [record.getMessage() for record in caplog.records[:2]] == [
        f"{name}: no effect here: layout, set_inductor_config, version",
        f"{name}: no effect here: weight_only_decode",
    ]
    name = "Int8DynamicActivationInt4WeightConfig"
    assert config_from_dict({"_type": name, "_data": {}}) == INT4(32, SYMMETRIC, ASYMMETRIC)
    assert config_from_dict({"_type": name, "_data": {"group_size": 64, "layout": None}}) == INT4(64)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: INT8(granularity=PerTensor()), ValueError, r"Int8.*granularity: expected PerRow\(\), got PerTensor"),
        (lambda: INT8(granularity=PerGroup(32)), ValueError, r"granularity: expected PerRow\(\)"),
        (lambda: INT8(granularity=PerRow(0)), ValueError, r"granularity: expected PerRow\(\)"),
        (lambda: INT8("symmetric"), TypeError, "act_mapping_type: expected MappingType, got 'symmetric'"),
        (lambda: INT8(weight_only_decode=1), TypeError, "weight_only_decode: expected bool, got 1"),
        (lambda: INT4(4), ValueError, "Int8DynamicActivationInt4WeightConfig.group_size: expected 8 or more, got 4"),
        (lambda: INT4(True), TypeError, "group_size: expected int, got True"),
        (lambda: INT4(32, "symmetric"), TypeError, "mapping_type: expected MappingType"),
        (lambda: INT4(32, SYMMETRIC, None), TypeError, "act_mapping_type: expected MappingType, got None"),
        (lambda: INT4(scale_dtype=torch.int8), TypeError, "Int4.*scale_dtype: expected a float"),
        (
            lambda: INT8(scale_dtype=torch.float64),
            TypeError,
            "Int8.*scale_dtype: expected a float",
        ),
    ],
)
def test_bad_settings(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("kind", [INT8, INT4])
def test_scale_dtype(kind: type[INT8 | INT4]) -> None:
    w, x = torch.randn(40, 72).bfloat16(), torch.randn(3, 72).bfloat16()
    wide, narrow = kind(scale_dtype=torch.float32).quantize(w), kind().quantize(w)
    assert (wide.scale.dtype, narrow.scale.dtype) == (torch.float32, torch.bfloat16)
    assert wide.dtype == F.linear(x, wide).dtype == torch.bfloat16
    exact = kind().quantize(w.float())
    assert torch.equal(wide.unpack().scale, exact.unpack().scale)
    with pytest.raises(ValueError, match="whose scale float16 holds"):
        kind(scale_dtype=torch.float16).quantize(torch.full((2, 16), 1e8))


def test_quantize_reports_bits() -> None:
    report = quantize_(nn.Sequential(nn.Linear(256, 256)).bfloat16(), INT8())
    assert report.bits_per_weight == 8 + 16 / 256
    report = quantize_(nn.Sequential(nn.Linear(256, 256)).bfloat16(), INT4(32))
    assert report.bits_per_weight == 4 + 16 / 32 + 32 / 256
