"""Training ranks on Dask workers, each a process of its own under a task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from distributed import Client, as_completed, get_worker
from distributed.scheduler import KilledWorker

from gaiadask import errors
from gaiadask.cluster.clients import GPU
from gaiadask.cluster.workers import _ended, _outcomes, log
from gaiadask.errors import GaiadaskError, LostRankError, TrainingError

_RANK_POLL_S = 0.5


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
        [sys.executable, "-m", "gaiadask.training.process"],
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
