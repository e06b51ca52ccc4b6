"""Reading star tables out of files: parquet, CSV, VOTable and FITS, plain or gzipped, on any fsspec file system.

Readers yield tables of bounded size with the columns asked for, in the column table's form (`selection.conform`). Parquet
and CSV are streamed, whatever their size; so is an uncompressed local FITS file. A VOTable, and a FITS file that is remote
or gzipped, is held in memory whole while it is read: keep those below some hundred megabytes.

Numbers in CSV are read from their decimal text straight into the column's own type (float32 columns are not rounded twice).
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib
import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from astropy.io import fits, votable
from astropy.utils.exceptions import AstropyWarning
from isal import igzip
from numpy.typing import NDArray

from gaiadask.archive.chunks import regrouped
from gaiadask.archive.files.transfer import PIECE_BYTES, SourceFile
from gaiadask.conform import conform, match_names
from gaiadask.errors import ArchiveError, ConfigurationError, DataError, GaiadaskError
from gaiadask.release.column import SOURCE_ID

TABLE_ROWS = 65_536
"""At most so many rows are yielded in one table: of 94 columns some 40 MB, and enough that a table costs little a row."""
CSV_BLOCK_BYTES = 1 << 19
"""Parsed at once. Larger blocks take memory and are no faster on one thread; a line must fit into one."""
_NULLS = ["", "null", "NULL", "NaN", "nan"]

Reader = Callable[[SourceFile, pa.Schema], Iterator[pa.Table]]


def read_tables(file: SourceFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """The columns of `schema` of every row, conformed, in tables of at most TABLE_ROWS rows.

    Raises ArchiveError where the file cannot be read to its end, DataError where its content is not what the column table
    says, ConfigurationError for a name of no known format.
    """
    reader = reader_of(file.path)
    with _read_to_the_end(file):
        for table in regrouped(reader(file, schema), TABLE_ROWS):
            yield conform(table, schema, file.label)


def reader_of(path: str) -> Reader:
    """The reader of a file of this name. Raises ConfigurationError naming the suffixes known."""
    name = _path_name(path)
    for suffix, reader in _READERS.items():
        if name.endswith(suffix):
            return reader
    raise ConfigurationError(f"archive.uris: {name} has no known format: expected a name that ends in {', '.join(_READERS)}")


def csv_head(file: SourceFile, schema: pa.Schema, size: int) -> tuple[int, pa.Table]:
    """Whole rows at the start of a gzipped CSV file, conformed, and how many compressed bytes they take; about `size`."""
    with _read_to_the_end(file):
        compressed = b""
        with file.stream() as stream:
            while len(compressed) < size and (piece := stream.read(size - len(compressed))):
                compressed += piece
        inflated = zlib.decompressobj(wbits=31).decompress(compressed)
        whole = inflated.rfind(b"\n") + 1
        tables = list(_csv_tables(io.BytesIO(inflated[:whole]), schema, file.label))
        head = conform(pa.concat_tables(tables), schema, file.label) if tables else schema.empty_table()
        return len(compressed), head


def transport_errors() -> tuple[type[Exception], ...]:
    """Errors that file systems raise when a transfer fails: OSError, and those of the installed clients."""
    errors: list[type[Exception]] = [OSError]
    for module, name in (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError")):
        with contextlib.suppress(ImportError):
            errors.append(getattr(importlib.import_module(module), name))
    return tuple(errors)


# Errors of the parsers for a file that ends early or is something else; the VOTable parser's own errors are SyntaxErrors.
_DAMAGE = (ValueError, LookupError, EOFError, SyntaxError, zlib.error, pa.ArrowException, AstropyWarning)


@contextlib.contextmanager
def _read_to_the_end(file: SourceFile) -> Iterator[None]:
    """Turns errors while a file is read into ArchiveError."""
    try:
        yield
    except GaiadaskError:
        raise
    except (*_DAMAGE, *transport_errors()) as error:
        reason = " ".join(str(error).replace(file.path, file.label).split())[:300] or type(error).__name__
        raise ArchiveError(
            f"{file.label} is not whole, or not what its name says: {reason}. Fetch the file again and compare its size or checksum"
        ) from error


def _path_name(path: str) -> str:
    """The last part of a path or URL, without its query, in lower case."""
    return urlsplit(path).path.rsplit("/", 1)[-1].lower()


# Parquet --------------------------------------------------------------------------------------------------------------
def _parquet(file: SourceFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """Batches of the projected columns; one row group's columns are in memory at a time, at most."""
    with file.open() as stream, pq.ParquetFile(stream) as parquet:
        names = match_names(parquet.schema_arrow.names, schema.names, file.label)
        for batch in parquet.iter_batches(batch_size=TABLE_ROWS, columns=names, use_threads=False):
            yield pa.Table.from_batches([batch])


