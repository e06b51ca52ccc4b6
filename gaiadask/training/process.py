"""One training rank as a process of its own:

    (cat assignment.json; sleep infinity) | python -m gaiadask.training.process

The first line on stdin is an `Assignment` as JSON. Events (`gaiadask.training.events`) come on stdout, one JSON object a line:

    {"event": "alive"}                                                     every few seconds, from the start to the end
    {"event": "progress", "rows_seen": …, "rows_per_s": …, "loss": …}      about once a second
    {"rows_seen": …, "validation_loss": …, …, "event": "validated"}        every training.validate_every_rows
    {"event": "saved", "rows_seen": …}                                     a checkpoint between two validations
    {"event": "done", "rows_seen": …, "best_rows_seen": …, …}              the model is in the store; exit code 0
    {"event": "error", "type": …, "message": …}                            exit code 1

stdin must stay open: the rank ends as soon as it is closed. It can be
killed at any time; the same assignment, given again, resumes from its checkpoint (`gaiadask.training.loop`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time

import torch

from gaiadask.errors import GaiadaskError
from gaiadask.training.assignment import Assignment, read_assignment
from gaiadask.training.events import Alive, Failed, RankEvent, Report
from gaiadask.training.loop import train

ALIVE_S = 2.0
"""Between two events `alive`."""
ORPHAN_EXIT = 3
"""Exit code of a rank whose stdin was closed: neither success nor the 1 of an error, which has an event."""


def main() -> int:
    """Read the assignment from stdin, train, write events to stdout; returns the exit code."""
    # Whatever else prints, in Python or in a library of its own (nccl, where NCCL_DEBUG is set), must not end up among the events.
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    lock = threading.Lock()

    def emit(event: RankEvent) -> None:
        with lock:
            events.write(json.dumps(event.to_json()) + "\n")
            events.flush()

    try:
        assignment = read_assignment(sys.stdin.readline())
        threading.Thread(target=_exit_when_stdin_closes, name="gaiadask-stdin", daemon=True).start()
        threading.Thread(target=_tell_of_life, args=(emit,), name="gaiadask-alive", daemon=True).start()
        set_threads(assignment)
        train(assignment, emit)
    except GaiadaskError as error:
        emit(Failed(type=type(error).__name__, message=str(error)))
        return 1
    except Exception as error:
        emit(Failed(type=type(error).__name__, message=str(error)))
        raise
    return 0


def set_threads(assignment: Assignment) -> None:
    """Set torch's threads: training.threads, or an equal share of this machine's cores but one, which is left to the worker."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(assignment.training.threads or max(1, (cores - 1) // assignment.ranks_on_host))


def _exit_when_stdin_closes() -> None:
    # The descriptor itself: a thread that waits inside sys.stdin would hold its lock when the interpreter ends.
    while os.read(0, 65_536):
        pass
    # Not sys.exit: the main thread may be deep in a step, and every file it writes is whole or absent.
    os._exit(ORPHAN_EXIT)


def _tell_of_life(emit: Report) -> None:
    while True:
        emit(Alive())
        time.sleep(ALIVE_S)


if __name__ == "__main__":
    sys.exit(main())
