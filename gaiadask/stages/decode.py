"""Stage decode, on request: every star rebuilt from its latents, as parquet files in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from pydantic import Field

from gaiadask import catalogue
from gaiadask.ahead import ahead, side_by_side
from gaiadask.archive.chunks import regrouped
from gaiadask.catalogue import Partition
from gaiadask.cluster.workers import Task
from gaiadask.decode import decode
from gaiadask.errors import DataError, counted
from gaiadask.impute import check_imputes, tell_not_imputed
from gaiadask.keys import digest
from gaiadask.model.source import ModelSource
from gaiadask.product import Piece, StarFolder, latent_footer, latent_key, write_product
from gaiadask.records import JsonObject, Record, StageResult
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.store.files import Store
from gaiadask.uris import absolute_uri
from gaiadask.validate import Finding


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

    def summary(self) -> str:
        return f"{counted(self.rows, 'star')} rebuilt into {counted(self.files, 'file')}: {self.uri}"


def _inputs(context: Context) -> JsonObject:
    encode_key, options = context.key("encode"), context.requested(DecodeOptions)
    model = context.model
    return {"encode": encode_key, "model": model.key, "weights": model.weights, "impute": options.impute}


def _folder(place: str) -> StarFolder:
    return StarFolder(Store(place), "rebuilt stars", pattern=r"\d+-\d+\.parquet")


def _piece(model: ModelSource, partition: Partition, impute: bool) -> Piece:
    key = digest({"latents": latent_key(model.key, partition), "impute": impute})
    title = f"rebuilt stars of partition {partition.tile}"
    return Piece(f"{partition.tile.flat_name}.parquet", key, partition.rows, title, model.weights)


def _make(context: Context, key: str) -> DecodeResult:
    options = context.requested(DecodeOptions)
    folder, partitions = _folder(options.folder), context.catalogue.partitions
    task = Task[Sequence[Partition], Sequence[Partition]]("decode", label=catalogue.shown, amount=len, size=len)
    with folder.writing(_inputs(context), len(partitions)) as output:
        context.map(DecodePartitions(context.model, output, options.impute), context.tapering(partitions), task)
    return DecodeResult(rows=sum(p.rows for p in partitions), files=len(partitions), uri=folder.store.uri)


@dataclass(frozen=True)
class DecodePartitions:
    """Decodes some latent partitions into a parquet file each of `output`; for workers."""

    model: ModelSource
    output: Store
    impute: bool = False

    def __call__(self, partitions: Sequence[Partition]) -> Sequence[Partition]:
        """Returns the partitions. Raises DataError where latents do not have the partition's rows."""
        pieces = [_piece(self.model, partition, self.impute) for partition in partitions]

        def decoded(lacking: Sequence[int]) -> Iterator[pa.Table]:
            return self._decoded([partitions[number] for number in lacking])

        write_product(self.output, pieces, decoded, [None] * len(pieces))
        return partitions

    def _decoded(self, partitions: Sequence[Partition]) -> Iterator[pa.Table]:
        """The partitions' stars, some at a time, which are read and computed in threads."""
        model = self.model.load()
        # A row group is read while the one before it is computed, some stars at a time.
        latents = regrouped(ahead(self._latents(partitions)), catalogue.STARS_AT_ONCE)
        return side_by_side(partial(decode, model=model, impute=self.impute), latents)

    def _latents(self, partitions: Sequence[Partition]) -> Iterator[pa.Table]:
        for partition in partitions:
            rows, footer = 0, latent_footer(self.model, partition)
            for table in catalogue.iterate_partition(self.model.store, self.model.run.latent, partition.tile, footer=footer):
                yield table
                rows += table.num_rows
            if rows != partition.rows:
                raise DataError(
                    f"partition {partition.tile}: the catalogue has {partition.rows} rows, its latents {rows}: run `gaiadask encode CONFIG --replace encode`"
                )


def _prepare(context: Context) -> None:
    """Raises where the folder is somebody's, or the model has nothing to fill null values with."""
    options = context.requested(DecodeOptions)
    if options.impute:
        model = context.model.on_cpu().load()
        check_imputes(model)
        tell_not_imputed(model)
    _folder(options.folder).check_own()


def _is_present(context: Context) -> bool:
    options, model = context.requested(DecodeOptions), context.model
    pieces = [_piece(model, partition, options.impute) for partition in context.catalogue.partitions]
    return _folder(options.folder).is_complete(_inputs(context), pieces)


def _problems(context: Context, place: str, quick: bool) -> list[Finding]:
    rows = context.manifest.result(f"decode {place}", DecodeResult).rows
    return [Finding(f"rebuilt stars in {place}", problem) for problem in _folder(place).problems(rows, quick, context.each_file)]


def _drop(context: Context) -> None:
    """Stars in folders outside the run are removed only where that folder is named: they may be somebody's by now."""
    if isinstance(context.request, DecodeOptions):
        _folder(context.request.folder).remove()


WORK = StageWork(
    _inputs,
    _make,
    DecodeResult,
    _drop,
    _prepare,
    _is_present,
    place=lambda context: context.requested(DecodeOptions).folder,
    options=DecodeOptions,
    problems=_problems,
)
