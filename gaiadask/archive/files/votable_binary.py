"""Rows out of the binary streams of VOTables, BINARY and BINARY2, as far as they have come.

Where every column has one width, columns are views into the bytes. A text of any length moves what follows it in its row: there
the rows are walked through once, and columns gathered.
"""

from __future__ import annotations

import binascii
import contextlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.archive.files.arrays import array_of
from gaiadask.errors import DataError

BLOCK_BYTES = 1 << 20
"""Rows are made of so many bytes at once, which the processor's cache holds while columns are taken out of them."""
_MOST_IN_A_CELL = 1 << 24
"""Bytes of one value: where more are announced, the stream is not what its columns say."""
_BITS = {
    "boolean": 8, "bit": 1, "unsignedByte": 8, "short": 16, "int": 32, "long": 64, "char": 8, "unicodeChar": 16, "float": 32, "double": 64,
    "floatComplex": 64, "doubleComplex": 128,
}  # fmt: skip
_NUMPY = {
    "boolean": "u1", "bit": "u1", "unsignedByte": "u1", "short": ">i2", "int": ">i4", "long": ">i8", "float": ">f4", "double": ">f8",
}  # fmt: skip
_TRUE, _FALSE = (np.frombuffer(letters, np.uint8) for letters in (b"Tt1", b"Ff0"))
_COUNT = struct.Struct(">I")


@dataclass(frozen=True)
class VotableField:
    """A column as a VOTable describes it. null: the text of the number that stands for none."""

    name: str
    datatype: str
    arraysize: str
    unit: str
    null: str | None


@dataclass(frozen=True)
class _Cell:
    """Where a field's values are in a row.

    piece: number of the piece of the row, which begins at the row's first byte or behind a value of any length; offset: within it.
    items: numbers or letters of a value; None: any number, and its count comes first.
    """

    piece: int
    offset: int
    items: int | None


