"""What is special to weights of few bits."""

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from aoq import (
    AOBaseConfig,
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8Int4Tensor,
    Int8Tensor,
    Int8WeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    PerTensor,
    config_from_dict,
    config_to_dict,
)
from aoq.cli import app
from aoq.ops import int8_dequantize, int8_quantize
from aoq.ops.dtypes import dtype_name
from aoq.ops.int4_quantize import intx_dequantize, intx_quantize_reference
from aoq.tensors.intx import DTYPES, WIDTHS, Int8DynamicActivationIntxWeightConfig, IntxTensor, IntxWeightOnlyConfig
from example_models import tiny_model
from widths import ONE

SYMMETRIC, ASYMMETRIC = MappingType


def configs(width: torch.dtype) -> list[Any]:
    return [
        IntxWeightOnlyConfig(width, PerGroup(64)),
        IntxWeightOnlyConfig(width, PerGroup(32), ASYMMETRIC),
        IntxWeightOnlyConfig(width, PerAxis(0), ASYMMETRIC, torch.float16),
        Int8DynamicActivationIntxWeightConfig(width, PerGroup(16), ASYMMETRIC),
        Int8DynamicActivationIntxWeightConfig(width, act_mapping_type=SYMMETRIC),
    ]


MISSING = [dtype for dtype in DTYPES if dtype not in (*WIDTHS, torch.int4, torch.int8)]
INT3 = configs(ONE)


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("which", range(len(INT3)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_width(width: torch.dtype, which: int, dtype: torch.dtype) -> None:
    weight, x, bits = torch.randn(3, 24, 100, dtype=dtype), torch.randn(5, 100), WIDTHS[width]
    w = configs(width)[which].quantize(weight)
    assert isinstance(w, IntxTensor) and w.packed
    mapping = "symmetric" if w.zero_point is None else "asymmetric"
    parts = intx_quantize_reference(weight.flatten(0, 1), bits, w.group_size, mapping, w.scale.dtype)
    values = intx_dequantize(*parts, bits, w.group_size, 100, dtype).view_as(weight)
    assert torch.equal(w.dequantize(), values)
    assert torch.equal(w.unpack().qdata.flatten(0, 1), parts[0])
    assert w.unpack().qdata.shape[-1] == -(-100 * bits // 8)
    exact = x.double()
    if w.act_mapping:
        exact = int8_dequantize(*int8_quantize(x, w.act_mapping), torch.float64)
    w = w.float()
    for matrix in w:
        expected = exact @ matrix.dequantize().double().t()
        torch.testing.assert_close(F.linear(x, matrix).double(), expected, atol=1e-3, rtol=1e-4)
    for start, end in ((0, 48), (48, 100), (8, 100), (24, 24)):  # a multiple of 8 codes is a whole number of bytes
        assert torch.equal(w.unpack()[..., start:end].dequantize(), w.dequantize()[..., start:end])
    step = 8 // math.gcd(bits, 8)
    text = f"slice: expected bounds along k at whole bytes of codes, multiples of {step}, got"
    with pytest.raises(ValueError, match=text) if step > 1 else contextlib.nullcontext():
        w.unpack()[..., step // 2 :]


def test_hqq_beats_rounding() -> None:
    weight = torch.randn(64, 256) ** 3
    config = IntxWeightOnlyConfig(ONE, PerGroup(64), ASYMMETRIC)
    errors = [
        (c.quantize(weight).dequantize() - weight).abs().mean() for c in (config, config.with_options(use_hqq=True))
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("config", "other", "kind"),
    [
        (IntxWeightOnlyConfig(), Int8WeightOnlyConfig(), Int8Tensor),
        (IntxWeightOnlyConfig(torch.int8, PerGroup(32)), Int8WeightOnlyConfig(32), IntxTensor),
        (
            IntxWeightOnlyConfig(torch.int4, PerGroup(16)),
            Int4WeightOnlyConfig(16, mapping_type=SYMMETRIC),
            Int4Tensor,
        ),
        (
            Int8DynamicActivationIntxWeightConfig(torch.int8, PerAxis(0)),
            Int8DynamicActivationInt8WeightConfig(ASYMMETRIC),
            Int8Tensor,
        ),
        (
            Int8DynamicActivationIntxWeightConfig(torch.int4, act_mapping_type=SYMMETRIC),
            Int8DynamicActivationInt4WeightConfig(act_mapping_type=SYMMETRIC),
            Int8Int4Tensor,
        ),
    ],
)
def test_other_widths_are_other_formats(config: AOBaseConfig, other: AOBaseConfig, kind: type) -> None:
    weight = torch.randn(24, 100)
    w, expected = config.quantize(weight), other.quantize(weight)
    assert type(w) is kind and w.config() == expected.config() and torch.equal(w.dequantize(), expected.dequantize())


@pytest.mark.parametrize(
    "config",
    [
        *INT3,
        IntxWeightOnlyConfig(torch.int5),
        INT3[1].with_options(use_hqq=True),
        Int8DynamicActivationIntxWeightConfig(),
    ],
)
def test_json(config: AOBaseConfig) -> None:
    assert config_from_dict(config_to_dict(config)) == config


def test_json_of_torchao() -> None:
    data = config_to_dict(IntxWeightOnlyConfig(ONE, PerGroup(64)))
    data["_data"] |= {
        "intx_choose_qparams_algorithm": {"_type": "IntxChooseQParamsAlgorithm", "_data": "HQQ_SCALE_ONLY"}
    }
    assert config_from_dict(data).options() == {"group_size": 64, "use_hqq": True, "mapping_type": ASYMMETRIC}


def rebuilt(**changes: Any) -> IntxTensor:
    w = INT3[0].quantize(torch.randn(4, 64))
    return w.rebuild(w.parts(), **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: IntxWeightOnlyConfig(torch.float16),
            r"weight_dtype: expected torch.int1 to torch.int8, got torch.float16",
        ),
        (lambda: IntxWeightOnlyConfig(ONE, PerTensor()), "granularity: expected PerGroup.* got PerTensor"),
        (lambda: IntxWeightOnlyConfig(ONE, PerGroup(4)), "group_size: expected 8 or more, got 4"),
        (
            lambda: IntxWeightOnlyConfig(ONE, intx_choose_qparams_algorithm="gptq"),
            "expected 'affine' or 'hqq', got",
        ),
        *(
            (
                lambda dtype=dtype: IntxWeightOnlyConfig(dtype).quantize(torch.randn(4, 8)),
                f"with kernels, .*int4, .*int8, got {dtype_name(dtype)}",
            )
            for dtype in MISSING[-1:]
        ),
        (lambda: rebuilt(bits=9), "IntxTensor: bits: expected one of .*3.*, got 9"),
        (
            lambda: rebuilt(act_mapping="none"),
            "IntxTensor: act_mapping: expected 'symmetric' or 'asymmetric', got 'none'",
        ),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("command", "group_size"), [(dtype_name(ONE), 32), (f"int8-{dtype_name(ONE)}", 16)])
def test_command_line(tmp_path: Path, command: str, group_size: int) -> None:
    arguments = ["quantize", tiny_model(tmp_path), "-o", tmp_path / "out", "--config", command]
    result = CliRunner().invoke(app, [*map(str, arguments), "--group-size", str(group_size)])
    assert result.exit_code == 0, result.output
    assert (
        f"{command} g{group_size}"
        in CliRunner(env={"COLUMNS": "200"}).invoke(app, ["info", str(tmp_path / "out")]).output
    )
    w = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers[0].mlp.up_proj.weight
    assert isinstance(w, IntxTensor) and w.group_size == group_size
