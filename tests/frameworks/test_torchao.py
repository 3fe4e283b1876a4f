"""aoq behind torchao's own configs, and torchao's checkpoints on aoq's kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchao.dtypes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchao.core.config import config_from_dict, config_to_dict
from torchao.prototype.quantization.int4 import Int8DynamicActivationInt4WeightConfig, PrototypeInt4WeightOnlyConfig
from torchao.prototype.safetensors import safetensors_support
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8Tensor,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4PlainInt32Tensor,
    Int4Tensor,
    Int4TilePackedTo4dTensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    ModuleFqnToConfig,
    PerAxis,
    PerGroup,
    PerRow,
    PerTensor,
    quantize_,
)
from torchao.quantization.quantize_.workflows.float8.float8_tensor import QuantizeTensorToFloat8Kwargs
from torchao.quantization.transform_module import _QUANTIZE_CONFIG_HANDLER as HANDLERS
from torchao.utils import DummyModule
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TorchAoConfig, pipeline

import aoq
import aoq.integrations.torchao as backend
from aoq import _C, QuantizedTensor
from aoq.cli import main
from aoq.integrations.torchao_tensors import CONFIGS, Unsupported, tensor_from_torchao
from aoq.storage.convert import config_of
from aoq.storage.safetensors import flatten
from example_models import real_model, tiny_model

SYMMETRIC, ASYMMETRIC = aoq.MappingType.SYMMETRIC, aoq.MappingType.ASYMMETRIC
INT4, BF16, FP32, E5M2 = torch.int4, torch.bfloat16, torch.float32, torch.float8_e5m2
IDS = torch.tensor([[1, 17, 42, 99, 5, 64, 23]])

# torchao's config, the aoq config that means the same, the op that has to run.
SAME: list[tuple[Any, aoq.AOBaseConfig, str]] = [
    (Int4WeightOnlyConfig(group_size=32), aoq.Int4WeightOnlyConfig(32), "int4_mm"),
    (
        Int4WeightOnlyConfig(64, int4_packing_format="tile_packed_to_4d", int4_choose_qparams_algorithm="hqq"),
        aoq.Int4WeightOnlyConfig(64, use_hqq=True),
        "int4_mm",
    ),
    (PrototypeInt4WeightOnlyConfig(group_size=32), aoq.Int4WeightOnlyConfig(32), "int4_mm"),
    (
        Int8DynamicActivationInt8WeightConfig(),
        aoq.Int8DynamicActivationInt8WeightConfig(scale_dtype=FP32),
        "int8_mm",
    ),
    (
        Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC, reduce_range=True),
        aoq.Int8DynamicActivationInt8WeightConfig(ASYMMETRIC, scale_dtype=FP32),
        "int8_mm",
    ),
    (
        Int8DynamicActivationInt4WeightConfig(group_size=32, act_mapping_type=MappingType.SYMMETRIC),
        aoq.Int8DynamicActivationInt4WeightConfig(32, ASYMMETRIC, SYMMETRIC),
        "int8_int4_mm",
    ),
    (
        Int8DynamicActivationIntxWeightConfig(weight_dtype=INT4, weight_scale_dtype=BF16),
        aoq.Int8DynamicActivationInt4WeightConfig(32, scale_dtype=BF16),
        "int8_int4_mm",
    ),
    (
        Int8DynamicActivationIntxWeightConfig(
            weight_dtype=INT4,
            weight_granularity=PerAxis(0),
            weight_mapping_type=MappingType.ASYMMETRIC,
            intx_packing_format="opaque_torchao_auto",
        ),
        aoq.Int8DynamicActivationInt4WeightConfig(96, ASYMMETRIC),
        "int8_int4_mm",
    ),
    (
        Int8DynamicActivationIntxWeightConfig(weight_granularity=PerAxis(0)),
        aoq.Int8DynamicActivationInt8WeightConfig(ASYMMETRIC),
        "int8_mm",
    ),
    (
        IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(16)),
        aoq.Int4WeightOnlyConfig(16, mapping_type=SYMMETRIC),
        "int4_mm",
    ),
    (IntxWeightOnlyConfig(torch.int3, PerGroup(32)), aoq.IntxWeightOnlyConfig(torch.int3, aoq.PerGroup(32)), "int3_mm"),
    (IntxWeightOnlyConfig(granularity=PerGroup(32)), aoq.Int8WeightOnlyConfig(32), "int8_grouped_mm"),
    (
        Int8DynamicActivationIntxWeightConfig(torch.int2),
        aoq.Int8DynamicActivationIntxWeightConfig(torch.int2),
        "int8_int2_mm",
    ),
    (
        Int8DynamicActivationIntxWeightConfig(torch.int6, PerAxis(0)),
        aoq.Int8DynamicActivationIntxWeightConfig(torch.int6, aoq.PerAxis(0)),
        "int8_int6_mm",
    ),
    (
        Int8WeightOnlyConfig(granularity=PerGroup(32)),
        aoq.Int8WeightOnlyConfig(32, scale_dtype=FP32),
        "int8_grouped_mm",
    ),
    (
        Float8WeightOnlyConfig(granularity=PerGroup(32)),
        aoq.Float8WeightOnlyConfig(granularity=aoq.PerGroup(32)),
        "fp8_grouped_mm",
    ),
    (Int8WeightOnlyConfig(), aoq.Int8WeightOnlyConfig(scale_dtype=FP32), "int8_weight_mm"),
    (IntxWeightOnlyConfig(), aoq.Int8WeightOnlyConfig(), "int8_weight_mm"),
    (Float8WeightOnlyConfig(), aoq.Float8WeightOnlyConfig(), "fp8_weight_mm"),
    (
        Float8WeightOnlyConfig(E5M2, granularity=PerTensor()),
        aoq.Float8WeightOnlyConfig(E5M2, aoq.PerTensor()),
        "fp8_weight_mm",
    ),
    (
        Float8DynamicActivationFloat8WeightConfig(),
        aoq.Float8DynamicActivationFloat8WeightConfig(granularity=aoq.PerTensor()),
        "fp8_mm",
    ),
    (
        Float8DynamicActivationFloat8WeightConfig(E5M2, granularity=PerRow(), activation_value_ub=2.0),
        aoq.Float8DynamicActivationFloat8WeightConfig(E5M2, granularity=aoq.PerRow(), activation_value_ub=2.0),
        "fp8_mm",
    ),
]
# Made by torchao's own quantizer and held by aoq's tensors.
CONVERTED: list[tuple[Any, str]] = [
    (
        Int8DynamicActivationIntxWeightConfig(weight_dtype=INT4, intx_choose_qparams_algorithm="hqq_scale_only"),
        "int8_int4_mm",
    ),
    (
        IntxWeightOnlyConfig(
            weight_dtype=INT4, granularity=PerGroup(32), mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR
        ),
        "int4_mm",
    ),
    (
        IntxWeightOnlyConfig(
            weight_dtype=torch.int6, granularity=PerGroup(32), mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR
        ),
        "int6_mm",
    ),
    (Int8WeightOnlyConfig(granularity=PerTensor()), "int8_weight_mm"),
]
# torchao's, as if aoq were not there.
LEFT: list[Any] = [
    Int8DynamicActivationInt8WeightConfig(granularity=PerTensor()),
    Float8WeightOnlyConfig(E5M2, granularity=PerGroup(32)),
    IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(4)),
]


def name(case: Any) -> str:
    return type(case).__name__ if dataclass_like(case) else str(case)


def dataclass_like(case: Any) -> bool:
    return hasattr(case, "__dataclass_fields__")


def linear(dtype: torch.dtype = BF16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 40)).to(dtype)


def own(config: Any, dtype: torch.dtype = BF16) -> Tensor:
    """What torchao alone makes of the weight of `linear`."""
    handler = HANDLERS[type(config)]
    return getattr(handler, "__wrapped__", handler)(linear(dtype)[0], config).weight


def assert_same(a: Tensor, b: Tensor) -> None:
    (ours, text), (theirs, expected) = flatten({"w": a.detach()}), flatten({"w": b.detach()})
    assert text == expected and ours.keys() == theirs.keys()
    for part, value in ours.items():
        assert torch.equal(value, theirs[part]), part


# ---- quantize_


@pytest.mark.parametrize("dtype", [BF16, torch.float16, FP32], ids=str)
@pytest.mark.parametrize(("config", "same", "op"), SAME, ids=name)
def test_configs_make_aoq_tensors(config: Any, same: aoq.AOBaseConfig, op: str, dtype: torch.dtype) -> None:
    model, ours, x = linear(dtype), linear(dtype), torch.randn(3, 96, dtype=dtype)
    quantize_(model, config)
    aoq.quantize_(ours, same)
    assert_same(model[0].weight, ours[0].weight)
    assert not model[0].weight.requires_grad
    y = model(x)
    assert _C.last_kernel() == _C.kernel(op, 3, str(dtype)[6:])
    assert torch.equal(y, ours(x))


@pytest.mark.parametrize(("config", "op"), CONVERTED, ids=name)
def test_what_only_torchao_quantizes_runs_on_aoq(config: Any, op: str) -> None:
    model = linear()
    quantize_(model, config)
    assert isinstance(model[0].weight, QuantizedTensor)
    assert torch.equal(model[0].weight.dequantize(), own(config).dequantize())
    model(torch.randn(3, 96, dtype=BF16))
    assert _C.last_kernel() == _C.kernel(op, 3, "bfloat16")


@pytest.mark.parametrize("config", LEFT, ids=name)
def test_what_aoq_has_no_kernel_for_is_left_to_torchao(config: Any) -> None:
    model, theirs, x = linear(), linear(), torch.randn(3, 96, dtype=BF16)
    quantize_(model, config)
    theirs[0].weight = own(config)
    assert type(model[0].weight) is type(theirs[0].weight) and not isinstance(model[0].weight, QuantizedTensor)
    assert torch.equal(model(x), theirs(x))


def test_every_config_is_tested() -> None:
    assert {type(config) for config, *_ in SAME} == set(CONFIGS)


def test_k_need_not_be_a_multiple_of_the_group() -> None:
    model = linear()
    quantize_(model, Int4WeightOnlyConfig(group_size=128))  # torchao leaves such weights as they are, silently
    assert isinstance(model[0].weight, aoq.Int4Tensor)


def test_fqn_to_config() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)).to(BF16)
    config = FqnToConfig(
        {
            "0": Int8DynamicActivationInt8WeightConfig(),
            "1.weight": IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(32)),
            "re:2": None,
            "_default": Int4WeightOnlyConfig(group_size=64),
        }
    )
    quantize_(model, config, filter_fn=None)
    kinds = [type(module.weight) for module in model]
    assert kinds == [aoq.Int8Tensor, aoq.Int4Tensor, nn.Parameter, aoq.Int4Tensor]
    assert (model[1].weight.group_size, model[3].weight.group_size) == (32, 64)
    model(torch.randn(2, 64, dtype=BF16))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 32, 64, dtype=BF16))


def test_experts_by_name() -> None:
    model = nn.Sequential(Experts())
    quantize_(model, FqnToConfig({"0.gate_up_proj": Int4WeightOnlyConfig(group_size=32)}), filter_fn=None)
    assert isinstance(model[0].gate_up_proj, aoq.Int4Tensor) and model[0].gate_up_proj.shape == (3, 32, 64)
    with pytest.raises(NotImplementedError, match="quantizes weights only, not bias"):
        HANDLERS[PrototypeInt4WeightOnlyConfig](
            nn.Linear(8, 8), PrototypeInt4WeightOnlyConfig(group_size=4), parameter_name="bias"
        )


def test_embeddings_are_looked_up_by_aoq() -> None:
    ids = torch.tensor([[3, 0, 9]])
    for config in (IntxWeightOnlyConfig(), Int8WeightOnlyConfig(), Int4WeightOnlyConfig(group_size=32)):
        model = nn.Sequential(nn.Embedding(10, 64)).to(BF16)
        expected = model(ids)
        quantize_(model, config, lambda module, fqn: isinstance(module, nn.Embedding))
        assert isinstance(model[0].weight, QuantizedTensor)
        torch.testing.assert_close(model(ids), expected, atol=0.2 if "4" in type(config).__name__ else 0.02, rtol=0)


def test_tied_weights_are_quantized_once() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).to(BF16)
    model[1].weight = model[0].weight
    config = Int4WeightOnlyConfig(group_size=32)
    HANDLERS[Int4WeightOnlyConfig](model[0], config)
    weight = model[0].weight
    assert HANDLERS[Int4WeightOnlyConfig](model[0], config).weight is weight


def test_what_awq_and_smoothquant_scale_is_torchaos() -> None:
    dummy = DummyModule(torch.randn(40, 96, dtype=BF16))
    made = HANDLERS[Int8DynamicActivationInt8WeightConfig](dummy, Int8DynamicActivationInt8WeightConfig())
    assert isinstance(made.weight, torchao.quantization.Int8Tensor)
    made.weight.act_pre_scale = torch.ones(96)
    with pytest.raises(Unsupported, match="act_pre_scale"):
        tensor_from_torchao(made.weight)


def test_convolutions_are_torchaos() -> None:
    model = nn.Sequential(nn.Conv2d(32, 8, 1))
    config = IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(32))
    quantize_(model, config, lambda module, fqn: isinstance(module, nn.Conv2d))
    assert isinstance(model[0].weight, torchao.quantization.IntxUnpackedToInt8Tensor)


def test_meta_weights() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(96, 40, dtype=BF16))
    quantize_(model, Int4WeightOnlyConfig(group_size=32))
    assert isinstance(model[0].weight, aoq.Int4Tensor) and model[0].weight.is_meta


def test_bad_weights_are_named_errors() -> None:
    model = linear()
    model[0].weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        quantize_(model, Int4WeightOnlyConfig(group_size=32))


def test_aoq_and_torchao_names_do_not_collide() -> None:
    """torchao looks classes up by name, in modules in no order."""
    for config, same, _ in SAME:
        read = config_from_dict(config_to_dict(config))
        assert type(read) is type(config)
        assert type(aoq.config_from_dict(aoq.config_to_dict(same))) is type(same)


def test_importing_twice_changes_nothing() -> None:
    before = dict(HANDLERS)
    for kind in CONFIGS:
        backend._quantize_with_aoq(kind)
    assert before == HANDLERS


def test_other_releases_of_torchao_are_refused() -> None:
    code = "import torchao; torchao.__version__ = '0.99.0'; import aoq.integrations.torchao"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "torchao 0.18; this is torchao 0.99.0" in done.stderr


def test_conversion_alone_leaves_torchao_as_it_is() -> None:
    code = (
        "from torchao.quantization.transform_module import _QUANTIZE_CONFIG_HANDLER as handlers;"
        "before = dict(handlers); import aoq.integrations.torchao_tensors;"
        "assert all(handlers[kind] is own for kind, own in before.items())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- configs of older releases


def test_configs_of_guides_and_older_checkpoints() -> None:
    hqq = Int4WeightOnlyConfig(group_size=128, use_hqq=True)
    assert hqq.int4_choose_qparams_algorithm == "hqq" and hqq.version == 2
    cpu = Int4WeightOnlyConfig(group_size=128, layout=torchao.dtypes.Int4CPULayout())
    assert cpu == Int4WeightOnlyConfig(group_size=128)
    assert Int8WeightOnlyConfig(group_size=128).granularity == PerGroup(128)
    assert Int8WeightOnlyConfig(group_size=None) == Int8WeightOnlyConfig()
    with pytest.raises(TypeError, match="unexpected keyword argument 'grup_size'"):
        Int4WeightOnlyConfig(grup_size=128)


@pytest.mark.parametrize("golden", ["int4_weight_only_hqq", "int4_weight_only_torchao", "module_fqn_to_config"])
def test_json_of_older_releases(golden: str) -> None:
    """Two of these are in torchao's guides, and torchao alone refuses them."""
    data = json.loads((Path(__file__).parents[1] / "golden" / f"{golden}.json").read_text())
    read = config_from_dict(data)
    assert type(read).__name__ == type(aoq.config_from_dict(data)).__name__
    assert config_from_dict(config_to_dict(read)) == read
    if golden != "module_fqn_to_config":
        assert read.int4_choose_qparams_algorithm == "hqq"


