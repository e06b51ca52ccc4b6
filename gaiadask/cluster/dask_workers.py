"""Workers of a Dask cluster: the one place that places work, bounds and cancels it."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar, cast

from distributed import Client, Future, as_completed, get_worker

from gaiadask import __version__
from gaiadask.cluster.futures import NO_WORKERS_S, Futures, other_version
from gaiadask.cluster.placement import Placement
from gaiadask.cluster.ranks import GPU, logged_event, run_rank
from gaiadask.cluster.supply import GATHER_S, Supply
from gaiadask.cluster.workers import FAN_IN, MapMerge, Outcomes, RankReport, Task, Workers, counted_once, groups
from gaiadask.errors import ClusterError, GaiadaskError, LostRankError, StoreError, WorkersDiedError, WrongClusterError
from gaiadask.progress import Progress, Silent, reported
from gaiadask.store.files import Store
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Done

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE_A_THREAD = 2
"""Items under way for each worker thread: a second one waits at the worker, so that none is idle between two."""
_COUNT_S = 5.0
"""How often the workers' threads are counted: workers that come later get work too."""
_GROUPS_A_THREAD = 4
"""Groups of a reduction for each worker thread at least; of fewer items each is a task of its own, so that none is idle at the end."""
_REPORTED_SHARE = 0.01
"""A long task reports each so large a share: finer would only be messages."""


class DaskWorkers(Workers):
    """The workers of the cluster that a client is connected to. A worker that dies has its work done again on another.

    supply: what the cluster knows of workers that are still to come.
    """

    def __init__(self, client: Client, supply: Supply | None = None) -> None:
        self.client, self.supply = client, supply or Supply()

    def _futures(self, resource: str = "") -> Futures:
        return Futures(self.client, resource, self.supply)

    def threads(self) -> int:
        return self._futures().threads()

    def outcomes(self, function: Callable[[T], R], items: Sequence[T], task: Task[T, R]) -> Outcomes[R]:
        futures = self._futures()
        room = _Room(futures, _AT_ONCE_A_THREAD)
        return self._outcomes(futures, function, items, task, (lambda: task.at_once or 0) if task.at_once else room)

    def _outcomes(
        self, futures: Futures, function: Callable[[T], R], items: Sequence[T], task: Task[T, R], at_once: Callable[[], int]
    ) -> Outcomes[R]:
        attempt = uuid.uuid4().hex[:8]
        queue = as_completed(loop=self.client.loop, with_results=False)
        under_way: dict[Future, int] = {}
        submitted = 0
        suspects, alone = deque[int](), set[int]()

        def chosen() -> int | None:
            """Number of the item to submit now; None where none may be."""
            nonlocal submitted
            if submitted < len(items) and len(under_way) < at_once():  # items may be added meanwhile
                submitted += 1
                return submitted - 1
            return suspects.popleft() if suspects and not under_way else None

        def submit() -> None:
            while (number := chosen()) is not None:
                key = f"{task.name}-{attempt}-{number}{'-alone' if number in alone else ''}"
                future = futures.submit(function, items[number], key=key)
                under_way[future] = number
                queue.add(future)

        try:
            submit()
            for future in futures.ended(queue, meanwhile=submit):
                number = under_way.pop(future)
                outcome = futures.outcome(future)
                del future  # its result is forgotten here and on the worker
                if isinstance(outcome, WorkersDiedError) and at_once() > 1 and len(items) > 1 and number not in alone:
                    # Dask blames all that waited at a worker when it died: each is judged by itself, when nothing else is under way.
                    alone.add(number)
                    suspects.append(number)
                else:
                    yield number, outcome
                submit()
        finally:
            futures.cancel(under_way)

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
        """As `Workers.reduce`; records stay on the workers until the last one. One that dies has its records made again."""
        futures, progress, attempt = self._futures(), progress or Silent(), uuid.uuid4().hex[:8]
        assert items, f"{task}: nothing to reduce"
        level: list[Future] = []
        below: list[Future] = []
        singly = 1 < len(items) < _GROUPS_A_THREAD * fan_in * futures.threads()
        work: Callable[[Any], R] = function if singly else MapMerge(function, merge)
        given: Sequence[Any] = items if singly else groups(items, fan_in)
        amount: Callable[[Any], float] = size if singly else lambda group: sum(map(size, group))
        with reported(progress, task, float(sum(map(size, items))), "partitions"):
            try:
                while len(level) != 1:
                    level, below = [], level
                    for group in given:
                        level.append(futures.submit(work, group, key=f"{task}-{attempt}-{len(given)}-{len(level)}"))
                    counts = {} if below else dict(zip(level, map(amount, given), strict=True))
                    for future in futures.ended(as_completed(level, loop=self.client.loop)):
                        if future.status != "finished":
                            futures.result(future)
                        if future in counts:
                            progress.advance(task, counts[future])
                    for future in below:  # a worker that dies later has them made again nevertheless
                        future.release()
                    below = []
                    work, given = merge, groups(level, fan_in)
                return cast(R, futures.result(level[0]))
            finally:
                futures.cancel([*level, *below])

    def one(self, function: Callable[[Callable[[float], None]], R], task: str, progress: Progress | None = None) -> R:
        futures, progress, topic = self._futures(), progress or Silent(), f"gaiadask-{task}-{uuid.uuid4().hex[:8]}"
        done = 0.0

        def advance(share: float) -> None:
            nonlocal done
            percent = 100 * share
            if percent > done:  # an event may come late, also after the end, or again from a second try
                progress.advance(task, percent - done)
                done = percent

        with reported(progress, task, 100.0, "%"):
            try:
                with futures.hearing(topic, advance):
                    ((_, outcome),) = self._outcomes(futures, partial(_reporting, topic=topic), [function], Task(task), lambda: 1)
            finally:
                done = 100.0
            if isinstance(outcome, GaiadaskError):
                raise outcome
            return outcome

    def train(self, assignments: Sequence[Assignment], report: RankReport) -> list[Done | GaiadaskError]:
        """As `Workers.train`: each rank a process of its own under a task."""
        futures = self._futures()
        futures.threads()  # what the workers are can be told where there are any
        on_gpus = self._futures(GPU)
        if on_gpus.workers():  # a rank takes one of its worker's
            futures = on_gpus
        if len(assignments) > 1:
            return self._train_side_by_side(futures, assignments, report)
        (assignment,) = assignments
        with self.supply.holding(assignment.training.ranks) as coming:
            _gather(futures, coming, sure=assignment.training.ranks > 0)
            try:
                return [Placement(futures, assignment, partial(report, assignment.run)).run()]
            except ClusterError:  # of no training, but of the cluster
                raise
            except GaiadaskError as error:
                return [error]

    def _train_side_by_side(
        self, futures: Futures, assignments: Sequence[Assignment], report: RankReport
    ) -> list[Done | GaiadaskError]:
        """Each model by one rank, one a worker thread at once; where a worker dies, its rank goes on elsewhere from its checkpoint."""
        most_on_a_host = max(Counter(futures.workers().values()).values(), default=1)
        changes = {"ranks_on_host": min(len(assignments), most_on_a_host)}
        placed = [assignment.model_copy(update=changes) for assignment in assignments]
        topic = f"gaiadask-ranks-{uuid.uuid4().hex[:8]}"
        with futures.hearing(topic, lambda message: report(*logged_event(message))):
            ended = dict(self._outcomes(futures, partial(run_rank, topic=topic), placed, Task("rank"), _Room(futures, 1)))
        return [_rank_end(ended[i]) for i in range(len(placed))]

    def probe(self, store: Store) -> dict[str, str]:
        futures = self._futures()
        futures.threads()
        with futures.reaching():
            answers = self.client.run(_probe_here, store, on_error="return")
        versions, failed, other = {}, {}, {}
        for worker, answer in answers.items():
            match answer:
                case _Probed() if answer.gaiadask != __version__:
                    other[worker] = other_version(answer.gaiadask or "of an earlier version")
                case _Probed(error=""):
                    versions[worker] = answer.versions
                case _Probed():
                    failed[worker] = answer.error
                case OSError():  # it died, or was told to end, meanwhile: no work will be placed there
                    log.warning("worker %s left: %s", worker, answer)
                case _:
                    failed[worker] = f"{answer}: install gaiadask {__version__} and what it needs there, as on this machine"
        if other:
            lines = "\n".join(f"  {worker}: {error}" for worker, error in other.items())
            raise WrongClusterError(f"{len(other)} of {len(answers)} workers have another gaiadask than this machine:\n{lines}")
        if failed:
            lines = "\n".join(f"  {worker}: {error}" for worker, error in failed.items())
            raise StoreError(f"{len(failed)} of {len(answers)} workers cannot use the store {store.uri}:\n{lines}")
        return versions