# CSV ------------------------------------------------------------------------------------------------------------------
class _EndsWithLine(io.RawIOBase):
    """Passes a stream on, and fails at its end unless that is the end of a line: a cut number looks like a number."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._last = stream, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._stream.read(size))
        if not data and size and self._last not in (b"", b"\n", b"\r"):
            raise EOFError("the last line has no end (if the file is whole, add a line break)")
        self._last = data[-1:] or self._last
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


class _AfterHeader(io.RawIOBase):
    """A CSV stream from its first row on. `comments` lines (ECSV's, with '#') came first, then the names of `header`."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._rest = stream, b""
        self.comments = 0
        while (line := self._line()).startswith(b"#"):
            self.comments += 1
        if not line:
            raise EOFError("no header line with column names")
        self.header = next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")]), [])

    def _line(self) -> bytes:
        while b"\n" not in self._rest and (block := self._stream.read(CSV_BLOCK_BYTES)):
            self._rest += block
        line, end, self._rest = self._rest.partition(b"\n")
        return line + end

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> Any:
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        # Small pieces into a block of arrow's memory, which is used again: bytes of a block's size are mapped anew each time.
        block = pa.allocate_buffer(size)
        view, filled = memoryview(block).cast("B"), 0
        while filled < size and (piece := self._stream.read(min(PIECE_BYTES, size - filled))):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return block.slice(0, filled)


def _csv(file: SourceFile, schema: pa.Schema) -> Iterator[pa.Table]:
    with file.stream() as source:
        # gzip ends with a checksum and the length: there a cut is found without looking at lines.
        yield from _csv_tables(igzip.IGzipFile(fileobj=source) if file.is_gzipped else _EndsWithLine(source), schema, file.label)


def _csv_tables(stream: Any, schema: pa.Schema, label: str) -> Iterator[pa.Table]:
    """Blocks of the projected columns, each in its own type (never guessed)."""
    rows = _AfterHeader(stream)
    header = rows.header
    names = match_names(header, schema.names, label)
    convert = pacsv.ConvertOptions(
        column_types=dict(zip(names, schema.types, strict=True)),
        include_columns=list(dict.fromkeys(names)),
        null_values=_NULLS,
        strings_can_be_null=True,
    )
    read = pacsv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False, column_names=header)
    try:
        with pacsv.open_csv(pa.PythonFile(rows, mode="r"), read_options=read, convert_options=convert) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        if str(error) == "Empty CSV file":  # a header and no rows
            return
        if "conversion error" not in str(error):
            raise
        number = re.search(r"column #(\d+)", str(error))
        column = header[int(number[1])] if number else "?"
        raise DataError(
            f"{label}: column {column}: {error}. Expected {schema.field(names.index(column)).type} or nothing"
        ) from error


