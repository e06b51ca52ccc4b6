"""Parts to partitions: sorted parts merged piece by piece, in bounded memory; a crowded tile is cut into smaller ones."""

from __future__ import annotations

import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.errors import DamagedFileError, DataError, MissingFileError
from gaiadask.ledger import ChunkRecord
from gaiadask.overlaps import check_each_star_once
from gaiadask.records import Record
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

log = logging.getLogger(__name__)

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
    with catalogue.parquet_writer(path, schema, "lz4", write_statistics=False) as writer:
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


# Tiles ---------------------------------------------------------------------------------------------------------------
class Part(NamedTuple):
    """A file of a chunk's rows in one tile."""

    name: str
    chunk: str


class TileJob(NamedTuple):
    """A tile to merge: its parts in a fixed order, and the rows of each chunk in it by the ledger."""

    tile: Tile
    parts: tuple[Part, ...]
    chunks: Mapping[str, int]

    @property
    def rows(self) -> int:
        """Rows of all chunks in it."""
        return sum(self.chunks.values())


def tile_jobs(ledger: Mapping[str, ChunkRecord], tiles: Sequence[Tile]) -> list[TileJob]:
    """For each tile with stars: its parts and its rows, summed over chunks."""
    parts: defaultdict[str, list[Part]] = defaultdict(list)
    rows: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for record in ledger.values():
        for tile, name in record.parts:
            parts[tile].append(Part(name, record.chunk))
        for tile, count in record.tiles.items():
            rows[tile][record.chunk] = count
    return [TileJob(t, tuple(sorted(parts[t.flat_name])), rows[t.flat_name]) for t in tiles if t.flat_name in rows]


class MergedTile(Record):
    """What a planned tile was merged into, where that is not one partition of its own: a crowded tile is cut."""

    partitions: tuple[Partition, ...] = Field(description="in the order of tiles")


class LostParts(NamedTuple):
    """Of a tile whose parts are not all there any more: the chunks that they came in."""

    tile: Tile
    chunks: tuple[str, ...]


@dataclass(frozen=True)
class MergeTile:
    """Merges a tile's parts; for workers.

    Attributes:
        store: where parts and partitions are.
        schema: of the catalogue's files.
        selection_key: of the selection, for the files' footers.
        aim: rows of a partition that are aimed at: a tile of many more is cut.
    """

    store: Store
    schema: pa.Schema
    selection_key: str
    aim: int

    def __call__(self, job: TileJob) -> tuple[Partition, ...] | LostParts:
        """Merge a tile's parts into its partition, or partitions: sorted, every source_id once, rows conserved.

        A tile that an interrupted run merged is kept.

        Returns:
            The partitions as written; where a part is missing or damaged, its chunk, and nothing is written.

        Raises:
            DataError: rows were lost or come more than once; the message names the tile and a source_id.
        """
        if merged_before := self._merged_before(job):
            return merged_before
        if lost := self._lost(job):
            return LostParts(job.tile, lost)
        names = [part.name for part in job.parts]
        try:
            tiles = cut_tile(self.store, names, job.tile, job.rows, self.aim)
            partitions = tuple(self._merge(names, tile, rows) for tile, rows in tiles)
        except DamagedFileError as error:
            log.warning("tile %s: %s", job.tile, error)
            return LostParts(job.tile, tuple(job.chunks))
        if partitions[0].tile == job.tile:
            self.store.write_json(paths.tile_record(job.tile), partitions[0].to_json())
        else:
            self.store.write_json(paths.tile_record(job.tile), MergedTile(partitions=partitions).to_json())
        return partitions

    def _merged_before(self, job: TileJob) -> tuple[Partition, ...]:
        """Empty where the tile was not merged, or its files are not what was written."""
        name, footer = paths.tile_record(job.tile), {catalogue.SELECTION_KEY: self.selection_key}
        content = self.store.read_json_if_there(name)
        if content is None:
            return ()
        if isinstance(content, dict) and "partitions" in content:
            partitions = self.store.as_record(name, content, MergedTile).partitions
        else:
            partitions = (self.store.as_record(name, content, Partition),)
        if sum(p.rows for p in partitions) == job.rows and not catalogue.not_whole(
            self.store, paths.CATALOGUE, partitions, lambda _: footer
        ):
            return partitions
        log.warning("tile %s is merged again: its partition is missing or damaged", job.tile)
        return ()

    def _lost(self, job: TileJob) -> tuple[str, ...]:
        """The chunks of which a part is missing or damaged, or which have other rows here than the ledger says."""
        rows_read: defaultdict[str, int] = defaultdict(int)
        for part in job.parts:
            with suppress(MissingFileError, DamagedFileError), self.store.open_parquet(part.name) as file:
                rows_read[part.chunk] += file.metadata.num_rows
        return tuple(chunk for chunk, rows in job.chunks.items() if rows_read[chunk] != rows)

    def _merge(self, parts: Sequence[str], tile: Tile, rows: int) -> Partition:
        ids: list[NDArray[np.int64]] = []

        def pieces() -> Iterator[pa.Table]:
            for table in merged(self.store, parts, self.schema, tile):
                ids.append(table[SOURCE_ID].to_numpy())
                yield table
            if (found := sum(map(len, ids))) != rows:
                raise DataError(
                    f"tile {tile}: the ledger filed {rows} rows, its parts hold {found}: a part was changed from outside"
                )
            check_each_star_once(self.store, np.concatenate(ids), parts, f"tile {tile}")

        return catalogue.write_partition(self.store, paths.CATALOGUE, tile, pieces(), {catalogue.SELECTION_KEY: self.selection_key})
