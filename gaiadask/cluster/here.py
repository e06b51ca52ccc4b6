"""Workers in this process: one piece of work after the other, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from gaiadask.cluster.workers import FAN_IN, MapMerge, Outcomes, RankReport, Task, Workers, counted_once, groups
from gaiadask.errors import GaiadaskError
from gaiadask.progress import Progress, Silent
from gaiadask.store.files import Store
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Done, RankEvent
from gaiadask.training.loop import train

T = TypeVar("T")
R = TypeVar("R")


class Here(Workers):
    """This process alone: for tests, debuggers and small runs."""

    def outcomes(self, function: Callable[[T], R], items: Sequence[T], task: Task[T, R]) -> Outcomes[R]:
        number = 0
        while number < len(items):
            try:
                outcome: R | GaiadaskError = function(items[number])
            except GaiadaskError as error:
                outcome = error
            yield number, outcome
            number += 1

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
        # The same groups as on a cluster: sums of floats depend on their order.
        level = [MapMerge(function, merge)(group) for group in groups(items, fan_in)]
        while len(level) > 1:
            level = [merge(group) for group in groups(level, fan_in)]
        return level[0]

    def one(self, function: Callable[[Callable[[float], None]], R], task: str, progress: Progress | None = None) -> R:
        progress, done = progress or Silent(), 0.0

        def report(share: float) -> None:
            nonlocal done
            progress.advance(task, 100 * share - done)
            done = 100 * share

        progress.start(task, 100.0, "%")
        try:
            return function(report)
        finally:
            progress.finish(task)

    def train(self, assignments: Sequence[Assignment], report: RankReport) -> list[Done | GaiadaskError]:
        return [self._trained(assignment, report) for assignment in assignments]

    def _trained(self, assignment: Assignment, report: RankReport) -> Done | GaiadaskError:
        events: list[RankEvent] = []

        def forward(event: RankEvent) -> None:
            events.append(event)
            report(assignment.run, event)

        try:
            train(assignment, forward)
        except GaiadaskError as error:
            return error
        last = events[-1]
        assert isinstance(last, Done)
        return last

    def probe(self, store: Store) -> dict[str, str]:
        return {}
