"""One training rank as a process of its own."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from typing import Any

from gaiadask.errors import GaiadaskError
from gaiadask.training.assignment import read_assignment
from gaiadask.training.loop import set_threads, train

ORPHAN_EXIT = 3


# The process ---------------------------------------------------------------------------------------------------------
def main() -> int:
    """Read the assignment from stdin, train, tell on stdout; the exit code."""
    events = sys.stdout
    sys.stdout = sys.stderr  # whatever else prints must not end up among the events
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    lock = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with lock:
            events.write(json.dumps(event) + "\n")
            events.flush()

    try:
        assignment = read_assignment(sys.stdin.readline())
        threading.Thread(target=_end_with_stdin, name="gaiadask-stdin", daemon=True).start()
        set_threads(assignment)
        train(assignment, emit)
    except GaiadaskError as error:
        emit({"event": "error", "type": type(error).__name__, "message": str(error)})
        return 1
    except Exception as error:
        emit({"event": "error", "type": type(error).__name__, "message": str(error)})
        raise
    return 0


def _end_with_stdin() -> None:
    # The descriptor itself: a thread that waits inside sys.stdin would hold its lock when the interpreter ends.
    while os.read(0, 65_536):
        pass
    # Not sys.exit: the main thread may be deep in a step, and every file it writes is whole or absent.
    os._exit(ORPHAN_EXIT)


if __name__ == "__main__":
    sys.exit(main())
