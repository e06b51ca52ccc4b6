"""Training ranks on Dask workers: each a process of its own under a thin task that relays its events and ends it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from typing import IO, Any

from distributed import get_worker

from gaiadask import errors
from gaiadask.errors import GaiadaskError, LostRankError, TrainingError
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Alive, Done, Failed, RankEvent, parse_event

log = logging.getLogger(__name__)

GPU = "GPU"
"""Name of the Dask resource of which a rank takes one."""
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(64 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(16 * 2**20)}
"""What glibc is told in workers and ranks: to keep up to 64 MiB of freed memory for the next array. Dask's own setting gives back all
but 64 kiB, and half of the CPU time of a stage then goes into faulting it in again (docs/speed.md, "Memory")."""
# A rank that was lost is noticed after this long at the latest.
_POLL_S = 0.5
# Of stderr: the end of a traceback says what happened.
_LINES_OF_STDERR = 50
_LINES_SHOWN = 15


def run_rank(assignment: Assignment, topic: str) -> Done:
    """The task: start the rank, relay its events to `topic`, end it when this task is cancelled or its worker closes.

    Returns:
        The rank's last event.

    Raises:
        GaiadaskError: the rank's own error.
        LostRankError: where it ended without a model and without saying why.
    """
    worker = get_worker()
    key = str(worker.get_current_task())
    # A rank decides its own threads; the worker's settings (one) are the worker's.
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} | ALLOCATOR
    with subprocess.Popen(
        [sys.executable, "-m", "gaiadask.training.process"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as rank:  # fmt: skip
        assert rank.stdin and rank.stdout and rank.stderr
        stderr_tail: list[str] = []
        threading.Thread(target=_collect_tail, args=(rank.stderr, stderr_tail), daemon=True).start()
        threading.Thread(target=_end_when_cancelled, args=(worker, key, rank), daemon=True).start()
        rank.stdin.write(assignment.model_dump_json() + "\n")
        rank.stdin.flush()
        last: RankEvent | None = None
        for line in rank.stdout:
            event = parse_event(line)
            if isinstance(event, Alive):
                continue
            last = event
            worker.log_event(topic, {"run": assignment.run, "line": line})
        code = rank.wait()
    if isinstance(last, Failed):
        raise error_of(last)
    if code or not isinstance(last, Done):
        text = "".join(stderr_tail[-_LINES_SHOWN:])
        raise LostRankError(f"the rank ended with code {code} and no model. The last lines that it wrote:\n{text}")
    return last


def error_of(event: Failed) -> GaiadaskError:
    """The exception that a rank ended with."""
    kind = getattr(errors, event.type, None)
    if isinstance(kind, type) and issubclass(kind, GaiadaskError):
        return kind(event.message)
    return TrainingError(f"{event.type}: {event.message}")


def _collect_tail(stream: IO[str], tail: list[str]) -> None:
    for line in stream:
        tail.append(line)
        del tail[:-_LINES_OF_STDERR]


def _end_when_cancelled(worker: Any, key: str, rank: subprocess.Popen[str]) -> None:
    while rank.poll() is None:
        task = worker.state.tasks.get(key)
        if task is None or task.state in ("cancelled", "released", "forgotten"):
            log.warning("training was cancelled; ending its rank")
            rank.terminate()
            return
        time.sleep(_POLL_S)
