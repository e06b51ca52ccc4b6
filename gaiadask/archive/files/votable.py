"""Star tables out of VOTables, streamed: rows are given as they come, and a document may be of any size.

The text of TABLEDATA is converted where every other text is (`conform.converted`): astropy's parser clamps an integer to its
declared type, cuts a text to its declared length, and takes an unreadable number for null, with warnings that only a whole process
can turn into errors. It also holds a table as a whole, as every maintained reader does that gives columns.
"""

from __future__ import annotations

import contextlib
import enum
import io
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from xml.parsers import expat

import pyarrow as pa
import pyarrow.compute as pc

from gaiadask.archive.files.content import FileTable, unpacked
from gaiadask.archive.files.transfer import PIECE_BYTES, SourceFile
from gaiadask.archive.files.votable_binary import BinaryRows, VotableField
from gaiadask.conform import converted
from gaiadask.errors import ArchiveError, DataError
from gaiadask.uris import public_uri

TEXT_ROWS = 4_096
"""Rows of TABLEDATA that are made a table of at once: of 94 columns some 30 MB of text."""


@dataclass
class _Table:
    """A table's description. data: the element that holds its rows. promised: rows that it says it has, 0 where it does not."""

    fields: list[VotableField] = field(default_factory=list)
    promised: int = 0
    data: str = ""


class _End(enum.Enum):
    TABLE = enum.auto()
    DOCUMENT = enum.auto()


_Event = _Table | list[str | None] | str | _End
"""What comes next: a table begins; cells of whole rows, one after the other; text of a binary stream; an end."""


@contextlib.contextmanager
def open_votable(file: SourceFile) -> Iterator[Iterator[FileTable]]:
    """The file's tables, each to be read before the next; that there is no more is known once the whole document was read.

    Iterating raises ArchiveError for an answer that its service cut (OVERFLOW) or failed, be it said after the rows.
    """
    with contextlib.closing(file.stream()) as stream:
        yield _file_tables(_Document(unpacked(stream, file.label, "XML (a VOTable, or a web page)"), file.label), file.label)


def units_in_votable(document: bytes) -> dict[str, str]:
    """Units by column, out of the fields of a document's tables."""
    tables = _Document(io.BytesIO(document), "VOTable").tables()
    return {each.name: each.unit for table in tables for each in table.fields if each.unit}


def _file_tables(document: _Document, file_label: str) -> Iterator[FileTable]:
    number = 0
    for number, table in enumerate(document.tables(), 1):
        label = file_label if number == 1 else f"{file_label}, table {number}"
        names = [each.name for each in table.fields]
        yield FileTable(label, names, partial(_read, document, table, label), {each.name: each.unit for each in table.fields})
    if not number:
        raise ArchiveError(f"{file_label} is not whole: it holds no table")


