"""Which rows of which files: planned by the files' footers, shared among ranks, and read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, count, pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gaiadask.errors import DataError
from gaiadask.store.files import Store
from gaiadask.store.parquet import FOOTERS_AT_ONCE, ParquetReader


class RowRange(NamedTuple):
    """Rows `first` to `stop`, exclusive, of a parquet file of a store."""

    name: str
    first: int
    stop: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.first


def row_groups(store: Store, names: Sequence[str]) -> list[RowRange]:
    """Every row group of the files, in the files' order; each file is opened once."""

    def groups(name: str) -> list[RowRange]:
        with store.open_parquet(name) as file:
            return [RowRange(name, *bounds) for bounds in _bounds(file)]

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        return [group for found in threads.map(groups, names) for group in found]


def bounds_of_share(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and stop of the rows, of so many, that one of `world_size` ranks takes."""
    return rank * rows // world_size, (rank + 1) * rows // world_size


def share_of(ranges: Sequence[RowRange], rank: int, world_size: int) -> list[RowRange]:
    """The rows that one of `world_size` ranks takes: of R rows those from rank * R / world_size on, ranges cut at its borders.

    >>> share_of([RowRange("a", 0, 10), RowRange("b", 0, 5)], 1, 2)
    [RowRange(name='a', first=7, stop=10), RowRange(name='b', first=0, stop=5)]
    """
    first, stop = bounds_of_share(sum(each.rows for each in ranges), rank, world_size)
    taken, before = [], 0
    for each in ranges:
        low, high = max(first - before, 0), min(stop - before, each.rows)
        if low < high:
            taken.append(RowRange(each.name, each.first + low, each.first + high))
        before += each.rows
    return taken


class Placed(NamedTuple):
    """A range of rows at its place in a stream: its first row is at this position, counted over all passes."""

    position: int
    rows: RowRange


def in_passes(
    ranges: Sequence[RowRange], share: tuple[int, int], seed: int, first_pass: int = 0, position: int = 0
) -> Iterator[Placed]:
    """The ranges that a rank reads, pass after pass for ever: each pass is in a random order of its own and shared out in it.

    Args:
        ranges: of all ranks, with some row for each of them.
        share: the rank, and how many ranks there are.
        seed: tells the orders, with the number of the pass.
        first_pass: number of the pass that begins at position 0.
        position: ranges that end before it are left out.
    """
    first, stop = bounds_of_share(sum(each.rows for each in ranges), *share)
    passes_before = position // (stop - first)
    at = passes_before * (stop - first)
    for number in count(first_pass + passes_before):
        order = np.random.default_rng([seed, number]).permutation(len(ranges))
        for each in share_of([ranges[i] for i in order], *share):
            if at + each.rows > position:
                yield Placed(at, each)
            at += each.rows


def read_rows(store: Store, rows: RowRange, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The rows of a range, a table for each row group that has some; the file is opened once.

    Args:
        columns: names of the columns that it must have.
        optional: names of those that are read where it has them.

    Raises:
        DataError: the file lacks a column, or has two of its name.
        StoreError: it cannot be read, or is damaged.
    """
    with store.open_parquet(rows.name) as file:
        available = file.schema_arrow.names
        if missing := sorted(set(columns) - set(available)):
            raise DataError(
                f"{store.uri_of(rows.name)} lacks the column(s) {missing}; it has {sorted(available)}. "
                "Choose others, or a catalogue that has them"
            )
        if file.metadata.num_rows < rows.stop:
            raise DataError(
                f"{store.uri_of(rows.name)} has {file.metadata.num_rows} rows, expected {rows.stop} at least: it was changed since the "
                "reading was planned. Start again"
            )
        wanted = list(dict.fromkeys((*columns, *(name for name in optional if name in available))))
        check_each_once(available, wanted, store.uri_of(rows.name))
        for number, (first, stop) in enumerate(_bounds(file)):
            low, high = max(rows.first, first), min(rows.stop, stop)
            if low < high:
                yield file.read_row_group(number, columns=wanted).slice(low - first, high - low)


def check_each_once(available: Sequence[str], wanted: Sequence[str], where: str) -> None:
    """Raise DataError where a file has several columns of a name that is wanted."""
    if twice := sorted(name for name in wanted if available.count(name) > 1):
        raise DataError(f"{where} has more than one column named {', '.join(twice)}: rename all but one, or choose other columns")


def _bounds(file: ParquetReader) -> list[tuple[int, int]]:
    """First row, and the one after the last, of each row group of a file."""
    rows = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
    return list(pairwise(accumulate(rows, initial=0)))
