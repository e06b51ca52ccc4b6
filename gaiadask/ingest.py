"""Archive to catalogue: fetch chunks, verify, file by position, merge, publish; go on where an earlier run stopped.

Chunks are asked for by source_id and filed by position, for some stars lie in another pixel than their source_id says.
The tiles are fixed by the plan. A chunk's rows go into parts, each by position; once every chunk is done, each tile's rows are merged
out of the parts, sorted and checked into its partition. What is done is in the ledger.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
from pydantic import Field

from gaiadask import catalogue, publishing
from gaiadask.archive.base import Archive
from gaiadask.archive.chunks import Chunk, ChunkFacts
from gaiadask.catalogue import Partition
from gaiadask.checks import check_finite, check_id_range, check_keys, check_positions
from gaiadask.errors import (
    ArchiveError,
    ChunkTooLargeError,
    DataError,
    GaiadaskError,
    MissingStageError,
    StoreError,
)
from gaiadask.ingest_plan import IngestPlan, Selection, TileCover, empty_selection, planned_tiles, read_plan
from gaiadask.keys import digest, require_same
from gaiadask.ledger import (
    ChunkRecord,
    check_expected_rows,
    filed,
    forget,
    read_ledger,
    read_record,
    write_own_record,
    write_record,
)
from gaiadask.merge import GROUP_ROWS, forget_merged
from gaiadask.publishing import Summary
from gaiadask.records import Record
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.sky import healpix
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

log = logging.getLogger(__name__)

# Rows of a chunk that a worker holds before it writes them out as parts: of 94 columns some 300 MB. Fewer rows make more and
# smaller parts.
_BUFFER_ROWS = 500_000
# A chunk with which so many workers died is taken to be too large for a worker's memory. One or two may die of other causes.
_DEATHS = 3


class CatalogueRecord(Record):
    """A published catalogue: catalogue.json."""

    id: str = Field(description="hash over tile, rows and checksum of each partition")
    rows: int = Field(description="number of stars")
    columns: tuple[str, ...] = Field(description="columns of the partition files, in order")
    selection: Selection = Field(description="what it was made from")
    partitions: tuple[Partition, ...] = Field(description="in the order of tiles")

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The partitions' tiles, in order."""
        return tuple(p.tile for p in self.partitions)


