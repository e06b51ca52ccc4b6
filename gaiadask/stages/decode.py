"""Stage decode, on request: every star rebuilt from its latents, as parquet files in a folder."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from pydantic import Field

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.cluster.workers import Task
from gaiadask.decode import decode
from gaiadask.errors import DataError
from gaiadask.keys import digest
from gaiadask.model.source import ModelSource
from gaiadask.product import Piece, StarFolder, write_piece
from gaiadask.records import JsonObject, Record
from gaiadask.stages.context import Context
from gaiadask.stages.encode import latent_key
from gaiadask.stages.stage import StageResult, StageWork
from gaiadask.store.files import Store, absolute_uri
from gaiadask.store.paths import Tile


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
    return {"encode": encode_key, "model": model.key, "weights": model.weights_sha256, "impute": options.impute}


def _folder(options: DecodeOptions) -> StarFolder:
    return StarFolder(Store(options.folder), "rebuilt stars", pattern=r"\d+-\d+\.parquet")


def _file_name(tile: Tile) -> str:
    return f"{tile.flat_name}.parquet"


def _make(context: Context, key: str) -> DecodeResult:
    options = context.requested(DecodeOptions)
    folder, partitions = _folder(options), context.catalogue.partitions
    task: Task[Partition, int] = Task("decode", label=lambda partition: str(partition.tile))
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
        key = digest({"latents": latent_key(self.model.key, partition), "impute": self.impute})
        piece = Piece(_file_name(partition.tile), key, partition.rows, f"rebuilt stars of partition {partition.tile}")
        write_piece(self.output, piece, lambda: self._decoded(partition))
        return partition.rows

    def _decoded(self, partition: Partition) -> pa.Table:
        model = self.model.load()
        latents = catalogue.iterate_partition(self.model.store, self.model.run.latent, partition.tile)
        stars = pa.concat_tables([decode(table, model, impute=self.impute) for table in latents])
        if stars.num_rows != partition.rows:
            raise DataError(
                f"partition {partition.tile}: the catalogue has {partition.rows} rows, its latents {stars.num_rows}: run `gaiadask encode CONFIG --replace encode`"
            )
        return stars


def _is_present(context: Context) -> bool:
    names = [_file_name(tile) for tile in context.catalogue.tiles]
    return _folder(context.requested(DecodeOptions)).is_complete(_inputs(context), names)


def _drop(context: Context) -> None:
    """Stars in folders outside the run are removed only where that folder is named: they may be somebody's by now."""
    if isinstance(context.request, DecodeOptions):
        _folder(context.request).remove()


WORK = StageWork(
    _inputs,
    _make,
    DecodeResult,
    _drop,
    present=_is_present,
    place=lambda context: context.requested(DecodeOptions).folder,
    options=DecodeOptions,
)