class _Room:
    """How many items may be under way: `each` for every worker thread that there is now."""

    def __init__(self, futures: Futures, each: int) -> None:
        self._futures, self._each, self._threads, self._counted = futures, each, futures.threads(), time.monotonic()

    def __call__(self) -> int:
        if (now := time.monotonic()) - self._counted > _COUNT_S:
            self._threads, self._counted = self._futures.threads_now() or self._threads, now
        return self._each * self._threads


def _gather(futures: Futures, count: int, *, sure: bool) -> None:
    """Wait until there are so many workers; not sure: for GATHER_S at most, as those that are there will do."""
    limit_s = (futures.supply.patience_s or NO_WORKERS_S) if sure else GATHER_S
    until = time.monotonic() + limit_s

    def enough(seconds: float) -> bool:
        time.sleep(seconds)
        return len(futures.workers()) >= count or time.monotonic() > until

    if len(futures.workers()) < count:
        log.info("waiting for %d workers, for %.0f s at most", count, limit_s)
        futures.wait(enough)


def _rank_end(outcome: Done | GaiadaskError) -> Done | GaiadaskError:
    if isinstance(outcome, WorkersDiedError):
        return LostRankError(f"{outcome}. Lower training.buffer_rows")
    return outcome


def _reporting(function: Callable[[Callable[[float], None]], R], topic: str) -> R:
    worker, last = get_worker(), 0.0

    def report(share: float) -> None:
        nonlocal last
        if share - last >= _REPORTED_SHARE:
            last = share
            worker.log_event(topic, share)

    return function(report)


class _Probed(NamedTuple):
    versions: str = ""
    error: str = ""
    gaiadask: str = ""


def _probe_here(store: Store) -> _Probed:
    name = f"probe-{socket.gethostname()}-{os.getpid()}"
    try:
        store.write_bytes(name, b"probe")
        store.read_bytes(name)
        store.remove(name)
    except GaiadaskError as error:
        return _Probed(error=str(error), gaiadask=__version__)
    versions = f"python {platform.python_version()}, torch {version('torch')}, pyarrow {version('pyarrow')}"
    return _Probed(versions, gaiadask=__version__)
