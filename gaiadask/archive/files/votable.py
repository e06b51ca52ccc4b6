"""Star tables out of VOTables.

The text of TABLEDATA is read here, cell by cell, and converted where every other text is (`conform.converted`): astropy's parser
clamps an integer to its declared type, cuts a text to its declared length, and takes an unreadable number for null, with warnings
that only a whole process can turn into errors. BINARY and BINARY2 have no text to be misread: astropy reads them.
"""

from __future__ import annotations

import contextlib
import io
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.io import votable
from numpy.typing import NDArray

from gaiadask.archive.files import content
from gaiadask.archive.files.arrays import array_of
from gaiadask.archive.files.content import FileTable
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.conform import converted
from gaiadask.errors import ArchiveError, DataError
from gaiadask.uris import public_uri


@dataclass(frozen=True)
class _Field:
    """A column's description. null: the text of the number that stands for none."""

    name: str
    datatype: str
    unit: str
    null: str | None


@dataclass
class _Table:
    """A table of the document: its columns, and its rows where they are text."""

    fields: list[_Field] = field(default_factory=list)
    rows: list[tuple[str | None, ...]] = field(default_factory=list)
    blocks: list[pa.Table] = field(default_factory=list)
    is_binary: bool = False
    promised: int = 0
    """Rows that the document says it has, 0 where it does not."""

    def add(self, cells: tuple[str | None, ...], label: str) -> None:
        if len(cells) != len(self.fields):
            raise DataError(
                f"{label}: row {len(self.rows) + sum(map(len, self.blocks)) + 1} has {len(cells)} cells, its table {len(self.fields)} "
                "columns: ask for the table again, or mend it at its source"
            )
        self.rows.append(cells)
        if len(self.rows) >= content.TABLE_ROWS:
            self.pack()

    def pack(self) -> None:
        """Rows so far as a block of arrow's, which takes a tenth of the memory; its columns are named by their number."""
        if self.rows:
            names = [str(number) for number in range(len(self.fields))]
            self.blocks.append(pa.table([pa.array(cells, pa.string()) for cells in zip(*self.rows, strict=True)], names=names))
            self.rows = []


@contextlib.contextmanager
def open_votable(file: SourceFile) -> Iterator[list[FileTable]]:
    """The file's tables. Raises ArchiveError for an answer that its service cut (OVERFLOW) or failed."""
    document = content.whole(file, "XML (a VOTable, or a web page)")
    tables = _parsed(document, file.label)
    if not tables:
        raise ArchiveError(f"{file.label} is not whole: it holds no table")
    binary = _Binary(document, [len(table.fields) for table in tables])
    result = []
    for number, table in enumerate(tables):
        label = file.label if len(tables) == 1 else f"{file.label}, table {number + 1}"
        read = partial(binary.read, number, table, label) if table.is_binary else partial(_read, table, label)
        names = [each.name for each in table.fields]
        result.append(FileTable(label, names, read, {each.name: each.unit for each in table.fields}))
    yield result


def units_in_votable(document: bytes) -> dict[str, str]:
    """Units by column, out of the fields of a document's tables."""
    tables = _parsed(io.BytesIO(document), "VOTable")
    return {each.name: each.unit for table in tables for each in table.fields if each.unit}


# The document ---------------------------------------------------------------------------------------------------------
def _parsed(stream: io.BytesIO, label: str) -> list[_Table]:
    tables: list[_Table] = []
    table, null, root = _Table(), None, ""
    for _, element in ElementTree.iterparse(stream):
        root = element.tag.rpartition("}")[2]
        match root:
            case "TR":
                table.add(tuple(_cell(cell, label) for cell in element), label)
                element.clear()
            case "VALUES":
                null = element.get("null", null)
            case "FIELD":
                name = element.get("name") or element.get("ID") or ""
                table.fields.append(_Field(name, element.get("datatype", ""), element.get("unit") or "", null))
                null = None
            case "PARAM":
                null = None
            case "BINARY" | "BINARY2":
                table.is_binary = True
            case "STREAM" if element.get("href"):
                raise DataError(
                    f"{label}: its rows are elsewhere, at {public_uri(element.get('href', ''))}: write them into the file"
                )
            case "FITS":
                raise DataError(f"{label}: its rows are a FITS file within it: write them as a FITS file, or as BINARY2")
            case "TABLE":
                table.pack()
                table.promised = int(element.get("nrows", "0") or 0)
                tables.append(table)
                table = _Table()
            case "INFO" if element.get("name") == "QUERY_STATUS" and element.get("value", "").upper() != "OK":
                words = " ".join((element.text or "").split())
                raise ArchiveError(
                    f"{label} is not whole: its service ended it with {element.get('value')} {words[:200]}. Ask for it again in smaller pieces"
                )
    if root != "VOTABLE":
        raise ValueError(f"its outermost element is {root}, expected VOTABLE")
    return tables


