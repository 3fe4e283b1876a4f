"""What quantization cost a language model: perplexity on real text, and how far it moved from another model.

The protocol, so that figures compare: the text is the prose that ships with CPython (`pydoc_data.topics`,
sorted by name, joined by blank lines), cut into windows of 1024 tokens at offsets 0, 2048, 4096, ...; each
window is read on its own, no context is carried over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


def evaluate(model: PreTrainedModel, windows: torch.Tensor, reference: PreTrainedModel | None = None) -> Quality:
    """Perplexity of `model` on `windows` (int64 [count, length]); with `reference`, its distance from it too.

    Raises ValueError when the two models do not share a vocabulary.
    """
    return evaluate_all([model], windows, reference)[0]


@torch.inference_mode()
def evaluate_all(
    models: Sequence[PreTrainedModel], windows: torch.Tensor, reference: PreTrainedModel | None = None
) -> list[Quality]:
    """What `evaluate` says of each of `models`, for which `reference` reads the text only once.

    All models see each window in turn, so no logits are stored between windows.
    """
    sums = [_Sums() for _ in models]
    reference_nll = 0.0
    steps = [(window, i) for window in windows for i in range(-1 if reference is not None else 0, len(models))]
    against: torch.Tensor | None = None
    for window, i in track(steps, "Evaluating"):
        target = window[1:]
        if i < 0:
            assert reference is not None
            against = _logits(reference, window)
            reference_nll += sum(_nll(log_p, target[rows]) for rows, log_p in _log_softmax(against))
            continue
        logits = _logits(models[i], window)
        if against is not None and against.shape != logits.shape:
            raise ValueError(
                f"the models have different vocabularies: {logits.shape[-1]} and {against.shape[-1]} tokens"
            )
        sums[i].add(logits, against, target)
    tokens = len(windows) * (windows.shape[1] - 1)
    if reference is None:
        return [Quality(math.exp(each.nll / tokens), tokens) for each in sums]
    perplexity = math.exp(reference_nll / tokens)
    return [
        Quality(math.exp(each.nll / tokens), tokens, perplexity, each.kl / tokens, each.agreed / tokens)
        for each in sums
    ]


@dataclass
class _Sums:
    """Over the tokens so far: negative log-likelihood, divergence from the reference, agreement with it."""

    nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0

    def add(self, logits: torch.Tensor, against: torch.Tensor | None, target: torch.Tensor) -> None:
        for rows, log_p in _log_softmax(logits):
            self.nll += _nll(log_p, target[rows])
            if against is not None:
                log_r = against[rows].float().log_softmax(-1)
                self.kl += (log_r.exp() * (log_r - log_p)).sum().item()
                self.agreed += int((log_r.argmax(-1) == log_p.argmax(-1)).sum())


def _log_softmax(logits: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    for start in range(0, len(logits), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, logits[rows].float().log_softmax(-1)


def _nll(log_p: torch.Tensor, target: torch.Tensor) -> float:
    return -log_p.gather(1, target[:, None]).sum().item()


def _logits(model: PreTrainedModel, window: torch.Tensor) -> torch.Tensor:
    """Logits [length - 1, vocabulary] on the CPU, for every token of `window` but the first."""
    logits: torch.Tensor = model(input_ids=window[None].to(model.device), use_cache=False).logits
    return logits[0, :-1].cpu()
