"""Stage encode: every star of the catalogue to its latents, as a catalogue of the same partitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
from pydantic import Field

from gaiadask import catalogue, publishing
from gaiadask.ahead import ahead, side_by_side
from gaiadask.archive.chunks import regrouped
from gaiadask.catalogue import Partition
from gaiadask.cluster.workers import Task
from gaiadask.encode import encode_as_stored
from gaiadask.errors import DataError, GaiadaskError
from gaiadask.model.source import ModelSource
from gaiadask.product import Piece, latent_footer, latent_key, latent_origin, with_latents, write_product
from gaiadask.records import JsonObject, StageResult
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.store import paths
from gaiadask.store.paths import HATS_MARKER
from gaiadask.validate import Finding


class EncodeResult(StageResult):
    """Result of the stage encode."""

    rows: int = Field(description="stars encoded")
    partitions: int = Field(description="files of the latent catalogue")

    def summary(self) -> str:
        return f"{self.rows:,} stars in {self.partitions:,} partitions"


def _inputs(context: Context) -> JsonObject:
    return {"train": context.key("train"), "weights": context.model.weights, "catalogue_id": context.catalogue.id}


def _make(context: Context, key: str) -> EncodeResult:
    store, run, record, model = context.store, context.run, context.catalogue, context.model
    catalogue.unpublish(store, run.latent)
    task = Task[Sequence[Partition], list[Partition]]("encode", label=catalogue.shown, amount=len, size=len)
    encoded = context.map(EncodePartitions(model), context.tapering(record.partitions), task)
    partitions = [partition for batch in encoded for partition in batch]
    rows = sum(p.rows for p in partitions)
    if rows != record.rows:
        raise DataError(
            f"the catalogue has {record.rows} stars, {rows} were encoded: the latents were not published. Run `gaiadask encode CONFIG` again"
        )
    summary = context.summary_of(run.latent, partitions)
    publishing.publish(store, run.latent, f"{run.name} latents", partitions, latent_origin(record.id, key, model), summary)
    return EncodeResult(rows=rows, partitions=len(partitions))


@dataclass(frozen=True)
class EncodePartitions:
    """Encodes some partitions of the catalogue into the same partitions of the run's latents; for workers."""

    model: ModelSource

    def __call__(self, sources: Sequence[Partition]) -> list[Partition]:
        """A partition that an earlier, interrupted run encoded with the same model from the same input is not made again.

        Raises:
            DataError: where a partition of the catalogue does not hold the rows that were written to it.
        """
        store, folder = self.model.store, self.model.run.latent
        pieces = [
            Piece(
                f"{folder}/{source.tile.file}", latent_key(self.model.key, source), source.rows,
                f"latents of partition {source.tile}", self.model.weights,
            )
            for source in sources
        ]  # fmt: skip
        written = write_product(
            store, pieces, lambda lacking: self._encoded([sources[number] for number in lacking]), [s.tile for s in sources]
        )
        return [catalogue.as_written(store, folder, *each) for each in zip(sources, written, strict=True)]

    def _encoded(self, sources: Sequence[Partition]) -> Iterator[pa.Table]:
        """The partitions' latents, some stars at a time, which are read and computed in threads."""
        model = self.model.load()
        columns = list(dict.fromkeys((SOURCE_ID, RA, DEC, *model.transform.columns)))
        # A row group is read while the one before it is computed, some stars at a time.
        stars = regrouped(ahead(self._stars(sources, columns)), catalogue.STARS_AT_ONCE)
        return side_by_side(partial(encode_as_stored, model=model), stars)

    def _stars(self, sources: Sequence[Partition], columns: Sequence[str]) -> Iterator[pa.Table]:
        for source in sources:
            yield from catalogue.iterate_written(self.model.store, paths.CATALOGUE, source, columns)


def _is_present(context: Context) -> bool:
    """Whether the latents are of this catalogue's stars and this model's weights, and every file of them is whole."""
    store, folder, model, record = context.store, context.run.latent, context.model, context.catalogue
    if not catalogue.is_published(store, folder):
        return False
    recorded, origin = catalogue.provenance(store, folder), latent_origin(record.id, context.key("encode"), model)
    if any(recorded.get(name, value if name == catalogue.WEIGHTS else None) != value for name, value in origin.items()):
        return False
    return not context.not_whole(folder, record.partitions, partial(latent_footer, model))


def _problems(context: Context, place: str, quick: bool) -> list[Finding]:
    """What is wrong with the latents; unless quick, every row group is read, with its checksums, beside the stars it is of."""
    if not _is_present(context):
        return [Finding("latents", "missing, damaged or of another model or catalogue: `gaiadask encode CONFIG` makes them again")]
    findings = [Finding("latents, HATS", line) for line in publishing.strict_problems(context.store, context.run.latent)]
    if quick:
        return findings
    model = replace(context.model, store=replace(context.store, checksums=True))
    work, partitions = partial(_latent_problems, model), context.catalogue.partitions
    return [*findings, *chain.from_iterable(context.map_partitions(work, partitions, "latents"))]


def _latent_problems(model: ModelSource, partition: Partition) -> list[Finding]:
    where, wrong = f"latents of partition {partition.tile}", 0
    try:
        for _, latents in with_latents(model, [partition], [SOURCE_ID]):
            values = [latents[name].to_numpy() for name in model.load().latent_columns]
            wrong += int((~np.isfinite(values)).any(axis=0).sum())
    except GaiadaskError as error:
        return [Finding(where, str(error))]
    return [Finding(where, f"{wrong} stars have latents that are no finite numbers")] if wrong else []


def _files(context: Context) -> tuple[str, ...]:
    return f"{context.run.latent}/{HATS_MARKER}", context.run.latent


WORK = StageWork(_inputs, _make, EncodeResult, present=_is_present, files=_files, problems=_problems)
