"""Stage prior: what new stars are drawn from, fitted once the model is trained."""

from __future__ import annotations

from functools import partial

from pydantic import Field

from gaiadask.catalogue import Partition
from gaiadask.cluster.workers import Task
from gaiadask.prior import GatherPrior, PriorStars, SkyCounts, make_prior
from gaiadask.prior.fitting import Gathered
from gaiadask.records import JsonObject, Record
from gaiadask.split import Part, hash_bound
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageResult, StageWork
from gaiadask.stages.statistics import read_statistics


class DensityResult(Record):
    """What came of one density."""

    validation_loss: float = Field(description="of its best validation, nats a star")
    rows_seen: int = Field(description="stars shown")
    seconds: float = Field(description="that the fit took")


class PriorResult(StageResult):
    """What the fit reports; only its kind where there is to be none."""

    kind: str = Field(description="as [prior] kind names it")
    pixels: int = Field(0, description="HEALPix pixels in which positions are drawn")
    counted: int = Field(0, description="train stars whose positions and null masks were counted")
    train: int = Field(0, description="train stars that the densities were fitted to")
    validation: int = Field(0, description="validation stars that they were stopped by")
    latent: DensityResult | None = Field(None, description="p(latents | position, null mask)")
    residual: DensityResult | None = Field(None, description="p(residual given latents)")
    free: DensityResult | None = Field(None, description="p(transformed columns), without latents")


def _inputs(context: Context) -> JsonObject:
    return {"train": context.key("train"), "encode": context.key("encode"), "prior": context.config.prior.model_dump()}


def _make(context: Context, key: str) -> PriorResult:
    store, run, record, config = context.store, context.run, context.catalogue, context.config.prior
    if config.kind == "none":
        return PriorResult(kind="none")
    model_key = context.key("train")
    bounds = (
        hash_bound(part, n, record.rows) for part, n in ((Part.TRAIN, config.stars), (Part.VALIDATION, config.validation_stars))
    )
    task: Task[Partition, Gathered] = Task("prior stars", label=lambda partition: str(partition.tile))
    gathered = context.map(GatherPrior(store, run, model_key, *bounds), record.partitions, task)
    given = (
        SkyCounts.merge([g.counts for g in gathered]),
        PriorStars.join([g.train for g in gathered], config.stars),
        PriorStars.join([g.validation for g in gathered], config.validation_stars),
    )
    work = partial(make_prior, store, run, config, key, model_key, read_statistics(store, run).train)
    return PriorResult.model_validate(context.workers.one(work, given, "prior", context.progress))


def _drop(context: Context) -> None:
    context.remove(context.run.prior_card, context.run.prior)


WORK = StageWork(_inputs, _make, PriorResult, _drop)
