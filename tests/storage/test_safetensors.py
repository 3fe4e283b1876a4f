import importlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

import aoq
from aoq import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    MappingType,
    QuantizedTensor,
    quantize_,
)
from aoq.config import AOBaseConfig
from aoq.storage.safetensors import flatten, load_file, save_file, unflatten, unflatten_one

GOLDEN = Path(__file__).parents[1] / "golden" / "int4_checkpoint.json"
CONFIG = Int4WeightOnlyConfig(group_size=16)
SYMMETRIC = Int4WeightOnlyConfig(group_size=32, mapping_type=MappingType.SYMMETRIC)
CONFIGS = [
    FqnToConfig({"0": CONFIG, "1": SYMMETRIC}),
    Int8DynamicActivationInt8WeightConfig(MappingType.ASYMMETRIC),
    Int8DynamicActivationInt4WeightConfig(16, MappingType.ASYMMETRIC),
    Float8DynamicActivationFloat8WeightConfig(activation_value_ub=3.0),
    Float8WeightOnlyConfig(torch.float8_e5m2),
    Int8WeightOnlyConfig(),
]


def model(config: AOBaseConfig = CONFIGS[0]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(70, 40), nn.Linear(40, 20, bias=False), nn.LayerNorm(20)).bfloat16()
    quantize_(layers, config)
    return layers


def equal(a: Tensor, b: Tensor) -> bool:
    if isinstance(a, QuantizedTensor) and type(a) is type(b):
        parts = zip(a.parts(), b.parts(), strict=True)
        return a.dtype == b.dtype and all(x is y is None or torch.equal(x, y) for x, y in parts)
    return type(a) is type(b) and torch.equal(a, b)


def test_names_and_metadata() -> None:
    tensors, metadata = flatten({f"model.{name}": tensor for name, tensor in model().state_dict().items()})
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} == {
        "model.0._weight_qdata": ((40, 35), torch.uint8),
        "model.0._weight_scale": ((40, 5), torch.bfloat16),
        "model.0._weight_zero_point": ((40, 5), torch.bfloat16),
        "model.0.bias": ((40,), torch.bfloat16),
        "model.1._weight_qdata": ((20, 20), torch.uint8),
        "model.1._weight_scale": ((20, 2), torch.bfloat16),
        "model.2.weight": ((20,), torch.bfloat16),
        "model.2.bias": ((20,), torch.bfloat16),
    }
    assert {name: json.loads(text) for name, text in metadata.items()} == {
        "model.0.weight": {
            "_type": "Int4Tensor",
            "_version": 1,
            "_producer": f"aoq {aoq.__version__}",
            "_data": {
                "group_size": 16,
                "packing": "plain",
                "shape": [40, 70],
                "dtype": {"_type": "torch.dtype", "_data": "bfloat16"},
            },
            "_tensor_data_names": ["qdata", "scale", "zero_point"],
        },
        "model.1.weight": {
            "_type": "Int4Tensor",
            "_version": 1,
            "_producer": f"aoq {aoq.__version__}",
            "_data": {
                "group_size": 32,
                "packing": "plain",
                "shape": [20, 40],
                "dtype": {"_type": "torch.dtype", "_data": "bfloat16"},
            },
            "_tensor_data_names": ["qdata", "scale"],
        },
    }


def test_a_checkpoint_of_the_first_version_loads_forever() -> None:
    golden = json.loads(GOLDEN.read_text())
    tensors = {
        name: torch.tensor(data, dtype=torch.uint8 if name.endswith("qdata") else torch.float16)
        for name, data in golden["tensors"].items()
    }
    state = unflatten(tensors, golden["metadata"])
    assert torch.equal(state["layer.weight"].dequantize(), torch.tensor(golden["values"], dtype=torch.float16))
    again, metadata = flatten(state)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    written = {fqn: json.loads(text) for fqn, text in metadata.items()}
    stated = {"_version": 1, "_producer": f"aoq {aoq.__version__}"}
    assert written == {fqn: json.loads(text) | stated for fqn, text in golden["metadata"].items()}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("pack", [True, False])
