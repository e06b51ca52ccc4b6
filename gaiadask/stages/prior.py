"""Stage prior: what new stars are drawn from, fitted once the model is trained."""

from __future__ import annotations

from gaiadask.catalogue import batches
from gaiadask.prior import GatherPrior, MakePrior, PriorResult, prior_is_whole, save_gathered
from gaiadask.records import JsonObject
from gaiadask.split import Part, hash_bound
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.stages.statistics import read_statistics


def _inputs(context: Context) -> JsonObject:
    return {"train": context.key("train"), "encode": context.key("encode"), "prior": context.config.prior.for_key()}


def _make(context: Context, key: str) -> PriorResult:
    record, config = context.catalogue, context.config.prior
    if config.kind == "none":
        return PriorResult(kind="none")
    bounds = (
        hash_bound(part, n, record.rows) for part, n in ((Part.TRAIN, config.stars), (Part.VALIDATION, config.validation_stars))
    )
    gather = GatherPrior(context.model, config, *bounds)
    gathered = context.workers.reduce(gather, gather.joined, batches(record.partitions), "prior stars", context.progress, size=len)
    # By way of the store: what was sent to the workers would die with them.
    stars_sha256 = save_gathered(context.store, context.run, gathered)
    del gathered
    try:
        statistics = read_statistics(context.store, context.run, context.key("statistics")).train
        work = MakePrior(context.model, config, key, statistics, stars_sha256)
        return context.workers.one(work, "prior", context.progress)
    finally:
        context.store.remove(context.run.prior_stars)


def _is_present(context: Context) -> bool:
    if context.manifest.result("prior", PriorResult).kind == "none":
        return True
    return prior_is_whole(context.store, context.run, context.key("prior"))


WORK = StageWork(
    _inputs, _make, PriorResult, present=_is_present, files=lambda context: (context.run.prior_card, context.run.prior)
)  # fmt: skip
