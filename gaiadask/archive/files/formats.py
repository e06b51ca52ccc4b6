"""Reading star tables out of files: parquet, CSV, VOTable and FITS, plain or gzipped, on any fsspec file system.

Readers yield tables of bounded size with the columns asked for, in the column table's form (`conform.conform`); of a file with
several tables, every one that has source_id. Parquet, CSV and VOTable are streamed, whatever their size; so is an uncompressed
local FITS file. One that is remote or gzipped is held in memory whole while it is read (`content.MOST_IN_MEMORY`).
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import logging
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from xml.parsers.expat import ExpatError

import pyarrow as pa
from astropy.utils.exceptions import AstropyWarning

from gaiadask.archive.chunks import regrouped
from gaiadask.archive.files import content, csv_text
from gaiadask.archive.files.content import FileTable
from gaiadask.archive.files.csv_text import open_csv
from gaiadask.archive.files.fits_file import open_fits
from gaiadask.archive.files.parquet import open_parquet
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.archive.files.units import check_unit
from gaiadask.archive.files.votable import open_votable
from gaiadask.conform import conform, folded, mask_names, match_names
from gaiadask.errors import ArchiveError, ConfigurationError, GaiadaskError
from gaiadask.release.column import SOURCE_ID
from gaiadask.uris import public_uri

logger = logging.getLogger(__name__)

Reader = Callable[[SourceFile], contextlib.AbstractContextManager[Iterable[FileTable]]]
"""Gives a file's tables, each to be read before the next."""


def read_tables(file: SourceFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """The columns of `schema` of every row, conformed, in tables of at most content.TABLE_ROWS rows.

    Raises ArchiveError where the file cannot be read to its end, DataError where its content is not what the column table
    says, ConfigurationError for a name of no known format.
    """
    reader = reader_of(file.name)
    with _read_to_the_end(file), reader(file) as tables:
        for table in _of_stars(tables):
            yield from _conformed(table, schema)


def reader_of(name: str) -> Reader:
    """The reader of a file of this name. Raises ConfigurationError naming the suffixes known."""
    for suffix, reader in _READERS.items():
        if name.lower().endswith(suffix):
            return reader
    raise ConfigurationError(f"archive.uris: {name} has no known format: expected a name that ends in {', '.join(_READERS)}")


def csv_head(file: SourceFile, schema: pa.Schema, size: int) -> tuple[int, pa.Table]:
    """Whole rows at the start of a CSV file, conformed, and how many of its bytes they take; about `size`."""
    with _read_to_the_end(file):
        taken, table = csv_text.csv_head(file, size)
        return taken, pa.concat_tables([schema.empty_table(), *_conformed(table, schema)])


def _of_stars(tables: Iterable[FileTable]) -> Iterator[FileTable]:
    """The tables that have source_id; the first where none has, for the error to show its columns."""
    others, found = list[FileTable](), False
    for table in tables:
        if SOURCE_ID in map(folded, table.names):
            found = True
            yield table
        else:
            others.append(table)
    if not found:
        yield from others[:1]
    for table in others:
        logger.info("%s has no %s: passed over", table.label, SOURCE_ID)


def _conformed(table: FileTable, schema: pa.Schema) -> Iterator[pa.Table]:
    """The table's rows in the schema's form, where the table has its columns in its units."""
    names = match_names(table.names, schema.names, table.label)
    for name, field in zip(names, schema, strict=True):
        check_unit(table.units.get(name, ""), field, table.label)
    masks = mask_names(table.names, names)
    types = dict(zip(names, schema.types, strict=True)) | dict.fromkeys(masks.values(), pa.bool_())
    for rows in regrouped(table.read(types), content.TABLE_ROWS):
        yield conform(rows, schema, table.label)


def transport_errors() -> tuple[type[Exception], ...]:
    """Errors that file systems raise when a transfer fails: OSError, and those of the installed clients."""
    errors: list[type[Exception]] = [OSError]
    for module, name in (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError")):
        with contextlib.suppress(ImportError):
            errors.append(getattr(importlib.import_module(module), name))
    return tuple(errors)


# Errors of the parsers for a file that ends early or is something else.
_DAMAGE = (
    ValueError, LookupError, EOFError, SyntaxError, TypeError, AttributeError, ArithmeticError,
    zlib.error, struct.error, csv.Error, pa.ArrowException, AstropyWarning, ExpatError,
)  # fmt: skip


@contextlib.contextmanager
def _read_to_the_end(file: SourceFile) -> Iterator[None]:
    """Turns errors while a file is read into ArchiveError."""
    try:
        yield
    except GaiadaskError:
        raise
    except (*_DAMAGE, *transport_errors()) as error:
        reason = " ".join(public_uri(str(error).replace(file.path, file.label)).split())[:300] or type(error).__name__
        raise ArchiveError(
            f"{file.label} is not whole, or not what its name says: {reason}. Fetch the file again and compare its size or checksum"
        ) from error


_READERS: dict[str, Reader] = {
    ".parquet": open_parquet,
    ".parquet.gzip": open_parquet,  # pandas' documentation names files packed by pages so
    ".parq": open_parquet,
    ".pq": open_parquet,
    **dict.fromkeys((".csv", ".csv.gz", ".ecsv", ".ecsv.gz", ".tsv", ".tsv.gz"), open_csv),
    **dict.fromkeys((".vot", ".vot.gz", ".votable", ".votable.gz", ".xml", ".xml.gz"), open_votable),
    **dict.fromkeys((".fits", ".fits.gz", ".fit", ".fit.gz"), open_fits),
}
