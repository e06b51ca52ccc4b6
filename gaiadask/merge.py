"""Parts to partitions: sorted parts merged piece by piece, in bounded memory; a crowded tile is cut into smaller ones."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.errors import DamagedFileError, MissingFileError
from gaiadask.ingest_plan import IngestPlan, planned_tiles
from gaiadask.ledger import ChunkRecord
from gaiadask.overlaps import check_each_star_once
from gaiadask.records import Record
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile
from gaiadask.store.placing import Placing

log = logging.getLogger(__name__)

NOTHING_MERGED: Mapping[Tile, tuple[Partition, ...]] = MappingProxyType({})

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
        for table in catalogue.iterate_between(store, name, *tile.healpix_29, [HEALPIX_29]):
            index = table[HEALPIX_29].to_numpy()
            begin, end = np.searchsorted(index, tile.healpix_29)
            counts += np.bincount((index[begin:end] - first) >> shift, minlength=len(counts))
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
class Span(NamedTuple):
    """A half-open range of `_healpix_29`."""

    first: int
    stop: int


def merged(store: Store, parts: Sequence[str], schema: pa.Schema, span: Span) -> Iterator[pa.Table]:
    """The parts' rows that lie in a range, by `_healpix_29`, then source_id, in pieces of bounded size.

    Args:
        store, parts: files of rows in this order.
        schema: of the pieces.
        span: only its rows.
    """
    with tempfile.TemporaryDirectory(prefix="gaiadask-merge-") as folder:
        scratch, names = Store(folder), list(parts)
        sources = [_rows_of(store, name, schema, span) for name in names]
        number = 0
        while len(sources) > _FAN_IN:
            group, sources = sources[:_FAN_IN], sources[_FAN_IN:]
            name = f"{number}.parquet"
            number += 1
            if _write(Path(folder) / name, _merge(group), schema):
                sources.append(_rows_of(scratch, name, schema, span))
        yield from _merge(sources)


def _rows_of(store: Store, name: str, schema: pa.Schema, span: Span) -> Iterator[pa.Table]:
    for table in catalogue.iterate_between(store, name, *span):
        begin, end = np.searchsorted(table[HEALPIX_29].to_numpy(), span)
        if end > begin:
            yield table.slice(begin, end - begin).select(schema.names).cast(schema)


def dealt(tables: Iterable[pa.Table], spans: Sequence[Span]) -> Iterator[Iterator[pa.Table]]:
    """The rows of each range out of a sorted stream, one range after the other; rows in no range are left out."""
    stream, rest = iter(tables), list[pa.Table]()

    def rows_of(span: Span) -> Iterator[pa.Table]:
        while (table := rest.pop() if rest else next(stream, None)) is not None:
            begin, end = np.searchsorted(table[HEALPIX_29].to_numpy(), span)
            if end < len(table):
                rest.append(table.slice(end))
            if end > begin:
                yield table.slice(begin, end - begin)
            if end < len(table):
                return

    return map(rows_of, spans)


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
    """A file of a chunk's rows, by position."""

    name: str
    chunk: str


