"""How long pieces of work report how far they are: the CLI draws bars, the flows write log lines."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives one `start` a task, then `advance`s, then a `finish`; tasks may overlap."""

    def start(self, task: str, total: float, unit: str) -> None:
        """A task of `total` units begins."""

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
        """`amount` more units are done."""

    def finish(self, task: str) -> None:
        """The task has ended, well or not."""


class Within:
    """Reports what many pieces of work advance into one task that is already running."""

    def __init__(self, outer: Progress) -> None:
        self.outer = outer

    def start(self, task: str, total: float, unit: str) -> None: ...

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
        self.outer.advance(task, amount, note)

    def finish(self, task: str) -> None: ...


class Silent:
    """Reports to nobody."""

    def start(self, task: str, total: float, unit: str) -> None: ...

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None: ...

    def finish(self, task: str) -> None: ...
