"""Dask: clients, work over partitions, ranks on workers. The one place that submits, bounds, retries and cancels."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import uuid
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from dask.typing import Key
from distributed import Client, Future, as_completed, get_worker
from distributed.scheduler import KilledWorker

from gaiadask import errors
from gaiadask.errors import GaiadaskError, StoreError
from gaiadask.progress import Progress, Silent
from gaiadask.store.files import Store

log = logging.getLogger(__name__)


T = TypeVar("T")


R = TypeVar("R")


NO_WORKERS_S = 300.0
"""A cluster that has no worker for so long is given up."""


def over_partitions(
    client: Client,
    function: Callable[[T], R],
    partitions: Sequence[T],
    *,
    task: str,
    unit: str = "partitions",
    name_of: Callable[[T], str] = str,
    weight_of: Callable[[R], float] | None = None,
    note_of: Callable[[R], str] | None = None,
    total: float | None = None,
    at_once: int | None = None,
    more_of: Callable[[R], Sequence[T]] | None = None,
    progress: Progress | None = None,
) -> list[R]:
    """`function` of each partition on the workers, results in the order given.

    At most `at_once` (by default two a worker thread) are under way over the whole cluster. A worker that dies has its
    partitions done again elsewhere. A partition that fails with a GaiadaskError does not stop the others: all failures are
    raised together at the end, by name. Anything else is a bug and stops at once.

    more_of: further partitions that a result brings; they are done too, their results come last.
    task, unit, total: for `progress`; `weight_of(result)` is what a finished partition counts (default 1), `note_of(result)`
    what is told beside.
    Raises GaiadaskError naming each failed partition.
    """
    if not partitions:
        return []
    progress = progress or Silent()
    partitions = list(partitions)
    results: dict[int, R] = {}
    failures: dict[int, GaiadaskError] = {}
    progress.start(task, float(total if total is not None else len(partitions)), unit)
    try:
        for index, outcome in _outcomes(client, function, partitions, task, at_once or 2 * max(1, sum(client.nthreads().values()))):
            if isinstance(outcome, GaiadaskError):
                failures[index] = outcome
                log.info("%s: %s failed: %s", task, name_of(partitions[index]), outcome)
            else:
                results[index] = outcome
                partitions.extend(more_of(outcome) if more_of else ())
                progress.advance(task, weight_of(outcome) if weight_of else 1.0, note_of(outcome) if note_of else "")
    finally:
        progress.finish(task)
    if failures:
        raise errors.summed_up(task, len(partitions), {name_of(partitions[i]): e for i, e in sorted(failures.items())})
    return [results[i] for i in range(len(partitions))]


def _outcomes(
    client: Client,
    function: Callable[[T], R],
    partitions: Sequence[T],
    task: str,
    at_once: int,
    resources: dict[str, int] | None = None,
) -> Iterator[tuple[int, R | GaiadaskError]]:
    """Index and outcome of each partition as they end; `partitions` may grow meanwhile."""
    attempt = uuid.uuid4().hex[:8]
    queue = as_completed(loop=client.loop, with_results=False)
    index_of: dict[Key, int] = {}
    submitted = 0

    def submit() -> None:
        nonlocal submitted
        while len(index_of) < at_once and submitted < len(partitions):
            key = f"{task}-{attempt}-{submitted}"
            future = client.submit(function, partitions[submitted], key=key, pure=False, resources=resources)
            index_of[future.key] = submitted
            submitted += 1
            queue.add(future)

    try:
        submit()
        for future in _ended(client, queue):
            yield index_of.pop(future.key), _outcome(future)
            submit()
    finally:
        client.cancel([Future(key, client) for key in index_of])


def _ended(client: Client, queue: as_completed) -> Iterator[Future]:
    """Futures as they end. Raises GaiadaskError where there has been nobody to work on them for NO_WORKERS_S."""
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


def _outcome(future: Future) -> Any:
    try:
        return future.result()
    except GaiadaskError as error:
        return error
    except CancelledError as error:
        return GaiadaskError(f"the Dask scheduler lost the work ({error}): did it end, or did another client cancel it?")
    except KilledWorker as error:
        return GaiadaskError(f"the workers that tried it died ({error}): out of memory? Give workers more, or smaller partitions")


def tree_reduce(
    client: Client,
    function: Callable[[T], R],
    merge: Callable[[list[R]], R],
    partitions: Sequence[T],
    *,
    task: str,
    fan_in: int = 8,
    progress: Progress | None = None,
) -> R:
    """`function` of each partition, then `merge` of groups of `fan_in` until one is left; records stay on the workers.

    Raises what the first failing group raised.
    """
    progress = progress or Silent()
    attempt = uuid.uuid4().hex[:8]

    def groups(items: Sequence[Any]) -> list[list[Any]]:
        return [list(items[i : i + fan_in]) for i in range(0, len(items), fan_in)]

    progress.start(task, float(len(partitions)), "partitions")
    try:
        level = [
            client.submit(_MapMerge(function, merge), group, key=f"{task}-{attempt}-{i}", pure=False)
            for i, group in enumerate(groups(partitions))
        ]
        sizes = {future.key: len(group) for future, group in zip(level, groups(partitions), strict=True)}
        for future in _ended(client, as_completed(level, loop=client.loop)):
            if isinstance(error := _outcome(future) if future.status == "error" else None, GaiadaskError):
                raise error
            progress.advance(task, sizes[future.key])
        while len(level) > 1:
            level = [client.submit(merge, group, pure=False) for group in groups(level)]
            for _ in _ended(client, as_completed(level, loop=client.loop)):
                pass
        return level[0].result()
    finally:
        progress.finish(task)


class _MapMerge:
    """One group's records merged where they are made, so that only one a group travels."""

    def __init__(self, function: Callable[[Any], Any], merge: Callable[[list[Any]], Any]) -> None:
        self.function, self.merge = function, merge

    def __call__(self, group: list[Any]) -> Any:
        return self.merge([self.function(partition) for partition in group])


