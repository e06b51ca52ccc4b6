"""Archive to catalogue: plan chunks, fetch, verify, file by position, merge, publish; go on where an earlier run stopped.

Chunks are asked for by source_id and filed by position, for some stars lie in another pixel than their source_id says.
The tiles are fixed by the plan. A chunk's rows go into parts, one file a tile; once every chunk is done, each tile's parts
are merged, sorted and checked into its partition. The ledger, one small JSON a chunk, is the only record of what is done.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask import catalogue
from gaiadask.archive.base import Archive
from gaiadask.archive.chunks import Chunk, Plan
from gaiadask.config.sections import Config
from gaiadask.errors import (
    ArchiveError,
    ChunkTooLargeError,
    DataError,
    GaiadaskError,
    KeyMismatchError,
    MissingStageError,
    StoreError,
)
from gaiadask.keys import digest
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.sky import healpix
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

log = logging.getLogger(__name__)

FORMAT = 1
# Rows of a chunk that a worker holds before it writes them out as parts.
_BUFFER_ROWS = 500_000
# A chunk that this many attempts did not live to tell of is taken to be too large for a worker's memory.
_DEATHS = 3


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """The ledger's entry of one chunk; written when a job is started and again when its rows are filed.

    state: "running", "done", or "split" where it was too large: its rows then come with its children. bytes: of its parts.
    begun: how many attempts began it and have not told of their end: under way, or killed with their worker.
    """

    chunk: str
    state: str
    expected_rows: int | None = None
    rows: int = 0
    bytes: int = 0
    begun: int = 0
    tiles: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    host: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    children: tuple[Chunk, ...] = ()

    @property
    def done(self) -> bool:
        return self.state == "done"


@dataclass(frozen=True, slots=True)
class CatalogueRecord:
    """A published catalogue: its id is a hash over tile, rows and checksum of each partition."""

    id: str
    rows: int
    columns: tuple[str, ...]
    selection: Mapping[str, Any]
    partitions: tuple[catalogue.Partition, ...]

    @property
    def tiles(self) -> tuple[Tile, ...]:
        return tuple(p.tile for p in self.partitions)


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """Chunks, the tiles that cover the sky, in order of their first position, and about how many rows there are."""

    chunks: tuple[Chunk, ...]
    tiles: tuple[Tile, ...]
    rows: int = 0


# Selection and plan --------------------------------------------------------------------------------------------------
def selection_of(config: Config, archive: Archive) -> dict[str, Any]:
    """What the catalogue depends on, and nothing of how it is fetched."""
    return {"format": FORMAT, "archive": archive.identity(), "columns": list(archive.schema.names), **config.catalogue.model_dump()}


def claim(store: Store, selection: Mapping[str, Any]) -> None:
    """Make the store this selection's, or make sure it is.

    A selection of which no star has come yet (it was empty, or mistyped) gives way to another one. Raises
    KeyMismatchError, naming what differs, where the store holds or began a catalogue of another selection.
    """
    held = store.read_json(paths.SELECTION) if store.exists(paths.SELECTION) else None
    if held is not None and digest(held) == digest(selection):
        return
    begun = catalogue.is_published(store, paths.CATALOGUE) or any(record.rows for record in read_ledger(store).values())
    if held is None or not begun:
        for name in (paths.PLAN, paths.LEDGER, paths.PARTS, paths.TILES):
            store.remove(name)
        store.write_json(paths.SELECTION, dict(selection))
    else:
        raise KeyMismatchError(
            f"the store {store.uri} holds a catalogue of another selection ({differences(held, selection)}). A store holds one "
            "catalogue: name another store, or give --replace ingest to drop it and everything made from it"
        )


def differences(held: Any, asked: Any, at: str = "") -> str:
    """The leaves in which two JSON values differ, as one readable line."""
    if isinstance(held, Mapping) and isinstance(asked, Mapping):
        keys = sorted({*held, *asked})
        lines = (differences(held.get(k), asked.get(k), f"{at}.{k}" if at else str(k)) for k in keys if held.get(k) != asked.get(k))
        return "; ".join(lines)
    if isinstance(held, list) and isinstance(asked, list):
        held, asked = [v for v in held if v not in asked] or held, [v for v in asked if v not in held] or asked
    return f"{at}: {_short(held)} there, {_short(asked)} asked for"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def make_plan(config: Config, archive: Archive) -> IngestPlan:
    """Ask the archive how the selection lies on the sky, and fix tiles and chunks.

    Raises DataError where the selection is empty.
    """
    plan = archive.plan()
    if not plan.chunks or not plan.histogram.sum():
        raise DataError(f"the selection is empty: no star of the archive satisfies {dict(archive.identity())}")
    row_bytes = archive.release.row_bytes(archive.release.catalogue_schema(archive.schema.names).names)
    tiles = tile_cover(plan, max(1, config.catalogue.partition_mb * 1_000_000 // row_bytes))
    return IngestPlan(plan.chunks, tiles, int(plan.histogram.sum()))


def tile_cover(plan: Plan, max_rows: int) -> tuple[Tile, ...]:
    """Tiles that cover the whole sky once, each split while it holds more than `max_rows` by the histogram.

    The finest are of the histogram's order. Tiles without stars are covered too: a star whose source_id says otherwise
    may lie in them.
    """
    levels = [plan.histogram]
    while len(levels[-1]) > 12:
        levels.append(levels[-1].reshape(-1, 4).sum(axis=1))
    levels.reverse()

    def split(tile: Tile) -> Iterator[Tile]:
        if tile.order == plan.order or levels[tile.order][tile.pixel] <= max_rows:
            yield tile
        else:
            for child in range(4):
                yield from split(Tile(tile.order + 1, 4 * tile.pixel + child))

    return tuple(tile for pixel in range(12) for tile in split(Tile(0, pixel)))


def plan_to_json(plan: IngestPlan) -> dict[str, Any]:
    return {"chunks": [asdict(c) for c in plan.chunks], "tiles": [[t.order, t.pixel] for t in plan.tiles], "rows": plan.rows}


def plan_from_json(value: Mapping[str, Any]) -> IngestPlan:
    return IngestPlan(tuple(Chunk(**c) for c in value["chunks"]), tuple(Tile(*t) for t in value["tiles"]), value["rows"])


def load_or_make_plan(store: Store, config: Config, archive: Archive) -> IngestPlan:
    """The plan an earlier run fixed, or a new one, written before the first row arrives."""
    if store.exists(paths.PLAN):
        return plan_from_json(store.read_json(paths.PLAN))
    plan = make_plan(config, archive)
    store.write_json(paths.PLAN, plan_to_json(plan))
    return plan


# Chunks --------------------------------------------------------------------------------------------------------------
def read_ledger(store: Store) -> dict[str, ChunkRecord]:
    """Every chunk's record, by name."""
    records = store.read_jsons(store.list(paths.LEDGER, ".json"))
    return {r["chunk"]: _record(r) for r in records}


