"""How much memory the work of a partition takes, small partitions against large ones. Prints a markdown table.

    python tests/benchmarks/memory.py                                     # partitions of 200,000 and of 2 million stars
    python tests/benchmarks/memory.py --small 20000 --large 200000 --stars 100000

One partition of mock stars (25 columns) is written in two sizes: each star again and again, so that both are alike in all else. What a
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import RUN, TrainedStore, mock_catalogue, mock_config, run_once

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.cluster.here import Here
from gaiadask.config.sections import PriorConfig
from gaiadask.inputs.statistics import statistics_columns
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


@dataclass(frozen=True)
class Bench(TrainedStore):
    """Of one partition."""

    partition: Partition


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

    written = catalogue.write_partition(Store(str(folder)), paths.CATALOGUE, origin.partition.tile, pieces(), {})
    return Bench(folder, written)


# What workers do with a partition; each makes what the next one reads -------------------------------------------------
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
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gaiadask-memory-") as scratch:
        folder = Path(scratch)
        record = mock_catalogue(folder / "origin", options.stars)
        sections = {"training": {"rows_seen": 50_000, "validation_rows": 2_000}, "prior": {"kind": "none"}}
        run_stages(mock_config(folder / "origin", options.stars, **sections), ["statistics", "train"], workers=Here())
        origin = Bench(folder / "origin", max(record.partitions, key=lambda partition: partition.rows))
        small, large = (enlarged(origin, folder / f"{rows}", rows) for rows in (options.small, options.large))
        print(
            f"| work of a partition | {options.small:,} stars, MB | {options.large:,} stars, MB | ratio |\n| --- | --- | --- | --- |"
        )
        for name, work in WORK.items():
            of_small, of_large = (partial(peak_mb, work)(bench, options.repeats) for bench in (small, large))
            print(f"| {name} | {of_small:,.0f} | {of_large:,.0f} | {of_large / of_small:.2f} |", flush=True)


if __name__ == "__main__":
    main()