# ---- torchao's tensors


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        Int8DynamicActivationInt8WeightConfig(),
        Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC),
        *(
            Int8DynamicActivationIntxWeightConfig(weight_dtype=kind, weight_mapping_type=mapping)
            for kind in (torch.int2, torch.int3, INT4)
            for mapping in (MappingType.SYMMETRIC, MappingType.ASYMMETRIC)
        ),
        IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(8), scale_dtype=FP32),
        IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerAxis(0), mapping_type=MappingType.ASYMMETRIC),
        Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int5, weight_granularity=PerAxis(0)),
        IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerGroup(16), mapping_type=MappingType.ASYMMETRIC),
        Int8WeightOnlyConfig(granularity=PerGroup(32)),
        Float8WeightOnlyConfig(granularity=PerGroup(32)),
    ],
    ids=name,
)
def test_values_are_kept(config: Any, dtype: torch.dtype) -> None:
    theirs = own(config, dtype)
    ours = tensor_from_torchao(theirs)
    assert torch.equal(ours.dequantize(), theirs.dequantize())
    assert not ours.packed and ours.dtype == theirs.dtype and ours.shape == theirs.shape
    x = torch.randn(5, 96, dtype=dtype)
    difference = F.linear(x, ours) - F.linear(x, theirs)
    assert difference.norm() < (0.02 if dtype == BF16 else 0.01) * F.linear(x, theirs).norm()  # int8 activations


