"""What is special to weights of small floats and of tables."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aoq import config_from_dict, config_to_dict
from aoq.config import PerBlock, PerGroup
from aoq.ops.bits import to_codes
from aoq.tensors.floatx import (
    E4M3,
    E8M0,
    OF_NAME,
    FloatxTensor,
    FloatxWeightOnlyConfig,
    FPXWeightOnlyConfig,
    MXWeightOnlyConfig,
    NF4WeightOnlyConfig,
    NVFP4WeightOnlyConfig,
    encode,
)
from aoq.tensors.fp8 import Float8WeightOnlyConfig

SMALL = [name for name, of in OF_NAME.items() if of.values]


@pytest.mark.parametrize("name", SMALL)
def test_codes_are_the_nearest(name: str) -> None:
    of = OF_NAME[name]
    values = torch.cat((torch.linspace(-140, 140, 20_001) * max(map(abs, of.values)) / 127, torch.tensor(of.values)))
    codes = to_codes(encode(values, of), len(values), of.bits).int()
    table = of.table(values.device)
    distance = (values[:, None] - table).abs()
    assert torch.equal((values - table[codes]).abs(), distance.amin(1))
    if name.startswith("fp"):  # as floats round: to the even code
        middles = (table.unique()[1:] + table.unique()[:-1]) / 2
        chosen = to_codes(encode(middles, of), len(middles), of.bits)
        assert (chosen % 2 == 0).all()


@pytest.mark.parametrize(("ebits", "mbits"), [(2, 1), (2, 2), (2, 3), (3, 2)])
def test_small_floats_are_what_ieee_would_make_of_them(ebits: int, mbits: int) -> None:
    of = OF_NAME[FPXWeightOnlyConfig(ebits, mbits).weight_format()]
    bias = 2 ** (ebits - 1) - 1
    for code, value in enumerate(of.values):
        sign, exponent, mantissa = code >> (ebits + mbits), code >> mbits & (2**ebits - 1), code % 2**mbits
        normal = (1 + mantissa / 2**mbits) * 2.0 ** (exponent - bias)
        assert value == (-1) ** sign * (normal if exponent else mantissa / 2**mbits * 2.0 ** (1 - bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "config",
    [
        *(FloatxWeightOnlyConfig(name, 24) for name in OF_NAME),
        NF4WeightOnlyConfig(),
        FPXWeightOnlyConfig(),
        MXWeightOnlyConfig(),
        MXWeightOnlyConfig("fp8_e4m3_grouped"),
        NVFP4WeightOnlyConfig(),
        FloatxWeightOnlyConfig("nf4", 4096, torch.float32),
        Float8WeightOnlyConfig(granularity=PerGroup(32)),
        Float8WeightOnlyConfig(granularity=PerBlock((16, 32))),
    ],
    ids=str,
)
def test_every_format(config: Any, dtype: torch.dtype) -> None:
    weight, x = torch.randn(3, 24, 100, dtype=dtype), torch.randn(5, 100)
    w = config.quantize(weight)
    assert isinstance(w, FloatxTensor) and w.packed and config_from_dict(config_to_dict(config)) == config
    values = w.dequantize()
    assert torch.equal(w.unpack().dequantize(), values)
    coarse = 0.05 if w.format.bits == 8 else 0.3
    assert (values.float() - weight.float()).norm() < coarse * weight.float().norm()
    # By the definition, in fp64.
    plain = w.unpack()
    codes = plain.qdata.double() if w.format.bits == 8 else OF_NAME[w.weight_format].table(x.device)[
        to_codes(plain.qdata, 100, w.format.bits).int()
    ].double()  # fmt: skip
    scale = plain.scale.double() * (1 if plain.row_scale is None else plain.row_scale.double())
    exact = codes * scale.repeat_interleave(min(w.group_size, 100), -1)[..., :100]
    assert torch.allclose(w.rebuild(w.parts()).float().dequantize().double(), exact, rtol=2**-22, atol=0)
    for matrix, of_matrix in zip(w.float(), exact, strict=True):
        torch.testing.assert_close(F.linear(x, matrix).double(), x.double() @ of_matrix.t(), atol=1e-3, rtol=1e-4)
    again = w.config().quantize(weight)
    assert type(config) is not FloatxWeightOnlyConfig or torch.equal(again.dequantize(), values)


def test_scales_of_microscaling_are_powers_of_two() -> None:
    w = MXWeightOnlyConfig().quantize(torch.randn(16, 64) * torch.logspace(-30, 30, 16)[:, None]).unpack()
    assert w.scale.dtype == E8M0 and w.row_scale is None
    exponents = w.scale.float().log2()
    assert torch.equal(exponents, exponents.round())
    assert torch.equal(w.pack().unpack().scale.view(torch.uint8), w.scale.view(torch.uint8))


def test_zeros_and_huge_and_tiny_weights() -> None:
    for config in (MXWeightOnlyConfig(), NVFP4WeightOnlyConfig(), FloatxWeightOnlyConfig("fp6_e3m2")):
        assert config.quantize(torch.zeros(16, 64)).dequantize().eq(0).all()
        for size in (1e-30, 1e30):
            weight = torch.randn(16, 64) * size
            error = (config.quantize(weight).dequantize() - weight).double().norm() / weight.double().norm()
            assert error < 0.2


def test_second_level_scales_of_nvfp4() -> None:
    weight = torch.randn(32, 64)
    w = NVFP4WeightOnlyConfig().quantize(weight).unpack()
    assert w.scale.dtype == E4M3 and w.row_scale is not None
    assert w.row_scale.unique().item() == pytest.approx(weight.abs().amax().item() / 448 / 6)
    with pytest.raises(ValueError, match="dst: expected whole groups along k"):
        w[:, 16:32].copy_(w[:, 16:32].clone())


def test_blocks_share_a_scale() -> None:
    w = Float8WeightOnlyConfig(granularity=PerBlock((128, 128))).quantize(torch.randn(200, 300)).unpack()
    assert w.scale.shape == (200, 3)
    assert all(len(rows.unique(dim=0)) == 1 for rows in w.scale.split(128))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FloatxWeightOnlyConfig("fp7"), ValueError, "weight_format: expected one of .*nf4.*, got 'fp7'"),
        (lambda: FloatxWeightOnlyConfig("nf4", 4), ValueError, "group_size: expected 8 or more, got 4"),
        (lambda: FloatxWeightOnlyConfig("nf4", 64, torch.int8), TypeError, "scale_dtype: expected a float dtype"),
        (lambda: FPXWeightOnlyConfig(5, 5), ValueError, "ebits: expected one of .*, got ebits 5, mbits 5"),
        (lambda: NF4WeightOnlyConfig().quantize(torch.tensor([[1.0, math.nan]])), ValueError, "NaN .* in row 0"),
        (
            lambda: FloatxWeightOnlyConfig("nf4", 8, torch.float16).quantize(torch.full((4, 8), 1e10)),
            ValueError,
            "whose scale float16 holds",
        ),
        (lambda: NF4WeightOnlyConfig().quantize(torch.ones(8)), ValueError, "expected 2 or more dimensions"),
    ],
)
def test_what_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
