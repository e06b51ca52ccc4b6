"""One training rank as a child process: started, heard, and ended when nobody wants it any more or it is frozen."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version

import psutil

from gaiadask import __version__, errors
from gaiadask.errors import ClusterError, GaiadaskError, LostRankError, TrainingError
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Alive, Done, Failed, Listening, RankEvent, parse_event
from gaiadask.training.meeting import address_of, listen

log = logging.getLogger(__name__)

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(64 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(16 * 2**20)}
"""What glibc is told in workers and ranks: to keep up to 64 MiB of freed memory for the next array. Dask's own setting gives back all
but 64 kiB, and half of the CPU time of a stage then goes into faulting it in again (docs/speed.md, "Memory")."""
START_S = 180.0
"""A rank that has said nothing so long after its start is ended: it imports torch first, maybe from a slow network disk."""
FROZEN_S = 30.0
"""A rank that has said nothing for so long is ended: it is frozen (`gaiadask.training.process` tells of its life every 2 s)."""
# One that nobody wants any more is ended after this long at the latest.
_POLL_S = 0.5
# Of stderr: the end of a traceback says what happened.
_LINES_OF_STDERR = 50
_LINES_SHOWN = 15
_COMMAND = (sys.executable, "-m", "gaiadask.training.process")


def run_process(assignment: Assignment, host: str, hear: Callable[[RankEvent], None], wanted: Callable[[], bool]) -> Done:
    """Run a rank to its end.

    Args:
        assignment: of the rank.
        host: an address of this machine, where the other ranks reach it.
        hear: is called with each event, but those that only tell that it lives.
        wanted: whether the rank is to go on; asked all the time.

    Returns:
        The rank's last event.

    Raises:
        GaiadaskError: the rank's own error.
        LostRankError: where it ended without a model and without saying why, or was frozen.
        ClusterError: where another version of gaiadask was installed since this process began.
    """
    _check_version(host)
    last: RankEvent | None = None
    with ExitStack() as resources:
        if assignment.world_size > 1 and assignment.rank == 0:
            # Opened here, so that the others can be started while rank 0's process starts.
            listening = resources.enter_context(listen(host))
            place = {"meeting": address_of(listening), "listening": listening.fileno()}
            assignment = assignment.model_copy(update=place)
            hear(Listening(address=assignment.meeting))
        rank = resources.enter_context(_started(assignment, host))
        watch = _Watch(rank, wanted)  # before anything is written: a rank that does not read yet would have this wait for ever
        try:
            assert rank.stdin and rank.stdout
            with contextlib.suppress(BrokenPipeError):  # it has ended: what it wrote says why
                rank.stdin.write(assignment.model_dump_json() + "\n")
                rank.stdin.flush()
            for line in rank.stdout:
                watch.heard()
                event = parse_event(line)
                if not isinstance(event, Alive):
                    last = event
                    hear(event)
            code = rank.wait()
        finally:
            rank.kill()
    if isinstance(last, Failed):
        raise error_of(last)
    name = f"rank {assignment.rank} of {assignment.world_size}"
    if not isinstance(last, Done):
        lines = watch.last_lines()
        how = watch.reason or f"ended with code {code} and no model"
        raise LostRankError(f"{name} {how}" + (f"\nThe last lines that it wrote:\n{lines}" if lines else ""))
    if code:
        log.warning("%s had done its work, and ended with code %d", name, code)
    return last


def error_of(event: Failed) -> GaiadaskError:
    """The exception that a rank ended with."""
    kind = getattr(errors, event.type, None)
    if isinstance(kind, type) and issubclass(kind, GaiadaskError):
        return kind(event.message)
    return TrainingError(f"{event.type}: {event.message}")


def _check_version(host: str) -> None:
    if (installed := version("gaiadask")) != __version__:
        raise ClusterError(
            f"gaiadask {installed} was installed on {host} while a worker with {__version__} runs there: a rank would be of another version "
            "than its worker. Start the worker again"
        )


def interface_of(host: str) -> str:
    """Name of this machine's network interface that has an address; "" where none has."""
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    return next((name for name, own in psutil.net_if_addrs().items() if any(each.address == host for each in own)), "")


def _started(assignment: Assignment, host: str) -> subprocess.Popen[str]:
    # A rank decides its own threads; a worker's settings (one) are the worker's.
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} | ALLOCATOR
    if assignment.world_size > 1 and (
        interface := interface_of(host)
    ):  # or ranks reach for each other at what the machine's name says
        environment |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    passed = [assignment.listening] if assignment.listening >= 0 else []
    pipe = subprocess.PIPE
    return subprocess.Popen(_COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment, pass_fds=passed)


class _Watch:
    """Ends a rank that is frozen or that nobody wants any more, and keeps the last lines that it writes to stderr.

    reason: why it was ended; "" where it was not.
    """

    def __init__(self, rank: subprocess.Popen[str], wanted: Callable[[], bool]) -> None:
        self.reason = ""
        self._rank, self._wanted = rank, wanted
        self._silent_since, self._patience_s = time.monotonic(), START_S
        self._tail: deque[str] = deque(maxlen=_LINES_OF_STDERR)
        self._collecting = threading.Thread(target=self._collect, daemon=True)
        self._collecting.start()
        threading.Thread(target=self._look, daemon=True).start()

    def heard(self) -> None:
        """The rank has said something."""
        self._silent_since, self._patience_s = time.monotonic(), FROZEN_S

    def last_lines(self) -> str:
        """What the rank wrote to stderr at last, once it has ended."""
        self._collecting.join(_POLL_S)
        return "".join(list(self._tail)[-_LINES_SHOWN:])

    def _collect(self) -> None:
        assert self._rank.stderr
        with contextlib.suppress(ValueError):  # closed meanwhile
            self._tail.extend(self._rank.stderr)

    def _look(self) -> None:
        while self._rank.poll() is None:
            silent = time.monotonic() - self._silent_since
            if not self._wanted():
                self.reason = "was ended, as its training was cancelled"
            elif silent > self._patience_s:
                self.reason = f"said nothing for {silent:.0f} s, and was ended: was it frozen, or its machine out of memory?"
            if self.reason:
                # Cancelled by whoever started it, who knows why: where another rank failed, or all is done and this one is slow to end.
                log.log(logging.WARNING if self._wanted() else logging.INFO, "the rank %s", self.reason)
                self._rank.kill()  # every file that it writes is whole or absent
                return
            time.sleep(_POLL_S)
