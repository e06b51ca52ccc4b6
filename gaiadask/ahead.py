"""Work that overlaps: items are made in threads while those before them are used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")

R = TypeVar("R")

THREADS = 4
"""Enough to hide the latency of an object store behind the reading of others; each has one piece of a file in memory."""
_MOST_SIDE_BY_SIDE = 2
_END: Final[Any] = object()


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items in their order, each made in a thread of its own while the one before it is used: two at most are in memory.

    What making an item raises is raised here in its turn. Where the items are given up early, the one in the making is waited for.

    >>> list(ahead(x * x for x in range(4)))
    [0, 1, 4, 9]
    """
    iterator: Iterator[T] = iter(items)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
            making: Future[T] = thread.submit(next, iterator, _END)
            while (item := making.result()) is not _END:
                making = thread.submit(next, iterator, _END)
                yield item
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def side_by_side(make: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Generator[R, None, None]:
    """`make` of each item, in the items' order, in a few threads, while another one makes the items. None waits for another's step, so
    that all cores are busy whichever step takes longest. As many items as there are threads, and one more, are in memory.

    threads: how many; None: one a core, two at most: more wait for Python's lock. Errors and early ends are as of `ahead`.

    >>> list(side_by_side(lambda x: x * x, iter(range(4))))
    [0, 1, 4, 9]
    """
    iterator: Iterator[T] = iter(items)
    threads = threads or min(len(os.sched_getaffinity(0)), _MOST_SIDE_BY_SIDE)

    def made(item: Future[T]) -> R:
        given: Any = item.result()
        return _END if given is _END else make(given)

    try:
        with ThreadPoolExecutor(1, "ahead") as reader, ThreadPoolExecutor(threads, "ahead") as makers:
            waiting: deque[Future[R]] = deque()
            while True:
                waiting.append(makers.submit(made, reader.submit(next, iterator, _END)))
                if len(waiting) > threads:
                    if (result := waiting.popleft().result()) is _END:
                        return
                    yield result
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def read_ahead(read: Callable[[T], R], items: Iterable[T], threads: int = THREADS) -> Generator[R, None, None]:
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
