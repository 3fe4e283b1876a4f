"""Progress: on a terminal only, and on stderr, so that output can be piped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` beside a progress bar; `total` when `len(items)` is not known."""
    with _bar(BarColumn(), MofNCompleteColumn(), Remaining()) as progress:
        yield from progress.track(items, total=total, description=description)


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """While it lasts, what is waited for and for how long: where there are no steps to count."""
    with _bar(TimeElapsedColumn()) as progress:
        progress.add_task(description, total=None)
        yield


def _bar(*columns: BarColumn | MofNCompleteColumn | Remaining | TimeElapsedColumn) -> Progress:
    console = Console(stderr=True)
    # The spinner turns between steps too, so that a slow step does not look like none.
    described = (SpinnerColumn(), TextColumn("{task.description}"), *columns)
    return Progress(*described, console=console, transient=True, disable=not console.is_terminal)