# Probe ---------------------------------------------------------------------------------------------------------------
def probe(client: Client, store: Store) -> dict[str, dict[str, str]]:
    """Have every worker write and read a file in the store, and tell its versions.

    Raises StoreError naming the workers that cannot, before any work starts.
    """
    answers = client.run(_probe_here, store)
    failed = {worker: answer["error"] for worker, answer in answers.items() if "error" in answer}
    if failed:
        lines = "\n".join(f"  {worker}: {error}" for worker, error in failed.items())
        raise StoreError(f"{len(failed)} of {len(answers)} workers cannot use the store {store.uri}:\n{lines}")
    return answers


def _probe_here(store: Store) -> dict[str, str]:
    import pyarrow
    import torch

    name = f"probe-{socket.gethostname()}-{os.getpid()}"
    try:
        store.write_bytes(name, b"probe")
        store.read_bytes(name)
        store.remove(name)
    except GaiadaskError as error:
        return {"error": str(error)}
    return {"python": sys.version.split()[0], "torch": torch.__version__, "pyarrow": pyarrow.__version__}


# One long task ---------------------------------------------------------------------------------------------------------
def run_one(
    client: Client,
    function: Callable[[T, Callable[[float], None]], R],
    given: Any,
    *,
    task: str,
    progress: Progress | None = None,
) -> R:
    """`function(given, report)` on one worker; it calls `report` with the share that is done.

    given: a value, or a future of one. Where the worker dies it is done again on another. Raises what the function raises.
    """
    progress, topic = progress or Silent(), f"gaiadask-{task}-{uuid.uuid4().hex[:8]}"
    done = 0.0

    def tell(entry: Any) -> None:
        nonlocal done
        percent = 100 * float(entry[1] if isinstance(entry, tuple) else entry)
        if percent > done:  # an event may come late, also after the end, or again from a second try
            progress.advance(task, percent - done)
            done = percent

    progress.start(task, 100.0, "%")
    client.subscribe_topic(topic, tell)
    try:
        future = client.submit(_reporting, function, given, topic, pure=False, key=topic)
        outcome = _outcome(future)
        if isinstance(outcome, GaiadaskError):
            raise outcome
        return cast(R, outcome)
    finally:
        client.unsubscribe_topic(topic)
        done = 100.0
        progress.finish(task)


def _reporting(function: Callable[[T, Callable[[float], None]], R], given: T, topic: str) -> R:
    worker, last = get_worker(), 0.0

    def report(share: float) -> None:
        nonlocal last
        if share - last >= 0.01:
            last = share
            worker.log_event(topic, share)

    return function(given, report)
