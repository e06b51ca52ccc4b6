"""What is in a file: its tables as readers give them, its bytes without their packing, and what it is where its name says otherwise."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
from isal import igzip

from gaiadask.archive.files.transfer import PIECE_BYTES, PassedStream, SourceFile
from gaiadask.errors import DataError

TABLE_ROWS = 65_536
"""At most so many rows are yielded in one table: of 94 columns some 40 MB, and enough that a table costs little a row."""
MOST_IN_MEMORY = 1 << 30
"""Bytes of a file, unpacked, that is held in memory whole: with what its parser makes of it, what a worker of 8 GB bears."""

_LAYERS = 3
"""A file is unpacked so often: a server that packs what is packed already gives two layers."""
# How other files begin than those that are read, by what they are.
_PACKED = {
    b"PK\x03\x04": "a zip archive (or a workbook of a spreadsheet)", b"BZh": "packed by bzip2", b"\xfd7zXZ\x00": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd", b"\x04\x22\x4d\x18": "packed by lz4", b"\x1f\x9d": "packed by compress",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
}  # fmt: skip
_BEGINNINGS = {
    "parquet": (b"PAR1",), "FITS": (b"SIMPLE  =",), "XML (a VOTable, or a web page)": (b"<",), "JSON": (b"{", b"["), "an arrow file": (b"ARROW1",),
    "HDF5": (b"\x89HDF",), "SQLite": (b"SQLite format 3",), "text in UTF-16, not UTF-8": (b"\xff\xfe", b"\xfe\xff"),
}  # fmt: skip


@dataclass(frozen=True)
class FileTable:
    """One table of a file.

    label: the file and, where it has more than one, the table, for errors. names: of its columns. read: yields tables of these
    columns, under these names, as they are stored; it is told the type that each should have, where the text of a number is
    read straight into it. units: as the file declares them, by column.
    """

    label: str
    names: Sequence[str]
    read: Callable[[Mapping[str, pa.DataType]], Iterator[pa.Table]]
    units: Mapping[str, str] = field(default_factory=dict)


class Peeked(PassedStream):
    """A stream whose first bytes can be looked at before they are read: `head`."""

    def __init__(self, stream: Any, size: int = 512) -> None:
        super().__init__(stream)
        self.head = b""
        while len(self.head) < size and (piece := bytes(stream.read(size - len(self.head)))):
            self.head += piece
        self._rest = self.head

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            return bytes(self._stream.read(size))
        data, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return data

    def readinto(self, buffer: Any) -> int:
        return super().readinto(buffer) if self._rest else int(self._stream.readinto(buffer))


def unpacked(stream: Any, label: str, kind: str, *, plain: Callable[[Peeked], Any] = lambda stream: stream) -> Peeked:
    """The bytes of a file of this kind, inflated where they are gzipped, whatever the file's name says.

    plain: applied to a stream that is not packed, where a cut cannot be seen by the end of the packing.
    Raises DataError where they begin as something else.
    """
    peeked = Peeked(stream)
    for layer in range(_LAYERS):
        if not is_gzipped(peeked.head):
            check_kind(peeked.head, kind, label)
            return Peeked(plain(peeked)) if layer == 0 else peeked
        peeked = Peeked(igzip.IGzipFile(fileobj=peeked))
    raise DataError(f"{label} is gzipped {_LAYERS} times and more: unpack it")


def is_gzipped(head: bytes) -> bool:
    """Whether a file that begins so is gzipped."""
    return head.startswith(b"\x1f\x8b")


def check_kind(head: bytes, kind: str, label: str) -> None:
    """Raise DataError where a file begins as something else than `kind`, one of the names above or "CSV"."""
    for magic, packing in _PACKED.items():
        if head.startswith(magic):
            raise DataError(f"{label} is {packing}: unpack it first (gzip alone is read as it is)")
    for found, beginnings in _BEGINNINGS.items():
        if found != kind and head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(beginnings):
            raise DataError(
                f"{label} is {found}, expected {kind} as its name says: give it the name of what it is, or fetch it again"
            )


def whole(file: SourceFile, kind: str) -> io.BytesIO:
    """A file in memory, unpacked. Raises DataError for more than MOST_IN_MEMORY."""
    content = io.BytesIO()
    with file.open() as raw:
        for piece in limited(unpacked(raw, file.label, kind), MOST_IN_MEMORY, file.label):
            content.write(piece)
    content.seek(0)
    return content


def limited(stream: BinaryIO | io.RawIOBase, most_bytes: int, label: str) -> Iterator[bytes]:
    """The pieces of a stream. Raises DataError once there are more than `most_bytes`, so that a small file that inflates to a
    large one is not held in memory."""
    total = 0
    while piece := stream.read(PIECE_BYTES):
        total += len(piece)
        if total > most_bytes:
            raise DataError(
                f"{label} holds more than {most_bytes / 2**20:,.0f} MiB (unpacked), and is read into memory whole: "
                "cut it into smaller files, or write it as parquet, which is streamed"
            )
        yield piece
