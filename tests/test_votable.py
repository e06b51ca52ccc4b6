"""VOTables as streams: every type in every serialisation against astropy, pieces of any size, memory, and what is refused."""

from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import votable
from astropy.table import MaskedColumn, Table
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from gaiadask.archive.files import formats, votable_binary
from gaiadask.archive.files import votable as ours
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.errors import ArchiveError, DataError

FORMATS = ("tabledata", "binary", "binary2")
TYPES = {
    "source_id": pa.int64(), "byte": pa.int64(), "short": pa.int32(), "int": pa.int32(), "float": pa.float32(), "double": pa.float64(), "flag": pa.bool_(),
    "text": pa.string(), "wide": pa.string(), "fixed": pa.string(),
}  # fmt: skip
TEXTS = st.lists(st.sampled_from(["", "x", "Gaia DR2 1", "NOT_AVAILABLE"]), min_size=1, max_size=40)


def document(texts: list[str]) -> Any:
    """A VOTable of every type, columns of one width and of any between one another, a third of the values null."""
    n = len(texts)
    null = np.arange(n) % 3 == 1
    columns = {
        "source_id": np.arange(n), "text": np.array(texts, object), "byte": np.arange(n, dtype=np.uint8), "short": np.arange(n, dtype=np.int16) - 5,
        "many": np.ones((n, 3), np.float32), "wide": np.array([f"ä{text}" for text in texts], object), "int": np.arange(n, dtype=np.int32) * 1000,
        "float": np.linspace(-1, 1, n, dtype=np.float32), "flag": np.arange(n) % 2 == 0, "double": np.linspace(0, 1e300, n), "fixed": np.array(texts, "U13"),
    }  # fmt: skip
    table = Table(
        {
            name: MaskedColumn(values, mask=null) if name in TYPES and name != "source_id" else values
            for name, values in columns.items()
        }
    )
    made = votable.from_table(table)
    for described in made.get_first_table().fields:
        if described.name in ("byte", "short", "int"):
            described.values.null = 99
    return made


def written(made: Any, format: str) -> bytes:
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.to_xml(sink, tabledata_format=format)
    return sink.getvalue()


