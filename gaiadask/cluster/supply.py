"""What a cluster can say of workers that are not there yet: how many will come, how long to wait for them, and why they do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

GATHER_S = 60.0
"""When a training takes as many workers as there are, those that are still to come are waited for so long."""


class Supply:
    """Of a cluster whose workers are all there, or come by another's doing.

    patience_s: how long the cluster may have no worker; None: as `futures.NO_WORKERS_S`.
    """

    patience_s: float | None = None

    @contextmanager
    def holding(self, count: int) -> Iterator[int]:
        """A block in which the cluster has so many workers (0: as many as it can get), or is on its way there.

        Yields how many are sure to come, with those that are there; 0 where nobody knows.
        """
        yield 0

    def check(self) -> None:
        """Raises ClusterError where workers cannot come any more."""

    def news(self) -> str:
        """What is known of workers that are still to come, as a sentence; "" where nothing is."""
        return ""


class Fixed(Supply):
    """Of a cluster that is on its way to a number of workers."""

    def __init__(self, count: int) -> None:
        self.count = count

    @contextmanager
    def holding(self, count: int) -> Iterator[int]:
        yield min(count, self.count) if count else self.count
