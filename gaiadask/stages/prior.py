"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

from gaiadask.cluster.workers import over_partitions, run_one
from gaiadask.inputs.statistics import Statistics
from gaiadask.prior import Gathered, GatherPrior, MakePrior, PriorResult
from gaiadask.split import Part, hash_bound
from gaiadask.stages.context import Context, Inputs, Result


# Prior ---------------------------------------------------------------------------------------------------------------
def _prior_inputs(context: Context) -> Inputs:
    return {"train": context.key("train"), "encode": context.key("encode"), "prior": context.config.prior.model_dump()}


def _make_prior(context: Context, key: str) -> Result:
    store, run, record, config = context.store, context.run, context.catalogue, context.config.prior
    if config.kind == "none":
        return PriorResult(kind="none").to_json()
    model_key = context.key("train")
    bounds = (
        hash_bound(part, n, record.rows) for part, n in ((Part.TRAIN, config.stars), (Part.VALIDATION, config.validation_stars))
    )
    gathered = over_partitions(
        context.client, GatherPrior(store, run, model_key, *bounds), record.partitions,
        task="prior stars", name_of=lambda p: str(p.tile), progress=context.progress,
    )  # fmt: skip
    statistics = Statistics.from_json(store.read_json(run.statistics)).train
    work = MakePrior(store, run, config, key, model_key, statistics)
    # Not with the task's description, and to every worker: one that dies takes no star with it.
    given = context.client.scatter(tuple(Gathered.join(gathered, config)), hash=False, broadcast=True)
    return run_one(context.client, work, given, task="prior", progress=context.progress).to_json()
