"""Passages of the language reference that comes with CPython."""

from typing import Any

from datasets import Dataset

from aoq.evaluation import evaluation_text


def passages(**_: Any) -> dict[str, Dataset]:
    """32 passages of 2000 characters, from all over the text."""
    text = evaluation_text()
    starts = range(0, len(text) - 2000, len(text) // 32)
    return {"test": Dataset.from_list([{"text": text[start : start + 2000]} for start in starts][:32])}
