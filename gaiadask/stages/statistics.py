"""Stage statistics: one pass over the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic import Field

from gaiadask import catalogue
from gaiadask.ahead import ahead
from gaiadask.archive.chunks import regrouped
from gaiadask.errors import DamagedFileError, KeyMismatchError, MissingFileError
from gaiadask.inputs.statistics import FORMAT_VERSION, Statistics, statistics_columns
from gaiadask.keys import require_same
from gaiadask.records import JsonObject, StageResult
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.split import RULE
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths


class StatisticsResult(StageResult):
    """Result of the stage statistics."""

    rows: int = Field(description="stars of the catalogue")
    train_rows: int = Field(description="train stars among them")

    def summary(self) -> str:
        return f"{self.rows:,} stars, {self.train_rows:,} of them train stars"


def _inputs(context: Context) -> JsonObject:
    return {"catalogue_id": context.catalogue.id, "split": RULE, "format": FORMAT_VERSION}


def _make(context: Context, key: str) -> StatisticsResult:
    record, release = context.catalogue, context.config.release
    work = partial(batch_statistics, context.store, release, read_columns(record.columns, release))
    items = catalogue.batches(record.partitions)
    statistics = context.workers.reduce(work, Statistics.merged, items, "statistics", context.progress, size=len)
    context.store.write_json(context.run.statistics, {"key": key, **statistics.to_json()})
    return StatisticsResult(rows=statistics.all.rows, train_rows=statistics.train.rows)


def read_statistics(store: Store, run: RunPaths, key: str) -> Statistics:
    """The statistics of this key that a run has made.

    Raises:
        KeyMismatchError: they are of another key.
        StoreError: they are missing or damaged.
    """
    content = store.read_json(run.statistics)
    remedy = "make it again with `gaiadask statistics CONFIG`"
    require_same(store.uri_of(run.statistics), content, {"key": key}, remedy)
    try:
        return Statistics.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{store.uri_of(run.statistics)} is damaged ({error}): {remedy}") from error


def _is_present(context: Context) -> bool:
    try:
        read_statistics(context.store, context.run, context.key("statistics"))
    except (MissingFileError, DamagedFileError, KeyMismatchError):
        return False
    return True


def read_columns(names: Sequence[str], release: Release) -> tuple[str, ...]:
    """Of a catalogue's columns, those that statistics need: source_id, and no other identifier nor text."""
    schema = release.catalogue_schema([name for name in names if name != HEALPIX_29])
    return (SOURCE_ID, *statistics_columns(schema, release))


def batch_statistics(
    store: Store, release: Release, columns: Sequence[str], partitions: Sequence[catalogue.Partition]
) -> Statistics:
    """Statistics of some columns of some partitions, a row group at a time; the next one is read meanwhile, small ones into one table.

    Raises DataError where a partition does not have the rows that were written to it.
    """
    tables = (table for partition in partitions for table in catalogue.iterate_written(store, paths.CATALOGUE, partition, columns))
    return Statistics.from_table(ahead(regrouped(tables, catalogue.ROW_GROUP_ROWS, cut=False)), release)


WORK = StageWork(
    _inputs, _make, StatisticsResult, present=_is_present, files=lambda context: (context.run.statistics,)
)  # fmt: skip
