"""Finds the stars of a run that are like no other, on the configuration's workers."""

from __future__ import annotations

import pyarrow as pa

from gaiadask.catalogue import batches
from gaiadask.cluster.workers import Workers
from gaiadask.config.sections import Config
from gaiadask.progress import Progress, Silent
from gaiadask.quality.single_stars import FindOutliers, require_latent_prior
from gaiadask.stages.context import Context


def find_outliers(config: Config, n: int, progress: Progress | None = None, workers: Workers | None = None) -> pa.Table:
    """The `n` stars for each reason: a table of the schema `single_stars.OUTLIERS`.

    Args:
        config: of the run.
        n: how many for each reason.
        progress: receives how far it is.
        workers: where stars are rated, instead of on the configuration's cluster.

    Raises:
        MissingStageError: the run is not encoded, or has no prior of latents.
        KeyMismatchError: latents are of another model than the run's.
    """
    context = Context(config, progress or Silent(), given_workers=workers)
    with context.resources:
        context.key("encode")
        find = FindOutliers(context.model, require_latent_prior(context.manifest), n)
        pieces = batches(context.catalogue.partitions)
        return context.workers.reduce(find, find.merged, pieces, "outliers", context.progress, size=len)
