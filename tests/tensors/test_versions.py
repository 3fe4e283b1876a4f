"""Formats change, files stay: what is read of older releases of aoq, and said about newer ones."""

import io
import json
from typing import Any

import pytest
import torch

import aoq
from aoq import Int4Tensor, Int4WeightOnlyConfig, QuantizedTensor, version
from aoq.storage.safetensors import flatten, is_torchao, unflatten
from aoq.tensors.base import _rebuild


def weight() -> QuantizedTensor:
    return Int4WeightOnlyConfig(16).quantize(torch.randn(20, 64))


class Safetensors:
    """A tensor as safetensors have it."""

    def __init__(self, w: QuantizedTensor) -> None:
        self.tensors, metadata = flatten({"a.weight": w})
        self.description = json.loads(metadata["a.weight"])
        self.attrs = self.description["_data"]

    def state(self, version: int = 1, writer: str = "", name: str = "") -> None:
        self.description["_version"] = version
        self.description["_producer"] = writer or self.description["_producer"]
        self.description["_type"] = name or self.description["_type"]

    def read(self) -> Any:
        return unflatten(self.tensors, {"a.weight": json.dumps(self.description)})["a.weight"]


class Pickle:
    """A tensor as torch.save writes it."""

    def __init__(self, w: QuantizedTensor) -> None:
        self.load, (self.saved,) = w.__reduce_ex__(2)
        self.attrs = self.saved["attrs"]

    def state(self, version: int = 1, writer: str = "", name: str = "") -> None:
        self.saved["version"] = version
        self.saved["producer"] = writer or self.saved["producer"]
        self.saved["type"] = name or self.saved["type"]

    def read(self) -> Any:
        file = io.BytesIO()
        torch.save(self.saved, file)
        file.seek(0)
        return self.load(torch.load(file, weights_only=True))


WRITTEN = pytest.mark.parametrize("written", [Safetensors, Pickle])


@WRITTEN
def test_an_attribute_that_a_file_lacks_has_its_default(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    w = weight()
    file, values = written(w), w.dequantize()
    monkeypatch.setattr(Int4Tensor, "attrs", (*Int4Tensor.attrs, "rotation"))
    monkeypatch.setattr(Int4Tensor, "defaults", {**Int4Tensor.defaults, "rotation": "none"})
    old = file.read()
    assert old.rotation == "none" and torch.equal(old.dequantize(), values)
    file.attrs["rotation"] = "hadamard"
    new = file.read().t().clone()
    assert new.rotation == written(new.t()).read().rotation == "hadamard" and "rotation='hadamard'" in repr(new)


@WRITTEN
def test_a_format_upgrades_what_older_versions_of_it_wrote(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def upgrade(fields: dict[str, Any], version: int) -> dict[str, Any]:
        if version < 3:
            fields["group_size"] = fields.pop("bytes_in_group") * 2
            fields["scale"] = fields.pop("steps")
        return fields

    monkeypatch.setattr(Int4Tensor, "VERSION", 3)
    monkeypatch.setattr(Int4Tensor, "upgrade", upgrade)
    w = weight()
    file = written(w)
    file.state(version=3)
    assert torch.equal(file.read().dequantize(), w.dequantize())
    file.state(version=2)
    file.attrs["bytes_in_group"] = file.attrs.pop("group_size") // 2
    if written is Safetensors:
        file.tensors["a._weight_steps"] = file.tensors.pop("a._weight_scale")
        file.description["_tensor_data_names"] = ["qdata", "steps", "zero_point"]
    else:
        file.saved["parts"]["steps"] = file.saved["parts"].pop("scale")
    old = file.read()
    assert old.group_size == 16 and torch.equal(old.dequantize(), w.dequantize())


@WRITTEN
@pytest.mark.parametrize(
    ("stated", "attrs", "message"),
    [
        ({"version": 2}, {}, "Int4Tensor: version: expected at most 1, got 2"),
        ({}, {"rotation": "hadamard"}, "Int4Tensor: expected no field named rotation"),
        ({}, {"packing": "cpu-n64"}, "Int4Tensor: packing: expected 'plain' or 'cpu-n16', got 'cpu-n64'"),
        ({"name": "Int3Tensor"}, {}, "unknown _type 'Int3Tensor'; known: .*Int4Tensor"),
    ],
)
def test_what_a_newer_aoq_wrote(written: Any, stated: dict[str, Any], attrs: dict[str, Any], message: str) -> None:
    for writer in ("aoq 99.1.0", "aoq 0.0.1"):
        file = written(weight())
        file.state(writer=writer, **stated)
        file.attrs.update(attrs)
        with pytest.raises(ValueError, match=message) as raised:
            file.read()
        text = str(raised.value)
        both = f"it was written by {writer} and this is aoq {aoq.__version__}"
        assert (f"{both}: upgrade aoq" in text) == (writer == "aoq 99.1.0")
        assert both in text or "version" not in stated
        assert "\n" not in text


@pytest.mark.parametrize(
    ("older", "newer", "is_newer"),
    [
        ("0.1.0", "0.2.0", True),
        ("0.9.0", "0.10.0", True),
        ("0.1.0", "0.1.0", False),
        ("0.2.0", "0.1.9", False),
        ("0.2.0.dev1", "0.2.0", False),
        ("1.0", "1.0.1", True),
        ("0.1.0", "", False),
        ("0.2", "0.2.0", False),
        ("0.2.0", "0.2", False),
        ("0.2", "0.2.0.1", True),
        ("10", "9.9", False),
    ],
)
def test_which_version_is_newer(older: str, newer: str, is_newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "__version__", older)
    assert bool(version.written_by_newer(f"aoq {newer}")) == is_newer
    assert not version.written_by_newer(f"torchao {newer}") and not version.written_by_newer("")


def test_tiled_is_an_older_name_of_each_devices_layout() -> None:
    w = weight()
    old = _rebuild(Int4Tensor, w.parts(), (16, "tiled"), (20, 64), torch.float32, False, False, False, False)
    assert old.packing == w.packing == "cpu-n16" and torch.equal(old.dequantize(), w.dequantize())


@pytest.mark.parametrize(
    ("change", "theirs"),
    [
        ({}, False),
        ({"_producer": None}, False),  # as aoq 0.1 wrote it
        ({"_producer": None, "_data": {"block_size": [1, 16], "shape": [20, 64]}}, True),
        ({"_producer": "torchao 0.20.0"}, True),
        ({"_producer": None, "_type": "NVFP4Tensor", "_data": {}}, True),
        ({"_producer": None, "_type": "aoq.Int4Tensor", "_data": {"block_size": 1}}, False),
        ({"_producer": "aoq 0.3.0", "_data": {"block_size": [1, 16], "packing": "plain"}}, False),
        ({"_data": None}, False),  # nobody's
    ],
)
def test_whose_a_description_is(change: dict[str, Any], theirs: bool) -> None:
    _, metadata = flatten({"w": weight()})
    description = json.loads(metadata["w"]) | change
    text = json.dumps({key: value for key, value in description.items() if value is not None})
    assert is_torchao(text) == theirs
    assert not is_torchao('{"_type": "Tensor"}')
