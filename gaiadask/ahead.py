"""Work that overlaps: items are made in a thread while those before them are used."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")

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