def _cell(cell: ElementTree.Element, label: str) -> str | None:
    if cell.get("encoding"):
        raise DataError(f"{label}: a cell is encoded ({cell.get('encoding')}): write the table with plain cells, or as BINARY2")
    return cell.text


# Rows -----------------------------------------------------------------------------------------------------------------
def _read(table: _Table, label: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    """Cells in the type that each column should have."""
    names = [each.name for each in table.fields]
    _check_whole(table, sum(map(len, table.blocks)), label)
    for block in table.blocks:
        columns = {
            name: _typed(block.column(names.index(name)), table.fields[names.index(name)], kind, label)
            for name, kind in types.items()
        }
        yield pa.table(columns)


def _typed(cells: pa.ChunkedArray, described: _Field, kind: pa.DataType, label: str) -> pa.ChunkedArray:
    none = pa.scalar(None, pa.string())
    nulls = [
        "",
        *([described.null] if described.null is not None else []),
        *(["?", " "] if described.datatype == "boolean" else []),
    ]
    cells = pc.if_else(pc.is_in(cells, pa.array(nulls)), none, cells)
    values = converted(cells, pa.field(described.name, kind), label)
    if described.null is not None and not pa.types.is_string(kind):
        with contextlib.suppress(DataError):  # a null that is no value of this type
            null = converted(pa.chunked_array([[described.null.strip()]]), pa.field(described.name, kind), label)[0]
            values = pc.if_else(pc.fill_null(pc.equal(values, null), False), pa.scalar(None, kind), values)
    return values


def _check_whole(table: _Table, rows: int, label: str) -> None:
    """Raise ArchiveError for fewer rows than promised: a binary stream that was cut is a shorter one."""
    if rows < table.promised:
        raise ArchiveError(f"{label} is not whole: it says that it has {table.promised} rows, and has {rows}. Fetch the file again")


class _Binary:
    """Tables of a document that are binary, as astropy reads them: by their place, for a column's ID may be another one's name."""

    def __init__(self, document: io.BytesIO, widths: list[int]) -> None:
        self._document, self._widths = document, widths

    @cached_property
    def _arrays(self) -> list[NDArray]:
        """In the order of the document."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the format's finer points, none of which changes a number of a binary table
            self._document.seek(0)
            parsed = votable.parse(self._document, verify="ignore")
        left = list(parsed.iter_tables())  # those of a resource before those of resources within it
        return [left.pop(next(i for i, table in enumerate(left) if len(table.fields) == width)).array for width in self._widths]

    def read(self, number: int, table: _Table, label: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
        """The rows of the table of this number."""
        array, fields = self._arrays[number], table.fields
        names = [each.name for each in fields]
        _check_whole(table, len(array), label)
        for first in range(0, len(array), content.TABLE_ROWS):
            rows = array[first : first + content.TABLE_ROWS]
            yield pa.table({name: _column(rows, names.index(name), fields[names.index(name)], label) for name in types})


def _column(rows: NDArray, index: int, described: _Field, label: str) -> pa.Array:
    column = rows[(rows.dtype.names or ())[index]]
    values, null = np.ma.getdata(column), np.ma.getmaskarray(column)
    if described.null is not None and values.dtype.kind == "f":
        with contextlib.suppress(ValueError):
            null = null | (values == float(described.null))
    return array_of(values, null, described.name, label)
