from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from aoq import AoqConfig, Int4WeightOnlyConfig
from aoq.evaluation import evaluate, evaluate_all, evaluation_text, evaluation_windows
from aoq.integrations.transformers import load_model
from example_models import real_model, tiny_model


def count_tokens(text: str, **_: object) -> SimpleNamespace:
    """A tokenizer whose i-th token is i."""
    return SimpleNamespace(input_ids=torch.arange(len(text))[None])


def model(tmp_path: Path, **kwargs: object) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path), dtype=torch.float32, **kwargs)


def test_windows() -> None:
    windows = evaluation_windows(count_tokens, count=3, length=4, text="x" * 20)  # type: ignore[arg-type]
    assert windows.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19]]
    with pytest.raises(ValueError, match="3 windows of 4 tokens need 20 tokens of text, got 19"):
        evaluation_windows(count_tokens, count=3, length=4, text="x" * 19)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length >= 2"):
        evaluation_windows(count_tokens, length=1, text="x")  # type: ignore[arg-type]


def test_text() -> None:
    text = evaluation_text()
    assert len(text) > 400_000
    assert "\n\n" in text


def test_perplexity(tmp_path: Path) -> None:
    tiny = model(tmp_path)
    windows = torch.randint(160, (2, 300), generator=torch.Generator().manual_seed(1))
    losses = [tiny(window[None], labels=window[None]).loss.item() for window in windows]
    quality = evaluate(tiny, windows)
    assert quality.perplexity == pytest.approx(math.exp(sum(losses) / 2), rel=1e-4)
    assert quality.tokens == 2 * 299
    assert quality.kl is None


def test_distance(tmp_path: Path) -> None:
    reference = model(tmp_path)
    quantized = model(tmp_path, quantization_config=AoqConfig(Int4WeightOnlyConfig(32)))
    window = torch.randint(160, (1, 300), generator=torch.Generator().manual_seed(1))
    same = evaluate(reference, window, reference)
    assert (same.kl, same.top1) == (0, 1)
    assert same.perplexity == same.reference_perplexity

    quality = evaluate(quantized, window, reference)
    log_r, log_p = (m(window).logits[0, :-1].log_softmax(-1) for m in (reference, quantized))
    expected = torch.nn.functional.kl_div(log_p, log_r, log_target=True, reduction="batchmean").item()
    assert quality.kl == pytest.approx(expected, rel=1e-4)
    assert quality.top1 == pytest.approx((log_r.argmax(-1) == log_p.argmax(-1)).float().mean().item())
    assert quality.reference_perplexity == same.perplexity


def test_the_reference_reads_once_for_all(tmp_path: Path) -> None:
    reference = model(tmp_path)
    others = [model(tmp_path, quantization_config=AoqConfig(Int4WeightOnlyConfig(size))) for size in (16, 80)]
    windows = torch.randint(160, (3, 40), generator=torch.Generator().manual_seed(1))
    calls = []
    handle = reference.register_forward_hook(lambda *_: calls.append(1))
    together = evaluate_all(others, windows, reference)
    assert len(calls) == len(windows)
    handle.remove()
    assert together == [evaluate(other, windows, reference) for other in others]
    assert together[0] != together[1]
    assert evaluate_all(others, windows) == [evaluate(other, windows) for other in others]


def test_different_vocabularies(tmp_path: Path) -> None:
    tiny = model(tmp_path)
    other = model(tmp_path)
    other.resize_token_embeddings(100)
    with pytest.raises(ValueError, match="160 and 100 tokens"):
        evaluate(tiny, torch.ones(1, 8, dtype=torch.long), other)


@pytest.mark.model
def test_real_model() -> None:
    """int4 g64 costs about what the reference rows of the protocol say, and HQQ less."""
    reference, tokenizer = load_model(real_model())
    windows = evaluation_windows(tokenizer, count=6, length=256)
    found = []
    for hqq in (False, True):
        config = AoqConfig(Int4WeightOnlyConfig(group_size=64, use_hqq=hqq))
        quantized = AutoModelForCausalLM.from_pretrained(real_model(), quantization_config=config)
        found.append(evaluate(quantized, windows, reference))
    plain, hqq_quality = found
    assert plain.reference_perplexity == pytest.approx(18.5, rel=0.02)
    assert plain.kl is not None and hqq_quality.kl is not None
    assert plain.kl < 0.35
    assert hqq_quality.kl < 0.9 * plain.kl
    assert hqq_quality.perplexity < plain.perplexity
