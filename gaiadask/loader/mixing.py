"""Rows in the order of files to rows in a random order, through a buffer, so that each comes once and any moment can be returned to.

A stream of rows has positions, counted from its beginning over all passes. A row at position i is dealt a random place between i and
i + window, and rows leave in the order of their places: when the stream has been read up to i, every row with a place below i is
there. So a row meets those of `window` positions before and after it, about half as many are held at once, and what comes after
a place depends on rows of `window` positions before it only: to go on from there, no more has to be read again. Places are handled
a slab at a time: the rows of a slab are gathered, and leave it in a random order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaiadask.errors import ConfigurationError, DataError

_SLABS = 16
"""Slabs in a window: more are gathered in smaller pieces, fewer hold more rows at once."""
# The first rows of a stream wait until a quarter of a window has been read, so that the first batches are mixed too. Held at once
# are then at most 17/32 of a window, beside them the slab that leaves, and rows of the one that is gathered: 21/32 in all.
_FIRST_SHARE = 4
_HELD = 21 / 32


class Rows(NamedTuple):
    """Some consecutive positions of a stream.

    first, stop: the positions. kept: which of them have a row, counted from `first`, ascending; None: all. rows: shape (n, width).
    """

    first: int
    stop: int
    kept: NDArray[np.int64] | None
    rows: NDArray[np.generic]


class Dealt(NamedTuple):
    """Rows of some positions by the slab that they were dealt to."""

    first: int
    slabs: tuple[tuple[int, NDArray[np.generic]], ...]


class Lots(NamedTuple):
    """How n rows are dealt.

    first: position of the first. places: where each row is when they are sorted by slab, shape (n,). least: the first slab that has one.
    counts: how many that one has, and each after it.
    """

    first: int
    places: NDArray[np.int64]
    least: int
    counts: NDArray[np.int64]

    def dealt(self, rows: NDArray[np.generic]) -> Dealt:
        """The rows, which are sorted, shape (n, width), each slab's copied: so that those of one can be dropped before others."""
        parts = np.split(rows, np.cumsum(self.counts)[:-1]) if len(self.counts) else []
        return Dealt(self.first, tuple((slab, part.copy()) for slab, part in enumerate(parts, start=self.least) if len(part)))


class Slab(NamedTuple):
    """The rows of one slab, shape (n, width), in the order in which they leave."""

    number: int
    rows: NDArray[np.generic]