def test_scales_per_tensor() -> None:
    w = own(Int8DynamicActivationInt8WeightConfig())
    w.scale, w.block_size = w.scale[:1], [40, 96]
    w.zero_point = None
    ours = tensor_from_torchao(w)
    torch.testing.assert_close(ours.dequantize(), (w.qdata * w.scale).to(BF16), atol=0, rtol=0)


def int4_parts(n: int, k: int, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes 0..15 [n, k], scale and zero [G, n], and (code - 8) * scale + zero in fp64."""
    codes = torch.randint(16, (n, k))
    scale, zero = (torch.rand(k // group, n) * 0.1).to(dtype), torch.randn(k // group, n).to(dtype)
    spread = [part.double().t().repeat_interleave(group, 1) for part in (scale, zero)]
    return codes, scale, zero, (codes - 8) * spread[0] + spread[1]


def assert_close_to_fp32(ours: QuantizedTensor, expected: Tensor) -> None:
    """Within a few roundings of fp32: the quotient zero / scale, its difference from 8, the code's, the product."""
    w = ours.unpack()
    values = w.rebuild(w.parts(), dtype=FP32).dequantize()
    assert ((values - expected).abs() <= 2.0**-21 * (expected.abs() + 1.6)).all()


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_int4_tensor(dtype: torch.dtype) -> None:
    codes, scale, zero, expected = int4_parts(40, 96, 32, dtype)
    signed = codes - 8
    qdata = (signed[:, 0::2] & 0xF | signed[:, 1::2] << 4).to(torch.int8)
    theirs = Int4Tensor(qdata, scale, zero, [1, 32], torch.Size((40, 96)))
    ours = tensor_from_torchao(theirs)
    assert isinstance(ours, aoq.Int4Tensor) and ours.dtype == dtype
    assert_close_to_fp32(ours, expected)
    y = F.linear(torch.eye(96, dtype=dtype), ours)
    assert _C.last_kernel() == _C.kernel("int4_mm", 96, str(dtype)[6:])
    torch.testing.assert_close(y.t(), ours.dequantize())

    symmetric = tensor_from_torchao(Int4Tensor(qdata, scale, zero * 0, [1, 32], torch.Size((40, 96))))
    assert symmetric.zero_point is None and symmetric.scale.dtype == dtype
    fp8 = Int4Tensor(qdata, scale, zero * 0, [1, 32], (40, 96), activation_dtype=torch.float8_e4m3fn)
    with pytest.raises(Unsupported, match=r"does not quantize activations to torch\.float8_e4m3fn"):
        tensor_from_torchao(fp8)
    stacked = [torch.stack((part, part)) for part in (qdata, scale, zero)]
    experts = tensor_from_torchao(Int4Tensor(*stacked, [1, 1, 32], torch.Size((2, 40, 96))))
    assert_same(experts.unpack()[1].pack(), ours)


def test_groups_of_one_value() -> None:
    """Their scale is next to nothing beside their zero: no quotient holds that."""
    qdata, value = torch.zeros(1, 32, dtype=torch.int8), torch.tensor([[5.0], [0.0]], dtype=BF16)
    scale = torch.full((2, 1), torch.finfo(BF16).smallest_normal, dtype=BF16)
    ours = tensor_from_torchao(Int4Tensor(qdata, scale, value, [1, 32], torch.Size((1, 64))))
    assert torch.equal(ours.dequantize(), torch.tensor([[5.0] * 32 + [0.0] * 32], dtype=BF16))
    assert torch.equal(F.linear(torch.eye(64), ours).flatten(), torch.tensor([5.0] * 32 + [0.0] * 32))


def tile_packed(codes: Tensor) -> Tensor:
    """Codes as `aten::_convert_weight_to_int4pack` of CUDA packs them, one lane at a time."""
    n, k = codes.shape
    packed = torch.zeros(n // 8, k // 128, 32, 4, dtype=torch.int64)
    for tile_n in range(n // 8):
        for tile_k in range(k // 128):
            for lane in range(32):
                for i in range(4):
                    row, first = 8 * tile_n + lane // 4, 128 * tile_k + 32 * i + 2 * (lane % 4)
                    for run in range(4):
                        even, odd = codes[row, first + 8 * run], codes[row, first + 8 * run + 1]
                        packed[tile_n, tile_k, lane, i] |= int(even) << 4 * run | int(odd) << 4 * run + 16
    return (packed & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)


def test_tile_packed_tensor() -> None:
    n, k, group = 13, 160, 32
    codes, scale, zero, expected = int4_parts(n, k, group, BF16)
    padded = F.pad(codes, (0, 1024 - k, 0, 16 - n))
    scales = F.pad(torch.stack((scale, zero), -1), (0, 0, 0, 16 - n, 0, (1024 - k) // group))
    theirs = Int4TilePackedTo4dTensor(tile_packed(padded), scales, [1, group], torch.Size((n, k)))
    ours = tensor_from_torchao(theirs)
    assert_close_to_fp32(ours, expected)


def test_intel_gpu_tensor() -> None:
    codes, scale, _, _ = int4_parts(40, 96, 32, BF16)
    zero = torch.randint(16, (3, 40), dtype=torch.int8)
    packed = sum(codes[:, i::8] << 4 * i for i in range(8)).to(torch.uint32).view(torch.int32)
    ours = tensor_from_torchao(Int4PlainInt32Tensor(packed, scale, zero, [1, 32], torch.Size((40, 96))))
    spread = [part.double().t().repeat_interleave(32, 1) for part in (scale, zero)]
    assert_close_to_fp32(ours, (codes - spread[1]) * spread[0])
    with pytest.raises(Unsupported, match="Intel GPUs"):
        tensor_from_torchao(Int4PlainInt32Tensor(packed, scale, zero.to(BF16), [1, 32], torch.Size((40, 96))))


@pytest.mark.parametrize("granularity", [PerRow(), PerTensor()], ids=str)
@pytest.mark.parametrize("act", [None, PerRow(), PerTensor()], ids=str)
def test_float8_tensor(granularity: Any, act: Any) -> None:
    """Codes and scales as they are, whatever made them; torchao's config for activations needs a GPU to quantize."""
    weight = torch.randn(40, 96).to(BF16)
    kwargs = None if act is None else QuantizeTensorToFloat8Kwargs(E5M2, act, hp_value_lb=1e-3, hp_value_ub=4.0)
    theirs = Float8Tensor.from_hp(weight, granularity=granularity, act_quant_kwargs=kwargs)
    ours = tensor_from_torchao(theirs)
    assert torch.equal(ours.qdata.float(), theirs.qdata.float()) and torch.equal(ours.dequantize(), theirs.dequantize())
    acts = (ours.act_dtype, ours.act_granularity, ours.act_lb, ours.act_ub)
    wanted = "tensor" if act == PerTensor() else "row"
    assert acts == ((None,) * 4 if act is None else (E5M2, wanted, 1e-3, 4.0))
    ours.pack().linear(torch.randn(3, 96, dtype=BF16), None)
    assert _C.last_kernel() == _C.kernel("fp8_weight_mm" if act is None else "fp8_mm", 3, "bfloat16")
    made = config_of(ours)
    assert type(made) is (aoq.Float8WeightOnlyConfig if act is None else aoq.Float8DynamicActivationFloat8WeightConfig)
    assert config_of(made.quantize(weight).unpack()) == made
    assert flatten({"w": made.quantize(weight)})[1] == flatten({"w": ours})[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Int8DynamicActivationInt8WeightConfig(granularity=PerTensor()), "quantizes activations per token"),
        (Float8WeightOnlyConfig(E5M2, granularity=PerGroup(32)), r"float8_e5m2 in blocks of \(1, 32\)"),
        (IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(4)), "no kernel for int4 weights in groups of 4"),
    ],
    ids=name,
)
def test_unsupported_tensors_say_why(config: Any, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        tensor_from_torchao(own(config))


def test_convert_model() -> None:
    model = nn.Sequential(nn.Linear(96, 40), nn.Linear(96, 40), nn.Linear(40, 8), nn.Embedding(10, 96)).to(BF16)
    model[0].weight = model[1].weight = own(Int8DynamicActivationInt8WeightConfig())
    left = IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(4))
    model[2].weight = nn.Parameter(own(left), requires_grad=False)
    model[3].weight = own(Int8WeightOnlyConfig())
    expected = model[3].weight.dequantize()
    assert backend.convert_(model) == ["0.weight", "1.weight", "3.weight"]
    assert isinstance(model[0].weight, aoq.Int8Tensor) and model[0].weight is model[1].weight
    assert torch.equal(model[3](torch.arange(40)), expected)
    assert backend.convert_(model) == []


# ---- safetensors, by torchao's functions


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 80),
    config=st.sampled_from([same for _, same, _ in SAME]),
    module=st.sampled_from(["", "a.b_c.", "weight."]),
    param=st.sampled_from(["weight", "gate_up_proj", "_w"]),
)
def test_flatten_and_unflatten(n: int, k: int, config: aoq.AOBaseConfig, module: str, param: str) -> None:
    fqn = f"{module or 'm.'}{param}"
    state = {fqn: config.quantize(torch.randn(n, k)), "m.bias": torch.randn(3)}
    tensors, metadata = safetensors_support.flatten_tensor_state_dict(state)
    assert all(type(tensor) is Tensor for tensor in tensors.values())
    back, left = safetensors_support.unflatten_tensor_state_dict(tensors, metadata)
    assert left == {} and back.keys() == state.keys()
    assert torch.equal(back["m.bias"], state["m.bias"])
    assert_same(back[fqn], state[fqn])


def test_parts_that_are_not_whole_wait() -> None:
    state = {"a.weight": aoq.Int4WeightOnlyConfig(32).quantize(torch.randn(16, 64)), "a.bias": torch.zeros(16)}
    tensors, metadata = safetensors_support.flatten_tensor_state_dict(state)
    scale = tensors.pop("a._weight_scale")
    back, left = safetensors_support.unflatten_tensor_state_dict(tensors, metadata)
    assert set(back) == {"a.bias"} and set(left) == {"a._weight_qdata", "a._weight_zero_point"}
    back, left = safetensors_support.unflatten_tensor_state_dict(left | {"a._weight_scale": scale}, metadata)
    assert set(back) == {"a.weight"} and not left
    with pytest.raises(ValueError, match=r"b\.weight: no metadata describes this tensor"):
        safetensors_support.unflatten_tensor_state_dict({"b.weight": scale}, metadata)
    with pytest.raises(ValueError, match="no tensor_names"):
        safetensors_support.unflatten_tensor_state_dict({}, {})


def test_torchaos_tensors_are_read_as_aoqs() -> None:
    groups = Float8WeightOnlyConfig(E5M2, granularity=PerGroup(32))
    kept, converted = own(groups), own(Int8DynamicActivationIntxWeightConfig(weight_dtype=INT4))
    state = {"a.weight": kept.detach(), "b.weight": converted.detach()}
    back, left = backend.unflatten_tensor_state_dict(*backend._flatten_torchao(state))
    assert not left
    assert type(back["a.weight"]) is type(kept) and torch.equal(back["a.weight"].dequantize(), kept.dequantize())
    assert isinstance(back["b.weight"], aoq.Int8Int4Tensor)
    assert torch.equal(back["b.weight"].dequantize(), converted.dequantize())


def test_torch_save(tmp_path: Path) -> None:
    model = linear()
    quantize_(model, Int4WeightOnlyConfig(group_size=32))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert_same(torch.load(tmp_path / "w.pt", weights_only=True)["0.weight"], model[0].weight)


# ---- transformers


def load(directory: Path, config: Any = None, **kwargs: Any) -> PreTrainedModel:
    if config is not None:
        kwargs["quantization_config"] = TorchAoConfig(config, **kwargs.pop("torchao", {}))
    return AutoModelForCausalLM.from_pretrained(directory, **kwargs)


def assert_identical(a: PreTrainedModel, b: PreTrainedModel) -> None:
    (ours, text), (theirs, expected) = flatten(a.state_dict()), flatten(b.state_dict())
    assert ours.keys() == theirs.keys() and text == expected
    for part, value in ours.items():
        assert torch.equal(value, theirs[part]), part
    assert torch.equal(a(IDS).logits, b(IDS).logits)


MIXED = ModuleFqnToConfig(
    {
        "_default": Int4WeightOnlyConfig(group_size=16),
        "model.layers.0.self_attn.q_proj": Int8DynamicActivationInt8WeightConfig(),
        "re:.*layers.1.mlp.*": Int8WeightOnlyConfig(),
        "model.layers.1.self_attn.k_proj": None,
    }
)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("config", [*(config for config, *_ in (*SAME[:7], *SAME[10:13], *SAME[14:])), MIXED], ids=name)
def test_transformers_quantize_save_reload(tmp_path: Path, config: Any, shards: int, tied: bool) -> None:
    bf16 = tiny_model(tmp_path, "llama", tied, shards)
    model = load(bf16, config)
    kinds = {fqn: type(module.weight) for fqn, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert kinds.pop("lm_head") is nn.Parameter
    if config is MIXED:
        assert kinds["model.layers.0.self_attn.q_proj"] is aoq.Int8Tensor
        assert kinds["model.layers.0.self_attn.k_proj"] is aoq.Int4Tensor
        assert kinds["model.layers.1.self_attn.k_proj"] is nn.Parameter
        assert kinds["model.layers.1.mlp.up_proj"] is aoq.Int8Tensor
    else:
        assert all(issubclass(kind, QuantizedTensor) for kind in kinds.values())
    model.save_pretrained(tmp_path / "saved", max_shard_size="50KB" if shards > 1 else "1GB")
    assert (len([*(tmp_path / "saved").glob("*.safetensors")]) > 1) == (shards > 1)
    reloaded = load(tmp_path / "saved")
    assert_identical(model, reloaded)
    if config is not MIXED:
        same = next(same for each, same, _ in SAME if each is config)
        assert_identical(model, aoq_model(bf16, same))


def aoq_model(directory: Path, config: aoq.AOBaseConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, quantization_config=aoq.AoqConfig(config))


# ---- torchao's checkpoints

W4A8 = "Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(16))"
W8A8 = "Int8DynamicActivationInt8WeightConfig()"
W4 = "IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0), mapping_type=MappingType.ASYMMETRIC)"
BOTH = f"ModuleFqnToConfig({{'_default': {W4A8}, 're:.*q_proj': {W8A8}, 'model.layers.0.mlp.up_proj': None}})"
# Of each checkpoint: torchao's config, bytes of a shard, whether it is a pickle and of a tied model, aoq's tensors.
CHECKPOINTS: dict[str, tuple[str, str, bool, bool, set[str]]] = {
    "int8": (W8A8, "1GB", False, True, {"Int8Tensor"}),
    "int8-int4": (W4A8, "30KB", False, False, {"Int8Int4Tensor"}),
    "int4": (W4, "1GB", True, False, {"Int4Tensor"}),
    "mixed": (BOTH, "1GB", False, True, {"Int8Int4Tensor", "Int8Tensor"}),
    "float8": ("Float8WeightOnlyConfig()", "1GB", False, False, {"Float8Tensor"}),
    "float8-tensor": (
        "Float8WeightOnlyConfig(torch.float8_e5m2, granularity=PerTensor())",
        "30KB",
        False,
        True,
        {"Float8Tensor"},
    ),
    "int8-weight": ("Int8WeightOnlyConfig()", "1GB", False, False, {"Int8Tensor"}),
    "groups": ("Float8WeightOnlyConfig(granularity=PerGroup(16))", "1GB", False, False, {"FloatxTensor"}),
    "e5m2": ("Float8WeightOnlyConfig(torch.float8_e5m2, granularity=PerGroup(16))", "1GB", False, False, set()),
}
WRITE = """
import json, os, sys, torch
from torchao.quantization import *
from transformers import AutoModelForCausalLM, TorchAoConfig
for source, destination, config, shard, pickled in json.loads(sys.argv[1]):
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=TorchAoConfig(eval(config)))
    assert not any(type(param).__module__.startswith("aoq") for param in model.parameters())
    model.save_pretrained(destination, max_shard_size=shard)
    if pickled:
        os.remove(f"{destination}/model.safetensors")
        torch.save(model.state_dict(), f"{destination}/pytorch_model.bin")
    torch.save(model(torch.tensor([[1, 17, 42, 99, 5, 64, 23]])).logits, f"{destination}/logits.pt")
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `CHECKPOINTS`, which torchao wrote without aoq."""
    parent = tmp_path_factory.mktemp("torchao")
    models = {tied: str(tiny_model(parent, "llama", tied)) for tied in (False, True)}
    jobs = [
        (models[tied], str(parent / name), config, shard, pickled)
        for name, (config, shard, pickled, tied, _) in CHECKPOINTS.items()
    ]
    done = subprocess.run([sys.executable, "-c", WRITE, json.dumps(jobs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return parent


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    def run(*args: Any) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "e5m2"])
def test_torchaos_checkpoints(checkpoints: Path, tmp_path: Path, cli: Any, name: str) -> None:
    theirs, kinds = checkpoints / name, CHECKPOINTS[name][-1]
    code, out, err = cli("convert", theirs, "-o", tmp_path / "aoq")
    assert code == 0, err
    assert out.startswith("converted 1") and "not quantized there" in out
    converted = load(tmp_path / "aoq")
    assert {type(param).__name__ for param in converted.parameters()} - {"Parameter"} == kinds
    expected = torch.load(theirs / "logits.pt")
    assert (converted(IDS).logits - expected).norm() < 0.04 * expected.norm()

    read = load(theirs)  # transformers' own way
    if name == "int4":  # of pickles, transformers keeps the tensors that are in them
        assert len(backend.convert_(read)) == 14
    assert torch.equal(read(IDS).logits, converted(IDS).logits)
    assert all(isinstance(param, QuantizedTensor) or type(param) is nn.Parameter for param in read.parameters())
    assert read.config.quantization_config.quant_method == "torchao"


def test_convert_checkpoint_errors(checkpoints: Path, tmp_path: Path, cli: Any) -> None:
    code, _, err = cli("convert", checkpoints / "llama-untied", "-o", tmp_path / "out")
    assert code == 1 and "is not quantized: neither config.json nor" in err
    theirs = shutil.copytree(checkpoints / "e5m2", tmp_path / "groups")
    code, _, err = cli("convert", theirs, "-o", tmp_path / "out")
    assert code == 1 and "_proj.weight: Float8Tensor: aoq has no kernel for weights of" in err
    assert not (tmp_path / "out").exists()
    code, _, err = cli("quantize", theirs, "-o", tmp_path / "out")
    assert code == 1 and "is quantized already; `aoq convert` reads it" in err
    code, out, _ = cli("info", theirs)
    assert code == 0 and "torchao Float8" in out
    (theirs / "model.safetensors").unlink()
    (theirs / "pytorch_model.bin").write_bytes(b"not a pickle")
    code, _, err = cli("convert", theirs, "-o", tmp_path / "out")
    assert code == 1 and "pytorch_model.bin: damaged" in err


def test_embedding_of_the_mobile_guide(tmp_path: Path) -> None:
    """int8 embedding, int4 linears and head with int8 activations, of an untied model."""
    config = ModuleFqnToConfig(
        {
            "_default": Int8DynamicActivationIntxWeightConfig(weight_dtype=INT4, weight_granularity=PerGroup(16)),
            "model.embed_tokens": IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)),
        }
    )
    options = {"include_input_output_embeddings": True, "modules_to_not_convert": []}
    model = load(tiny_model(tmp_path), config, torchao=options, dtype=FP32)
    assert isinstance(model.get_input_embeddings().weight, aoq.Int8Tensor)
    assert isinstance(model.lm_head.weight, aoq.Int8Int4Tensor)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved")(IDS).logits, model(IDS).logits)


# ---- the guides' examples, on the real model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(real_model())


def kernels_that_run(model: PreTrainedModel) -> set[str]:
    """The kernels of one forward pass."""
    ran: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda module, args, out: ran.add(_C.last_kernel()))
        for module in model.modules()
        if isinstance(module, nn.Linear) and isinstance(module.weight, QuantizedTensor)
    ]
    model(IDS)
    for hook in hooks:
        hook.remove()
    return ran


