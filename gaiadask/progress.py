"""How long pieces of work report how far they are: the CLI draws bars, the flows write log lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives one `start` a task, then `advance`s, then a `finish`; tasks may overlap."""

    def start(self, task: str, total: float, unit: str) -> None:
        """A task of `total` units begins."""

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
        """`amount` more units are done."""

    def finish(self, task: str, whole: bool = True) -> None:
        """The task has ended; whole: with all that was to be done, whatever the total that was expected."""


@contextmanager
def reported(progress: Progress, task: str, total: float, unit: str) -> Iterator[None]:
    """Report a task from its start to its end, which is whole unless the block raises."""
    progress.start(task, total, unit)
    whole = False
    try:
        yield
        whole = True
    finally:
        progress.finish(task, whole)


class Within:
    """Reports what many pieces of work advance into one task that is already running."""

    def __init__(self, outer: Progress) -> None:
        self.outer = outer

    def start(self, task: str, total: float, unit: str) -> None: ...

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
        self.outer.advance(task, amount, note)

    def finish(self, task: str, whole: bool = True) -> None: ...


class Silent:
    """Reports to nobody."""

    def start(self, task: str, total: float, unit: str) -> None: ...

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None: ...

    def finish(self, task: str, whole: bool = True) -> None: ...