class TileJob(NamedTuple):
    """A tile to merge: the files that may have rows of it in a fixed order, the rows of each chunk in it by the ledger, and what it
    was merged into before."""

    tile: Tile
    parts: tuple[Part, ...]
    chunks: Mapping[str, int]
    before: tuple[Partition, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all chunks in it."""
        return sum(self.chunks.values())


def tile_jobs(
    ledger: Mapping[str, ChunkRecord], tiles: Sequence[Tile], before: Mapping[Tile, tuple[Partition, ...]] = NOTHING_MERGED
) -> list[TileJob]:
    """For each tile with stars: its parts and its rows, summed over chunks, and what it was merged into before."""
    parts: defaultdict[str, list[Part]] = defaultdict(list)
    rows: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for record in ledger.values():
        for tile, name in record.parts:
            parts[tile].append(Part(name, record.chunk))
        files = [Part(name, record.chunk) for name in record.files]
        for tile, count in record.tiles.items():
            parts[tile] += files
            rows[tile][record.chunk] = count
    jobs = ((tile, tile.flat_name) for tile in tiles)
    return [TileJob(t, tuple(sorted(parts[name])), rows[name], before.get(t, ())) for t, name in jobs if name in rows]


class MergedTiles(Record):
    """What some planned tiles were merged into. Version 0.1.0 wrote one for each tile that it cut, and of others the one partition."""

    partitions: tuple[Partition, ...] = Field(description="in the order of tiles")


def read_merged(store: Store) -> dict[str, tuple[Partition, ...]]:
    """What was merged, by the name of the record that says so."""
    names = store.list(paths.TILES, ".json")
    return {
        name: store.as_record(name, content, MergedTiles).partitions
        if isinstance(content, dict) and "partitions" in content
        else (store.as_record(name, content, Partition),)
        for name, content in zip(names, store.read_jsons(names), strict=True)
    }


def merged_before(store: Store, plan: IngestPlan) -> dict[Tile, tuple[Partition, ...]]:
    """What the plan's tiles were merged into by an earlier, interrupted run, or for a catalogue that is mended now."""
    partitions = [partition for record in read_merged(store).values() for partition in record]
    tiles = planned_tiles(plan, [partition.tile for partition in partitions])
    found: defaultdict[Tile, tuple[Partition, ...]] = defaultdict(tuple)
    for tile, partition in sorted(zip(tiles, partitions, strict=True), key=lambda pair: pair[1].tile.healpix_29):
        found[tile] += (partition,)
    return dict(found)


def forget_merged(store: Store, plan: IngestPlan, tiles: Collection[Tile]) -> None:
    """Have tiles of the plan merged again."""
    for name, partitions in read_merged(store).items():
        planned = planned_tiles(plan, [partition.tile for partition in partitions])
        kept = tuple(partition for partition, tile in zip(partitions, planned, strict=True) if tile not in tiles)
        if not kept:
            store.remove(name)
        elif kept != partitions:
            store.write_json(name, MergedTiles(partitions=kept).to_json())


class LostParts(NamedTuple):
    """Of a tile whose parts are not all there any more: the chunks that they came in."""

    tile: Tile
    chunks: tuple[str, ...]


class _OtherRows(Exception):
    """The parts of a tile have other rows than the ledger says."""


@dataclass(frozen=True)
class MergeTiles:
    """Merges the parts of tiles that follow each other; for workers.

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

    def __call__(self, jobs: Sequence[TileJob]) -> tuple[Partition, ...] | LostParts:
        """Merge the tiles' parts into their partitions: sorted, every source_id once, rows conserved.

        Partitions that an interrupted run merged are kept.

        Returns:
            The partitions of all tiles; where a part is missing or damaged, its chunk.

        Raises:
            DataError: rows come more than once; the message names the tile and a source_id.
        """
        whole = self._merged_before(jobs)
        left = [job for job in jobs if not whole.get(job.tile)]
        if not left:
            return tuple(partition for job in jobs for partition in whole[job.tile])
        try:
            whole |= self._merge(left)
        except (MissingFileError, DamagedFileError, _OtherRows) as error:
            log.warning("tile %s: %s", left[0].tile, error)
            return LostParts(left[0].tile, self._lost(left))
        partitions = tuple(partition for job in jobs for partition in whole[job.tile])
        self.store.write_json(paths.tile_record(jobs[0].tile), MergedTiles(partitions=partitions).to_json())
        return partitions

    def _merged_before(self, jobs: Sequence[TileJob]) -> dict[Tile, tuple[Partition, ...]]:
        """Of the tiles that were merged and whose files are what was written."""
        done = [job for job in jobs if job.before and sum(p.rows for p in job.before) == job.rows]
        footer = {catalogue.SELECTION_KEY: self.selection_key}
        written = [partition for job in done for partition in job.before]
        broken = set(catalogue.not_whole(self.store, paths.CATALOGUE, written, lambda _: footer)) if written else set()
        return {job.tile: job.before for job in done if not broken.intersection(job.before)}

    def _merge(self, jobs: Sequence[TileJob]) -> dict[Tile, tuple[Partition, ...]]:
        """Merge the tiles' parts in one pass."""
        parts = sorted({part for job in jobs for part in job.parts})
        names = [part.name for part in parts]
        pieces = [(job, *piece) for job in jobs for piece in cut_tile(self.store, names, job.tile, job.rows, self.aim)]
        spans = [Span(*tile.healpix_29) for _, tile, _ in pieces]
        tables = merged(self.store, names, self.schema, Span(spans[0].first, spans[-1].stop))
        partitions: defaultdict[Tile, tuple[Partition, ...]] = defaultdict(tuple)
        with Placing(self.store) as placing:
            for (job, tile, rows), own in zip(pieces, dealt(tables, spans), strict=True):
                partitions[job.tile] += (self._write(placing, names, tile, rows, own),)
        return dict(partitions)

    def _write(self, placing: Placing, parts: Sequence[str], tile: Tile, rows: int, tables: Iterator[pa.Table]) -> Partition:
        ids = np.empty(rows, np.int64)

        def pieces() -> Iterator[pa.Table]:
            found = 0
            for table in tables:
                own = table[SOURCE_ID].to_numpy()[: rows - found]
                ids[found : found + len(own)] = own
                found += len(table)
                yield table
                if found > rows:
                    break
            if found != rows:
                raise _OtherRows(f"the ledger filed {rows} rows in tile {tile}, its parts hold {'more' if found > rows else found}")
            check_each_star_once(self.store, ids, parts, f"tile {tile}")

        return catalogue.write_partition(placing, paths.CATALOGUE, tile, pieces(), {catalogue.SELECTION_KEY: self.selection_key})

    def _lost(self, jobs: Sequence[TileJob]) -> tuple[str, ...]:
        """The chunks of which a part is missing or damaged, or which have other rows here than the ledger says; all that these tiles
        have rows of, where it cannot be told."""
        filed_rows, found, spans = Counter[str](), Counter[str](), [Span(*job.tile.healpix_29) for job in jobs]
        for job in jobs:
            filed_rows.update(job.chunks)
        for part in sorted({part for job in jobs for part in job.parts}):
            with suppress(MissingFileError, DamagedFileError):
                tables = list(catalogue.iterate_between(self.store, part.name, spans[0].first, spans[-1].stop, [HEALPIX_29]))
                found[part.chunk] += sum(len(table) for own in dealt(tables, spans) for table in own)
        return tuple(chunk for chunk in filed_rows if found[chunk] != filed_rows[chunk]) or tuple(filed_rows)