GUIDES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    # transformers' guide to each kind on the CPU
    "int4-cpu": (lambda: Int4WeightOnlyConfig(group_size=128, layout=torchao.dtypes.Int4CPULayout()), {"int4_mm"}),
    "int8-cpu": (lambda: Int8DynamicActivationInt8WeightConfig(), {"int8_mm"}),
    "int8-weight-cpu": (lambda: Int8WeightOnlyConfig(), {"int8_weight_mm"}),
    "float8-weight-cpu": (lambda: Float8WeightOnlyConfig(), {"fp8_weight_mm"}),
    # torchao's guides to transformers and vLLM, and to serving (float8)
    "float8": (lambda: Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), {"fp8_mm"}),
    "int4-hqq": (lambda: Int4WeightOnlyConfig(group_size=128, use_hqq=True), {"int4_mm"}),
    "modules": (
        lambda: ModuleFqnToConfig(
            {
                "model.layers.0.self_attn.q_proj": Int4WeightOnlyConfig(group_size=64),
                "model.layers.0.self_attn.k_proj": Int4WeightOnlyConfig(group_size=64),
                "model.layers.0.mlp.gate_proj": Int8WeightOnlyConfig(),
                "_default": Int4WeightOnlyConfig(group_size=128),
            }
        ),
        {"int4_mm", "int8_weight_mm"},
    ),
    # torchao's guide to serving: what goes on to phones
    "mobile": (
        lambda: Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=PerGroup(32), weight_scale_dtype=torch.bfloat16
        ),
        {"int8_int4_mm"},
    ),
}


