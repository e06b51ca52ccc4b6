"""Star tables out of parquet files, streamed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from gaiadask.archive.files import content
from gaiadask.archive.files.content import FileTable
from gaiadask.archive.files.ecsv import declared_units
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.archive.files.votable import units_in_votable
from gaiadask.errors import DataError

PAGE_BYTES = 1 << 20
"""Of a local file, so much of a column is read at once."""


@contextlib.contextmanager
def open_parquet(file: SourceFile) -> Iterator[list[FileTable]]:
    """The file's table: of a local file, pages are in memory as they are decoded; of another one, one row group's columns at most."""
    with file.open() as stream:
        head = stream.read(512)
        content.check_kind(head, "parquet", file.label)
        if content.is_gzipped(head):
            raise DataError(f"{file.label} is gzipped as a whole, so that no part of it can be read by itself: unpack it")
        stream.seek(0)
        # Fetched before it is used, what is asked for is in memory until all of it was read; far away that saves requests.
        options = {"pre_buffer": False, "buffer_size": PAGE_BYTES} if file.is_local else {"pre_buffer": True}
        with pq.ParquetFile(stream, **options) as parquet:
            schema = parquet.schema_arrow
            yield [FileTable(file.label, schema.names, partial(_read, parquet), _units(schema, file.label))]


def _read(parquet: pq.ParquetFile, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    for group in range(parquet.num_row_groups):
        for batch in parquet.iter_batches(content.TABLE_ROWS, [group], list(types), use_threads=False):
            yield pa.Table.from_batches([batch]).select(list(types))  # asked for a, pyarrow gives a.b too


def _units(schema: pa.Schema, label: str) -> dict[str, str]:
    """Units in the columns' own metadata, in astropy's header and in a VOTable beside the data, as VOParquet has it."""
    metadata = schema.metadata or {}
    units: dict[str, str] = {}
    if header := metadata.get(b"table_meta_yaml"):
        units |= declared_units(header.decode(errors="replace").splitlines(), label)
    if document := metadata.get(b"IVOA.VOTable-Parquet.content"):
        units |= units_in_votable(document)
    for field in schema:
        for key in (b"unit", b"units"):
            if unit := (field.metadata or {}).get(key):
                units[field.name] = unit.decode(errors="replace")
    return units
