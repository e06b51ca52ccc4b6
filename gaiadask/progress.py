"""How a long piece of work tells how far it is. The library reports; the CLI draws bars, the flows write log lines."""

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


def bytes_text(count: float) -> str:
    """Bytes as people read them, in powers of 1000.

    >>> bytes_text(999), bytes_text(1_234_567)
    ('999 B', '1.2 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Silent:
    """Reports to nobody."""

    def start(self, task: str, total: float, unit: str) -> None: ...

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None: ...

    def finish(self, task: str) -> None: ...