def test_round_trip_through_a_file(tmp_path: Path, pack: bool, config: AOBaseConfig) -> None:
    state = model(config).state_dict()
    save_file(state, tmp_path / "model.safetensors", {"note": "mine"})
    assert os.listdir(tmp_path) == ["model.safetensors"]
    loaded = load_file(tmp_path / "model.safetensors", pack=pack)
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.unpack() if isinstance(tensor, QuantizedTensor) and not pack else tensor
        assert equal(loaded[name], expected)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt" and file.metadata()["note"] == "mine"


@pytest.mark.parametrize("config", CONFIGS)
def test_a_fresh_model_loads_it(tmp_path: Path, config: AOBaseConfig) -> None:
    save_file(model(config).state_dict(), tmp_path / "model.safetensors")
    fresh = nn.Sequential(nn.Linear(70, 40), nn.Linear(40, 20, bias=False), nn.LayerNorm(20))
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
    x = torch.randn(3, 70, dtype=torch.bfloat16)
    assert torch.equal(fresh(x), model(config)(x))


def test_a_parameter_without_a_module() -> None:
    w = CONFIG.quantize(torch.randn(8, 32))
    tensors, metadata = flatten({"weight": w})
    assert set(tensors) == {"_weight_qdata", "_weight_scale", "_weight_zero_point"}
    assert equal(unflatten(tensors, metadata)["weight"], w)
    assert equal(unflatten_one("weight", metadata["weight"], tensors), w)


def test_tied_tensors(tmp_path: Path) -> None:
    w, bias = CONFIG.quantize(torch.randn(40, 32)), torch.randn(8)
    state = {"a.weight": w.detach(), "b.weight": w.detach(), "a.bias": bias, "b.bias": bias[:]}
    tensors, _ = flatten(state)
    assert tensors["a._weight_qdata"] is tensors["b._weight_qdata"]
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(equal(loaded[name], tensor) for name, tensor in state.items())


def test_slices_and_meta_tensors() -> None:
    w = CONFIG.quantize(torch.randn(40, 64)).unpack()
    tensors, metadata = flatten({"w": w[:, 16:48], "meta": w.to("meta"), "other": w.to("meta")})
    assert torch.equal(unflatten(tensors, metadata)["w"].dequantize(), w.dequantize()[:, 16:48])
    assert tensors["_meta_qdata"].is_meta
    both = unflatten(*flatten({"w": w, "other": w.t()}))
    assert both["other"].shape == (64, 40) and torch.equal(both["other"].dequantize(), w.dequantize().t())
    assert torch.equal(both["w"].dequantize(), w.dequantize())


def test_thousands_of_tensors_take_seconds(tmp_path: Path) -> None:
    w = CONFIG.quantize(torch.randn(16, 16))
    start = time.process_time()
    save_file({f"layers.{i}.weight": w.clone() for i in range(4000)}, tmp_path / "model.safetensors")
    assert len(load_file(tmp_path / "model.safetensors")) == 4000
    assert time.process_time() - start < 20


@pytest.mark.parametrize("old", ["integrations.safetensors", "checkpoint", "convert", "tensors.int8_int4"])
def test_import_paths_of_the_first_version(old: str) -> None:
    module = importlib.import_module(f"aoq.{old}")
    now = importlib.import_module("aoq.tensors.int4" if "int8_int4" in old else f"aoq.storage.{old.rpartition('.')[2]}")
    assert module is not now and all(getattr(module, name) is getattr(now, name) for name in module.__all__)


# ---- errors: each names the file and the tensor


