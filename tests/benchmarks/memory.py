"""How much memory the work of a partition takes, small partitions against large ones. Prints a markdown table.

    python tests/benchmarks/memory.py                                     # partitions of 200,000 and of 2 million stars
    python tests/benchmarks/memory.py --all-columns                       # of 94 columns, of which the model has 25
    python tests/benchmarks/memory.py --small 20000 --large 200000 --stars 100000

One partition of mock stars is written in two sizes: each star again and again, so that both are alike in all else. What a
worker does with a partition, stage by stage, runs on each in a fresh process, which has loaded its modules and the model before: the
table has the largest resident set above that, of `--repeats` runs the median. The aim is that it does not grow with the partition.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import RUN, TrainedStore, mock_config, run_once

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.cluster.here import Here
from gaiadask.config.sections import PriorConfig
from gaiadask.ingest import read_catalogue_record
from gaiadask.inputs.statistics import statistics_columns
from gaiadask.merge import GROUP_ROWS, MergeTiles, Part, TileJob
from gaiadask.prior import GatherPrior
from gaiadask.quality.gather import Gather
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import DR2
from gaiadask.stages.decode import DecodePartitions
from gaiadask.stages.encode import EncodePartitions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.statistics import batch_statistics
from gaiadask.store import paths
from gaiadask.store.files import Store

CHOSEN = 0.05
"""Share of the stars that rating and the prior take; of Gaia's it is far smaller."""
TESTED, RATED = 0.95, 50_000
"""Hash below which test stars are taken (they begin at 0.9), and how many of them are rated at most."""


PART_ROWS = 200_000


@dataclass(frozen=True)
class Bench(TrainedStore):
    """Of one partition."""

    partition: Partition


def widened(table: pa.Table) -> pa.Table:
    """With made-up values in all other columns of the release, a third of them null."""
    random, rows = np.random.default_rng(0), len(table)
    for field in DR2.catalogue_schema(DR2.columns):
        if field.name not in table.column_names:
            values = pa.array(np.abs(random.normal(scale=100, size=rows)), mask=random.random(rows) < 1 / 3)
            if pa.types.is_boolean(field.type):
                values = pc.greater(values, 67.0)
            elif not pa.types.is_floating(field.type):
                values = pc.round(values)
            table = table.append_column(field, values.cast(field.type))
    return table


def write_part(origin: Bench, folder: Path, number: int, rows: int) -> None:
    """A chunk's part with stars of the partition, under names of their own."""
    table = catalogue.read_partition(origin.store, paths.CATALOGUE, origin.partition.tile)
    table = table.take(np.sort(np.random.default_rng(number).integers(0, len(table), rows)))
    ids = pa.array(np.arange(rows, dtype=np.int64) + number * PART_ROWS)
    table = catalogue.sort_rows(table.set_column(table.column_names.index(SOURCE_ID), table.schema.field(SOURCE_ID), ids))
    with Store(str(folder)).writing(paths.part("chunk", str(number))) as scratch:
        catalogue.write_parquet(table, scratch, row_group_size=GROUP_ROWS)


