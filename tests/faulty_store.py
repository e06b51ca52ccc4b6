"""A store that fails its k-th operation: every file and folder is reached through one place, and here is what breaks it.

A process that dies does nothing more: no lease is released, nothing is tidied up, and what it was writing is left beside. The next
start is another process, which sees that the first one's is gone.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec

from gaiadask.model import files as model_files
from gaiadask.prior import artifact as prior_files
from gaiadask.store import attempts, lease
from gaiadask.store.attempts import Operation
from gaiadask.store.files import PARTIAL

_WRITES = ("write", "create")
_RESULTS_OF_CHANGES = ("write", "create", "remove")


class Death(BaseException):
    """The process has died: nothing of ours may catch this."""


@dataclass(frozen=True)
class Mode:
    """A way to fail. kinds: of the operations that can fail so; all, where it is empty."""

    name: str
    kinds: tuple[str, ...] = ()
    lasts: bool = False


MODES = {
    mode.name: mode
    for mode in (
        Mode("error before"),
        Mode("error before, for ever", lasts=True),
        Mode("error after it took effect"),
        Mode("error after it took effect, for ever", lasts=True),
        Mode("torn write, then dead", _WRITES),
        Mode("dead before"),
        Mode("dead after"),
        Mode("no space", _WRITES),
        Mode("no space, for ever", _WRITES, lasts=True),
        Mode("stale listing", ("list",)),
        Mode("stale listing, for ever", ("list",), lasts=True),
    )
}


@dataclass
class Faulty:
    """Stands where operations pass. mode: how the `number`-th operation of its kinds fails (None: nothing does)."""

    mode: Mode | None = None
    number: int = 0
    operations: list[Operation] = field(default_factory=list)
    fired: int = 0
    dead: bool = False
    _written: str = ""
    _removed: tuple[str, ...] = ()
    _now_s: float = 0.0

    def perform(self, operation: Operation, call: Callable[[], Any]) -> Any:
        """In place of `attempts.perform`."""
        if self.dead:
            raise Death
        self.operations.append(operation)
        if not self._fails(operation):
            return self._noted(operation, call)
        self.fired += 1
        assert self.mode
        name = self.mode.name.removesuffix(", for ever")
        if name == "error before":
            raise OSError(errno.EIO, "the store does not answer")
        if name == "error after it took effect":
            with contextlib.suppress(Exception):
                self._noted(operation, call)
            raise ConnectionResetError("the answer was lost")
        if name == "no space":
            raise OSError(errno.ENOSPC, "No space left on device")
        if name == "stale listing":
            return self._stale(operation, call)
        if name == "dead after":
            with contextlib.suppress(Exception):
                self._noted(operation, call)
        else:
            _leave_behind(operation, torn=name == "torn write, then dead")
        self.dead = True
        raise Death

    def _fails(self, operation: Operation) -> bool:
        if self.mode is None or (self.mode.kinds and operation.kind not in self.mode.kinds):
            return False
        self.number -= 1
        return self.number == -1 or (self.mode.lasts and self.number < 0)

    def _noted(self, operation: Operation, call: Callable[[], Any]) -> Any:
        gone = _files(operation.where) if operation.kind == "remove" else ()
        result = call()
        if operation.kind in _WRITES:
            self._written = operation.where
        if operation.kind == "remove":
            self._removed = tuple(gone)
        return result

    def _stale(self, operation: Operation, call: Callable[[], Any]) -> Sequence[str]:
        """As it was one change earlier."""
        listed = [file for file in call() if not self._written.endswith(file)]
        folder = operation.where.partition("://")[2] or operation.where
        return sorted({*listed, *(file for file in self._removed if file.startswith(folder.rstrip("/") + "/"))})

    def sleep(self, seconds: float) -> None:
        """In place of waiting."""
        if self.dead:
            raise Death
        self._now_s += seconds

    def clock(self) -> float:
        """In place of the clock that waits are counted by."""
        return self._now_s


def _files(uri: str) -> Sequence[str]:
    system, path = fsspec.core.url_to_fs(uri)
    return [str(file) for file in system.find(path)]


def _leave_behind(operation: Operation, torn: bool) -> None:
    """What a process that dies while it writes a local file leaves beside its place."""
    if operation.kind in _WRITES and operation.source and "://" not in operation.where and operation.source.exists():
        content = operation.source.read_bytes()
        beside = Path(f"{operation.where}{PARTIAL}0dead000")
        beside.write_bytes(content[: len(content) // 2] if torn else content)


_processes = itertools.count(1)


@contextlib.contextmanager
def starting(mode: Mode | None = None, number: int = 0) -> Iterator[Faulty]:
    """A process that starts, and ends with the block; its `number`-th operation that can fail so fails."""
    faulty, process = Faulty(mode, number), str(next(_processes))
    model_files._read_once.cache_clear()
    prior_files._read_once.cache_clear()
    with (
        mock.patch.object(attempts, "perform", faulty.perform),
        mock.patch.object(attempts, "sleep", faulty.sleep),
        mock.patch.object(attempts, "clock", faulty.clock),
        mock.patch.object(lease, "sleep", faulty.sleep),
        mock.patch.object(lease, "_started", lambda _: process),
    ):
        yield faulty


def drawn(faults: Sequence[tuple[str, int]], count: int, seed: str) -> list[tuple[str, int]]:
    """So many of these faults, the same for the same seed; of each mode equally many, as far as it has them."""
    shuffled = random.Random(seed).sample(list(faults), len(faults))
    by_mode = [[fault for fault in shuffled if fault[0] == mode] for mode in MODES]
    in_turn = [fault for turn in itertools.zip_longest(*by_mode) for fault in turn if fault]
    return in_turn[:count]


def copied_state(source: Path, target: Path) -> None:
    """A state of local files at another place, in no time: files are replaced, never changed, so that links will do."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_linked)


def _linked(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target
