"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

from functools import partial

from gaiadask import catalogue
from gaiadask.cluster.workers import over_partitions
from gaiadask.encode import encode_partition
from gaiadask.errors import DataError
from gaiadask.stages.context import Context, Inputs, Result


# Encode --------------------------------------------------------------------------------------------------------------
def _encode_inputs(context: Context) -> Inputs:
    return {"train": context.key("train"), "catalogue_id": context.catalogue.id}


def _make_encode(context: Context, key: str) -> Result:
    store, run, record = context.store, context.run, context.catalogue
    catalogue.unpublish(store, run.latent)
    partitions = over_partitions(
        context.client, partial(encode_partition, store, run, context.key("train")), record.partitions,
        task="encode", name_of=lambda p: str(p.tile), progress=context.progress,
    )  # fmt: skip
    rows = sum(p.rows for p in partitions)
    if rows != record.rows:
        raise DataError(f"{record.rows} stars were written, {rows} encoded: not published")
    catalogue.publish(
        store, run.latent, f"{context.run.name} latents", partitions, {"gaiadask_catalogue_id": record.id, "gaiadask_key": key}
    )
    return {"rows": rows, "partitions": len(partitions)}


def _drop_latent(context: Context) -> None:
    catalogue.unpublish(context.store, context.run.latent)
    context.store.remove(context.run.latent)
