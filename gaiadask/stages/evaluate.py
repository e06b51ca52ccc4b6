"""The stage evaluate: test stars and new stars rated, quality.json."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from gaiadask import catalogue
from gaiadask.cluster.workers import over_partitions
from gaiadask.model.files import load_model_cached
from gaiadask.quality import rate, run_job, two_sample_jobs
from gaiadask.quality.files import save_latent_traversal, save_quality, save_rated
from gaiadask.quality.gather import BASELINE_STARS, COMPARED_STARS, Gather, join, storage, with_baseline
from gaiadask.quality.records import REBUILT, SAMPLED, Quality
from gaiadask.quality.traversal import latent_traversal
from gaiadask.sample import Request, SampleBlocks, blocks_of
from gaiadask.split import Part, hash_bound
from gaiadask.stages.context import Context, Inputs, Result


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
    two_sample = {job.name: auc for job, auc in zip(jobs, aucs, strict=True)}
    size = storage(store, run, model, record.rows)
    quality = rate(rated, config, key=key, two_sample=two_sample, storage=size, train=train)
    save_rated(store, run, rated)
    save_latent_traversal(store, run, latent_traversal(model, rated))
    save_quality(store, run, quality)
    return _summary(quality)


def _sampled(context: Context, stars: int) -> pa.Table | None:
    """New stars to be rated; None where the run was asked for no prior."""
    if context.config.prior.kind == "none":
        return None
    draw = SampleBlocks(context.store, context.run, Request.of(context.store, context.manifest, stars))
    blocks = range(blocks_of(stars))
    return pa.concat_tables(over_partitions(context.client, draw, blocks, task="sample", unit="blocks", progress=context.progress))


def _summary(quality: Quality) -> Result:
    """The numbers to quote, for manifest and terminal."""
    result: Result = {"test_stars": quality.stars}
    for name, rating in quality.reconstruction.items():
        summaries = (("median", rating.headline.beside_position.median), ("ks", rating.headline.beside_position.ks))
        result[name] = {f"{number}_{of}": summary.to_json()[of] for number, summary in summaries for of in ("mean", "worst")}
    for name, stars in (("two_sample_auc", REBUILT), ("sampled_auc", SAMPLED)):
        if comparison := quality.comparison(stars):
            result[name] = comparison.auc
    if quality.storage:
        result["bytes_a_star"] = quality.storage.on_disk
    return result
