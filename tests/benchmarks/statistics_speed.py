"""How fast statistics with quantiles are, beside a bare scan of the same columns and beside other programs. Prints a markdown table.

    python tests/benchmarks/statistics_speed.py                      # 10.4 million mock stars of 25 columns, three rounds
    python tests/benchmarks/statistics_speed.py --stars 500000 --repeats 1
    python tests/benchmarks/statistics_speed.py --folder STORE       # of a store whose catalogue is there already

In turn, each in a fresh process, on two threads or two workers of one thread, which have loaded their modules:

- scan: pyarrow's dataset scanner reads the columns and drops them.
- gaiadask: the stage's own reduction over partitions, on one worker and on two: count, nulls, minimum, maximum, mean, standard
  deviation and a sketch of all quantiles of each column, for all stars and for train stars, and whether derived columns follow
  from the others.
- duckdb: avg, stddev_pop and seven quantiles by approx_quantile, for all stars.
- dask.dataframe: mean, std and the same seven quantiles, for all stars.
- dask-ml: StandardScaler.fit, which is mean and variance without quantiles.
- polars: mean, std and exact quantiles of a lazy scan, where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import Part, bound, cpu_seconds, interleaved, mock_catalogue, table

from gaiadask.catalogue import batches
from gaiadask.cluster.clients import open_workers
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.config.sections import ClusterConfig
from gaiadask.ingest import read_catalogue_record
from gaiadask.inputs.statistics import Statistics
from gaiadask.release.dr2 import DR2, SEED25
from gaiadask.stages.statistics import batch_statistics, read_columns
from gaiadask.store import paths
from gaiadask.store.files import Store

THREADS = 2
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
COLUMNS = list(SEED25)


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / paths.CATALOGUE / "dataset").rglob("Npix=*.parquet"))


@contextmanager
def loaded_workers(count: int) -> Iterator[DaskWorkers]:
    """Workers that have loaded what they need: what a user waits for once is not the speed of a stage."""
    with open_workers(ClusterConfig(workers=count)) as workers:
        workers.client.run(importlib.import_module, "gaiadask.stages.statistics")
        workers.client.run(importlib.import_module, "dask.dataframe")
        yield workers


def timed(stars: Callable[[], int]) -> Part:
    cpu, started = cpu_seconds(), time.perf_counter()
    return Part(stars(), time.perf_counter() - started, cpu_seconds() - cpu)


def scan(folder: Path) -> Part:
    import pyarrow as pa
    import pyarrow.dataset as ds

    pa.set_cpu_count(THREADS)
    data = ds.dataset(files(folder))
    return timed(lambda: sum(batch.num_rows for batch in data.to_batches(columns=COLUMNS)))


def gaiadask(folder: Path, workers: int) -> Part:
    store = Store(str(folder))
    record = read_catalogue_record(store)
    work = partial(batch_statistics, store, DR2, read_columns(record.columns, DR2))
    with loaded_workers(workers) as crew:
        crew.client.run(work, record.partitions[:1])  # compiles, or reads what was compiled
        return timed(lambda: crew.reduce(work, Statistics.merged, batches(record.partitions), "statistics").all.rows)


def duckdb(folder: Path) -> Part:
    import duckdb

    database = duckdb.connect()
    database.execute(f"SET threads = {THREADS}; SET enable_progress_bar = false")
    each = ", ".join(f"avg({c}), stddev_pop({c}), approx_quantile({c}, {list(QUANTILES)})" for c in COLUMNS)
    query = f"SELECT count(*), {each} FROM read_parquet({files(folder)})"
    return timed(lambda: int(database.execute(query).fetchall()[0][0]))


def dask_dataframe(folder: Path) -> Part:
    import dask
    import dask.dataframe as dd

    with loaded_workers(THREADS) as crew, crew.client.as_current():

        def stars() -> int:
            frame = dd.read_parquet(files(folder), columns=COLUMNS)
            asked = (frame.mean(), frame.std(), frame.quantile(list(QUANTILES)), frame.shape[0])
            return int(dask.compute(*asked)[-1])

        return timed(stars)


def dask_ml(folder: Path) -> Part:
    import dask.dataframe as dd
    from dask_ml.preprocessing import StandardScaler

    with loaded_workers(THREADS) as crew, crew.client.as_current():

        def stars() -> int:
            frame = dd.read_parquet(files(folder), columns=COLUMNS)
            StandardScaler().fit(frame)
            return read_catalogue_record(Store(str(folder))).rows

        return timed(stars)


def polars(folder: Path) -> Part:
    import polars as pl  # type: ignore[import-not-found,unused-ignore]

    def stars() -> int:
        frame = pl.scan_parquet(files(folder)).select(COLUMNS)
        quantiles = [pl.all().quantile(q).name.suffix(f"_{q}") for q in QUANTILES]
        asked = [pl.len(), pl.all().mean().name.suffix("_mean"), pl.all().std().name.suffix("_std"), *quantiles]
        return int(frame.select(asked).collect()[0, 0])

    return timed(stars)


def contestants(folder: Path) -> dict[str, Callable[[], Any]]:
    others: dict[str, Callable[[Path], Part]] = {
        "duckdb": duckdb, "dask.dataframe": dask_dataframe, "dask-ml StandardScaler": dask_ml, "polars": polars,
    }  # fmt: skip
    modules = {"duckdb": "duckdb", "dask-ml StandardScaler": "dask_ml", "polars": "polars"}
    missing = [name for name, module in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"not installed, so not measured: {', '.join(missing)}", flush=True)
    ours = {f"gaiadask, {count} worker{'s' * (count > 1)}": bound(gaiadask, folder, count) for count in (1, 2)}
    return {"scan": bound(scan, folder), **ours, **{n: bound(f, folder) for n, f in others.items() if n not in missing}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=10_400_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a store; mock stars are ingested there where it has no catalogue")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="statistics-speed-") as scratch:
        folder = options.folder or Path(scratch)
        if not files(folder):
            mock_catalogue(folder, options.stars)
        print(table(interleaved(contestants(folder), options.repeats), against="scan"))


if __name__ == "__main__":
    main()
