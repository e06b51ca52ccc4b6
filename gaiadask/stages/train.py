"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gaiadask.cluster.ranks import train_rank
from gaiadask.config.sections import Config
from gaiadask.ingest import CatalogueRecord
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.split import RULE
from gaiadask.stages.context import Context, Inputs, Result
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment


# Train ---------------------------------------------------------------------------------------------------------------
def _train_inputs(context: Context) -> Inputs:
    training = context.config.training.model_dump(exclude={"threads", "buffer_rows", "tensorboard"})
    return {"statistics": context.key("statistics"), "model": context.config.model.model_dump(), "training": training}


def _make_train(context: Context, key: str) -> Result:
    statistics = Statistics.from_json(context.store.read_json(context.run.statistics))
    told = assignment(context.store, context.catalogue, statistics, context.config, context.run, key)
    with _training_progress(context) as report:
        last = train_rank(context.client, told.model_dump(mode="json"), report)
    return {k: v for k, v in last.items() if k != "event"}


def assignment(
    store: Store, record: CatalogueRecord, statistics: Statistics, config: Config, run: RunPaths, key: str
) -> Assignment:
    """What the rank is told that trains the model of `config` on a catalogue and leaves it, with this key, in `run`."""
    model = config.model
    transform = Transform.fit(config.model_columns, statistics.train, config.release, model.position, model.scaling, model.derive)
    names = [f"{paths.CATALOGUE}/{tile.file}" for tile in record.tiles]
    metadata = {"catalogue_id": record.id, "catalogue_rows": record.rows, "split": RULE}
    return Assignment(
        store=store.uri, run=run.name, partitions=tuple(names), transform=transform.to_json(), model=config.model,
        training=config.training, key=key, attempt=uuid.uuid4().hex[:8], metadata=metadata,
    )  # fmt: skip


@contextmanager
def _training_progress(context: Context) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    seen = 0

    def report(event: Mapping[str, Any]) -> None:
        nonlocal seen
        rows = int(event.get("rows_seen", seen))
        note = f"loss {event['loss']:.4g}" if "loss" in event else ""
        context.progress.advance("train", rows - seen, note)
        seen = rows

    context.progress.start("train", context.config.training.rows_seen, "stars")
    try:
        yield report
    finally:
        context.progress.finish("train")