@pytest.mark.parametrize("name", GUIDES)
def test_guides(name: str, tmp_path: Path, tokenizer: Any) -> None:
    config, ops = GUIDES[name]
    quantized_model = AutoModelForCausalLM.from_pretrained(
        real_model(), torch_dtype="auto", device_map="cpu", quantization_config=TorchAoConfig(quant_type=config())
    )
    ran = {name.rsplit("_", 1)[0] for name in kernels_that_run(quantized_model)}
    assert ran == {_C.kernels(op)[0].rsplit("_", 1)[0] for op in ops}
    input_ids = tokenizer("What are we having for dinner?", return_tensors="pt")
    output = quantized_model.generate(**input_ids, max_new_tokens=10, cache_implementation="static", do_sample=False)

    output_dir = tmp_path / "quantized"
    quantized_model.save_pretrained(output_dir, safe_serialization=False)  # which transformers does not heed any more
    reloaded_model = AutoModelForCausalLM.from_pretrained(output_dir, device_map="auto", dtype=torch.bfloat16)
    again = reloaded_model.generate(**input_ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(again, output)
    assert kernels_that_run(reloaded_model) == kernels_that_run(quantized_model)
    sizes = [sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in (output_dir, real_model())]
    assert sizes[0] < 0.75 * sizes[1]  # the embedding, which stays as it is, is a fifth

    if name == "mobile":
        pipe = pipeline("text-generation", model=reloaded_model, tokenizer=tokenizer)
        messages = [{"role": "user", "content": "What is 2 + 2?"}]
        answer = pipe(messages, max_new_tokens=20, return_full_text=False, do_sample=False)
        assert "4" in answer[0]["generated_text"]


def test_example() -> None:
    script = Path(__file__).parents[2] / "examples" / "use_torchao.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "int4_mm" in done.stdout and "4" in done.stdout.splitlines()[-1]


# ---- small floats: the codes and scales that torchao's prototypes make


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("fp4_e2m1", torch.float4_e2m1fn_x2),
        ("fp6_e2m3", "fp6_e2m3"),
        ("fp6_e3m2", "fp6_e3m2"),
        ("fp8_e4m3_grouped", torch.float8_e4m3fn),
    ],
)
def test_microscaling_is_torchaos(name: str, elements: Any) -> None:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    weight = torch.randn(64, 256) * torch.logspace(-6, 6, 64)[:, None]
    weight[0] = 0
    theirs, ours = MXTensor.to_mx(weight, elements, 32), aoq.MXWeightOnlyConfig(name).quantize(weight).unpack()
    assert torch.equal(ours.scale[1:].view(torch.uint8), theirs.scale[1:].view(torch.uint8))
    assert torch.equal(ours.dequantize(), theirs.dequantize(torch.float32))


def test_nvfp4_is_torchaos() -> None:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    weight = torch.randn(64, 256)
    theirs = NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=per_tensor_amax_to_scale(weight.abs().amax()))
    ours = aoq.NVFP4WeightOnlyConfig().quantize(weight).unpack()
    assert torch.equal(ours.scale.view(torch.uint8), theirs.scale.view(64, 16).view(torch.uint8))
    # It multiplies by reciprocals, so that a value near the middle of two may become the other one.
    different = ours.dequantize() != theirs.dequantize(torch.float32)
    assert different.float().mean() < 0.001