# Chunks --------------------------------------------------------------------------------------------------------------
def shards(chunks: Sequence[Chunk]) -> list[Sequence[Chunk]]:
    """Chunks in the groups that a flow shows as one task each: about twenty, of 50 to 500.

    More tasks would be too many to read; fewer would show too little progress.
    """
    size = min(500, max(50, -(-len(chunks) // 20)))
    return [chunks[first : first + size] for first in range(0, len(chunks), size)]


def fetching(store: Store, archive: Archive, plan: IngestPlan) -> partial[ChunkRecord]:
    """The function of one chunk that workers run."""
    return partial(ingest_chunk, store, archive, plan.cover)


def ingest_chunk(store: Store, archive: Archive, tiles: TileCover, chunk: Chunk) -> ChunkRecord:
    """Fetch one chunk, verify it and file its rows into parts by tile; the ledger's record is written last.

    A chunk that is too large is not fetched, nor one with which workers die, where it can be cut: its record names the
    smaller ones that take its place. A chunk that an earlier attempt left unfinished is resumed.

    Args:
        store: where parts and ledger are.
        archive: where the stars come from.
        tiles: the plan's tiles, by which rows are filed.
        chunk: the chunk to fetch.

    Returns:
        The chunk's record: its state is "done", or "split".

    Raises:
        ArchiveError: the rows are not certain to be whole; the message names the chunk.
        DataError: rows are not what the column table or the plan says.
    """
    started = time.monotonic()
    earlier = read_record(store, chunk.name)
    if earlier and (earlier.done or earlier.children):  # by a worker that seemed dead
        return earlier
    deaths, facts = (earlier.begun, earlier.facts) if earlier else (0, ChunkFacts())
    record = ChunkRecord(
        chunk=chunk.name, state="running", expected_rows=chunk.expected_rows, attempt=uuid.uuid4().hex[:12], begun=deaths + 1,
        host=socket.gethostname(), facts=facts,
    )  # fmt: skip
    write_record(store, record)

    def note(facts: ChunkFacts) -> None:
        nonlocal record
        record = record.model_copy(update={"facts": facts})
        write_own_record(store, record)

    if deaths >= _DEATHS:
        with contextlib.suppress(ArchiveError):  # a chunk that cannot be cut is tried again as it is
            return _split(store, archive, chunk, record, f"chunk {chunk.name}: {deaths} workers died with it")
    store.remove(f"{paths.PARTS}/{chunk.name}")
    writer = _PartWriter(store, chunk, tiles, record.attempt)
    try:
        for table in archive.resume(chunk, note, facts):
            writer.add(table)
        writer.flush()
    except ChunkTooLargeError as error:
        try:
            return _split(store, archive, chunk, record, str(error))
        except ArchiveError as cannot:
            raise ArchiveError(f"{error}; {cannot}") from error
    except GaiadaskError:
        with contextlib.suppress(StoreError):  # the first error is the one to report
            write_own_record(store, record.model_copy(update={"begun": 0}))
        raise
    check_expected_rows(chunk, writer.rows)
    done = record.model_copy(
        update={
            "state": "done", "rows": writer.rows, "bytes": writer.bytes, "begun": 0, "tiles": dict(writer.tile_rows),
            "files": tuple(writer.files), "seconds": round(time.monotonic() - started, 3),
        }
    )  # fmt: skip
    write_own_record(store, done)
    return done


def _split(store: Store, archive: Archive, chunk: Chunk, record: ChunkRecord, reason: str) -> ChunkRecord:
    """Put smaller chunks in the place of one. Raises ArchiveError where it cannot be cut."""
    children = archive.split(chunk)
    cut = record.model_copy(update={"state": "split", "begun": 0, "children": children})
    write_own_record(store, cut)
    store.remove(f"{paths.PARTS}/{chunk.name}")
    log.info("%s; asked for in %d pieces", reason, len(children))
    return cut


class _PartWriter:
    """Files a chunk's rows by position, and counts them by tile; a bounded number of rows in memory."""

    def __init__(self, store: Store, chunk: Chunk, tiles: TileCover, attempt: str = "") -> None:
        self.store, self.chunk, self.tiles, self.attempt = store, chunk, tiles, attempt
        self.buffer: list[pa.Table] = []
        self.rows = self.bytes = 0
        self.buffered_rows = 0
        self.tile_rows = Counter[str]()
        self.files: list[str] = []

    def add(self, table: pa.Table) -> None:
        """Check more rows and take them in. Raises DataError, naming the chunk."""
        self._check(table)
        self.buffer.append(table)
        self.rows += table.num_rows
        self.buffered_rows += table.num_rows
        if self.buffered_rows >= _BUFFER_ROWS:
            self.flush()

    def _check(self, table: pa.Table) -> None:
        # Once more, on purpose: whatever an archive gives, nothing wrong is filed.
        where = f"chunk {self.chunk.name}"
        check_keys(table, where)
        check_positions(table, where)
        check_id_range(table[SOURCE_ID].to_numpy(), self.chunk.first, self.chunk.stop, where, "the chunk")
        check_finite(table, where)

    def flush(self) -> None:
        """Write the buffered rows by position, as one part."""
        if not self.buffered_rows:
            return
        table = pa.concat_tables(self.buffer)
        self.buffer, self.buffered_rows = [], 0
        index = healpix(table[RA].to_numpy(), table[DEC].to_numpy())
        table = catalogue.sort_rows(table.add_column(0, HEALPIX_29, pa.array(index)))
        # Of an attempt's own name: one that only seemed dead may still write.
        name = paths.part(self.chunk.name, f"{self.attempt}-{len(self.files)}")
        with self.store.writing(name) as scratch:
            # Read once, soon, tile by tile: of the footer only where a row group lies is needed.
            with catalogue.parquet_writer(scratch, table.schema, "lz4", write_statistics=[HEALPIX_29]) as file:
                file.write_table(table, row_group_size=GROUP_ROWS)
            self.bytes += scratch.stat().st_size
        numbers, counts = np.unique(self.tiles.numbers(table[HEALPIX_29].to_numpy()), return_counts=True)
        self.tile_rows.update({self.tiles.tile(n).flat_name: c for n, c in zip(numbers, counts.tolist(), strict=True)})
        self.files.append(name)


# What was lost -------------------------------------------------------------------------------------------------------
def reopen(store: Store, partitions: Sequence[Partition]) -> None:
    """Take a published catalogue back, and make the chunks of these partitions' stars pending again.

    Raises:
        StoreError: plan and ledger do not tell from which chunks they came. Nothing was changed then.
    """
    remedy = "restore it, or make the whole catalogue again: `gaiadask ingest CONFIG --replace ingest`"
    plan, ledger = store.read_record(paths.PLAN, IngestPlan, remedy), read_ledger(store)
    filed(plan.chunks, ledger)
    tiles = set(planned_tiles(plan, [partition.tile for partition in partitions]))
    names = {tile.flat_name for tile in tiles}
    chunks = [name for name, record in ledger.items() if any(rows and tile in names for tile, rows in record.tiles.items())]
    shown = ", ".join(str(partition.tile) for partition in partitions[:5])
    log.warning("%d partitions are missing or damaged (%s): %d chunks are fetched again", len(partitions), shown, len(chunks))
    catalogue.unpublish(store, paths.CATALOGUE)
    forget(store, chunks)
    forget_merged(store, plan, tiles)


# Publishing ----------------------------------------------------------------------------------------------------------
def publish(
    store: Store,
    archive: Archive,
    selection: Selection,
    partitions: Sequence[Partition],
    summary_of: Callable[[str, Sequence[Partition]], Summary],
) -> CatalogueRecord:
    """Check that rows are conserved and publish the catalogue; its parts can be removed then.

    Args:
        store: where the partitions are.
        archive: where the stars came from.
        selection: what the catalogue was made from.
        partitions: all of them.
        summary_of: sums up the files of partitions in a folder.

    Returns:
        The published catalogue's record.

    Raises:
        DataError: the ledger's rows and the partitions' differ, or there is none.
    """
    ledger = filed(read_plan(store).chunks, read_ledger(store))
    fetched, written = sum(r.rows for r in ledger.values()), sum(p.rows for p in partitions)
    if fetched != written:
        raise DataError(
            f"the chunks have {fetched} rows, the partitions {written}: the catalogue was not published. Run `gaiadask ingest CONFIG --replace ingest`"
        )
    if not written:
        raise empty_selection(archive)
    ordered = tuple(sorted(partitions, key=lambda p: p.tile))
    record = CatalogueRecord(
        id=catalogue_id(ordered), rows=written, columns=tuple(archive.release.catalogue_schema(archive.schema.names).names),
        selection=selection, partitions=ordered,
    )  # fmt: skip
    summary = summary_of(paths.CATALOGUE, ordered)
    # Before the marker: a catalogue that is published has its record, whenever the process is killed.
    store.write_json(paths.PUBLISHED, record.to_json())
    publishing.publish(store, paths.CATALOGUE, archive.title, ordered, {catalogue.CATALOGUE_ID: record.id}, summary)
    return read_catalogue_record(store)


def catalogue_id(partitions: Sequence[Partition]) -> str:
    """A hash over tile, rows and checksum of each partition, in the order of tiles."""
    return digest([[p.tile.order, p.tile.pixel, p.rows, p.checksum] for p in sorted(partitions, key=lambda p: p.tile)])


def read_catalogue_record(store: Store) -> CatalogueRecord:
    """The published catalogue's record.

    Raises:
        MissingStageError: no catalogue is published in the store.
        KeyMismatchError: the record is of another catalogue than the one that is published.
    """
    record = recorded_catalogue(store)
    remedy = "restore both files from one backup, or make the catalogue again with `gaiadask ingest CONFIG --replace ingest`"
    published = catalogue.provenance(store, paths.CATALOGUE)
    require_same(store.uri_of(paths.PUBLISHED), {catalogue.CATALOGUE_ID: record.id}, published, remedy)
    return record


def recorded_catalogue(store: Store) -> CatalogueRecord:
    """The published catalogue's record as it is, not compared with the catalogue.

    Raises:
        MissingStageError: no catalogue is published in the store.
    """
    content = None
    if catalogue.is_published(store, paths.CATALOGUE):
        content = store.read_bytes_if_there(paths.PUBLISHED)
    if content is None:
        raise MissingStageError(f"the store {store.uri} holds no catalogue yet: make it with `gaiadask ingest CONFIG`")
    return _parsed(store, content)


@lru_cache(maxsize=2)
def _parsed(store: Store, content: bytes) -> CatalogueRecord:
    # Read at every question, for another process may have replaced it; parsed once: it has a line for each partition.
    return store.as_record(paths.PUBLISHED, store.parsed(paths.PUBLISHED, content), CatalogueRecord)