def read(content: bytes, names: list[str], size: int = 1 << 15) -> list[tuple[Any, ...]]:
    """Columns of the first table, from a stream that gives `size` bytes at once."""

    class Slow(io.BytesIO):
        def read(self, wanted: int | None = -1) -> bytes:
            return super().read(min(size, wanted or size))

    table = next(ours._file_tables(ours._Document(Slow(content), "a"), "a"))
    rows = [row.values() for block in table.read({name: TYPES[name] for name in names}) for row in block.to_pylist()]
    return [tuple(None if value != value else value for value in row) for row in rows]  # NaN is null: `conform`


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=10, deadline=None)
@given(texts=TEXTS, size=st.sampled_from([1, 7, 100, 1 << 15]), block=st.sampled_from([1, 200, 1 << 20]))
def test_every_type_in_pieces_of_any_size(format: str, texts: list[str], size: int, block: int) -> None:
    made = document(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(votable_binary, "BLOCK_BYTES", block)
        patch.setattr(ours, "TEXT_ROWS", block)
        found = read(written(made, format), list(TYPES), size)
    array = np.ma.getdata(made.get_first_table().array)

    def value(name: str, row: int) -> Any:
        cell = array[name][row]
        null = row % 3 == 1 and name != "source_id" and not (format == "binary" and name == "flag")
        if null or ((kind := TYPES[name]) == pa.string() and not cell):
            return None
        return bool(cell) if kind == pa.bool_() else str(cell) if kind == pa.string() else pa.scalar(cell, kind).as_py()

    assert found == [tuple(value(name, row) for name in TYPES) for row in range(len(texts))]


# Memory -----------------------------------------------------------------------------------------------------------------
FIELDS = '<FIELD name="source_id" datatype="long"/><FIELD name="text" datatype="char" arraysize="*"/><FIELD name="double" datatype="double"/>'
LONGER = struct.pack(">Bq", 0, 5) + struct.pack(">I", 4) + b"abcd" + struct.pack(">d", 0.5)  # padded in base64
ROW = struct.pack(">Bq", 0, 5) + struct.pack(">I", 3) + b"abc" + struct.pack(">d", 0.5)


def streamed(data: bytes, kind: str = "BINARY2", fields: str = FIELDS, encoded: bool = True) -> bytes:
    stream = base64.b64encode(data).decode() if encoded else data.decode()
    inner = f'<STREAM encoding="base64">{stream}</STREAM>' if kind != "TABLEDATA" else stream
    return f"<VOTABLE><RESOURCE><TABLE>{fields}<DATA><{kind}>{inner}</{kind}></DATA></TABLE></RESOURCE></VOTABLE>".encode()


class Endless:
    """A document of so many rows that are made while they are read."""

    def __init__(self, rows: int, kind: str) -> None:
        self.given = 0
        piece = ROW if kind == "BINARY2" else b"<TR><TD>5</TD><TD>abc</TD><TD>0.5</TD></TR>"
        begin, _, end = streamed(b"ROWS" if kind != "BINARY2" else b"", kind, encoded=kind == "BINARY2").partition(
            b"ROWS" if kind != "BINARY2" else b"</STREAM>"
        )
        end = end if kind != "BINARY2" else b"</STREAM>" + end
        block = piece * 300  # whole groups of base64
        self._pieces = iter([begin, *[base64.b64encode(block) if kind == "BINARY2" else block] * (rows // 300), end])

    def read(self, size: int) -> bytes:
        piece = next(self._pieces, b"")
        self.given += len(piece)
        return piece


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BINARY2", "TABLEDATA"])
def test_memory_does_not_grow_with_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votable_binary, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(ours, "TEXT_ROWS", 1_000)
    peaks, counts, ahead = [], [], []
    for rows in (3_000, 30_000):
        stream = Endless(rows, kind)
        table = next(ours._file_tables(ours._Document(stream, "a"), "a"))
        count = arrow = 0
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        for block in table.read({name: TYPES[name] for name in ("source_id", "text", "double")}):
            ahead += [] if count else [stream.given]
            count += len(block)
            arrow = max(arrow, pa.total_allocated_bytes() - before)
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow)
        tracemalloc.stop()
        counts.append(count)
    assert counts == [3_000, 30_000]
    assert peaks[1] < 3 * peaks[0]  # ten times the rows; other threads of this process are counted too
    assert ahead[0] == ahead[1] < 120_000  # bytes that were read when the first rows are given


# What is refused --------------------------------------------------------------------------------------------------------
def stars(content: bytes, folder: Path, schema: pa.Schema | None = None) -> list[dict[str, Any]]:
    path = folder / "a.vot"
    path.write_bytes(content)
    schema = schema or pa.schema([("source_id", pa.int64()), ("text", pa.string()), ("double", pa.float64())])
    tables = formats.read_tables(SourceFile(LocalFileSystem(), str(path), "a.vot"), schema)
    return [row for table in tables for row in table.to_pylist()]


def test_a_binary_stream_is_read(tmp_path: Path) -> None:
    assert stars(streamed(2 * ROW), tmp_path) == 2 * [{"source_id": 5, "text": "abc", "double": 0.5}]
    assert stars(streamed(b""), tmp_path) == []
    assert stars(streamed(ROW).replace(b"</STREAM>", b"\n \n</STREAM>"), tmp_path) == stars(streamed(ROW), tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (streamed(ROW[:-1]), "ends within a row"),
        (streamed(ROW + ROW[:5]), "ends within a row"),
        (streamed(LONGER).replace(b"=</S", b"</S"), "ends within a row"),
        (streamed(LONGER).replace(b"</STREAM>", base64.b64encode(ROW) + b"</STREAM>"), "a.vot is not whole"),
        (streamed(ROW).replace(b'base64">', b'base64">*'), "a.vot is not whole"),
        (streamed(ROW[:9] + b"\xff\xff\xff\xff" + ROW[13:]), "announces a value of 4294967295 bytes"),
        (streamed(ROW, kind="BINARY"), "a.vot is not whole"),
        (streamed(b"<TR><TD>1</TD><TH/></TR>", "TABLEDATA", encoded=False), "an element TH stands among its rows"),
    ],
)
def test_a_stream_that_is_not_whole_rows_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ArchiveError, match=words):
        stars(content, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"long"', b'"quad"', "column source_id has the datatype 'quad'"),
        (b'arraysize="*"', b'arraysize="3x*"', "column text has the arraysize '3x\\*'"),
        (b'"base64"', b'"gzip"', "encoded as 'gzip': expected base64"),
        (b'"double"/>', b'"double" arraysize="2"/>', r"column double holds double\[2\]: expected one value a row"),
    ],
)
def test_what_a_field_says_must_be_readable(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    content = streamed(ROW + struct.pack(">d", 1.0) if b'arraysize="2' in new else ROW)
    with pytest.raises(DataError, match=f"a.vot: {words}" if b"gzip" not in new else words):
        stars(content.replace(old, new), tmp_path)


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.vot: column text: .*UTF"):
        stars(streamed(ROW.replace(b"abc", b"a\xffc")), tmp_path)


def test_flags_come_before_values_and_complex_numbers_are_passed_over(tmp_path: Path) -> None:
    fields = FIELDS + '<FIELD name="c" datatype="doubleComplex"/><FIELD name="b" datatype="bit" arraysize="9"/>' * 3
    row = struct.pack(">H", 0b0110_0000_0000_0000)[:2] + ROW[1:] + bytes(3 * 18)
    assert stars(streamed(row, fields=fields), tmp_path) == [{"source_id": 5, "text": None, "double": None}]
