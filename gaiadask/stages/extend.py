"""Stage extend, on request: a HATS extension of the catalogue, with each star's latents, reconstruction error and log-likelihood.

`lsdb.open_catalog("<store>/catalogue").load_extension("<store>/runs/<name>/<name>.properties")` joins it to the catalogue on source_id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pyarrow as pa
from pydantic import Field

from gaiadask import catalogue, publishing
from gaiadask.catalogue import BITS_ENTRY, Partition
from gaiadask.cluster.workers import Task
from gaiadask.encode import latent_schema, latents_of_stored
from gaiadask.keys import digest
from gaiadask.model.source import ModelSource
from gaiadask.model.star_model import StarModel
from gaiadask.prior import load_prior_cached
from gaiadask.prior.artifact import prior_identity
from gaiadask.product import Piece, footer_of, latent_key, latent_origin, write_product
from gaiadask.quality.single_stars import rate_stars, stars_of
from gaiadask.records import JsonObject, StageResult
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.store.paths import HATS_MARKER
from gaiadask.validate import Finding

PRIOR, VERSION = "gaiadask_prior", "gaiadask_version"
"""In hats.properties: sha256 of the prior's weights, and the version of gaiadask."""
RATINGS = pa.schema(
    [
        pa.field("error_sigma", pa.float32(), metadata={"description": "largest |rebuilt - measured| over columns, in units of the star's own errors"}),
        pa.field("error_column", pa.string(), metadata={"description": "the column that has it"}),
        pa.field("log_likelihood", pa.float32(), metadata={"description": "of the latents under the prior, given position and nulls, nats"}),
    ]
)  # fmt: skip


class ExtendResult(StageResult):
    """Result of the stage extend."""

    rows: int = Field(description="stars")
    partitions: int = Field(description="files of the extension")
    uri: str = Field(description="of the properties file that lsdb loads")

    def summary(self) -> str:
        return f"{self.rows:,} stars in {self.partitions:,} partitions; lsdb loads {self.uri}"


def _prior(context: Context) -> str:
    """What distinguishes the run's prior from any other; "" where it has none."""
    return prior_identity(context.store, context.run) if context.config.prior.kind != "none" else ""


def _inputs(context: Context) -> JsonObject:
    keys: JsonObject = {stage: context.key(stage) for stage in ("encode", "prior")}
    return {**keys, "weights": context.model.weights, "prior_weights": _prior(context)}


def _make(context: Context, key: str) -> ExtendResult:
    store, run, record, model = context.store, context.run, context.catalogue, context.model
    _unpublish(context)
    work = ExtendPartitions(model, context.key("prior") if _prior(context) else "", _prior(context))
    task = Task[Sequence[Partition], list[Partition]]("extend", label=catalogue.shown, amount=len, size=len)
    made = context.map(work, catalogue.batches(record.partitions), task)
    partitions = [partition for batch in made for partition in batch]
    origin = latent_origin(record.id, key, model) | {PRIOR: _prior(context), VERSION: version("gaiadask")}
    summary = context.summary_of(run.extension, partitions)
    publishing.publish(store, run.extension, f"{run.name} stars", partitions, origin, summary)
    publishing.publish_extension(store, run.name, run.extension, run.extension_properties, origin)
    return ExtendResult(rows=record.rows, partitions=len(partitions), uri=store.uri_of(run.extension_properties))


def _unpublish(context: Context) -> None:
    context.store.remove(context.run.extension_properties)
    catalogue.unpublish(context.store, context.run.extension)


@dataclass(frozen=True)
class ExtendPartitions:
    """Writes the extension of some partitions of the catalogue; for workers.

    Attributes:
        model: whose latents the stars have.
        prior: key of the prior; "" where there is none.
        prior_weights: what distinguishes it from any other.
    """

    model: ModelSource
    prior: str
    prior_weights: str

    def __call__(self, sources: Sequence[Partition]) -> list[Partition]:
        """A partition that is there already, made of the same, is not made again. Raises DataError where latents are of other stars."""
        store, folder = self.model.store, self.model.run.extension
        pieces = [
            Piece(
                f"{folder}/{source.tile.file}", self._key(source), source.rows, f"extension of partition {source.tile}",
                self.model.weights,
            )
            for source in sources
        ]  # fmt: skip
        written = write_product(
            store, pieces, lambda lacking: self._rated([sources[number] for number in lacking]), [s.tile for s in sources]
        )
        return [catalogue.as_written(store, folder, *each) for each in zip(sources, written, strict=True)]

    def footer(self, source: Partition) -> dict[str, str]:
        """What the extension of a partition says that it was made from."""
        return footer_of(self._key(source), self.model.weights)

    def _key(self, source: Partition) -> str:
        return digest({"latents": latent_key(self.model.key, source), "prior": self.prior_weights})

    def _rated(self, sources: Sequence[Partition]) -> Iterator[pa.Table]:
        model = self.model.load()
        prior = load_prior_cached(self.model.store, self.model.run, self.prior) if self.prior else None
        names = pa.array([*model.transform.columns, None])
        for stars, encoded in stars_of(self.model, sources):
            ratings = rate_stars(stars, model, prior)
            worst = np.where(ratings.column < 0, len(names) - 1, ratings.column)
            columns = (ratings.error, names.take(pa.array(worst)), ratings.log_likelihood)
            # NaN: a star without errors, or a run without a prior.
            own = [pa.array(c, f.type, from_pandas=True) for c, f in zip(columns, RATINGS, strict=True)]
            latents = latents_of_stored(encoded, model)
            yield pa.table([*latents.columns, *own], schema=_schema(model))


def _schema(model: StarModel) -> pa.Schema:
    """Latents are floating-point numbers, which take as few bits as those integers that they were: see `catalogue.parquet_writer`."""
    bits = {code.name: str(code.bits) for code in model.card.codes}
    latents = [
        field.with_metadata({**(field.metadata or {}), BITS_ENTRY: bits[field.name]}) if field.name in bits else field
        for field in latent_schema(model)
    ]
    return pa.schema([*latents, *RATINGS])


def _is_present(context: Context) -> bool:
    store, folder, record = context.store, context.run.extension, context.catalogue
    if not (catalogue.is_published(store, folder) and store.exists(context.run.extension_properties)):
        return False
    origin = latent_origin(record.id, context.key("extend"), context.model) | {PRIOR: _prior(context)}
    if not origin.items() <= catalogue.provenance(store, folder).items():
        return False
    work = ExtendPartitions(context.model, "", _prior(context))
    return not context.not_whole(folder, record.partitions, work.footer)


def _problems(context: Context, place: str, quick: bool) -> list[Finding]:
    if not _is_present(context):
        return [Finding("extension", "missing, damaged or of another model or catalogue: `gaiadask extend CONFIG` makes it again")]
    return [Finding("extension, HATS", line) for line in publishing.strict_problems(context.store, context.run.extension)]


def _files(context: Context) -> tuple[str, ...]:
    run = context.run
    return run.extension_properties, f"{run.extension}/{HATS_MARKER}", run.extension


WORK = StageWork(_inputs, _make, ExtendResult, present=_is_present, files=_files, problems=_problems)