def enlarged(origin: Bench, folder: Path, rows: int) -> Bench:
    """The same run with its partition in another size."""
    shutil.copytree(origin.folder / "runs", folder / "runs", ignore=shutil.ignore_patterns("latent"))
    times = -(-rows // origin.partition.rows)

    def pieces() -> Iterator[pa.Table]:
        left = rows
        for table in catalogue.iterate_partition(origin.store, paths.CATALOGUE, origin.partition.tile):
            repeated = table.take(np.repeat(np.arange(len(table)), times))
            yield repeated.slice(0, left)
            left -= min(left, len(repeated))

    for number in range(-(-rows // PART_ROWS)):
        write_part(origin, folder, number, min(PART_ROWS, rows - number * PART_ROWS))
    written = catalogue.write_partition(Store(str(folder)), paths.CATALOGUE, origin.partition.tile, pieces(), {})
    return Bench(folder, written)


# What workers do with a partition; each makes what the next one reads -------------------------------------------------
def merged(bench: Bench) -> object:
    """The partition merged from parts of PART_ROWS of its stars, into another store."""
    names = bench.store.list(paths.PARTS, ".parquet")
    with bench.store.open_parquet(names[0]) as file:
        schema = file.schema_arrow.remove_metadata()
    job = TileJob(bench.partition.tile, tuple(Part(name, "chunk") for name in names), {"chunk": bench.partition.rows})
    bench.store.remove(paths.tile_record(bench.partition.tile))
    return MergeTiles(bench.store, schema, "key", bench.partition.rows)([job])


def statistics_of(bench: Bench) -> object:
    with bench.store.open_parquet(f"{paths.CATALOGUE}/{bench.partition.tile.file}") as file:
        columns = statistics_columns(file.schema_arrow, DR2)
    return batch_statistics(bench.store, DR2, (SOURCE_ID, *columns), [bench.partition])


def encoded(bench: Bench) -> object:
    return EncodePartitions(bench.source)([bench.partition])


def decoded(bench: Bench) -> object:
    return DecodePartitions(bench.source, Store(str(bench.folder / "stars")))([bench.partition])


def prior_stars(bench: Bench) -> object:
    return GatherPrior(bench.source, PriorConfig(), CHOSEN, CHOSEN)([bench.partition])


def rated_stars(bench: Bench) -> object:
    return Gather(bench.source, RATED, TESTED, CHOSEN, CHOSEN)([bench.partition])


WORK: dict[str, Callable[[Bench], object]] = {
    "ingest: parts merged": merged,
    "statistics": statistics_of,
    "encode": encoded,
    "decode": decoded,
    "prior: stars gathered": prior_stars,
    "evaluate: stars gathered": rated_stars,
}


class _Warm:
    """A contestant that has its modules and the model before it is measured: they are loaded when it arrives in its process."""

    def __init__(self, work: Callable[[Bench], object], bench: Bench) -> None:
        self.work, self.bench = work, bench

    def __reduce__(self) -> tuple[Any, ...]:
        return _warmed, (self.work, self.bench)

    def __call__(self) -> float:
        self.work(self.bench)
        return float(self.bench.partition.rows)


def _warmed(work: Callable[[Bench], object], bench: Bench) -> _Warm:
    bench.source.load()
    return _Warm(work, bench)


def peak_mb(work: Callable[[Bench], object], bench: Bench, repeats: int) -> float:
    """Of the work in a fresh process, MB above what it began with."""
    peaks = []
    for _ in range(repeats):
        if work is encoded:
            bench.store.remove(RUN.latent)
        shutil.rmtree(bench.folder / "stars", ignore_errors=True)
        peaks.append(run_once(_Warm(work, bench)).peak_mb)
    return statistics.median(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of the work of a partition.")
    parser.add_argument("--stars", type=int, default=1_000_000, help="mock stars of which a partition is taken (default 1 million)")
    parser.add_argument("--small", type=int, default=200_000, help="stars of the small partition (default 200,000)")
    parser.add_argument("--large", type=int, default=2_000_000, help="stars of the large partition (default 2 million)")
    parser.add_argument(
        "--all-columns", action="store_true", help="the catalogue has the release's 94 columns, of which the model has 25"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gaiadask-memory-") as scratch:
        folder = Path(scratch)
        sections = {"training": {"rows_seen": 50_000, "validation_rows": 2_000}, "prior": {"kind": "none"}}
        run_stages(mock_config(folder / "origin", options.stars, **sections), ["ingest", "statistics", "train"], workers=Here())
        record = read_catalogue_record(Store(str(folder / "origin")))
        partition = max(record.partitions, key=lambda partition: partition.rows)
        if options.all_columns:
            table = widened(catalogue.read_partition(Store(str(folder / "origin")), paths.CATALOGUE, partition.tile))
            partition = catalogue.write_partition(Store(str(folder / "origin")), paths.CATALOGUE, partition.tile, table, {})
        origin = Bench(folder / "origin", partition)
        small, large = (enlarged(origin, folder / f"{rows}", rows) for rows in (options.small, options.large))
        print(
            f"| work of a partition | {options.small:,} stars, MB | {options.large:,} stars, MB | ratio |\n| --- | --- | --- | --- |"
        )
        for name, work in WORK.items():
            of_small, of_large = (partial(peak_mb, work)(bench, options.repeats) for bench in (small, large))
            print(f"| {name} | {of_small:,.0f} | {of_large:,.0f} | {of_large / of_small:.2f} |", flush=True)


if __name__ == "__main__":
    main()
