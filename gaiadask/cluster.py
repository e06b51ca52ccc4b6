"""Dask: clients, work over partitions, ranks on workers. The one place that submits, bounds, retries and cancels."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import dask
from dask.typing import Key
from distributed import Client, Future, Nanny, Scheduler, SpecCluster, as_completed, get_worker
from distributed.scheduler import KilledWorker
from distributed.system import MEMORY_LIMIT

from gaiadask import errors
from gaiadask.config import ClusterConfig
from gaiadask.errors import GaiadaskError, LostRankError, StoreError, TrainingError
from gaiadask.progress import Progress, Silent
from gaiadask.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

GPU = "GPU"
_RANK_POLL_S = 0.5
NO_WORKERS_S = 300.0
"""A cluster that has no worker for so long is given up."""


@contextlib.contextmanager
def open_client(config: ClusterConfig) -> Iterator[Client]:
    """A client of the scheduler at `config.address`, or of a cluster of this machine that ends with the block.

    Raises GaiadaskError where the scheduler does not answer or has no workers.
    """
    if config.address:
        with _remote_client(config.address) as client:
            yield client
        return
    with (
        # A killed worker's successor may take longer than Dask's 15 s to start: then its nanny would be given up for good.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        _local_cluster(config.workers) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(len(cluster.workers), timeout=120)
        log.info("LocalCluster of %d workers at %s", len(cluster.workers), cluster.scheduler_address)
        yield client


def _remote_client(address: str) -> Client:
    try:
        client = Client(address, set_as_default=False, timeout="15s")
    except (OSError, TimeoutError, ValueError) as error:
        raise GaiadaskError(f"no Dask scheduler answers at cluster.address {address!r}: {error}") from error
    if not client.scheduler_info()["workers"]:
        client.close()
        raise GaiadaskError(f"the Dask scheduler at {address} has no workers: start some (`dask worker {address}`)")
    return client


def _local_cluster(workers: int) -> SpecCluster:
    gpus = _visible_gpus()
    cores = len(os.sched_getaffinity(0))
    count = workers or len(gpus) or max(1, min(cores, MEMORY_LIMIT // 2**32))
    common = {
        "nthreads": 1,
        "host": "127.0.0.1",
        "dashboard_address": None,
        # What fails on a worker is told by the client, once and without a traceback.
        "silence_logs": logging.CRITICAL,
        "memory_limit": MEMORY_LIMIT // count,
    }
    specification = {
        rank: {
            "cls": Nanny,
            "options": common | ({"env": {"CUDA_VISIBLE_DEVICES": gpus[rank % len(gpus)]}, "resources": {GPU: 1}} if gpus else {}),
        }
        for rank in range(count)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(workers=specification, scheduler=scheduler, silence_logs=logging.ERROR)


def _visible_gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu and gpu != "-1"]
    import torch  # only here: the client needs it for nothing else

    return [str(i) for i in range(torch.cuda.device_count())]


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


# Ranks ---------------------------------------------------------------------------------------------------------------
def train_rank(client: Client, specification: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run one training rank in a process of its own under a task of a worker, and return its last event.

    report: receives the rank's events (dicts with "event") as they come. Where the worker dies, the task is placed on
    another and the rank goes on from its checkpoint. Raises TrainingError, or the rank's own error, when it fails.
    """
    topic = f"gaiadask-rank-{uuid.uuid4().hex[:8]}"
    client.subscribe_topic(topic, lambda entry: report(entry[1]) if isinstance(entry, tuple) else report(entry))
    try:
        future = client.submit(_run_rank, specification, topic, pure=False, key=topic, resources=_of_a_rank(client))
        try:
            for _ in _ended(client, as_completed([future], loop=client.loop)):
                pass
            return future.result()
        except KilledWorker as error:
            raise TrainingError(f"the workers that trained died ({error}): out of memory? Lower training.buffer_rows") from error
        finally:
            future.cancel()
    finally:
        client.unsubscribe_topic(topic)


def train_ranks(
    client: Client, specifications: Sequence[dict[str, Any]], report: Callable[[str, dict[str, Any]], None]
) -> list[dict[str, Any] | GaiadaskError]:
    """Train many models, each by one rank that knows nothing of the others, one a worker thread at once.

    report: receives the name of a rank's run and its events as they come. Returns the last event of each, in the order
    given, or the error that it ended with: one that fails does not stop the others.
    """
    topic = f"gaiadask-ranks-{uuid.uuid4().hex[:8]}"
    client.subscribe_topic(topic, lambda entry: report(entry[1]["run"], entry[1]))
    at_once = max(1, sum(client.nthreads().values()))
    hosts = Counter(worker["host"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
    on_host = min(len(specifications), max(hosts.values(), default=1))
    told = [{**specification, "ranks_on_host": on_host} for specification in specifications]
    try:
        work = partial(_run_rank, topic=topic)
        ended = dict(_outcomes(client, work, told, "rank", at_once, _of_a_rank(client)))
        return [ended[i] for i in range(len(told))]
    finally:
        client.unsubscribe_topic(topic)


def _of_a_rank(client: Client) -> dict[str, int] | None:
    """What a rank takes of its worker: a GPU, where there are any."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {GPU: 1} if any(GPU in worker.get("resources", {}) for worker in workers) else None


def _run_rank(specification: dict[str, Any], topic: str) -> dict[str, Any]:
    """The task: start the rank, relay its events, end it when this task is cancelled or its worker closes."""
    worker = get_worker()
    key = str(worker.get_current_task())
    # A rank decides its own threads; the worker's settings (one) are the worker's.
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with subprocess.Popen(
        [sys.executable, "-m", "gaiadask.training"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as rank:  # fmt: skip
        assert rank.stdin and rank.stdout and rank.stderr
        stderr_tail: list[str] = []
        threading.Thread(target=_keep_tail, args=(rank.stderr, stderr_tail), daemon=True).start()
        threading.Thread(target=_end_when_cancelled, args=(worker, key, rank), daemon=True).start()
        rank.stdin.write(json.dumps(specification) + "\n")
        rank.stdin.flush()
        last: dict[str, Any] = {}
        for line in rank.stdout:
            last = json.loads(line)
            worker.log_event(topic, {"run": specification["run"], **last})
        code = rank.wait()
    if last.get("event") == "error":
        raise _error_of(last)
    if code or last.get("event") != "done":
        raise LostRankError(f"the rank ended with code {code} and no model. Its last words:\n{''.join(stderr_tail[-15:])}")
    return last


def _error_of(event: dict[str, Any]) -> GaiadaskError:
    kind = getattr(errors, str(event.get("type")), TrainingError)
    return kind(event["message"]) if issubclass(kind, GaiadaskError) else TrainingError(f"{event['type']}: {event['message']}")


def _keep_tail(stream: Any, tail: list[str]) -> None:
    for line in stream:
        tail.append(line)
        del tail[:-50]


def _end_when_cancelled(worker: Any, key: str, rank: subprocess.Popen[str]) -> None:
    while rank.poll() is None:
        task = worker.state.tasks.get(key)
        if task is None or task.state in ("cancelled", "released", "forgotten"):
            log.warning("training was cancelled; ending its rank")
            rank.terminate()
            return
        time.sleep(_RANK_POLL_S)
