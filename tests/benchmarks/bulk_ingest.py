"""How fast bulk files become a catalogue, and in how much memory, beside pandas and duckdb. Prints a markdown table.

    python tests/benchmarks/bulk_ingest.py                      # 500,000 and 2,000,000 mock stars, about five minutes
    python tests/benchmarks/bulk_ingest.py --stars 100000 --repeats 1

The same csv.gz files (94 columns, about 27,000 rows each, as the Gaia archive's) are converted to parquet (zstd, 27 columns)
in turn, `--repeats` times each:

- gaiadask: the ingest stage on a LocalCluster of two workers of one thread that have loaded their modules. It also checks checksums, types and
  ranges, computes and sorts by `_healpix_29`, files every star by position, and publishes a validated HATS catalogue.
- pandas: `read_csv` and `to_parquet`, file by file, in two processes.
- duckdb: one `COPY (SELECT … FROM read_csv(…)) TO …`, two threads, types given.

Rates are the best of the repeats, by wall clock and by CPU time of all processes (the clock of a busy machine tells less).
Memory is the largest resident set of one process (gaiadask, pandas: of a worker). `--chunk-rows 1` makes each file a chunk.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bulk_files import write_bulk_files

from gaiadask.cluster.clients import open_workers
from gaiadask.config.sections import ClusterConfig, SelectionConfig
from gaiadask.config.toml import parse_config
from gaiadask.release.dr2 import COLUMNS
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store

PROCESSES = 2
SELECTION = SelectionConfig(columns=("random_index", *SelectionConfig().column_names), not_null=())
SQL_TYPES = {"int64": "BIGINT", "int32": "INTEGER", "double": "DOUBLE", "float": "FLOAT", "bool": "BOOLEAN", "string": "VARCHAR"}


@dataclass(frozen=True)
class Measured:
    """One conversion: seconds by the clock and of CPU over all processes, the largest process's memory, bytes written."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    written: int


@contextmanager
def largest_process(processes: Callable[[], list[psutil.Process]]) -> Iterator[list[float]]:
    """A list that holds the largest resident set of any of the processes, in MB, when the block ends."""
    peak, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            for process in processes():
                try:
                    peak[0] = max(peak[0], process.memory_info().rss / 1e6)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in processes)


def written(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*.parquet") if "_ingest" not in p.parts)


def by_gaiadask(bulk: Path, out: Path, chunk_rows: int) -> Measured:
    """In a LocalCluster that runs already; its workers and this process count."""
    config = parse_config(
        {
            "store": str(out),
            "archive": {"kind": "files", "uris": [str(bulk / "GaiaSource_*.csv.gz")], "chunk_rows": chunk_rows},
            "selection": {"columns": list(SELECTION.column_names), "not_null": []},
            "catalogue": {"partition_mb": 16},  # a tile is merged in memory: of one size, whatever the number of stars
            "model": {"columns": "seed16"},
        }
    )
    with open_workers(ClusterConfig(workers=PROCESSES)) as workers:
        processes = [psutil.Process(pid) for pid in workers.client.run(os.getpid).values()]
        for module in ("gaiadask.stages", "gaiadask.archive.files"):
            workers.client.run(importlib.import_module, module)
        workers.probe(Store(str(out)))
        before = cpu_s([psutil.Process(), *processes])
        with largest_process(lambda: processes) as peak:
            started = time.perf_counter()
            run_stages(config, ["ingest"], workers=workers)
            wall = time.perf_counter() - started
        return Measured(wall, cpu_s([psutil.Process(), *processes]) - before, peak[0], written(out / "catalogue" / "dataset"))


def convert_with_pandas(file: Path, out: Path) -> float:
    """CPU seconds it took."""
    before = time.process_time()
    pd.read_csv(file, usecols=list(SELECTION.column_names)).to_parquet(out / f"{file.name}.parquet", compression="zstd")
    return time.process_time() - before


def by_pandas(bulk: Path, out: Path) -> Measured:
    files = sorted(bulk.glob("*.csv.gz"))
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(time.sleep, [0.2] * PROCESSES))  # the workers are there, as gaiadask's are
        children = psutil.Process().children()
        with largest_process(lambda: children) as peak:
            started = time.perf_counter()
            cpu = sum(pool.map(convert_with_pandas, files, [out] * len(files)))
            wall = time.perf_counter() - started
    return Measured(wall, cpu, peak[0], written(out))


def by_duckdb(bulk: Path, out: Path) -> Measured:
    types = ", ".join(f"'{name}': '{SQL_TYPES[str(column.dtype)]}'" for name, column in COLUMNS.items())
    program = f"""
import duckdb, resource, time
database = duckdb.connect()
database.execute("SET threads = {PROCESSES}; SET enable_progress_bar = false")
started = time.perf_counter()
database.execute('''COPY (SELECT {", ".join(SELECTION.column_names)} FROM read_csv('{bulk}/*.csv.gz', header = true, auto_detect = false,
    delim = ',', quote = '"', columns = {{{types}}})) TO '{out}/stars.parquet' (FORMAT parquet, COMPRESSION zstd)''')
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    wall, cpu, peak = map(float, done.stdout.split())
    return Measured(wall, cpu, peak, written(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, nargs="+", default=[500_000, 2_000_000])
    parser.add_argument("--rows-a-file", type=int, default=27_000)
    parser.add_argument("--chunk-rows", type=int, default=125_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=["gaiadask", "duckdb", "pandas"])
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bulk-ingest-", dir=options.folder))
    converters: dict[str, Callable[[Path, Path], Measured]] = {
        "gaiadask": lambda bulk, out: by_gaiadask(bulk, out, options.chunk_rows),
        "duckdb": by_duckdb,
        "pandas": by_pandas,
    }
    print("| stars | files | csv.gz, MB | by | stars/s | stars/s of CPU | peak memory, MB | bytes a star |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    try:
        for stars in options.stars:
            bulk = scratch / f"bulk-{stars}"
            count = write_bulk_files(bulk, stars, options.rows_a_file, processes=PROCESSES)
            size = sum(p.stat().st_size for p in bulk.glob("*.csv.gz")) / 1e6
            found: dict[str, list[Measured]] = {name: [] for name in options.only}
            for _ in range(options.repeats):
                for name in options.only:
                    out = scratch / "out"
                    out.mkdir()
                    found[name].append(converters[name](bulk, out))
                    shutil.rmtree(out)
            for name, runs in found.items():
                wall, cpu = min(run.wall_s for run in runs), min(run.cpu_s for run in runs)
                row = (f"{stars:,}", f"{count}", f"{size:.0f}", name, f"{stars / wall:,.0f}", f"{stars / cpu:,.0f}")
                print(f"| {' | '.join(row)} | {max(r.peak_mb for r in runs):,.0f} | {runs[0].written / stars:.0f} |", flush=True)
            shutil.rmtree(bulk)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
