"""Workers in this process: one piece of work after the other, without a cluster; of a training's ranks, each a child process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import TypeVar

from gaiadask.cluster.rank_process import run_process
from gaiadask.cluster.workers import FAN_IN, MapMerge, Outcomes, RankReport, Task, Workers, counted_once, groups
from gaiadask.errors import GaiadaskError, LostPeersError, LostRankError
from gaiadask.progress import Progress, Silent, reported
from gaiadask.store.files import Store
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Done, Listening, RankEvent, Report
from gaiadask.training.loop import train

T = TypeVar("T")
R = TypeVar("R")

_HOST = "127.0.0.1"


class Here(Workers):
    """This process alone: for tests, debuggers and small runs."""

    def threads(self) -> int:
        return 1

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

        with reported(progress, task, 100.0, "%"):
            return function(report)

    def train(self, assignments: Sequence[Assignment], report: RankReport) -> list[Done | GaiadaskError]:
        """As `Workers.train`; with training.ranks 0 or 1 in this process itself. What is lost is not placed again."""
        return [self._trained(assignment, report) for assignment in assignments]

    def _trained(self, assignment: Assignment, report: RankReport) -> Done | GaiadaskError:
        ended: list[Done] = []

        def forward(event: RankEvent) -> None:
            if isinstance(event, Done):
                ended.append(event)
            report(assignment.run, event)

        try:
            if assignment.training.ranks > 1:
                return _train_together(assignment, forward)
            train(assignment, forward)
        except GaiadaskError as error:
            return error
        return ended[0]

    def probe(self, store: Store) -> dict[str, str]:
        return {}


def _train_together(assignment: Assignment, report: Report) -> Done:
    """The ranks of one training as children of this process. Raises what a rank ended with; the others are ended then."""
    meeting, failed = Queue[str](), threading.Event()
    count = assignment.training.ranks
    shared = assignment.model_copy(update={"world_size": count, "ranks_on_host": count})

    def hear(event: RankEvent) -> None:
        if isinstance(event, Listening):
            meeting.put(event.address)
        else:
            report(event)

    def run(rank: int, address: str = "") -> Done:
        placed = shared.model_copy(update={"rank": rank, "meeting": address})
        try:
            return run_process(placed, _HOST, hear if rank == 0 else lambda _: None, lambda: not failed.is_set())
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(count) as pool:
        try:
            first = pool.submit(run, 0)
            first.add_done_callback(lambda _: meeting.put(""))  # where it ends before it listens, there is nobody to meet
            address = meeting.get()
            others = [pool.submit(run, rank, address) for rank in range(1, count)] if address else []
            ranks = [first, *others]
            errors = [error for rank in ranks if (error := rank.exception())]
        finally:
            failed.set()
    # The first rank to end may only have lost its peer.
    for error in sorted(errors, key=lambda error: (isinstance(error, LostRankError), isinstance(error, LostPeersError))):
        raise error
    return first.result()