def damage(tensors: dict[str, Tensor], metadata: dict[str, str], how: str) -> None:
    name = "0.weight"
    description = json.loads(metadata[name])
    if how == "missing part":
        del tensors["0._weight_scale"]
    elif how == "missing description":
        del metadata[name]
    elif how == "wrong shape":
        tensors["0._weight_scale"] = tensors["0._weight_scale"][:, :3].contiguous()
    elif how == "wrong dtype":
        tensors["0._weight_qdata"] = tensors["0._weight_qdata"].int()
    elif how == "not json":
        metadata[name] = metadata[name][:-2]
    else:
        if how == "unknown type":
            description["_type"] = "Int3Tensor"
        elif how == "no type":
            del description["_type"]
        elif how == "bad group":
            description["_data"]["group_size"] = "16"
        elif how == "bad shape":
            description["_data"]["shape"] = [40, "70"]
        elif how == "bad packing":
            description["_data"]["packing"] = "tiled"
        elif how == "no dtype":
            del description["_data"]["dtype"]
        elif how == "bad dtype":
            description["_data"]["dtype"] = {"_type": "torch.dtype", "_data": "nn"}
        elif how == "dtype of codes":
            description["_data"]["dtype"] = {"_type": "torch.dtype", "_data": "int8"}
        elif how == "unknown part":
            description["_tensor_data_names"].append("__class__")
        elif how == "scale not listed":
            description["_tensor_data_names"].remove("scale")
        metadata[name] = json.dumps(description)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing part", "0.weight: its part 0._weight_scale is missing"),
        ("missing description", "0._weight_qdata: no metadata describes"),
        ("wrong shape", r"0.weight: Int4Tensor: scale: expected shape \(40, 5\), got \(40, 3\)"),
        ("wrong dtype", "0.weight: Int4Tensor: qdata: expected uint8"),
        ("not json", "0.weight: expected _type, _data and _tensor_data_names"),
        ("no type", "0.weight: expected _type, _data and _tensor_data_names"),
        ("unknown type", "0.weight: unknown _type 'Int3Tensor'; known: .*Int4Tensor"),
        ("bad group", "0.weight: Int4Tensor: group_size: expected 1 or more, got '16'"),
        ("bad shape", "0.weight: expected a shape, got"),
        ("bad packing", "0.weight: Int4Tensor: qdata: expected shape"),
        ("no dtype", "0.weight: expected _data with .*dtype"),
        ("bad dtype", "0.weight: dtype: torch.dtype: unknown name 'nn'"),
        ("dtype of codes", "0.weight: .*dtype: expected bfloat16, float16 or float32"),
        ("unknown part", "0.weight: its part 0._weight___class__ is missing"),
        ("scale not listed", "0.weight: Int4Tensor: scale: expected a tensor, got None"),
    ],
)
def test_tampered_files(tmp_path: Path, how: str, message: str) -> None:
    tensors, metadata = flatten(model().state_dict())
    damage(tensors, metadata, how)
    path = tmp_path / "model.safetensors"
    safetensors_torch.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"model.safetensors: {message}"):
        load_file(path)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_files(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(model().state_dict(), path)
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"model.safetensors: "):
        load_file(path)


def test_missing_files_and_unwritable_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.safetensors: no such file"):
        load_file(tmp_path / "none.safetensors")
    with pytest.raises(OSError, match=r"nowhere/model.safetensors: cannot be written"):
        save_file(model().state_dict(), tmp_path / "nowhere" / "model.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path)

    def full(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_torch, "save_file", full)
    with pytest.raises(OSError, match=r"model.safetensors: cannot be written: .*No space left"):
        save_file({"a": torch.zeros(2)}, path)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert torch.equal(load_file(path)["a"], torch.ones(2))


def test_loading_verifies_on_request(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(model().state_dict(), path)
    assert load_file(path, verify=True).keys() == load_file(path).keys()
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)
    load_file(path)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*data are not those that were written"):
        load_file(path, verify=True)
    bare = tmp_path / "bare.safetensors"
    safetensors_torch.save_file({"x": torch.ones(3)}, bare)
    assert load_file(bare, verify=True)["x"].tolist() == [1, 1, 1]
