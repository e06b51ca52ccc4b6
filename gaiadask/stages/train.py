"""Stage train: the autoencoder, fitted by a rank on a worker."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping

from gaiadask import catalogue
from gaiadask.config.sections import Config
from gaiadask.errors import DamagedFileError, DataError, GaiadaskError, MissingFileError
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.files import model_is_whole
from gaiadask.progress import reported
from gaiadask.records import JsonObject, StageResult
from gaiadask.split import ANY_HASH, RULE, Part, hash_bound
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.stages.statistics import read_statistics
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment
from gaiadask.training.codes import Codec
from gaiadask.training.events import Progress, RankEvent, TrainingEnd, Validated
from gaiadask.training.validation import ValidationStars, validation_columns

_TASK = "train"
_STARS = "gaiadask.validation_stars"
"""In the footer of a file of validation stars: how many were asked for."""


class TrainResult(TrainingEnd, StageResult):
    """Result of the stage train."""

    def summary(self) -> str:
        end = ", ended early" if self.stopped_early else ""
        return (
            f"{self.rows_seen:,} stars shown in {self.seconds:.0f} s{end}; validation loss {self.validation_loss:.4g} nats a star"
        )


def _inputs(context: Context) -> JsonObject:
    config = context.config
    return {
        "statistics": context.key("statistics"), "model": config.model.for_key(), "training": config.training.for_key(),
        "latent": config.latent.for_key(),
    }  # fmt: skip


def _make(context: Context, key: str) -> TrainResult:
    statistics = read_statistics(context.store, context.run, context.key("statistics"))
    seen = 0

    def report(_: str, event: RankEvent) -> None:
        nonlocal seen
        if isinstance(event, Progress | Validated):
            loss = event.loss if isinstance(event, Progress) else None
            context.progress.advance(_TASK, event.rows_seen - seen, f"loss {loss:.4g}" if loss is not None else "")
            seen = event.rows_seen

    write_validation_stars(context, context.run.validation, context.config.training.validation_rows)
    assigned = assignment(context, statistics, key)
    with reported(context.progress, _TASK, context.config.training.rows_seen, "stars"):
        (end,) = context.workers.train([assigned], report)
        if isinstance(end, GaiadaskError):
            raise end
    return TrainResult.model_validate(end.model_dump(exclude={"event"}))


def assignment(
    context: Context, statistics: Statistics, key: str, config: Config | None = None, candidate: RunPaths | None = None
) -> Assignment:
    """Assignment for rank 0: train the model of the run, or of one of its search's candidates, on the catalogue.

    Args:
        context: of the run.
        statistics: of the catalogue.
        key: that the model is saved under.
        config: the candidate's configuration; None: the run's.
        candidate: the candidate's files.
    """
    config, record = config or context.config, context.catalogue
    model, training = config.model, config.training
    if model.batch_norm != "none":
        training = training.model_copy(update={"ranks": 1})
    transform = Transform.fit(config.model_columns, statistics.train, config.release, model.position, model.scaling, model.derive)
    return Assignment(
        store=context.store.uri, fences=context.store.fences, run=(candidate or context.run).name,
        partitions=tuple(f"{paths.CATALOGUE}/{tile.file}" for tile in record.tiles),
        partition_rows=tuple(partition.rows for partition in record.partitions),
        validation=context.run.tuning_validation if candidate else context.run.validation,
        transform=transform.to_json(), codec=Codec.fit(transform, statistics.train, errors=model.error_share > 0).to_json(),
        model=model, training=training, bits=config.latent.bits, key=key, attempt=uuid.uuid4().hex[:8],
        device=config.cluster.device, metadata={"catalogue_id": record.id, "catalogue_rows": record.rows, "split": RULE},
    )  # fmt: skip


def write_validation_stars(context: Context, name: str, stars: int) -> None:
    """Write the `stars` validation stars of smallest hash (fewer where there are fewer) into a file, unless it has them already.

    Raises DataError where there are none.
    """
    record, config = context.catalogue, context.config
    footer = {catalogue.CATALOGUE_ID: record.id, _STARS: str(stars)}
    if _has_footer(context.store, name, footer):
        return
    columns = validation_columns(config.model_columns, record.columns, config.release)
    # With a hash below the first bound there are enough, but for once in a million; then all are looked at.
    for below in (hash_bound(Part.VALIDATION, stars + 5 * math.isqrt(stars) + 5, record.rows), ANY_HASH):
        gathered = ValidationStars(context.store, columns, stars, below)
        table = context.workers.reduce(
            gathered.of, gathered.merged, catalogue.batches(record.partitions), "validation stars", context.progress, size=len
        )
        if len(table) == stars:
            break
    if not len(table):
        raise DataError(
            f"no validation star among the {record.rows} stars of {context.store.uri}: a tenth of all stars, chosen by a hash of "
            "source_id, validates. Select more stars"
        )
    with context.store.writing(name) as scratch:
        catalogue.write_parquet(
            table.replace_schema_metadata({**(table.schema.metadata or {}), **footer}),
            scratch,
            row_group_size=catalogue.ROW_GROUP_ROWS,
        )


def _has_footer(store: Store, name: str, footer: Mapping[str, str]) -> bool:
    try:
        with store.open_parquet(name) as file:
            found = file.schema_arrow.metadata or {}
    except (MissingFileError, DamagedFileError):
        return False
    return all(found.get(entry.encode()) == value.encode() for entry, value in footer.items())


def _prepare(context: Context) -> None:
    """Fit the transform. Raises what training would refuse before its first star."""
    assignment(context, read_statistics(context.store, context.run, context.key("statistics")), "")


def _is_present(context: Context) -> bool:
    return model_is_whole(context.store, context.run, context.key("train"))


def _files(context: Context) -> tuple[str, ...]:
    run = context.run
    return run.card, run.model, run.checkpoints, run.metrics, run.tensorboard, run.validation


WORK = StageWork(_inputs, _make, TrainResult, prepare=_prepare, present=_is_present, files=_files)
