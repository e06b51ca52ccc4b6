"""A compressed catalogue: a folder that is complete by itself.

codec.json.gz       how every column is coded (CodecCard)
fitted.json         what that was fitted for, so that a compress that was interrupted goes on with it
elementary.json.gz  the tables of gaiadask.elementary, for readers without it
dataset/Norder=…    the partitions
compressed.json     what the catalogue was, written last: without it the folder is not whole
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import pyarrow as pa
from pydantic import Field, ValidationError

from gaiadask.catalogue import Partition, check_footer
from gaiadask.codec.bounds import Tolerance
from gaiadask.codec.card import FORMAT_VERSION, CodecCard
from gaiadask.codec.chunk import CHUNK_ROWS
from gaiadask.codec.files import ColumnSummary, column_names, read_chunks
from gaiadask.elementary import tables_text
from gaiadask.errors import DamagedFileError, DataError, MissingFileError, StoreError, known_names
from gaiadask.keys import digest
from gaiadask.product import PRODUCT_KEY
from gaiadask.records import Record
from gaiadask.release.release import Release, release_named
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

_CARD, _FITTED, _TABLES = "codec.json.gz", "fitted.json", "elementary.json.gz"


class CompressedColumn(ColumnSummary):
    """One column, or null mask, of a compressed catalogue."""

    tolerance: Tolerance = Field(description="how far values may be off")
    raw_bits: int = Field(description="bits a value as the catalogue has it")
    alone_bits: float = Field(description="bits a star without a prediction, of the stars that the tables were fitted to")
    noise_bits: float | None = Field(
        description="entropy of noise of the stated error, rounded as this column is; none without an error"
    )


class SizeAtBound(Record):
    """Bytes a star at another bound."""

    bound_sigma: float = Field(description="the bound, in units of each star's own error")
    bytes_a_star: float = Field(description="estimated on the stars that the tables were fitted to")


class CompressedRecord(Record):
    """A compressed catalogue: compressed.json."""

    version: int = Field(description="of the format")
    key: str = Field(description="hash of what it was made from")
    catalogue_id: str = Field(description="id of the catalogue")
    bound_sigma: float = Field(description="the bound, in units of each star's own error")
    card: str = Field(description="sha256 of codec.json.gz")
    tables: str = Field(description="sha256 of elementary.json.gz")
    rows: int = Field(description="number of stars")
    bytes: int = Field(description="of all files but this one")
    columns: dict[str, CompressedColumn] = Field(description="what became of each column and null mask")
    sizes: tuple[SizeAtBound, ...] = Field(description="bytes a star at other bounds")
    partitions: tuple[Partition, ...] = Field(description="those of the catalogue, with the checksums of its files")


@dataclass(frozen=True)
class Compressed:
    """A compressed catalogue in a store.

    Attributes:
        store: where it lies.
        folder: its folder, relative to the store; "" where the store is the folder.
    """

    store: Store
    folder: str = ""

    @property
    def marker(self) -> str:
        """Name of compressed.json."""
        return self.name("compressed.json")

    def name(self, file: str) -> str:
        """Name of one of its files, relative to the store."""
        return f"{self.folder}/{file}" if self.folder else file

    def partition(self, tile: Tile) -> str:
        """Name of a partition's file, relative to the store."""
        return self.name(tile.file)

    @cached_property
    def record(self) -> CompressedRecord:
        """What it is of.

        Raises:
            MissingFileError: it is not there, or not finished.
            StoreError: it is damaged, or of another version of the format.
        """
        try:
            content = self.store.read_json(self.marker)
        except MissingFileError as error:
            raise MissingFileError(
                f"{self.store.uri_of(self.folder)} has no whole compressed catalogue (no compressed.json): make it with `gaiadask compress CONFIG`"
            ) from error
        if isinstance(content, dict) and content.get("version") != FORMAT_VERSION:
            raise StoreError(
                f"{self.store.uri_of(self.marker)}: version {content.get('version')!r} of the compressed format, expected {FORMAT_VERSION}: "
                "read it with the gaiadask that wrote it, or a newer one"
            )
        return self.store.as_record(self.marker, content, CompressedRecord)

    @property
    def reader(self) -> CompressedReader:
        """What reads its partitions, for workers."""
        return CompressedReader(self.store, self.folder, self.record.key, self.record.card)

    @property
    def card(self) -> CodecCard:
        """How it is coded. Raises StoreError where the file is missing or not the one that the catalogue was made with."""
        return self.read_card(self.record.card)

    def read_card(self, sha256: str) -> CodecCard:
        """How it is coded, by the file of this sha256. Raises StoreError where it is another one."""
        return _card(self.store, self.name(_CARD), sha256)

    def write_card(self, card: CodecCard, key: str = "") -> str:
        """Write how it is coded, and the key of what that was fitted for, where it is known. Returns the card's sha256."""
        self.store.remove(self.name(_FITTED))
        sha256 = self._write(_CARD, card.model_dump_json(indent=None))
        if key:
            self.store.write_json(self.name(_FITTED), {"key": key, "card": sha256})
        return sha256

    def fitted_for(self, key: str) -> str | None:
        """sha256 of the card that was fitted for this key, by a compress that may have been interrupted; None where there is none, or a
        damaged one."""
        try:
            fitted = self.store.read_json_if_there(self.name(_FITTED))
            if not isinstance(fitted, dict) or fitted.get("key") != key:
                return None
            card = str(fitted.get("card"))
            _content(self.store, self.name(_CARD), card)
        except (MissingFileError, DamagedFileError):
            return None
        return card

    def write_tables(self) -> str:
        """Write the tables that the elementary functions are made of. Returns the file's sha256."""
        return self._write(_TABLES, tables_text())

    def check_tables(self) -> None:
        """Raise StoreError where the tables are missing or other ones: the folder would not be complete by itself."""
        _content(self.store, self.name(_TABLES), self.record.tables)

    def _write(self, file: str, text: str) -> str:
        content = gzip.compress(text.encode(), mtime=0)
        self.store.write_bytes(self.name(file), content)
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class CompressedReader:
    """Reads partitions of a compressed catalogue. As small as this however many partitions there are, for it goes with each piece of work.

    Attributes:
        store, folder: as of `Compressed`.
        key, card_sha256: of the catalogue's record.
    """

    store: Store
    folder: str
    key: str
    card_sha256: str

    @property
    def card(self) -> CodecCard:
        """How the catalogue is coded. Raises as `Compressed.card` does."""
        return Compressed(self.store, self.folder).read_card(self.card_sha256)

    @property
    def release(self) -> Release:
        """The columns' data release."""
        return release_named(self.card.release)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it gives back, in the catalogue's order."""
        return column_names(self.card)

    def schema(self, names: Sequence[str]) -> pa.Schema:
        """Arrow schema of these columns. Raises DataError for one that it does not have."""
        if unknown := [name for name in names if name not in self.columns]:
            raise DataError(
                f"{self.store.uri_of(self.folder)} has no column {', '.join(unknown)}: {known_names(unknown, self.columns)}"
            )
        whole = self.release.catalogue_schema(self.card.schema_columns)
        return pa.schema([whole.field(name) for name in names])

    def name(self, partition: Partition) -> str:
        """Name of a partition's file, relative to the store."""
        return Compressed(self.store, self.folder).partition(partition.tile)

    def footer(self, partition: Partition) -> dict[str, str]:
        """What a partition's file says that it was made from."""
        return {PRODUCT_KEY: partition_key(self.key, self.card_sha256, partition)}

    def iterate(self, partition: Partition, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The stars of a partition, a chunk at a time.

        Args:
            partition: one of the record's.
            names: columns; None: all.

        Raises:
            StoreError: its file is missing, damaged, of another catalogue or version.
            DataError: it has no such column, or other rows than the catalogue had.
        """
        names = list(self.columns if names is None else names)
        self.schema(names)
        rows, file_name = 0, self.name(partition)
        with self.store.open_parquet(file_name) as file:
            uri = self.store.uri_of(file_name)
            check_footer(file, uri, self.footer(partition))
            for table in read_chunks(file, uri, self.card, partition.tile, self.release, names):
                rows += table.num_rows
                yield table
        if rows != partition.rows:
            raise DamagedFileError(
                f"{uri}: {rows} stars, expected {partition.rows}: restore it, or run `gaiadask compress CONFIG --replace compress`"
            )


def partition_key(key: str, card: str, partition: Partition) -> str:
    """What a compressed partition depends on: the stage's key, the card's sha256, the checksum of the catalogue's file."""
    return digest({"compress": key, "card": card, "input": partition.checksum})


def chunks_of(partition: Partition) -> int:
    """Chunks of a partition's file."""
    return -(-partition.rows // CHUNK_ROWS)


def chunk_rows(partition: Partition) -> int:
    """Stars of each chunk of a partition, of the last one fewer: chunks are alike, for a small one costs more a star."""
    return -(-partition.rows // max(chunks_of(partition), 1))


@lru_cache(maxsize=4)
def _card(store: Store, name: str, sha256: str) -> CodecCard:
    content = _content(store, name, sha256)
    try:
        return CodecCard.model_validate_json(gzip.decompress(content))
    except (OSError, EOFError, ValidationError) as error:
        raise DamagedFileError(f"{store.uri_of(name)} is damaged: {error}") from error


def _content(store: Store, name: str, sha256: str) -> bytes:
    content = store.read_bytes(name)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedFileError(
            f"{store.uri_of(name)} is not the file that compressed.json was written for: restore it, or run `gaiadask compress CONFIG --replace compress`"
        )
    return content
