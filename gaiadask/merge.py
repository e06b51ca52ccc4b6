"""Sorted parts merged piece by piece, whatever their number and size, in bounded memory; a crowded tile cut into smaller ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gaiadask import catalogue
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

GROUP_ROWS = 8_192
"""Rows of a part's row group: of each part that is merged one is in memory."""
_FAN_IN = 32
"""Parts merged at once: of more, groups are merged first, on local scratch. With 94 columns some 200 MB."""
_FINEST_ORDER = 12
"""Tiles are cut no finer: a pixel of 0.7 square arcminutes, that of a source_id, holds no partition's worth of stars."""
_CROWDED = 2
"""A tile is cut where it holds more than so many times the rows that are aimed at: the plan's counts are not always exact."""


# Crowded tiles --------------------------------------------------------------------------------------------------------
def cut_tile(store: Store, parts: Sequence[str], tile: Tile, rows: int, aim: int) -> list[tuple[Tile, int]]:
    """The tiles that a tile's rows are merged into, those that have rows, with their rows: itself unless it is crowded.

    Args:
        store, parts: files with the tile's rows.
        tile: as it was planned.
        rows: that the parts have.
        aim: rows of a partition that are aimed at.
    """
    if rows <= _CROWDED * aim or tile.order >= _FINEST_ORDER:
        return [(tile, rows)]
    width = 2 * (_FINEST_ORDER - tile.order)
    first, shift = tile.healpix_29[0], 2 * (29 - _FINEST_ORDER)
    counts = np.zeros(1 << width, np.int64)
    for name in parts:
        for table in catalogue.iterate_file(store, name, [HEALPIX_29]):
            counts += np.bincount((table[HEALPIX_29].to_numpy() - first) >> shift, minlength=len(counts))
    return list(_cut(tile, counts, aim))


def _cut(tile: Tile, counts: NDArray[np.int64], aim: int) -> Iterator[tuple[Tile, int]]:
    """counts: rows of the tile's pixels of the finest order, shape (4**k,)."""
    rows = int(counts.sum())
    if rows <= aim or len(counts) == 1:
        if rows:
            yield tile, rows
        return
    for child, quarter in enumerate(counts.reshape(4, -1)):
        yield from _cut(Tile(tile.order + 1, 4 * tile.pixel + child), quarter, aim)


# Merging --------------------------------------------------------------------------------------------------------------
def merged(store: Store, parts: Sequence[str], schema: pa.Schema, tile: Tile) -> Iterator[pa.Table]:
    """The parts' rows that lie in a tile, by `_healpix_29`, then source_id, in pieces of bounded size.

    Args:
        store, parts: files of rows in this order.
        schema: of the pieces.
        tile: only its rows.
    """
    with tempfile.TemporaryDirectory(prefix="gaiadask-merge-") as folder:
        scratch, names = Store(folder), list(parts)
        sources = [_rows_of(store, name, schema, tile) for name in names]
        number = 0
        while len(sources) > _FAN_IN:
            group, sources = sources[:_FAN_IN], sources[_FAN_IN:]
            name = f"{number}.parquet"
            number += 1
            if _write(Path(folder) / name, _merge(group), schema):
                sources.append(_rows_of(scratch, name, schema, tile))
        yield from _merge(sources)


def _rows_of(store: Store, name: str, schema: pa.Schema, tile: Tile) -> Iterator[pa.Table]:
    first, stop = tile.healpix_29
    for table in catalogue.iterate_file(store, name):
        begin, end = np.searchsorted(table[HEALPIX_29].to_numpy(), (first, stop))
        if end > begin:
            yield table.slice(begin, end - begin).select(schema.names).cast(schema)


def _write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> bool:
    """Write a local part; whether there was a row."""
    rows = 0
    with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False) as writer:
        for table in tables:
            rows += len(table)
            writer.write_table(table, row_group_size=GROUP_ROWS)
    return rows > 0


def _merge(sources: Sequence[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Sorted streams as one: each piece has all rows up to the smallest of the streams' last rows in memory."""
    heads = [head for source in sources if (head := _Head.of(source))]
    while heads:
        bound = min(head.last for head in heads)
        taken = [piece for head in heads if len(piece := head.take(bound))]
        heads = [head for head in heads if head.is_left()]
        yield catalogue.sort_rows(pa.concat_tables(taken)) if len(taken) > 1 else taken[0]


class _Head:
    """The rows of a sorted stream that are in memory."""

    def __init__(self, rows: pa.Table, source: Iterator[pa.Table]) -> None:
        self._source = source
        self._begin(rows)

    @classmethod
    def of(cls, source: Iterator[pa.Table]) -> _Head | None:
        """The head of a stream; None where it is empty."""
        first = next(source, None)
        return cls(first, source) if first is not None else None

    def _begin(self, rows: pa.Table) -> None:
        self._rows, self._at = rows, 0
        self._index, self._id = rows[HEALPIX_29].to_numpy(), rows[SOURCE_ID].to_numpy()

    @property
    def last(self) -> tuple[int, int]:
        """Place in the order of the last row in memory."""
        return int(self._index[-1]), int(self._id[-1])

    def take(self, bound: tuple[int, int]) -> pa.Table:
        """Take the rows up to a place in the order out."""
        low, high = np.searchsorted(self._index, bound[0], "left"), np.searchsorted(self._index, bound[0], "right")
        stop = int(low + np.searchsorted(self._id[low:high], bound[1], "right"))
        begin, self._at = self._at, max(stop, self._at)
        return self._rows.slice(begin, self._at - begin)

    def is_left(self) -> bool:
        """Whether there are rows left, of which the next ones are then in memory."""
        if self._at < len(self._rows):
            return True
        following = next(self._source, None)
        if following is not None:
            self._begin(following)
        return following is not None
