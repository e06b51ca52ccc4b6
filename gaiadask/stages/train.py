"""Stage train: the autoencoder, fitted by a rank on a worker."""

from __future__ import annotations

import uuid

from gaiadask.config.sections import Config
from gaiadask.errors import GaiadaskError
from gaiadask.ingest import CatalogueRecord
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.files import model_is_whole
from gaiadask.records import JsonObject
from gaiadask.split import RULE
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageResult, StageWork
from gaiadask.stages.statistics import read_statistics
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Progress, RankEvent, TrainingEnd, Validated

_TASK = "train"


class TrainResult(TrainingEnd, StageResult):
    """Result of the stage train."""


def _inputs(context: Context) -> JsonObject:
    config = context.config
    return {"statistics": context.key("statistics"), "model": config.model.for_key(), "training": config.training.for_key()}


def _make(context: Context, key: str) -> TrainResult:
    statistics = read_statistics(context.store, context.run, context.key("statistics"))
    seen = 0

    def report(_: str, event: RankEvent) -> None:
        nonlocal seen
        if isinstance(event, Progress | Validated):
            loss = event.loss if isinstance(event, Progress) else None
            context.progress.advance(_TASK, event.rows_seen - seen, f"loss {loss:.4g}" if loss is not None else "")
            seen = event.rows_seen

    context.progress.start(_TASK, context.config.training.rows_seen, "stars")
    try:
        assigned = assignment(context.store, context.catalogue, statistics, context.config, context.run, key)
        (end,) = context.workers.train([assigned], report)
    finally:
        context.progress.finish(_TASK)
    if isinstance(end, GaiadaskError):
        raise end
    return TrainResult.model_validate(end.model_dump(exclude={"event"}))


def assignment(
    store: Store, record: CatalogueRecord, statistics: Statistics, config: Config, run: RunPaths, key: str
) -> Assignment:
    """Assignment for rank 0: train the model of `config` on a catalogue and save it in `run` under this key."""
    model, training = config.model, config.training
    if model.batch_norm != "none":
        training = training.model_copy(update={"ranks": 1})
    transform = Transform.fit(config.model_columns, statistics.train, config.release, model.position, model.scaling, model.derive)
    return Assignment(
        store=store.uri, fences=store.fences, run=run.name, partitions=tuple(f"{paths.CATALOGUE}/{tile.file}" for tile in record.tiles),
        transform=transform.to_json(), model=model, training=training, key=key, attempt=uuid.uuid4().hex[:8],
        device=config.cluster.device,
        metadata={"catalogue_id": record.id, "catalogue_rows": record.rows, "split": RULE},
    )  # fmt: skip


def _prepare(context: Context) -> None:
    """Fit the transform. Raises what training would refuse before its first star."""
    statistics = read_statistics(context.store, context.run, context.key("statistics"))
    assignment(context.store, context.catalogue, statistics, context.config, context.run, "")


def _is_present(context: Context) -> bool:
    return model_is_whole(context.store, context.run, context.key("train"))


def _files(context: Context) -> tuple[str, ...]:
    run = context.run
    return run.card, run.model, run.checkpoints, run.metrics, run.tensorboard


WORK = StageWork(_inputs, _make, TrainResult, prepare=_prepare, present=_is_present, files=_files)
