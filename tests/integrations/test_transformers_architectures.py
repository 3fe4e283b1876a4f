"""Quantize, save and reload whatever transformers has: it renames, splits and merges weights in each their own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_architectures import inputs, kinds, tiny_model
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from aoq import AoqConfig, Int8WeightOnlyConfig, QuantizedTensor
from aoq.storage.convert import quantize_checkpoint
from aoq.storage.safetensors import flatten

INT8 = Int8WeightOnlyConfig()

SAMPLE = {
    "vit": "modules renamed, and their parents",
    "gpt2": "weights that are [k, n]",
    "t5": "encoder and decoder share an embedding",
    "clip_vision_model": "a prefix removed",
    "qwen2_vl": "a prefix added, in a part of the model",
    "llava": "renamed in parts of the model, by patterns that look ahead",
    "hrm_text": "weights split from one in the checkpoint",
    "mixtral": "experts merged, and their modules renamed",
    "granitemoe": "experts whose weights have other last names in the checkpoint",
    "mamba": "a weight that is used without F.linear",
}


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return flatten(model.state_dict())[0]


def assert_identical(a: PreTrainedModel, b: PreTrainedModel) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert not [name for name, w in ours.items() if w.dtype != theirs[name].dtype or not w.equal(theirs[name])]


@torch.no_grad()
def output(model: PreTrainedModel) -> Tensor | None:
    """What the model makes of some input, unless it takes other input than can be guessed."""
    try:
        given = inputs(model)
    except KeyError:
        return None
    torch.manual_seed(0)
    return model.eval()(**given)[0]


def runs(model: PreTrainedModel) -> bool:
    try:
        return isinstance(output(model), Tensor)
    except Exception:
        return False


def load(
    kind_of_model: type[PreTrainedModel], directory: Path, **kwargs: Any
) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    """The model, and what transformers has to say about the names in the checkpoint."""
    config = AutoConfig.from_pretrained(directory)  # several kinds of config may share a class of models
    model, info = kind_of_model.from_pretrained(directory, config=config, output_loading_info=True, **kwargs)
    return model, {problem: set(info[problem]) for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")}


def round_trip(directory: Path, kind: str) -> None:
    try:
        model = tiny_model(kind)
        kind_of_model = type(model)
        model.save_pretrained(directory / "plain")
        plain, info = load(kind_of_model, directory / "plain")
        assert_identical(model, plain)
    except Exception as error:  # not aoq's
        pytest.skip(f"no tiny {kind}: {type(error).__name__}: {str(error)[:200]}")
    try:
        quantized, _ = load(kind_of_model, directory / "plain", quantization_config=AoqConfig(INT8))
    except ValueError as error:
        if "none of its weights would be quantized" not in str(error):
            raise
        pytest.skip(str(error))
    by_name = quantized.state_dict(keep_vars=True)
    count = sum(isinstance(w, QuantizedTensor) for w in by_name.values())
    expected = output(quantized) if runs(plain) else None

    quantized.save_pretrained(directory / "quantized")
    reloaded, reloaded_info = load(kind_of_model, directory / "quantized")
    assert reloaded_info == info
    assert_identical(quantized, reloaded)
    if expected is not None:  # close, since torch's own sums depend on where memory begins
        torch.testing.assert_close(output(reloaded), expected, equal_nan=True)
    reloaded.save_pretrained(directory / "again")
    assert_identical(quantized, load(kind_of_model, directory / "again")[0])

    # From the files' own names: less is quantized where transformers splits or merges.
    quantize_checkpoint(directory / "plain", directory / "converted", INT8)
    converted, converted_info = load(kind_of_model, directory / "converted")
    assert converted_info == info
    found = [name for name, w in converted.state_dict(keep_vars=True).items() if isinstance(w, QuantizedTensor)]
    assert 0 < len(found) <= count
    for name in found:
        assert torch.equal(converted.get_parameter(name).dequantize(), by_name[name].dequantize()), name
    if expected is not None:
        assert output(converted).shape == expected.shape


@pytest.mark.parametrize("kind", SAMPLE)
def test_sample(tmp_path: Path, kind: str) -> None:
    round_trip(tmp_path, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind not in SAMPLE])
def test_architecture(tmp_path: Path, kind: str) -> None:
    round_trip(tmp_path, kind)
