"""Stage decode, on request: every star rebuilt from its latents, as parquet files in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
from pydantic import Field

from gaiadask import catalogue
from gaiadask.ahead import ahead
from gaiadask.catalogue import Partition
from gaiadask.cluster.workers import Task
from gaiadask.decode import check_imputes, decode
from gaiadask.errors import DataError
from gaiadask.keys import digest
from gaiadask.model.source import ModelSource
from gaiadask.product import Piece, StarFolder, latent_footer, latent_key, write_piece
from gaiadask.records import JsonObject, Record
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageResult, StageWork
from gaiadask.store.files import Store
from gaiadask.uris import absolute_uri


class DecodeOptions(Record):
    """Options of the stage decode."""

    output: str = Field(min_length=1, description="folder (any fsspec URI) for the parquet files, one a partition")
    impute: bool = Field(
        False, description="fill null values with the model's estimates; columns NAME_std give the standard deviation of each"
    )

    @property
    def folder(self) -> str:
        """The output folder, absolute."""
        return absolute_uri(self.output)


class DecodeResult(StageResult):
    """Result of the stage decode."""

    rows: int = Field(description="stars rebuilt")
    files: int = Field(description="parquet files")
    uri: str = Field(description="of their folder")


def _inputs(context: Context) -> JsonObject:
    encode_key, options = context.key("encode"), context.requested(DecodeOptions)
    model = context.model
    return {"encode": encode_key, "model": model.key, "weights": model.weights, "impute": options.impute}


def _folder(options: DecodeOptions) -> StarFolder:
    return StarFolder(Store(options.folder), "rebuilt stars", pattern=r"\d+-\d+\.parquet")


def _piece(model: ModelSource, partition: Partition, impute: bool) -> Piece:
    key = digest({"latents": latent_key(model.key, partition), "impute": impute})
    title = f"rebuilt stars of partition {partition.tile}"
    return Piece(f"{partition.tile.flat_name}.parquet", key, partition.rows, title, model.weights)


def _make(context: Context, key: str) -> DecodeResult:
    options = context.requested(DecodeOptions)
    folder, partitions = _folder(options), context.catalogue.partitions
    task: Task[Partition, int] = Task("decode", label=lambda partition: str(partition.tile), rows=lambda partition: partition.rows)
    with folder.writing(_inputs(context), len(partitions)) as output:
        rows = context.map(DecodePartition(context.model, output, options.impute), partitions, task)
    return DecodeResult(rows=sum(rows), files=len(rows), uri=folder.store.uri)


@dataclass(frozen=True)
class DecodePartition:
    """Decodes one latent partition into a parquet file of `output`; for workers."""

    model: ModelSource
    output: Store
    impute: bool = False

    def __call__(self, partition: Partition) -> int:
        """Returns the number of stars. Raises DataError where the latents do not have the partition's rows."""
        write_piece(self.output, _piece(self.model, partition, self.impute), lambda: self._decoded(partition))
        return partition.rows

    def _decoded(self, partition: Partition) -> Iterator[pa.Table]:
        """The partition's stars, a row group at a time; the latents of the next one are read meanwhile."""
        model, rows = self.model.load(), 0
        footer = latent_footer(self.model, partition)
        latents = catalogue.iterate_partition(self.model.store, self.model.run.latent, partition.tile, footer=footer)
        with closing(ahead(latents)) as tables:
            for table in tables:
                yield decode(table, model, impute=self.impute)
                rows += table.num_rows
        if rows != partition.rows:
            raise DataError(
                f"partition {partition.tile}: the catalogue has {partition.rows} rows, its latents {rows}: run `gaiadask encode CONFIG --replace encode`"
            )


def _prepare(context: Context) -> None:
    """Raises where the folder is somebody's, or the model has nothing to fill null values with."""
    options = context.requested(DecodeOptions)
    if options.impute:
        check_imputes(context.model.on_cpu().load())
    _folder(options).check_own()


def _is_present(context: Context) -> bool:
    options, model = context.requested(DecodeOptions), context.model
    pieces = [_piece(model, partition, options.impute) for partition in context.catalogue.partitions]
    return _folder(options).is_complete(_inputs(context), pieces)


def _drop(context: Context) -> None:
    """Stars in folders outside the run are removed only where that folder is named: they may be somebody's by now."""
    if isinstance(context.request, DecodeOptions):
        _folder(context.request).remove()


WORK = StageWork(
    _inputs,
    _make,
    DecodeResult,
    _drop,
    _prepare,
    _is_present,
    place=lambda context: context.requested(DecodeOptions).folder,
    options=DecodeOptions,
)
