"""What quantization cost a language model: perplexity on real text, and how far it moved from another model.

The protocol, so that figures compare: the text is the prose that ships with CPython (`pydoc_data.topics`,
sorted by name, joined by blank lines), cut into windows of 1024 tokens at offsets 0, 2048, 4096, ...; each
window is read on its own, no context is carried over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aoq.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rows of logits taken at a time: bounds the fp32 temporaries to rows * vocabulary.
_ROWS = 256


@dataclass(frozen=True)
class Quality:
    """How well a model predicts the text, and how far it is from a reference model.

    perplexity: exp of the mean negative log-likelihood a token.
    tokens: how many tokens were predicted.
    reference_perplexity: the reference model's, on the same tokens.
    kl: mean KL divergence of the model from the reference, in nats a token.
    top1: share of tokens, 0 to 1, where both give the same token the highest probability.
    """

    perplexity: float
    tokens: int
    reference_perplexity: float | None = None
    kl: float | None = None
    top1: float | None = None


def evaluation_text() -> str:
    """Half a megabyte of English prose, the same wherever the version of Python is."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def evaluation_windows(
    tokenizer: PreTrainedTokenizerBase, count: int = 12, length: int = 1024, text: str | None = None
) -> torch.Tensor:
    """Token windows to evaluate on: int64 [count, length], taken every 2 * length tokens of `text`.

    Raises ValueError when the text is too short for `count` windows.
    """
    if count < 1 or length < 2:
        raise ValueError(f"evaluation needs count >= 1 and length >= 2, got count={count}, length={length}")
    ids = tokenizer(text or evaluation_text(), return_tensors="pt", verbose=False).input_ids[0]
    needed = (2 * count - 1) * length
    if len(ids) < needed:
        raise ValueError(f"{count} windows of {length} tokens need {needed} tokens of text, got {len(ids)}")
    return torch.stack([ids[start : start + length] for start in range(0, needed, 2 * length)])


@torch.inference_mode()
def evaluate(model: PreTrainedModel, windows: torch.Tensor, reference: PreTrainedModel | None = None) -> Quality:
    """Perplexity of `model` on `windows` (int64 [count, length]); with `reference`, its distance from it too.

    Both models see each window in turn, so no logits are stored between windows. Raises ValueError when the
    two models do not share a vocabulary.
    """
    nll = reference_nll = kl = 0.0
    agreed = tokens = 0
    for window in track(windows, "Evaluating"):
        target = window[1:]
        logits = _logits(model, window)
        against = None if reference is None else _logits(reference, window)
        if against is not None and against.shape != logits.shape:
            raise ValueError(
                f"the models have different vocabularies: {logits.shape[-1]} and {against.shape[-1]} tokens"
            )
        for start in range(0, len(target), _ROWS):
            rows = slice(start, start + _ROWS)
            index = target[rows, None]
            log_p = logits[rows].float().log_softmax(-1)
            nll -= log_p.gather(1, index).sum().item()
            if against is not None:
                log_r = against[rows].float().log_softmax(-1)
                reference_nll -= log_r.gather(1, index).sum().item()
                kl += (log_r.exp() * (log_r - log_p)).sum().item()
                agreed += int((log_r.argmax(-1) == log_p.argmax(-1)).sum())
        tokens += len(target)
    perplexity = math.exp(nll / tokens)
    if reference is None:
        return Quality(perplexity, tokens)
    return Quality(perplexity, tokens, math.exp(reference_nll / tokens), kl / tokens, agreed / tokens)


def _logits(model: PreTrainedModel, window: torch.Tensor) -> torch.Tensor:
    """Logits [length - 1, vocabulary] on the CPU, for every token of `window` but the first."""
    logits: torch.Tensor = model(input_ids=window[None].to(model.device), use_cache=False).logits
    return logits[0, :-1].cpu()