class BinaryRows:
    """Makes tables of the base64 text of a stream: `take` what has come, then `end`.

    fields: of the table. names: of the columns to make, of which no two fields have the same. flags: whether each row begins with
    flags of its nulls, as in BINARY2. label: for errors.
    """

    def __init__(self, fields: Sequence[VotableField], names: Mapping[str, object], flags: bool, label: str) -> None:
        self._fields, self._label, self._flags = fields, label, flags
        numbers = {field.name: number for number, field in enumerate(fields)}
        self._wanted = {name: numbers[name] for name in names}
        self._text, self._data, self._ended = b"", bytearray(), False
        offset, self._cells, self._gaps = (len(fields) + 7) // 8 if flags else 0, list[_Cell](), list[tuple[int, int]]()
        for field in fields:
            items, bits = _items(field, label), _BITS[field.datatype]
            self._cells.append(_Cell(len(self._gaps), offset, items))
            if items is None:
                self._gaps.append((offset, bits))
                offset = 0
            else:
                offset += (items * bits + 7) // 8
        self._width = offset  # of the last piece

    def take(self, text: str) -> Iterator[pa.Table]:
        """The rows that are whole by now, once they are many."""
        letters = self._text + text.encode().translate(None, b" \t\r\n")
        if letters and self._ended:
            raise ValueError("its binary stream goes on behind its end")
        whole = len(letters) & ~3
        self._text = letters[whole:]
        self._data += binascii.a2b_base64(letters[:whole], strict_mode=True)
        self._ended = letters[:whole].endswith(b"=")
        if len(self._data) >= BLOCK_BYTES:
            yield from self._rows()

    def end(self) -> Iterator[pa.Table]:
        """The last rows. Raises EOFError where the stream ends within a row."""
        yield from self._rows()
        if self._text or self._data:
            raise EOFError("its binary stream ends within a row")

    def _rows(self) -> Iterator[pa.Table]:
        data = bytes(self._data)
        rows = self._walked(data) if self._gaps else _Rows.of_one_width(data, self._width)
        del self._data[: rows.stop]
        if rows.count:
            yield pa.table({name: self._column(rows, number) for name, number in self._wanted.items()})

    def _walked(self, data: bytes) -> _Rows:
        """The rows that are whole, of which each has its own length."""
        at, stop, size = 0, 0, len(data)
        counts: list[int] = []
        whole = 0
        while True:
            for width, bits in self._gaps:
                at += width
                if at + 4 > size:
                    break
                counts.append(at)
                length = (_COUNT.unpack_from(data, at)[0] * bits + 7) // 8
                if length > _MOST_IN_A_CELL:
                    raise ValueError(f"row {whole + 1} of a block announces a value of {length} bytes")
                at += 4 + length
            else:
                at += self._width
                if at <= size:
                    stop, whole = at, whole + 1
                    continue
            break
        bits_of = np.array([bits for _, bits in self._gaps])
        places = np.array(counts[: whole * len(self._gaps)], np.int64).reshape(whole, len(self._gaps))
        lengths = (_gathered(data, _COUNT.format, places).astype(np.int64) * bits_of + 7) // 8
        ends = places + 4 + lengths
        begins = np.concatenate([[0], ends[:-1, -1] + self._width]) if whole else np.empty(0, np.int64)
        return _Rows(data, whole, stop, [begins, *ends.T], places, lengths)

    # Columns ------------------------------------------------------------------------------------------------------------
    def _column(self, rows: _Rows, number: int) -> pa.Array:
        field, cell = self._fields[number], self._cells[number]
        null = np.zeros(rows.count, bool)
        if self._flags:
            null = rows.values(_Cell(0, number // 8, 1), "u1") & (0x80 >> number % 8) != 0
        if field.datatype in ("char", "unicodeChar"):
            return self._texts(rows, field, cell, null)
        if cell.items != 1 or field.datatype.endswith("Complex"):
            kind = f"{field.datatype}{f'[{field.arraysize}]' if field.arraysize else ''}"
            raise DataError(f"{self._label}: column {field.name} holds {kind}: expected one value a row")
        values = rows.values(cell, _NUMPY[field.datatype])
        if field.datatype == "bit":
            values = values != 0
        elif field.datatype == "boolean":
            letters, values = values, np.isin(values, _TRUE)
            null = null | ~(values | np.isin(letters, _FALSE))
        elif field.null is not None:
            null = null | _stands_for_none(values, field.null)
        return array_of(values, null, field.name, self._label)

    def _texts(self, rows: _Rows, field: VotableField, cell: _Cell, null: NDArray[np.bool_]) -> pa.Array:
        """An empty text is null, for the format has no other null of texts; one of a fixed length ends at its first NUL."""
        wide = field.datatype == "unicodeChar"
        if cell.items is None:
            texts = rows.of_any_length(cell)
        else:
            size = cell.items * _BITS[field.datatype] // 8
            texts = [text.ljust(size, b"\0") if wide else text for text in rows.values(cell, f"S{size}").tolist()]
        try:
            if wide:
                array = pa.array([text.decode("utf-16-be").partition("\0")[0] for text in texts], pa.string())
            else:
                array = pa.array([text.partition(b"\0")[0] for text in texts], pa.binary()).cast(pa.string())
        except (UnicodeDecodeError, pa.ArrowInvalid) as error:
            raise DataError(f"{self._label}: column {field.name}: {error}: write its texts in UTF-8") from error
        null = null | np.asarray(pc.equal(pc.binary_length(array), 0))
        return pc.if_else(pa.array(null), pa.scalar(None, pa.string()), array)


@dataclass(frozen=True)
class _Rows:
    """Whole rows within some bytes.

    stop: the byte behind them. begins: where each row's pieces begin, an array a piece; None where rows have one width.
    counts, lengths: of the values of any length, shape (rows, values): where each one's count is, and its bytes.
    """

    data: bytes
    count: int
    stop: int
    begins: list[NDArray[np.int64]] | None = None
    counts: NDArray[np.int64] | None = None
    lengths: NDArray[np.int64] | None = None

    @classmethod
    def of_one_width(cls, data: bytes, width: int) -> _Rows:
        count = len(data) // width
        return cls(data, count, count * width)

    def values(self, cell: _Cell, dtype: str) -> NDArray:
        """The values of a cell of one width in every row."""
        kind = np.dtype(dtype)
        if self.begins is None:
            return np.ndarray((self.count,), kind, self.data, cell.offset, (self.stop // max(1, self.count),))
        return _gathered(self.data, kind, self.begins[cell.piece] + cell.offset)

    def of_any_length(self, cell: _Cell) -> list[bytes]:
        """The bytes of a value in every row."""
        assert self.counts is not None and self.lengths is not None
        first = (self.counts[:, cell.piece] + 4).tolist()
        return [self.data[at : at + length] for at, length in zip(first, self.lengths[:, cell.piece].tolist(), strict=True)]


def _gathered(data: bytes, kind: np.dtype | str, places: NDArray[np.int64]) -> NDArray:
    """Values at these bytes."""
    kind = np.dtype(kind)
    if not places.size:
        return np.empty(places.shape, kind)
    return np.ndarray((len(data) - kind.itemsize + 1,), kind, data, 0, (1,))[places]


# What a field says -------------------------------------------------------------------------------------------------------
def _items(field: VotableField, label: str) -> int | None:
    """Numbers or letters of a value; None: any number. Raises DataError where that cannot be told."""
    if field.datatype not in _BITS:
        raise DataError(f"{label}: column {field.name} has the datatype {field.datatype!r}: expected one of {', '.join(_BITS)}")
    sizes = field.arraysize.strip()
    if not re.fullmatch(r"|[0-9]+(x[0-9]+)*|[0-9]*\*", sizes):
        raise DataError(
            f"{label}: column {field.name} has the arraysize {sizes!r}, whose bytes cannot be told: leave it out of the table"
        )
    return None if sizes.endswith("*") else math.prod(int(size) for size in sizes.split("x") if size)


def _stands_for_none(values: NDArray, text: str) -> NDArray[np.bool_]:
    """Where values are the number that a field declares for none; nowhere where it is no number."""
    with contextlib.suppress(ValueError):
        return values == (float(text) if values.dtype.kind == "f" else int(text, 16 if "x" in text.lower() else 10))
    return np.zeros(len(values), bool)
