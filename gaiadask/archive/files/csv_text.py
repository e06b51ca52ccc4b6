"""Star tables out of CSV, ECSV and other delimited text, streamed.

Numbers are read from their decimal text straight into the column's own type (float32 columns are not rounded twice). A column
with a cell that arrow's parser does not take is read again as text and converted where every other text is
(`conform.converted`): what means a number all the same is taken, and what does not is named.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pacsv
from isal import isal_zlib

from gaiadask.archive.files.content import FileTable, Peeked, check_kind, is_gzipped, unpacked
from gaiadask.archive.files.ecsv import declared_units
from gaiadask.archive.files.transfer import PIECE_BYTES, PassedStream, SourceFile
from gaiadask.conform import FALSE_WORDS, NULL_WORDS, TRUE_WORDS, bare_text, converted, folded
from gaiadask.errors import DataError
from gaiadask.release.column import SOURCE_ID

BLOCK_BYTES = 1 << 19
"""Parsed at once. Larger blocks take memory and are no faster on one thread; a line must fit into one."""
_HEADER_BYTES = 1 << 22
"""Read at most in search of the line with column names: ECSV's comments before it are some kilobytes."""
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", " ": "single blanks"}
_LINE_END = re.compile(rb"\r\n|\n|\r")
_HEAD_EXPANDS = 64
"""Text inflates to some 4 times its size; what inflates to more than so many times is looked at no further."""


@contextlib.contextmanager
def open_csv(file: SourceFile) -> Iterator[list[FileTable]]:
    """The file's table."""
    with contextlib.ExitStack() as closing:

        def begin() -> _Rows:
            stream = closing.enter_context(contextlib.closing(file.stream()))
            # gzip ends with a checksum and the length: there a cut is found without looking at lines.
            return _Rows(unpacked(stream, file.label, "CSV", plain=_EndsWithLine), file.label)

        yield [_table_of(begin, file.label)]


def csv_head(file: SourceFile, size: int) -> tuple[int, FileTable]:
    """Whole rows at the start of a CSV file, gzipped or not, and how many of its bytes they take; about `size`."""
    packed = b""
    with contextlib.closing(file.stream()) as stream:
        while len(packed) < size and (piece := stream.read(size - len(packed))):
            packed += piece
    inflated, taken = packed, len(packed)
    if is_gzipped(packed):
        inflating = isal_zlib.decompressobj(wbits=31)
        inflated = inflating.decompress(packed, _HEAD_EXPANDS * size)
        taken -= len(inflating.unconsumed_tail)
    check_kind(inflated, "CSV", file.label)
    whole = inflated.rfind(b"\n") + 1
    return taken, _table_of(lambda: _Rows(Peeked(io.BytesIO(inflated[:whole])), file.label), file.label)


def _table_of(begin: Callable[[], _Rows], label: str) -> FileTable:
    rows = begin()
    return FileTable(label, rows.names, partial(_read, rows, begin, label), rows.units)


