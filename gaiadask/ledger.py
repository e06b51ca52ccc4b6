"""The ledger of an ingest: one small JSON file a chunk, the only record of what is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from gaiadask.archive.chunks import Chunk, ChunkFacts
from gaiadask.errors import DataError, StoreHeldError
from gaiadask.records import Record
from gaiadask.store import paths
from gaiadask.store.files import Store


class ChunkRecord(Record):
    """The ledger's entry of one chunk; written when a job is started and again when its rows are filed."""

    chunk: str = Field(description="name of the chunk")
    state: Literal["running", "done", "split"] = Field(
        description="running: requested; done: its rows are filed; split: replaced by smaller chunks, its children"
    )
    expected_rows: int | None = Field(None, description="as the plan counted them")
    rows: int = Field(0, description="rows filed")
    bytes: int = Field(0, description="size of its parts")
    attempt: str = Field("", description="names the last attempt, which alone writes this record; empty: of version 0.1")
    begun: int = Field(0, description="attempts that began and did not report their end: under way, or killed with their worker")
    tiles: dict[str, int] = Field({}, description="rows filed in each tile")
    files: tuple[str, ...] = Field((), description="names of its parts, each of rows by position")
    parts: tuple[tuple[str, str], ...] = Field(
        (), description="of version 0.1.0, whose parts had the rows of one tile each: tile and file name of each"
    )
    seconds: float = Field(0.0, description="from the start of the last attempt to its end")
    host: str = Field("", description="machine of the last attempt")
    facts: ChunkFacts = Field(ChunkFacts(), description="what the archive noted")
    children: tuple[Chunk, ...] = Field((), description="the smaller chunks that take its place")

    @property
    def done(self) -> bool:
        """Whether its rows are filed."""
        return self.state == "done"


def read_ledger(store: Store) -> dict[str, ChunkRecord]:
    """Every chunk's record, by the chunk's name."""
    records = store.read_records(store.list(paths.LEDGER, ".json"), ChunkRecord)
    return {record.chunk: record for record in records}


def read_record(store: Store, chunk: str) -> ChunkRecord | None:
    """A chunk's record, None where it has not been begun."""
    return store.read_record_if_there(paths.chunk_record(chunk), ChunkRecord)


def write_record(store: Store, record: ChunkRecord) -> None:
    """Write a chunk's record in place of the one before: the first of an attempt."""
    store.write_json(paths.chunk_record(record.chunk), record.to_json())


def write_own_record(store: Store, record: ChunkRecord) -> None:
    """Write a chunk's record in place of one of the same attempt.

    Raises:
        StoreHeldError: another attempt has begun since; its record stays.
    """
    current = read_record(store, record.chunk)
    if current is not None and current.attempt != record.attempt:
        raise StoreHeldError(
            f"chunk {record.chunk}: another attempt (on {current.host}) has begun while this one seemed dead; what that one files "
            "is kept, and this one's rows are not"
        )
    write_record(store, record)


def forget(store: Store, chunks: Iterable[str]) -> None:
    """Make chunks pending again: they are fetched anew."""
    for chunk in chunks:
        store.remove(paths.chunk_record(chunk))


def leaves(chunks: Iterable[Chunk], ledger: Mapping[str, ChunkRecord]) -> list[Chunk]:
    """The chunks that rows come in: each chunk that was split is replaced by its children, and so on."""
    result: list[Chunk] = []
    for chunk in chunks:
        record = ledger.get(chunk.name)
        result += leaves(record.children, ledger) if record and record.children else [chunk]
    return result


def pending(chunks: Iterable[Chunk], ledger: Mapping[str, ChunkRecord]) -> list[Chunk]:
    """The leaves of these chunks whose rows are not filed yet."""
    return [chunk for chunk in leaves(chunks, ledger) if not (chunk.name in ledger and ledger[chunk.name].done)]


def filed(chunks: Sequence[Chunk], ledger: Mapping[str, ChunkRecord]) -> dict[str, ChunkRecord]:
    """The records that hold the rows of these planned chunks, by name.

    Raises:
        DataError: a chunk has not been fetched, or its pieces have other rows than the plan counted.
    """
    if missing := [chunk.name for chunk in pending(chunks, ledger)]:
        raise DataError(
            f"{len(missing)} chunks have not been fetched ({', '.join(missing[:10])}): run `gaiadask ingest CONFIG` again"
        )
    for chunk in chunks:
        pieces = leaves([chunk], ledger)
        check_expected_rows(chunk, sum(ledger[piece.name].rows for piece in pieces), f" in {len(pieces)} pieces")
    return {chunk.name: ledger[chunk.name] for chunk in leaves(chunks, ledger)}


def check_expected_rows(chunk: Chunk, rows: int, pieces: str = "") -> None:
    """Raise DataError where the archive counted another number of rows when planning. pieces: in which the rows came."""
    if chunk.expected_rows not in (None, rows):
        raise DataError(
            f"chunk {chunk.name}: the archive counted {chunk.expected_rows} rows when planning and gave {rows}{pieces}: "
            "it has changed since. Start over: `gaiadask ingest CONFIG --replace ingest`"
        )
