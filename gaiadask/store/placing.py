"""Files of one piece of work, put in their places side by side: each waits for the disk, and a disk syncs several in the time of one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from gaiadask.store.files import Store

SYNCS_AT_ONCE = 8
"""Of one piece of work. On a busy local disk eight files take the time of one; into an object store so many go at once."""


class Placing:
    """Writes files of a store as `Store.writing` does, each whole or absent; all are in their places when the block ends well.

    What putting a file in its place raises is raised when the block ends, the first file's first.

    store: where the files lie.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(SYNCS_AT_ONCE, thread_name_prefix="gaiadask-placing")
        self._placed: list[Future[bool | None]] = []

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local scratch path to write to; when the block ends well, the file is put in its place, in a thread."""
        writing = self._store.writing(name)
        scratch = writing.__enter__()
        try:
            yield scratch
        except BaseException:
            if not writing.__exit__(*sys.exc_info()):
                raise
        else:
            self._placed.append(self._pool.submit(writing.__exit__, None, None, None))

    def __enter__(self) -> Placing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for placed in self._placed:
                placed.result()