# VOTable --------------------------------------------------------------------------------------------------------------
def _votable(file: SourceFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """The file's table that has source_id, else its first. Refuses a table that its service cut (OVERFLOW) or failed."""
    with file.open() as raw, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the format's finer points: the rest is checked below and by conform
        stream = gzip.GzipFile(fileobj=raw) if file.is_gzipped else raw
        document = votable.parse(io.BytesIO(stream.read()), verify="ignore")
    for resource in document.resources:
        for info in resource.infos:
            if info.name == "QUERY_STATUS" and info.value != "OK":
                text = " ".join(str(info.content or "").split())
                raise ArchiveError(
                    f"{file.label} is not whole: its service ended it with {info.value} {text[:200]}. Ask for it again in smaller pieces"
                )
    tables = list(document.iter_tables())
    if not tables:
        raise ArchiveError(f"{file.label} is not whole: it holds no table")
    table = next((t for t in tables if any(f.name.lower() == SOURCE_ID for f in t.fields)), tables[0])
    fields = {field.name: field for field in table.fields}
    if len(fields) < len(table.fields):
        raise DataError(f"{file.label}: two columns have one name among {[field.name for field in table.fields]}")
    names = match_names(fields, schema.names, file.label)
    for name, wanted in zip(names, schema, strict=True):
        check_unit(str(fields[name].unit or ""), wanted, file.label)
    columns = [table.array[name] for name in names]
    for first in range(0, len(table.array), TABLE_ROWS):
        part = slice(first, first + TABLE_ROWS)
        arrays = [
            _array(np.ma.getdata(values)[part], np.ma.getmaskarray(values)[part], name, file.label)
            for name, values in zip(names, columns, strict=True)
        ]
        yield pa.table(arrays, names=schema.names)


# FITS -----------------------------------------------------------------------------------------------------------------
def _fits(file: SourceFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """The file's binary table that has source_id, else its first."""
    with contextlib.ExitStack() as closing:
        document = closing.enter_context(_open_fits(file))
        tables = [hdu for hdu in document if isinstance(hdu, fits.BinTableHDU)]
        if not tables:
            raise ArchiveError(f"{file.label} is not whole: it holds no binary table")
        table = next((hdu for hdu in tables if SOURCE_ID in map(str.lower, hdu.columns.names)), tables[0])
        names = match_names(table.columns.names, schema.names, file.label)
        for name, wanted in zip(names, schema, strict=True):
            check_unit(table.columns[name].unit or "", wanted, file.label)
        for first in range(0, table.header["NAXIS2"], TABLE_ROWS):
            rows = table.data[first : first + TABLE_ROWS]
            arrays = [_fits_array(rows, table.columns[name], file.label) for name in names]
            yield pa.table(arrays, names=schema.names)


def _open_fits(file: SourceFile) -> fits.HDUList:
    """The file's HDUs, read enough to know that none is cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*truncated|.*corrupted")
        if file.is_local and not file.is_gzipped:
            document = fits.open(file.path, memmap=True)
        else:
            with file.open() as raw:
                stream = gzip.GzipFile(fileobj=raw) if file.is_gzipped else raw
                document = fits.open(io.BytesIO(stream.read()))
        len(document)  # headers are read when asked for: all of them, while warnings are errors
    return document


def _fits_array(rows: Any, column: fits.Column, label: str) -> pa.Array:
    """One column of some rows, TNULL as null."""
    if str(column.format).strip().upper() in ("L", "1L"):
        # 'T' or 'F', else null, which astropy reads as false.
        raw = rows.view(np.ndarray)[column.name].view(np.uint8)
        return _array(raw == ord("T"), ~np.isin(raw, (ord("T"), ord("F"))), column.name, label)
    values = np.asarray(rows.field(column.name))
    null = np.zeros(values.shape, dtype=bool)
    if column.null is not None and values.dtype.kind in "iu":
        null = values == column.null
    return _array(values, null, column.name, label)


# Arrays and units of the astronomers' formats -------------------------------------------------------------------------
def _array(values: NDArray, null: NDArray[np.bool_], name: str, label: str) -> pa.Array:
    """An arrow array in this machine's byte order; an empty text is null, for these formats have no other null of texts.

    Raises DataError for cells of more than one number.
    """
    is_text = values.dtype.kind in "US" or (values.dtype.kind == "O" and all(isinstance(value, str) for value in values))
    if values.ndim != 1 or not (is_text or values.dtype.kind in "biuf"):
        raise DataError(f"{label}: column {name} holds {values.dtype} of shape {values.shape[1:]}: expected one value a row")
    if is_text:
        texts = values.astype(str)
        return pa.array(texts.tolist(), pa.string(), mask=null | (texts == ""))
    return pa.array(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")), mask=null)


def check_unit(unit: str, column: pa.Field, label: str) -> None:
    """Raises DataError where the declared unit is another than the column's; a text that is no unit passes."""
    wanted = (column.metadata or {}).get(b"unit", b"").decode()
    declared, expected = _unit(unit), _unit(wanted)
    if declared is None or expected is None:
        return
    if not declared.is_equivalent(expected) or not np.isclose(declared.to(expected), 1.0, rtol=1e-9):
        raise DataError(
            f"{label}: column {column.name} is in {unit!r}: expected {wanted!r}, the unit of gaia_source. "
            "Convert the column and write the file again (gaiadask does not convert units)"
        )


def _unit(text: str) -> u.UnitBase | None:
    """The unit a text spells, in any of the spellings archives use; None where it spells none."""
    plain = text.replace("'", "").strip()
    # FITS first: of a word that VOUnit does not know (electron), astropy makes a unit of its own when threads parse at once.
    for spelling in ("fits", "generic", "vounit") if plain else ():
        with contextlib.suppress(ValueError, TypeError):
            unit = u.Unit(plain, format=spelling)
            return cast(u.UnitBase, unit) if isinstance(unit, u.UnitBase) else None
    return None


_READERS: dict[str, Reader] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".vot": _votable,
    ".vot.gz": _votable,
    ".votable": _votable,
    ".xml": _votable,
    ".fits": _fits,
    ".fits.gz": _fits,
}
