"""Capitals of countries, each to be told from three others."""

from typing import Any

from datasets import Dataset

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Ireland": "Dublin",
    "Cuba": "Havana",
}


def questions(**_: Any) -> dict[str, Dataset]:
    answers = list(CAPITALS.values())
    rows = []
    for i, (country, answer) in enumerate(CAPITALS.items()):
        choices = [answers[(i + step) % len(answers)] for step in (5, 0, 3, 8)]
        rows.append({"question": f"What is the capital of {country}?", "choices": choices, "answer": answer})
    return {"test": Dataset.from_list(rows)}
