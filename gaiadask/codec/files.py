"""A compressed partition as a parquet file: a row a chunk of stars, a column of byte strings a catalogue column.

Reading some columns of some chunks is reading some columns of some row groups. The layout is described in docs/codec.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from gaiadask.codec.card import FORMAT_VERSION, CodecCard
from gaiadask.codec.chunk import CodedChunk, decode_chunk, needed
from gaiadask.errors import DamagedFileError, StoreError
from gaiadask.records import Record
from gaiadask.release.column import HEALPIX_29
from gaiadask.release.release import Release
from gaiadask.store.parquet import ParquetReader
from gaiadask.store.paths import Tile

ROWS = "rows"
"""Column with the number of stars of each chunk."""
VERSION_ENTRY, SUMMARY_ENTRY = "gaiadask.codec", "gaiadask.columns"
"""In the footer: version of the format; what became of each column."""


class ColumnSummary(Record):
    """What became of one column, in some stars or in all."""

    bytes: int = Field(description="of the coded column, its null mask counted where it leads others")
    worst: float = Field(description="largest |error| over its bound; 0: every value comes back as it is")
    exceptions: int = Field(description="values that are stored as they are")

    @classmethod
    def merged(cls, parts: Iterable[ColumnSummary]) -> ColumnSummary:
        """Several as one."""
        parts = list(parts)
        return cls(
            bytes=sum(p.bytes for p in parts),
            worst=max((p.worst for p in parts), default=0.0),
            exceptions=sum(p.exceptions for p in parts),
        )


Summaries = Mapping[str, ColumnSummary]


def merged(parts: Sequence[Summaries]) -> dict[str, ColumnSummary]:
    """The columns of several partitions as one."""
    return {name: ColumnSummary.merged(part[name] for part in parts) for name in (parts[0] if parts else {})}


def write_chunks(chunks: Iterable[CodedChunk], path: Path, card: CodecCard, footer: Mapping[str, str]) -> dict[str, ColumnSummary]:
    """Write a partition's chunks, one row group each.

    Args:
        chunks: of the partition, in order.
        path: of the file.
        card: how they are coded.
        footer: entries of the file's key-value metadata, beside what became of the columns.

    Returns:
        What became of each column.
    """
    schema = pa.schema([(ROWS, pa.int32()), *((code.name, pa.list_(pa.binary())) for code in card.columns)])
    # Coded columns do not compress any more; statistics of them say nothing.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    parts = []
    with pq.ParquetWriter(path, schema, write_page_checksum=True, **options) as writer:
        for chunk in chunks:
            columns = {ROWS: [chunk.rows], **{name: [coded.blobs] for name, coded in chunk.columns.items()}}
            writer.write_table(pa.table(columns, schema=schema))
            parts.append(
                {
                    name: ColumnSummary(bytes=sum(map(len, coded.blobs)), worst=coded.worst, exceptions=coded.exceptions)
                    for name, coded in chunk.columns.items()
                }
            )
        summaries = merged(parts)
        described = {name: summary.to_json() for name, summary in summaries.items()}
        writer.add_key_value_metadata({**footer, VERSION_ENTRY: str(FORMAT_VERSION), SUMMARY_ENTRY: json.dumps(described)})
    return summaries


def read_chunks(
    file: ParquetReader, uri: str, card: CodecCard, tile: Tile, release: Release, names: Sequence[str]
) -> Iterator[pa.Table]:
    """The stars of a compressed partition, a chunk at a time.

    Args:
        file: the partition's file.
        uri: of it, for errors.
        card, tile, release: as it was coded with.
        names: columns to decode; only what they depend on is read.

    Raises:
        StoreError: the file is of another version of the format.
        DamagedFileError: it is not what was written.
    """
    version = (file.metadata.metadata or {}).get(VERSION_ENTRY.encode(), b"none").decode(errors="replace")
    if version != str(FORMAT_VERSION):
        raise StoreError(
            f"{uri}: version {version!r} of the compressed format, expected {FORMAT_VERSION}: read it with the gaiadask that wrote it"
        )
    codes = [code.name for code in needed(card, names, release)]
    for group in range(file.num_row_groups):
        row = file.read_row_group(group, [ROWS, *codes])
        try:
            _check_row(row, codes)
            blobs = {name: row[name][0].as_py() for name in codes}
            yield decode_chunk(row[ROWS][0].as_py(), blobs, card, tile, release, names)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{uri}, chunk {group}: {error}. It was damaged from outside: restore it, or run "
                "`gaiadask compress CONFIG --replace compress`"
            ) from error


def _check_row(row: pa.Table, codes: Sequence[str]) -> None:
    """Raise DamagedFileError unless a row group is one row with a list of byte strings for each of these columns."""
    for name in codes:
        found = row.schema.field(name).type if name in row.column_names else None
        if found is None or not pa.types.is_list(found) or found.value_type != pa.binary():
            raise DamagedFileError(f"column {name} is {found or 'missing'}: expected lists of byte strings")
    if row.num_rows != 1 or ROWS not in row.column_names or any(column.null_count for column in row.columns):
        raise DamagedFileError("it is not one row of parts for each column")


def read_summaries(file: ParquetReader, uri: str, card: CodecCard) -> dict[str, ColumnSummary]:
    """What became of each column of a compressed partition. Raises DamagedFileError where its footer does not say."""
    try:
        described = json.loads((file.metadata.metadata or {})[SUMMARY_ENTRY.encode()])
        return {code.name: ColumnSummary.model_validate(described[code.name]) for code in card.columns}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{uri}: its footer does not say what became of the columns: {error}") from error


def column_names(card: CodecCard) -> tuple[str, ...]:
    """Columns that a compressed catalogue gives back, in the catalogue's order."""
    return (HEALPIX_29, *card.schema_columns)
