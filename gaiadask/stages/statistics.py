"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

from gaiadask import catalogue
from gaiadask.cluster.workers import tree_reduce
from gaiadask.errors import DataError
from gaiadask.inputs.statistics import FORMAT_VERSION as STATISTICS_FORMAT
from gaiadask.inputs.statistics import Statistics
from gaiadask.release.release import Release
from gaiadask.split import RULE
from gaiadask.stages.context import Context, Inputs, Result
from gaiadask.store import paths
from gaiadask.store.files import Store


# Statistics ----------------------------------------------------------------------------------------------------------
def _statistics_inputs(context: Context) -> Inputs:
    return {"catalogue_id": context.catalogue.id, "split": RULE, "format": STATISTICS_FORMAT}


def _make_statistics(context: Context, key: str) -> Result:
    record = context.catalogue
    result = tree_reduce(
        context.client, partial(partition_statistics, context.store, context.config.release), merge_statistics, record.partitions,
        task="statistics", progress=context.progress,
    )  # fmt: skip
    if result.all.rows != record.rows:
        raise DataError(
            f"the catalogue has {record.rows} rows, its partitions gave statistics of {result.all.rows}: changed from outside"
        )
    context.store.write_json(context.run.statistics, {"key": key, **result.to_json()})
    return {"rows": result.all.rows, "train_rows": result.train.rows}


def partition_statistics(store: Store, release: Release, partition: catalogue.Partition) -> Statistics:
    """Statistics of one partition, row group by row group."""
    tables = catalogue.iterate_partition(store, paths.CATALOGUE, partition.tile)
    return merge_statistics([Statistics.from_table(table, release) for table in tables])


def merge_statistics(records: Sequence[Statistics]) -> Statistics:
    """Several records as one."""
    return reduce(Statistics.merge, records)
