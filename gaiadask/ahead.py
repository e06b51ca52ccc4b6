"""Work that overlaps: items are made in threads while those before them are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, Final, TypeVar

T = TypeVar("T")

R = TypeVar("R")

THREADS = 4
"""Enough to hide the latency of an object store behind the reading of others; each has one piece of a file in memory."""
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


def in_steps(items: Iterable[Any], *steps: Callable[[Any], Any]) -> Generator[Any, None, None]:
    """What the steps, one after the other, make of each item, in the items' order. Each step, and the making of items, has a thread of
    its own: while the second step works on an item, the first works on the next one. Errors and early ends are as of `ahead`.

    >>> list(in_steps(range(3), lambda x: x + 1, lambda x: x * x))
    [1, 4, 9]
    """
    with ExitStack() as stack:
        made = stack.enter_context(closing(ahead(items)))
        for step in steps:
            made = stack.enter_context(closing(ahead(map(step, made))))
        yield from made


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
