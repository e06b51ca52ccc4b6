"""Workers: where pieces of work are done, behind one small interface.

`DaskWorkers` (cluster.dask_workers) places the work on a Dask cluster; `Here` (cluster.here) does it in this process, one piece after
the other. What a stage computes does not depend on which of them it is given.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from gaiadask.errors import GaiadaskError, summed_up
from gaiadask.progress import Progress, Silent, reported
from gaiadask.store.files import Store
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Done, RankEvent

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

Outcomes: TypeAlias = Generator[tuple[int, R | GaiadaskError], None, None]
"""Numbers of items and what became of each."""
RankReport = Callable[[str, RankEvent], None]
"""Receives the name of a rank's run and each of its events as they come."""

FAN_IN = 8
"""Records merged at once in a reduction: larger saves tasks, smaller keeps what a worker receives at once small."""


def counted_once(_: Any) -> float:
    return 1.0


def _no_note(_: Any) -> str:
    return ""


def _no_more(_: Any) -> Sequence[Any]:
    return ()


@dataclass(frozen=True)
class Task(Generic[T, R]):
    """How work over many items is named, shown and bounded.

    Attributes:
        name: of the task, in progress and in errors.
        unit: what its progress counts.
        label: name of an item, in errors.
        amount: how many units a finished item's result counts.
        note: text that the progress shows beside a finished item.
        at_once: how many items may be under way over the whole cluster; None: two a worker thread.
        more: further items that a result brings; they are done too, and their results come last.
        size: how many units an item counts.
    """

    name: str
    unit: str = "partitions"
    label: Callable[[T], str] = str
    amount: Callable[[R], float] = counted_once
    note: Callable[[R], str] = _no_note
    at_once: int | None = None
    more: Callable[[R], Sequence[T]] = _no_more
    size: Callable[[T], float] = counted_once


class Workers(ABC):
    """Does pieces of work, places training ranks, and shows how far it is."""

    def map(self, function: Callable[[T], R], items: Sequence[T], task: Task[T, R], progress: Progress | None = None) -> list[R]:
        """`function` of each item.

        An item that fails with a GaiadaskError does not stop the others: all failures are raised together at the end. Anything
        else is a bug and stops at once.

        Returns:
            The results, in the order of the items.

        Raises:
            GaiadaskError: naming each failed item; of the failures' own type where they have one.
        """
        if not items:
            return []
        progress, items = progress or Silent(), list(items)
        results: dict[int, R] = {}
        failures: dict[int, GaiadaskError] = {}
        with reported(progress, task.name, float(sum(map(task.size, items))), task.unit):
            outcomes = self.outcomes(function, items, task)
            with closing(outcomes):
                for index, outcome in outcomes:
                    if isinstance(outcome, GaiadaskError):
                        failures[index] = outcome
                        log.info("%s: %s failed: %s", task.name, task.label(items[index]), outcome)
                    else:
                        results[index] = outcome
                        items.extend(task.more(outcome))
                        progress.advance(task.name, task.amount(outcome), task.note(outcome))
            if failures:
                raise summed_up(task.name, len(items), {task.label(items[i]): e for i, e in sorted(failures.items())})
        return [results[i] for i in range(len(items))]

    @abstractmethod
    def threads(self) -> int:
        """How many pieces of work are done at once by the workers that there are now."""

    @abstractmethod
    def outcomes(self, function: Callable[[T], R], items: Sequence[T], task: Task[T, R]) -> Outcomes[R]:
        """Number and outcome of each item, as they end; `items` may grow meanwhile."""

    @abstractmethod
    def reduce(
        self,
        function: Callable[[T], R],
        merge: Callable[[list[R]], R],
        items: Sequence[T],
        task: str,
        progress: Progress | None = None,
        fan_in: int = FAN_IN,
        *,
        size: Callable[[T], float] = counted_once,
    ) -> R:
        """`function` of each item, then `merge` of groups of `fan_in` until one record is left.

        size: how many partitions an item counts in the progress.

        Raises:
            GaiadaskError: that of the first group that failed.
        """

    @abstractmethod
    def one(self, function: Callable[[Callable[[float], None]], R], task: str, progress: Progress | None = None) -> R:
        """`function(report)` once, a long piece of work; it calls `report` with the share that is done.

        What it needs beside a few parameters it reads from the store, where it is also after a worker has died.

        Raises:
            GaiadaskError: what the function raises.
        """

    @abstractmethod
    def train(self, assignments: Sequence[Assignment], report: RankReport) -> list[Done | GaiadaskError]:
        """Train models: one alone by the ranks that its training.ranks asks for, several side by side by one rank each.

        Returns:
            The last event of each model's training, in the order given, or the error that it ended with: one that fails does not
            stop the others.
        """

    @abstractmethod
    def probe(self, store: Store) -> dict[str, str]:
        """Have every worker write and read a file in the store.

        Returns:
            Each worker's versions, by its address.

        Raises:
            StoreError: naming the workers that cannot use the store.
        """


def groups(items: Sequence[T], size: int) -> list[list[T]]:
    """Consecutive groups of `size` items, the last one smaller.

    >>> groups("abcde", 2)
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    return [list(items[first : first + size]) for first in range(0, len(items), size)]


class Each(Generic[T, R]):
    """The result of each of several items, which are one piece of work."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function

    def __call__(self, items: Sequence[T]) -> list[R]:
        return [self.function(item) for item in items]


class MapMerge(Generic[T, R]):
    """One group's records merged where they are made, so that only one a group travels."""

    def __init__(self, function: Callable[[T], R], merge: Callable[[list[R]], R]) -> None:
        self.function, self.merge = function, merge

    def __call__(self, group: Sequence[T]) -> R:
        return self.merge([self.function(item) for item in group])
