"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from gaiadask import catalogue
from gaiadask.cluster.workers import over_partitions
from gaiadask.model.files import load_model_cached
from gaiadask.quality import rate, run_job, two_sample_jobs
from gaiadask.quality.files import save_rated, save_walks
from gaiadask.quality.gather import BASELINE_STARS, COMPARED_STARS, Gather, join, storage, with_baseline
from gaiadask.quality.traversal import walks
from gaiadask.sample import Request, SampleBlocks, blocks_of
from gaiadask.split import Part, hash_bound
from gaiadask.stages.context import Context, Inputs, Result


# Evaluate and report -------------------------------------------------------------------------------------------------
def _evaluate_inputs(context: Context) -> Inputs:
    return {"encode": context.key("encode"), "prior": context.key("prior"), "quality": context.config.quality.model_dump()}


def _make_evaluate(context: Context, key: str) -> Result:
    store, run, record, config = context.store, context.run, context.catalogue, context.config.quality
    model = load_model_cached(store, run, context.key("train"))
    gather = Gather(store, run, model.key)
    test_below = hash_bound(Part.TEST, config.rows, record.rows)
    train_below = hash_bound(Part.TRAIN, BASELINE_STARS, record.rows)

    def gathered(work: Callable[[catalogue.Partition], Any], task: str) -> list[Any]:
        return over_partitions(
            context.client, work, record.partitions, task=task, name_of=lambda p: str(p.tile), progress=context.progress
        )

    stars = join(gathered(partial(gather.test_stars, test_below), "test stars"), config.rows)
    sampled = _sampled(context, stars.real.num_rows)
    compared_below = hash_bound(Part.TRAIN, COMPARED_STARS, record.rows)
    train = pa.concat_tables(gathered(partial(gather.train_stars, compared_below), "train stars")) if sampled is not None else None
    values = np.concatenate(gathered(partial(gather.train_values, train_below), "baseline"))
    rated = with_baseline(stars, model, values, sampled)
    jobs = two_sample_jobs(rated, config)
    aucs = over_partitions(
        context.client, run_job, jobs, task="two-sample", unit="tests", name_of=lambda job: job.name, progress=context.progress
    )
    named = {job.name: auc for job, auc in zip(jobs, aucs, strict=True)}
    quality = rate(rated, config, named, storage(store, run, model, record.rows), train)
    save_rated(store, run, rated)
    save_walks(store, run, walks(model, rated))
    store.write_json(run.quality, {"key": key, **quality})
    return _summary(quality)


def _sampled(context: Context, stars: int) -> pa.Table | None:
    """New stars to be rated; None where the run was asked for no prior."""
    if context.config.prior.kind == "none":
        return None
    draw = SampleBlocks(context.store, context.run, Request.of(context.store, context.manifest, stars))
    blocks = range(blocks_of(stars))
    return pa.concat_tables(over_partitions(context.client, draw, blocks, task="sample", unit="blocks", progress=context.progress))


def _summary(quality: Mapping[str, Any]) -> Result:
    """The headline, for manifest and terminal."""
    result: Result = {"test_stars": quality["stars"]}
    for what, rating in quality["reconstruction"].items():
        headline = rating["headline"]["beside_position"]
        result[what] = {f"{q}_{of}": headline[q][of] for q in ("median", "ks") for of in ("mean", "worst")}
    if quality["two_sample"]:
        comparisons = quality["two_sample"]["comparisons"]
        result["two_sample_auc"] = comparisons["rebuilt"]["auc"]
        if "sampled" in comparisons:
            result["sampled_auc"] = comparisons["sampled"]["auc"]
    if quality["storage"]:
        result["bytes_a_star"] = quality["storage"]["on_disk"]
    return result
