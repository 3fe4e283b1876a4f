"""Checkpoints of every release load for ever: the same codes, scales and values, and logits within rounding."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from aoq import QuantizedTensor
from aoq.storage.checkpoint import stored_weights, weight_files
from aoq.storage.safetensors import load_file, part_name

GOLDEN = Path(__file__).parent / "golden"
RELEASES = sorted(GOLDEN.glob("v*"))
MODELS = [path.parent for release in RELEASES for path in sorted(release.glob("*/config.json"))]

HEAD = "lm_head"
digest: Callable[[Tensor], str] = runpy.run_path(str(GOLDEN / "make.py"))["digest"]


def relative(path: Path) -> str:
    return str(path.relative_to(GOLDEN))


def expected_of(directory: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Input and logits, and the digest of each quantized weight's values."""
    with safe_open(directory / "expected.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def stored(directory: Path) -> dict[str, Tensor]:
    """The tensors in the file as they are."""
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_weights_are_those_of(state: Mapping[str, Tensor], directory: Path) -> None:
    """Codes and scales are those in the file, bit by bit, and so are values."""
    parts, (_, values) = stored(directory), expected_of(directory)
    quantized = {name: w for name, w in state.items() if isinstance(w, QuantizedTensor)}
    assert quantized.keys() == values.keys()
    if f"{HEAD}.weight" in quantized and not any(name.startswith(HEAD) for name in parts):
        del quantized[f"{HEAD}.weight"]  # tied, so stored once
    for fqn, w in quantized.items():
        for name, part in zip(w.tensors, w.unpack().parts(), strict=True):
            stored_as = part_name(fqn, name)
            assert (part is None) == (stored_as not in parts), stored_as
            assert part is None or digest(part) == digest(parts[stored_as]), stored_as
        assert digest(w.dequantize()) == values[fqn], fqn


def test_there_are_golden_checkpoints() -> None:
    assert len(MODELS) >= 17


@pytest.mark.parametrize("directory", MODELS, ids=relative)
def test_model(directory: Path) -> None:
    expected, values = expected_of(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    tied = model.config.tie_word_embeddings
    assert tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert_weights_are_those_of(model.state_dict(), directory)
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    assert logits.dtype == expected["logits"].dtype
    # Kernels add up in orders of their own, and activations that are nearly between two codes may become either.
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=0.05 * float(expected["logits"].std()))

    described = {name: weight for name, weight in stored_weights(weight_files(directory)).items() if weight.description}
    assert {*described} == {*values} - ({f"{HEAD}.weight"} if tied else set())
    loaded = load_file(directory / "model.safetensors")
    assert all(digest(loaded[name].dequantize()) == values[name] for name in described)


@pytest.mark.parametrize("file", [file for release in RELEASES for file in release.glob("state_*.pt")], ids=relative)
def test_state_dict(file: Path) -> None:
    directory = file.with_name(file.stem.removeprefix("state_"))
    state = torch.load(file, weights_only=True)
    plain = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    assert state.keys() == plain.keys()
    assert_weights_are_those_of(state, directory)
    for name, tensor in state.items():
        if not isinstance(tensor, QuantizedTensor):
            assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize("release", RELEASES, ids=relative)
def test_tensors(release: Path) -> None:
    tensors = torch.load(release / "tensors.pt", weights_only=True)
    with safe_open(release / "tensors.safetensors", "pt") as file:
        x, digests = file.get_tensor("x"), {name: json.loads(text) for name, text in file.metadata().items()}
        outputs = {name: file.get_tensor(name) for name in file.keys() if name != "x"}  # noqa: SIM118
    assert tensors.keys() == digests.keys() and len(outputs) >= 13
    for name, w in tensors.items():
        kind = name.rpartition(": ")[2]
        assert isinstance(w, nn.Parameter) == (kind == "parameter"), name
        assert w.packed == (kind != "plain"), name
        parts = {part: tensor for part, tensor in zip(w.tensors, w.unpack().parts(), strict=True) if tensor is not None}
        found = {part: digest(tensor) for part, tensor in parts.items()} | {"values": digest(w.dequantize())}
        assert found == digests[name], name
    for name, out in outputs.items():
        w = tensors[f"{name}: packed"]
        assert (F.linear(x, w) - out).abs().max() <= 2e-3 * out.std(), name