# The lines ------------------------------------------------------------------------------------------------------------
class _EndsWithLine(PassedStream):
    """Passes a stream on, and fails at its end unless that is the end of a line: a cut number looks like a number."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._last = b""

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._stream.read(size))
        if not data and size and self._last not in (b"", b"\n", b"\r"):
            raise EOFError("the last line has no end (if the file is whole, add a line break)")
        self._last = data[-1:] or self._last
        return data


class _Rows(PassedStream):
    """A stream of text from its first row of values on: before it come comments (with '#') and the line of column names.

    names, delimiter: of the header, which is the first line that is no comment, or the last comment where that names the columns.
    blanks: whether blanks stand beside the delimiters. units: what ECSV's comments declare.
    """

    def __init__(self, stream: Peeked, label: str) -> None:
        super().__init__(stream)
        self._rest, self._label = b"", label
        comments: list[str] = []
        while True:
            line, end = self._line()
            text = line.decode(errors="replace").removeprefix("\ufeff").strip("\0")
            if text.startswith("#") or re.fullmatch(r"sep=.", text):  # which a spreadsheet writes for its like
                comments.append(text)
            elif text.strip() or not end:
                break
        header = _header([text, comments[-1].lstrip("# ") if comments else ""], label)
        if header.line != text:  # the last comment: this line is a row already
            self._rest = line + end + self._rest
        elif not text:
            raise EOFError("no header line with column names")
        self.delimiter, self.names, self.blanks = header.delimiter, header.names, header.blanks
        is_ecsv = bool(comments) and comments[0].startswith("# %ECSV")
        self.units = declared_units([re.sub(r"^#\s?", "", line) for line in comments[1:]], label) if is_ecsv else {}

    def _line(self) -> tuple[bytes, bytes]:
        """The next line and its end."""
        block = b"more"
        while not (match := _LINE_END.search(self._rest)) or match.end() == len(self._rest):
            block = self._stream.read(PIECE_BYTES)
            self._rest += block
            if not block:
                break
            if len(self._rest) > _HEADER_BYTES:
                raise DataError(f"{self._label}: no line ends within its first {_HEADER_BYTES >> 20} MiB: it is no CSV")
        if not match:
            line, self._rest = self._rest, b""
            return line, b""
        line, end, self._rest = self._rest[: match.start()], match[0], self._rest[match.end() :]
        return line, end

    def read(self, size: int = -1) -> Any:
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        # Into a block of arrow's memory, which is used again: bytes of a block's size are mapped anew each time.
        block = pa.allocate_buffer(size)
        view, filled = memoryview(block).cast("B"), 0
        while filled < size and (count := self._stream.readinto(view[filled:])):
            filled += count
        return block.slice(0, filled)


class _Header(NamedTuple):
    """A line of column names, and what stands between them; blanks: whether a blank beside that."""

    line: str
    delimiter: str
    names: list[str]
    blanks: bool


def _header(lines: Sequence[str], label: str) -> _Header:
    """The first of these lines that names source_id between delimiters of one kind; else the first, for the error to show."""
    for line in lines:
        for delimiter in _DELIMITERS:
            names = _cells(line, delimiter)
            if SOURCE_ID in map(folded, names):
                if delimiter == " " and re.search(r"^ |  ", line):
                    raise DataError(f"{label}: its columns are set apart by runs of blanks: write it with commas between them")
                return _Header(line, delimiter, names, delimiter != " " and f"{delimiter} " in line)
    delimiter = max(_DELIMITERS, key=lambda each: len(_cells(lines[0], each)))
    names = _cells(lines[0], delimiter)
    if all(re.fullmatch(r"[-+.\deE]*", name) for name in names) and any(names):
        raise DataError(
            f"{label}: its first line holds values ({', '.join(names)[:80]}), expected names of columns: write a header line above them"
        )
    return _Header(lines[0], delimiter, names, blanks=False)


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]


# The rows -------------------------------------------------------------------------------------------------------------
class _NotOfItsTypeError(Exception):
    """A cell that arrow's parser takes for no value of its column."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


def _read(rows: _Rows, begin: Callable[[], _Rows], label: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    """Blocks of these columns, each in its own type (never guessed); from the beginning again where one is to be read as text."""
    texts: set[str] = set()
    done = 0
    while True:
        seen = 0
        try:
            for table in _blocks(rows, label, types, texts):
                fresh = table.slice(max(0, done - seen))
                seen += len(table)
                if len(fresh):
                    done = seen
                    yield fresh
            return
        except _NotOfItsTypeError as error:
            texts.add(error.column)
            rows = begin()


def _blocks(rows: _Rows, label: str, types: Mapping[str, pa.DataType], texts: set[str]) -> Iterator[pa.Table]:
    """texts: columns that are read as text and converted."""
    convert = pacsv.ConvertOptions(
        column_types={name: pa.string() if name in texts else kind for name, kind in types.items()},
        include_columns=list(types),
        null_values=list(NULL_WORDS),
        true_values=list(TRUE_WORDS),
        false_values=list(FALSE_WORDS),
        strings_can_be_null=True,
    )
    read = pacsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False, column_names=rows.names)
    parse = pacsv.ParseOptions(delimiter=rows.delimiter)
    try:
        with pacsv.open_csv(
            pa.PythonFile(rows, mode="r"), read_options=read, parse_options=parse, convert_options=convert
        ) as reader:
            for batch in reader:
                table = pa.Table.from_batches([batch])
                for index, (name, kind) in enumerate(types.items()):
                    if rows.blanks and pa.types.is_string(kind):
                        table = table.set_column(index, name, bare_text(table.column(name)))
                    elif name in texts:
                        table = table.set_column(index, name, converted(table.column(name), pa.field(name, kind), label))
                yield table
    except pa.ArrowInvalid as error:
        words = str(error)
        if words == "Empty CSV file":  # a header and no rows
            return
        if match := re.search(r"column #(\d+).*conversion error", words):
            name = rows.names[int(match[1])]
            if name in texts or pa.types.is_string(types[name]):
                raise DataError(f"{label}: column {name}: {words}: write the file in UTF-8") from error
            raise _NotOfItsTypeError(name) from error
        if "Expected" in words and "columns, got" in words:
            raise DataError(
                f"{label}: {' '.join(words.split())[:300]}. Columns are taken to be set apart by {_DELIMITERS[rows.delimiter]}, as in "
                "its header: mend this row, or write the file again with one delimiter and text in quotes"
            ) from error
        raise
