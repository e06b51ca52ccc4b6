"""Stage decompress, on request: the run's compressed catalogue as a HATS catalogue again, in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
from pydantic import Field

from gaiadask import catalogue, publishing
from gaiadask.ahead import ahead
from gaiadask.catalogue import CATALOGUE_ID, KEY, Partition
from gaiadask.codec.compressed import Compressed, CompressedReader
from gaiadask.keys import digest
from gaiadask.product import Piece, StarFolder, write_piece
from gaiadask.records import JsonObject, Record, StageResult
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.store.files import Store
from gaiadask.uris import absolute_uri

FOLDER = "catalogue"
"""Of the catalogue, in the output folder: beside it lies what says what it is of."""


class DecompressOptions(Record):
    """Options of the stage decompress."""

    output: str = Field(min_length=1, description="folder (any fsspec URI); the catalogue is its subfolder catalogue/")

    @property
    def folder(self) -> str:
        """The output folder, absolute."""
        return absolute_uri(self.output)


class DecompressResult(StageResult):
    """Result of the stage decompress."""

    rows: int = Field(description="stars")
    files: int = Field(description="partition files")
    uri: str = Field(description="of the catalogue")

    def summary(self) -> str:
        return f"{self.rows:,} stars in {self.files:,} partitions: {self.uri}"


def _product(context: Context) -> Compressed:
    return Compressed(context.store, context.run.compressed)


def _inputs(context: Context) -> JsonObject:
    record = _product(context).record
    return {"compress": context.key("compress"), "card": record.card}


def _folder(options: DecompressOptions) -> StarFolder:
    return StarFolder(Store(options.folder), "decompressed stars", pattern=f"{FOLDER}/.+")


@dataclass(frozen=True)
class DecompressPartition:
    """Decompresses one partition into the catalogue in `output`; for workers."""

    reader: CompressedReader
    output: Store
    key: str

    def __call__(self, source: Partition) -> Partition:
        """The partition as written, or as it is there already."""
        piece = piece_of(source, self.key)
        checksum = write_piece(self.output, piece, lambda: self._stars(source), source.tile)
        return catalogue.as_written(self.output, FOLDER, source, checksum)

    def _stars(self, source: Partition) -> Iterator[pa.Table]:
        with closing(ahead(self.reader.iterate(source))) as tables:
            yield from tables


def piece_of(source: Partition, key: str) -> Piece:
    """The file of a decompressed partition."""
    return Piece(
        f"{FOLDER}/{source.tile.file}",
        digest({"decompress": key, "input": source.checksum}),
        source.rows,
        f"decompressed stars of partition {source.tile}",
    )


def _make(context: Context, key: str) -> DecompressResult:
    product, folder = _product(context), _folder(context.requested(DecompressOptions))
    record = product.record
    with folder.writing(_inputs(context), len(record.partitions)) as output:
        catalogue.unpublish(output, FOLDER)
        partitions = context.map_partitions(DecompressPartition(product.reader, output, key), record.partitions, "decompress")
        summary = context.summary_of(FOLDER, partitions, output)
        title = f"{context.run.name}, within {record.bound_sigma:g} sigma"
        publishing.publish(output, FOLDER, title, partitions, {CATALOGUE_ID: record.catalogue_id, KEY: key}, summary)
    return DecompressResult(rows=record.rows, files=len(partitions), uri=output.uri_of(FOLDER))


def _prepare(context: Context) -> None:
    """Raises where the folder is somebody's, or the compressed catalogue is not whole."""
    _folder(context.requested(DecompressOptions)).check_own()


def _is_present(context: Context) -> bool:
    key = digest(_inputs(context))
    pieces = [piece_of(partition, key) for partition in _product(context).record.partitions]
    return _folder(context.requested(DecompressOptions)).is_complete(_inputs(context), pieces)


def _drop(context: Context) -> None:
    """Stars in folders outside the run are removed only where that folder is named: they may be somebody's by now."""
    if isinstance(context.request, DecompressOptions):
        _folder(context.request).remove()


WORK = StageWork(
    _inputs, _make, DecompressResult, _drop, _prepare, _is_present,
    place=lambda context: context.requested(DecompressOptions).folder, options=DecompressOptions,
)  # fmt: skip