def read_record(store: Store, chunk: str) -> ChunkRecord | None:
    """A chunk's record, None where it has not been begun."""
    name = paths.chunk_record(chunk)
    return _record(store.read_json(name)) if store.exists(name) else None


def _record(value: Mapping[str, Any]) -> ChunkRecord:
    parts = tuple(tuple(p) for p in value["parts"])
    return ChunkRecord(**{**value, "parts": parts, "children": tuple(Chunk(**c) for c in value.get("children", ()))})


def leaves(chunks: Sequence[Chunk], ledger: Mapping[str, ChunkRecord]) -> list[Chunk]:
    """The chunks that rows come in: those planned, each that was split replaced by its children, and so on."""
    found: list[Chunk] = []
    for chunk in chunks:
        record = ledger.get(chunk.name)
        found += leaves(record.children, ledger) if record and record.children else [chunk]
    return found


def pending(plan: IngestPlan, ledger: Mapping[str, ChunkRecord]) -> list[Chunk]:
    """The chunks whose rows are not filed yet."""
    return [chunk for chunk in leaves(plan.chunks, ledger) if not (chunk.name in ledger and ledger[chunk.name].done)]


def shards(chunks: Sequence[Chunk]) -> list[Sequence[Chunk]]:
    """Chunks in the pieces that a flow shows as one task each: about twenty, of 50 to 500."""
    size = min(500, max(50, -(-len(chunks) // 20)))
    return [chunks[first : first + size] for first in range(0, len(chunks), size)]


def filed(plan: IngestPlan, ledger: Mapping[str, ChunkRecord]) -> dict[str, ChunkRecord]:
    """The records that hold the catalogue's rows, by chunk. Raises DataError where a chunk is missing or lost rows."""
    if missing := [chunk.name for chunk in pending(plan, ledger)]:
        raise DataError(f"{len(missing)} chunks have not been fetched ({', '.join(missing[:10])}): run `gaiadask ingest` again")
    for chunk in plan.chunks:
        rows = sum(ledger[leaf.name].rows for leaf in leaves([chunk], ledger))
        if chunk.expected_rows not in (None, rows):
            raise DataError(
                f"chunk {chunk.name}: the archive counted {chunk.expected_rows} rows when planning and gave {rows} in "
                f"{len(leaves([chunk], ledger))} pieces: it has changed since. Start over with --replace ingest"
            )
    return {chunk.name: ledger[chunk.name] for chunk in leaves(plan.chunks, ledger)}


def ingest_chunk(store: Store, archive: Archive, tiles: Sequence[Tile], chunk: Chunk) -> ChunkRecord:
    """Fetch one chunk, verify it and file its rows into parts by tile; the ledger's record is written last.

    A chunk that is too large is not fetched: its record names the smaller ones that take its place. So is one with which
    workers die, where it can be cut. One that an attempt before left under way is gone on with. Raises ArchiveError or DataError, naming the chunk, where its rows are not
    certain to be whole and right.
    """
    started = time.monotonic()
    held = read_record(store, chunk.name)
    if held and (held.done or held.children):  # by a worker that seemed dead
        return held
    deaths = held.begun if held else 0
    record = ChunkRecord(chunk.name, "running", chunk.expected_rows, begun=deaths + 1, host=socket.gethostname())
    facts: dict[str, Any] = dict(held.facts) if held else {}

    def note(news: Mapping[str, Any]) -> None:
        facts.update(news)
        store.write_json(paths.chunk_record(chunk.name), asdict(record) | {"facts": facts})

    def split(children: tuple[Chunk, ...], why: str) -> ChunkRecord:
        cut = replace(record, state="split", begun=0, facts=facts, children=children)
        store.remove(f"{paths.PARTS}/{chunk.name}")
        store.write_json(paths.chunk_record(chunk.name), asdict(cut))
        log.info("%s; asked for in %d pieces", why, len(children))
        return cut

    if deaths >= _DEATHS:
        with contextlib.suppress(ArchiveError):  # what cannot be cut is tried again as it is
            return split(archive.split(chunk), f"chunk {chunk.name}: {deaths} workers died with it")
    note({})
    store.remove(f"{paths.PARTS}/{chunk.name}")
    writer = _PartWriter(store, chunk, tiles)
    try:
        for table in archive.resume(chunk, note, dict(facts)):
            writer.add(table)
        writer.flush()
    except ChunkTooLargeError as error:
        try:
            return split(archive.split(chunk), str(error))
        except ArchiveError as cannot:
            raise ArchiveError(f"{error}; {cannot}") from error
    except GaiadaskError:
        record = replace(record, begun=0)
        with contextlib.suppress(StoreError):  # what is to be told is the first error
            note({})
        raise
    if chunk.expected_rows is not None and writer.rows != chunk.expected_rows:
        raise DataError(
            f"chunk {chunk.name}: the archive counted {chunk.expected_rows} rows when planning and gave {writer.rows}: it has "
            "changed since. Start over with --replace ingest"
        )
    done = replace(
        record, state="done", rows=writer.rows, bytes=writer.bytes, begun=0, tiles=dict(writer.tile_rows),
        parts=tuple(writer.parts), seconds=round(time.monotonic() - started, 3), facts=facts,
    )  # fmt: skip
    store.write_json(paths.chunk_record(chunk.name), asdict(done))
    return done


class _PartWriter:
    """Files a chunk's rows by the tile of their position, a bounded number of rows in memory."""

    def __init__(self, store: Store, chunk: Chunk, tiles: Sequence[Tile]) -> None:
        self.store, self.chunk, self.tiles = store, chunk, tiles
        self.starts = np.array([tile.healpix_29[0] for tile in tiles])
        self.buffer: list[pa.Table] = []
        self.rows = self.bytes = 0
        self.buffered_rows = 0
        self.flushes = 0
        self.tile_rows: defaultdict[str, int] = defaultdict(int)
        self.parts: list[tuple[str, str]] = []

    def add(self, table: pa.Table) -> None:
        self._check(table)
        self.buffer.append(table)
        self.rows += table.num_rows
        self.buffered_rows += table.num_rows
        if self.buffered_rows >= _BUFFER_ROWS:
            self.flush()

    def _check(self, table: pa.Table) -> None:
        for name in (SOURCE_ID, RA, DEC):
            if table[name].null_count:
                raise DataError(
                    f"chunk {self.chunk.name}: {table[name].null_count} rows without {name}; no star can be filed without it"
                )
        for name, low, high in ((RA, 0.0, 360.0), (DEC, -90.0, 90.0)):
            # Counted from the inside, for NaN lies in no range.
            inside = pc.and_(pc.greater_equal(table[name], low), pc.less_equal(table[name], high))
            wrong = table.num_rows - (pc.sum(inside).as_py() or 0)
            if wrong:
                raise DataError(f"chunk {self.chunk.name}: {wrong} rows have a {name} outside [{low:g}, {high:g}] degrees")
        ids = table[SOURCE_ID].to_numpy()
        outside = int(np.count_nonzero((ids < self.chunk.first) | (ids >= self.chunk.stop)))
        if outside:
            raise DataError(
                f"chunk {self.chunk.name}: {outside} rows have a source_id outside [{self.chunk.first}, {self.chunk.stop})"
            )
        for name in (f.name for f in table.schema if pa.types.is_floating(f.type)):
            infinite = pc.sum(pc.is_inf(table[name])).as_py()
            if infinite:
                raise DataError(
                    f"chunk {self.chunk.name}: {infinite} rows have an infinite {name}; the archive has none: damaged upstream?"
                )

    def flush(self) -> None:
        """Write what is held, one part a tile."""
        if not self.buffered_rows:
            return
        table = pa.concat_tables(self.buffer)
        self.buffer, self.buffered_rows = [], 0
        index = healpix(table[RA].to_numpy(), table[DEC].to_numpy())
        table = catalogue.sort_rows(table.add_column(0, HEALPIX_29, pa.array(index)))
        tile_number = np.searchsorted(self.starts, table[HEALPIX_29].to_numpy(), side="right") - 1
        found, first = np.unique(tile_number, return_index=True)
        for number, begin, end in zip(found, first, [*first[1:], table.num_rows], strict=True):
            tile = self.tiles[number]
            name = paths.part(f"{self.chunk.name}/{self.flushes}", tile)
            with self.store.writing(name) as scratch:
                catalogue.write_parquet(table.slice(begin, end - begin), scratch, "lz4")  # read once, soon
                self.bytes += scratch.stat().st_size
            self.tile_rows[tile.flat_name] += int(end - begin)
            self.parts.append((tile.flat_name, name))
        self.flushes += 1


# Tiles ---------------------------------------------------------------------------------------------------------------
def merge_tile(store: Store, schema: pa.Schema, selection_key: str, job: tuple[Tile, tuple[str, ...], int]) -> catalogue.Partition:
    """Merge a tile's parts into its partition: sorted, every source_id once, rows conserved.

    job: the tile, its parts and the rows they hold by the ledger. A tile that an interrupted run merged is kept. Raises DataError naming the tile and a source_id.
    """
    tile, parts, expected_rows = job
    if store.exists(paths.tile_record(tile)):
        return catalogue.Partition.from_json(store.read_json(paths.tile_record(tile)))
    tables = []
    for name in parts:
        with store.open_parquet(name) as file:
            tables.append(file.read())
    table = catalogue.sort_rows(pa.concat_tables(tables)).select(schema.names).cast(schema)
    if table.num_rows != expected_rows:
        raise DataError(
            f"tile {tile}: the ledger filed {expected_rows} rows, its parts hold {table.num_rows}: a part was changed from outside"
        )
    _check_unique(table[SOURCE_ID].to_numpy(), tile)
    partition = catalogue.write_partition(store, paths.CATALOGUE, tile, table, {"gaiadask.selection": selection_key})
    store.write_json(paths.tile_record(tile), partition.to_json())
    return partition


def _check_unique(source_ids: NDArray[np.int64], tile: Tile) -> None:
    ids, counts = np.unique(source_ids, return_counts=True)
    twice = ids[counts > 1]
    if len(twice):
        raise DataError(
            f"tile {tile}: {len(twice)} stars came more than once (source_id {twice[0]} first). The archive's files or chunks "
            "overlap: remove the repeated file, or select the rows once"
        )


def tile_jobs(ledger: Mapping[str, ChunkRecord], tiles: Sequence[Tile]) -> list[tuple[Tile, tuple[str, ...], int]]:
    """For each tile with stars: its parts in a fixed order and its rows, summed over chunks."""
    parts: defaultdict[str, list[str]] = defaultdict(list)
    rows: defaultdict[str, int] = defaultdict(int)
    for record in ledger.values():
        for tile, name in record.parts:
            parts[tile].append(name)
        for tile, count in record.tiles.items():
            rows[tile] += count
    return [(t, tuple(sorted(parts[t.flat_name])), rows[t.flat_name]) for t in tiles if rows[t.flat_name]]


# Publishing ----------------------------------------------------------------------------------------------------------
def publish(
    store: Store, archive: Archive, selection: Mapping[str, Any], partitions: Sequence[catalogue.Partition]
) -> CatalogueRecord:
    """Check that rows are conserved and publish the catalogue; its parts may go then.

    Raises DataError where the ledger's rows and the partitions' differ, naming both numbers.
    """
    ledger = filed(plan_from_json(store.read_json(paths.PLAN)), read_ledger(store))
    fetched, written = sum(r.rows for r in ledger.values()), sum(p.rows for p in partitions)
    if fetched != written:
        raise DataError(f"the chunks gave {fetched} rows, the partitions hold {written}: not published")
    if not written:
        raise DataError(f"the selection is empty: no star of the archive satisfies {dict(archive.identity())}")
    ordered = tuple(sorted(partitions, key=lambda p: p.tile))
    identity = catalogue_id(ordered)
    columns = tuple(archive.release.catalogue_schema(archive.schema.names).names)
    record = CatalogueRecord(identity, written, columns, dict(selection), ordered)
    title = str(selection["archive"].get("table", f"gaiadask {archive.config.kind}"))
    # Before the marker: a catalogue that is published has its record, whenever the process is killed.
    store.write_json(paths.PUBLISHED, asdict(record))
    catalogue.publish(store, paths.CATALOGUE, title, ordered, {"gaiadask_catalogue_id": identity})
    return record


def catalogue_id(partitions: Sequence[catalogue.Partition]) -> str:
    """A hash over tile, rows and checksum of each partition, in the order of tiles."""
    return digest([[p.tile.order, p.tile.pixel, p.rows, p.checksum] for p in sorted(partitions, key=lambda p: p.tile)])


def read_catalogue_record(store: Store) -> CatalogueRecord:
    """The published catalogue's record. Raises MissingStageError where there is none."""
    if not catalogue.is_published(store, paths.CATALOGUE) or not store.exists(paths.PUBLISHED):
        raise MissingStageError(f"the store {store.uri} holds no catalogue yet: make it with `gaiadask ingest`")
    value = store.read_json(paths.PUBLISHED)
    partitions = tuple(catalogue.Partition.from_json(p) for p in value["partitions"])
    return CatalogueRecord(**{**value, "columns": tuple(value["columns"]), "partitions": partitions})


def fetching(store: Store, archive: Archive, plan: IngestPlan) -> partial[ChunkRecord]:
    """The function of one chunk that workers run."""
    return partial(ingest_chunk, store, archive, plan.tiles)