class Mixing(NamedTuple):
    """How a stream is mixed.

    window: positions over which a row is dealt its place. slab: places in a slab. seed: tells the places.
    """

    window: int
    slab: int
    seed: tuple[int, ...]

    @classmethod
    def within(cls, buffer_rows: int, seed: tuple[int, ...], share: float = 1.0) -> Mixing:
        """The mixing that holds at most about `buffer_rows` rows, where this share of all positions have one."""
        slab = max(1, round(buffer_rows / share / _HELD / _SLABS))
        return cls(slab * _SLABS, slab, seed)

    @classmethod
    def of_passes(cls, positions: int, seed: tuple[int, ...]) -> Mixing:
        """The mixing of passes that are held whole: each, of this many positions, is a slab, and leaves when it has been read."""
        return cls(0, positions, seed)

    @property
    def _begins(self) -> int:
        return self.window // _FIRST_SHARE

    @property
    def first_slab(self) -> int:
        """The first one that has rows."""
        return self._begins // self.slab

    def first_position(self, slab: int) -> int:
        """Rows of a slab, and of those after it, are at this position or later ones."""
        place = slab * self.slab - self.window
        return 0 if place < self._begins else place

    def lots(self, first: int, stop: int, kept: NDArray[np.int64] | None = None) -> Lots:
        """How the rows at some positions are dealt. The same positions must always come together: their places are drawn together.

        kept: as in `Rows`.
        """
        from gaiadask.loader import loops  # here: numba takes half a second to import

        random = np.random.default_rng([*self.seed, first, 0])
        slabs = np.empty(stop - first, np.int64)
        loops.deal(random.random(stop - first), first, self._begins, self.window, self.slab, slabs)
        if kept is not None:
            slabs = slabs[kept]
        least, end = (int(slabs.min()), int(slabs.max()) + 1) if len(slabs) else (0, 0)
        lots = Lots(first, np.empty(len(slabs), np.int64), least, np.zeros(end - least, np.int64))
        loops.sort(slabs, least, lots.counts, lots.places)
        return lots

    def deal(self, rows: Rows) -> Dealt:
        """The rows by their slabs."""
        from gaiadask.loader import loops  # here: numba takes half a second to import

        lots, by_slab = self.lots(rows.first, rows.stop, rows.kept), np.empty_like(rows.rows)
        loops.put(rows.rows, lots.places, by_slab)
        return lots.dealt(by_slab)

    def slabs(self, stream: Iterable[Dealt], first: int) -> Iterator[Slab]:
        """The slabs from number `first` on, complete. stream: what was dealt, from `first_position(first)` on or earlier."""
        held: defaultdict[int, list[NDArray[np.generic]]] = defaultdict(list)
        for dealt in stream:
            while (first + 1) * self.slab <= max(dealt.first, self._begins):
                yield from self._slab(first, held.pop(first, []))
                first += 1
            for number, rows in dealt.slabs:
                if number >= first:
                    held[number].append(rows)
        for number in sorted(held):
            yield from self._slab(number, held.pop(number))

    def _slab(self, number: int, parts: list[NDArray[np.generic]]) -> Iterator[Slab]:
        from gaiadask.loader import loops  # here: numba takes half a second to import

        if not parts:
            return
        places = np.empty(sum(map(len, parts)), np.int64)
        places[self._order(number, len(places))] = np.arange(len(places))
        rows = np.empty((len(places), parts[0].shape[1]), parts[0].dtype)
        while parts:  # dropped one by one, so that the rows that leave are there once
            part = parts.pop()
            loops.put(part, places[-len(part) :], rows)
            places = places[: -len(part)]
        del part, places
        yield Slab(number, rows)

    def _order(self, slab: int, rows: int) -> NDArray[np.int64]:
        """The order in which the rows of a slab leave."""
        from gaiadask.loader import loops  # here: numba takes half a second to import

        order, random = np.arange(rows), np.random.default_rng([*self.seed, slab, 1])
        loops.shuffle(order, random.integers(0, 1 << 32, rows, np.uint32))
        return order


def not_empty(stream: Iterable[Dealt], positions: int, message: str) -> Iterator[Dealt]:
    """The same; raises DataError with this message where the first `positions` of it have no row."""
    found = False
    for dealt in stream:
        if not found and dealt.first >= positions:
            raise DataError(message)
        found = found or bool(dealt.slabs)
        yield dealt
    if not found:
        raise DataError(message)


class Cut(NamedTuple):
    """A batch, and where the stream goes on after it: `taken` rows of slab `slab` have left.

    rows: shape (n, width).
    """

    rows: NDArray[np.generic]
    slab: int
    taken: int


def cut(slabs: Iterable[Slab], batch_rows: int, skip: int = 0) -> Iterator[Cut]:
    """Batches of `batch_rows` rows each, the last one of what is left.

    A batch is a view of its slab, but a slab's last ones are copies: whoever has the latest batch does not keep the slab alive while
    the next one is gathered.

    skip: rows of the first slab that have left already. Raises ConfigurationError where it has not so many.
    """
    left: list[NDArray[np.generic]] = []
    missing = batch_rows
    for number, rows in slabs:
        taken, skip = skip, 0
        if taken > len(rows):
            raise ConfigurationError(f"start says that {taken} rows of a slab of {len(rows)} have left: it was changed by hand")
        while len(rows) - taken >= missing:
            first, taken = taken, taken + missing
            left.append(rows[first:taken] if len(rows) - taken >= batch_rows else rows[first:taken].copy())
            yield Cut(left[0] if len(left) == 1 else np.concatenate(left), number, taken)
            left, missing = [], batch_rows
        if taken < len(rows):
            left.append(rows[taken:].copy())
            missing -= len(rows) - taken
        del rows
    if left:
        yield Cut(np.concatenate(left), number + 1, 0)
