"""Reading ahead: work done in threads, its results taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = 4
"""Enough to hide the latency of an object store behind the reading of others; each has one piece of a file in memory."""


def read_ahead(read: Callable[[T], R], items: Iterable[T], threads: int = THREADS) -> Iterator[R]:
    """`read` of each item, in the items' order; up to `threads` of them are read before they are asked for.

    What `read` raises is raised where its item's turn comes. `items` may have no end. When the iterator is closed, what is being
    read is read to its end, and nothing more.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="gaiadask-reader")
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
