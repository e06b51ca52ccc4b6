"""Workers of a Dask cluster: the one place that submits, bounds, retries and cancels."""

from __future__ import annotations

import os
import platform
import socket
import time
import uuid
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

from dask.typing import Key
from distributed import Client, Future, as_completed, get_worker
from distributed.scheduler import KilledWorker

from gaiadask.cluster.ranks import GPU, run_rank
from gaiadask.cluster.workers import FAN_IN, MapMerge, RankReport, Task, Workers, groups
from gaiadask.errors import GaiadaskError, LostRankError, StoreError, WorkersDiedError
from gaiadask.progress import Progress, Silent
from gaiadask.store.files import Store
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Done, parse_event

T = TypeVar("T")
R = TypeVar("R")

NO_WORKERS_S = 300.0
"""A cluster that has no worker for so long is given up: longer than a batch system takes to replace one."""
_AT_ONCE_A_THREAD = 2
"""Items under way for each worker thread: a second one waits at the worker, so that none is idle between two."""
_REPORTED_SHARE = 0.01
"""A long task reports each so large a share: finer would only be messages."""


class DaskWorkers(Workers):
    """The workers of the cluster that a client is connected to. A worker that dies has its work done again on another."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def outcomes(self, function: Callable[[T], R], items: Sequence[T], task: Task[T, R]) -> Iterator[tuple[int, R | GaiadaskError]]:
        return self._outcomes(function, items, task.name, task.at_once or _AT_ONCE_A_THREAD * self._threads())

    def _outcomes(
        self, function: Callable[[T], R], items: Sequence[T], task: str, at_once: int, resources: dict[str, int] | None = None
    ) -> Iterator[tuple[int, R | GaiadaskError]]:
        client, attempt = self.client, uuid.uuid4().hex[:8]
        queue = as_completed(loop=client.loop, with_results=False)
        index_of: dict[Key, int] = {}
        submitted = 0

        def submit() -> None:
            nonlocal submitted
            while len(index_of) < at_once and submitted < len(items):
                key = f"{task}-{attempt}-{submitted}"
                future = client.submit(function, items[submitted], key=key, pure=False, resources=resources)
                index_of[future.key] = submitted
                submitted += 1
                queue.add(future)

        try:
            submit()
            for future in self._ended(queue):
                yield index_of.pop(future.key), _outcome(future)
                submit()
        finally:
            client.cancel([Future(key, client) for key in index_of])

    def _ended(self, queue: as_completed) -> Iterator[Future]:
        """Futures as they end. Raises GaiadaskError where there has been no worker for NO_WORKERS_S."""
        client = self.client
        seen = looked = time.monotonic()
        while not queue.is_empty():
            if queue.has_ready():
                yield next(queue)
                seen = time.monotonic()
                continue
            with queue.thread_condition:
                queue.thread_condition.wait(timeout=0.1)
            now = time.monotonic()
            if now - looked > min(5.0, NO_WORKERS_S / 2):
                looked = now
                if client.status != "running" or client.nthreads():
                    seen = now
                elif now - seen > NO_WORKERS_S:
                    raise GaiadaskError(
                        f"the Dask cluster has had no workers for {now - seen:.0f} s: start some, and run the same command again"
                    )

    def reduce(
        self,
        function: Callable[[T], R],
        merge: Callable[[list[R]], R],
        items: Sequence[T],
        task: str,
        progress: Progress | None = None,
        fan_in: int = FAN_IN,
    ) -> R:
        """As `Workers.reduce`; records stay on the workers until the last one."""
        client, progress, attempt = self.client, progress or Silent(), uuid.uuid4().hex[:8]
        progress.start(task, float(len(items)), "partitions")
        try:
            first = groups(items, fan_in)
            level = [
                client.submit(MapMerge(function, merge), group, key=f"{task}-{attempt}-{i}", pure=False)
                for i, group in enumerate(first)
            ]
            sizes = {future.key: len(group) for future, group in zip(level, first, strict=True)}
            for future in self._ended(as_completed(level, loop=client.loop)):
                if isinstance(error := _outcome(future) if future.status == "error" else None, GaiadaskError):
                    raise error
                progress.advance(task, sizes[future.key])
            while len(level) > 1:
                level = [client.submit(merge, group, pure=False) for group in groups(level, fan_in)]
                for _ in self._ended(as_completed(level, loop=client.loop)):
                    pass
            return _result(level[0])
        finally:
            progress.finish(task)

    def one(self, function: Callable[[T, Callable[[float], None]], R], given: T, task: str, progress: Progress | None = None) -> R:
        client, progress, topic = self.client, progress or Silent(), f"gaiadask-{task}-{uuid.uuid4().hex[:8]}"
        done = 0.0

        def advance(entry: Any) -> None:
            nonlocal done
            percent = 100 * float(_payload(entry))
            if percent > done:  # an event may come late, also after the end, or again from a second try
                progress.advance(task, percent - done)
                done = percent

        progress.start(task, 100.0, "%")
        client.subscribe_topic(topic, advance)
        try:
            # Not with the task's description, and to every worker: one that dies takes no data with it.
            (sent,) = client.scatter([given], hash=False, broadcast=True)
            return _result(client.submit(_reporting, function, sent, topic, pure=False, key=topic))
        finally:
            client.unsubscribe_topic(topic)
            done = 100.0
            progress.finish(task)

    def train(self, assignments: Sequence[Assignment], report: RankReport) -> list[Done | GaiadaskError]:
        """As `Workers.train`: each rank a process of its own under a task, one a worker thread at once.

        Where a worker dies, its rank is placed on another one and goes on from its checkpoint.
        """
        topic = f"gaiadask-ranks-{uuid.uuid4().hex[:8]}"
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        most_on_a_host = max(Counter(worker["host"] for worker in workers).values(), default=1)
        on_host = min(len(assignments), most_on_a_host)
        # A rank takes a GPU of its worker, where there are any.
        resources = {GPU: 1} if any(GPU in worker.get("resources", {}) for worker in workers) else None

        def forward(entry: Any) -> None:
            message = _payload(entry)
            report(message["run"], parse_event(message["line"]))

        self.client.subscribe_topic(topic, forward)
        try:
            placed = [assignment.model_copy(update={"ranks_on_host": on_host}) for assignment in assignments]
            ended = dict(self._outcomes(partial(run_rank, topic=topic), placed, "rank", self._threads(), resources))
            return [_rank_end(ended[i]) for i in range(len(placed))]
        finally:
            self.client.unsubscribe_topic(topic)

    def probe(self, store: Store) -> dict[str, str]:
        answers = self.client.run(_probe_here, store)
        failed = {worker: answer.error for worker, answer in answers.items() if answer.error}
        if failed:
            lines = "\n".join(f"  {worker}: {error}" for worker, error in failed.items())
            raise StoreError(f"{len(failed)} of {len(answers)} workers cannot use the store {store.uri}:\n{lines}")
        return {worker: answer.versions for worker, answer in answers.items()}

    def _threads(self) -> int:
        return max(1, sum(self.client.nthreads().values()))


def _payload(entry: Any) -> Any:
    """What `log_event` was given: some versions of distributed put a time before it."""
    return entry[1] if isinstance(entry, tuple) else entry


def _outcome(future: Future) -> Any:
    try:
        return future.result()
    except GaiadaskError as error:
        return error
    except CancelledError as error:
        return GaiadaskError(f"the Dask scheduler lost the work ({error}): did it end, or did another client cancel it?")
    except KilledWorker as error:
        return WorkersDiedError(
            f"the workers that tried it died ({error}): out of memory? Give workers more, or smaller partitions"
        )


def _result(future: Future) -> Any:
    """The result of a future. Raises GaiadaskError, also where the cluster lost the work."""
    outcome = _outcome(future)
    if isinstance(outcome, GaiadaskError):
        raise outcome
    return outcome


def _rank_end(outcome: Done | GaiadaskError) -> Done | GaiadaskError:
    if isinstance(outcome, WorkersDiedError):
        return LostRankError(f"{outcome}. Lower training.buffer_rows")
    return outcome


def _reporting(function: Callable[[T, Callable[[float], None]], R], given: T, topic: str) -> R:
    worker, last = get_worker(), 0.0

    def report(share: float) -> None:
        nonlocal last
        if share - last >= _REPORTED_SHARE:
            last = share
            worker.log_event(topic, share)

    return function(given, report)


class _Probed(NamedTuple):
    versions: str = ""
    error: str = ""


def _probe_here(store: Store) -> _Probed:
    name = f"probe-{socket.gethostname()}-{os.getpid()}"
    try:
        store.write_bytes(name, b"probe")
        store.read_bytes(name)
        store.remove(name)
    except GaiadaskError as error:
        return _Probed(error=str(error))
    return _Probed(f"python {platform.python_version()}, torch {version('torch')}, pyarrow {version('pyarrow')}")