# Rows -----------------------------------------------------------------------------------------------------------------
def _read(document: _Document, table: _Table, label: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    """The rows of the table that the document has come to."""
    rows = 0
    for block in (
        _cells_read(document, table, label, types) if table.data == "TABLEDATA" else _stream_read(document, table, label, types)
    ):
        rows += len(block)
        yield block
    if rows < table.promised:
        raise ArchiveError(f"{label} is not whole: it says that it has {table.promised} rows, and has {rows}. Fetch the file again")


def _stream_read(document: _Document, table: _Table, label: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    binary = BinaryRows(table.fields, types, table.data == "BINARY2", label)
    for text in document.rows():
        yield from binary.take(text)
    yield from binary.end()


def _cells_read(document: _Document, table: _Table, label: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    """Cells in the type that each column should have."""
    names = [each.name for each in table.fields]
    for cells in document.rows():
        columns = {}
        for name, kind in types.items():
            number = names.index(name)
            texts = pa.chunked_array([pa.array(cells[number :: len(names)], pa.string())])
            columns[name] = _typed(texts, table.fields[number], kind, label)
        yield pa.table(columns)


def _typed(cells: pa.ChunkedArray, described: VotableField, kind: pa.DataType, label: str) -> pa.ChunkedArray:
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


# The document ---------------------------------------------------------------------------------------------------------
class _Document:
    """A VOTable that is parsed as far as it is asked for: what was parsed and not taken yet is that of one piece of the stream.

    Raises ArchiveError, DataError and expat's errors from whatever asks for more.
    """

    def __init__(self, stream: Any, label: str) -> None:
        self._stream, self._label = stream, label
        self._events: deque[_Event] = deque()
        self._is_parsed = False
        self._root = ""
        self._table, self._began = _Table(), False
        self._field: dict[str, str] | None = None
        self._null: str | None = None
        self._info: dict[str, str] = {}
        self._words: list[str] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text, self._parser.buffer_size = True, 2 * PIECE_BYTES
        self._read_tags()

    def tables(self) -> Iterator[_Table]:
        """The tables in turn; rows that were not taken by then are passed over."""
        while (event := self._next()) is not _End.DOCUMENT:
            if isinstance(event, _Table):
                yield event

    def rows(self) -> Iterator[Any]:
        """What the table that `tables` gave last has of rows: lists of cells, or texts of its stream."""
        while not isinstance(event := self._next(), _End):
            yield event

    def _next(self) -> _Event:
        while not self._events and not self._is_parsed:
            piece = self._stream.read(PIECE_BYTES)
            self._parser.Parse(piece, not piece)
            self._is_parsed = not piece
        return self._events.popleft() if self._events else _End.DOCUMENT

    def _read_tags(self) -> None:
        """Read elements, and no text."""
        self._parser.StartElementHandler, self._parser.EndElementHandler = self._start, self._end
        self._parser.CharacterDataHandler = None

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        prefix, _, name = tag.rpartition(":")
        if not self._root:
            self._root = name
            if name != "VOTABLE":
                raise ValueError(f"its outermost element is {name}, expected VOTABLE")
        match name:
            case "TABLE":
                self._table, self._began = _Table(promised=int(attributes.get("nrows", "0") or 0)), False
            case "FIELD":
                self._field, self._null = attributes, None
            case "VALUES" if self._field is not None:
                self._null = attributes.get("null", self._null)
            case "BINARY" | "BINARY2":
                self._table.data = name
            case "STREAM":
                self._start_stream(attributes)
            case "TABLEDATA":
                self._table.data = name
                self._begin()
                self._read_cells(f"{prefix}:" if prefix else "")
            case "FITS":
                raise DataError(f"{self._label}: its rows are a FITS file within it: write them as a FITS file, or as BINARY2")
            case "INFO":
                self._info, self._words = attributes, []
                self._parser.CharacterDataHandler = self._words.append

    def _end(self, tag: str) -> None:
        match tag.rpartition(":")[2]:
            case "FIELD" if self._field is not None:
                given, self._field = self._field, None
                name = given.get("name") or given.get("ID") or ""
                described = VotableField(
                    name, given.get("datatype", ""), given.get("arraysize", ""), given.get("unit", ""), self._null
                )
                self._table.fields.append(described)
            case "STREAM":
                self._parser.CharacterDataHandler = None
            case "TABLE":
                self._begin()
                self._events.append(_End.TABLE)
            case "INFO":
                self._parser.CharacterDataHandler = None
                self._check_status()

    def _begin(self) -> None:
        """The table's rows come, or there are none."""
        if not self._began:
            self._began = True
            self._events.append(self._table)

    def _start_stream(self, attributes: dict[str, str]) -> None:
        if href := attributes.get("href"):
            raise DataError(f"{self._label}: its rows are elsewhere, at {public_uri(href)}: write them into the file")
        if (encoding := attributes.get("encoding", "base64")) != "base64":
            raise DataError(f"{self._label}: its binary stream is encoded as {encoding!r}: expected base64")
        self._begin()
        self._parser.CharacterDataHandler = self._events.append

    def _check_status(self) -> None:
        status = self._info.get("value", "")
        if self._info.get("name") == "QUERY_STATUS" and status.upper() != "OK":
            words = " ".join("".join(self._words).split())
            raise ArchiveError(
                f"{self._label} is not whole: its service ended it with {status} {words[:200]}. Ask for it again in smaller pieces"
            )

    def _read_cells(self, prefix: str) -> None:
        """Read rows of cells until TABLEDATA ends. Its functions are called three times a cell: they are short."""
        columns, in_cell, in_row = len(self._table.fields), f"{prefix}TD", f"{prefix}TR"
        cells: list[str | None] = []
        cell: str | None = None
        rows = before = 0

        def start(tag: str, attributes: dict[str, str]) -> None:
            nonlocal cell
            cell = None
            if attributes and (encoding := attributes.get("encoding")):
                raise DataError(f"{self._label}: a cell is encoded ({encoding}): write the table with plain cells, or as BINARY2")

        def text(letters: str) -> None:
            nonlocal cell
            cell = letters if cell is None else cell + letters

        def end(tag: str) -> None:
            nonlocal cells, rows, before
            if tag == in_cell:
                cells.append(cell)
            elif tag == in_row:
                rows += 1
                if len(cells) - before != columns:
                    raise DataError(
                        f"{self._label}: row {rows} has {len(cells) - before} cells, its table {columns} columns: ask for the table "
                        "again, or mend it at its source"
                    )
                before = len(cells)
                if before >= TEXT_ROWS * columns:
                    self._events.append(cells)
                    cells, before = [], 0
            elif tag == f"{prefix}TABLEDATA":
                if cells:
                    self._events.append(cells)
                self._read_tags()
            else:
                raise ValueError(f"an element {tag} stands among its rows")

        self._parser.StartElementHandler, self._parser.EndElementHandler, self._parser.CharacterDataHandler = start, end, text
