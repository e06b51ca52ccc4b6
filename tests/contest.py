"""What the benchmarks of speed share: contestants run in turn, each in a fresh process, and a catalogue of mock stars to run on.

A contestant is a function of a module, so that its process can import it. It returns how many stars it processed, and may return
the seconds of its measured part too; otherwise everything after the import counts.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import torch
from distributed import Client

from gaiadask.config.toml import parse_config
from gaiadask.ingest import CatalogueRecord, read_catalogue_record
from gaiadask.model.source import ModelSource
from gaiadask.release.dr2 import DR2
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

from whole_release import write_whole_release  # isort: skip

LOOK_S = 0.1
"""How often the memory of the processes is looked at: five times as often takes six hundredths of a core from what is measured."""
LIST_S = 1.0
"""How often they are listed, which costs some milliseconds of the CPU time that is measured."""


@dataclass(frozen=True)
class Timed:
    """One run: stars, seconds by the clock and of CPU (children too), and the largest resident set of one process above the start."""

    stars: float
    wall_s: float
    cpu_s: float
    peak_mb: float

    @property
    def rate(self) -> float:
        """Stars a second, by the clock."""
        return self.stars / self.wall_s


@dataclass(frozen=True)
class Part:
    """What a contestant returns that measures its own part: stars, and seconds by the clock and of CPU."""

    stars: float
    wall_s: float
    cpu_s: float


def cpu_seconds() -> float:
    """CPU seconds of this process, of its children that have ended, and of those that run."""
    own, running = os.times(), 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            running += sum(child.cpu_times()[:2])
        except psutil.Error:
            continue
    return own.user + own.system + own.children_user + own.children_system + running


def _measured(function: Callable[[], Any]) -> Timed:
    """Run in the fresh process."""
    processes, peak, done = [psutil.Process()], [0.0], threading.Event()
    before = processes[0].memory_info().rss

    def look() -> None:
        listed = 0.0
        while not done.wait(LOOK_S):
            if time.monotonic() - listed > LIST_S:
                processes[1:], listed = processes[0].children(recursive=True), time.monotonic()
            for process in processes:
                try:
                    start = before if process == processes[0] else 0
                    peak[0] = max(peak[0], (process.memory_info().rss - start) / 1e6)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=look)
    watcher.start()
    cpu, started = cpu_seconds(), time.perf_counter()
    try:
        result = function()
    finally:
        done.set()
        watcher.join()
    if isinstance(result, Part):
        return Timed(result.stars, result.wall_s, result.cpu_s, peak[0])
    return Timed(float(result), time.perf_counter() - started, cpu_seconds() - cpu, peak[0])


def run_once(function: Callable[[], Any]) -> Timed:
    """One run of a contestant in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, function).result()


def interleaved(contestants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Timed]]:
    """Every contestant once, then every one again, `repeats` times: what slows the machine for a while slows all of them."""
    runs: dict[str, list[Timed]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            runs[name].append(run_once(function))
    return runs


def table(runs: Mapping[str, Sequence[Timed]], against: str) -> str:
    """A markdown table: medians and spread of the runs; the ratio is that of the medians of the rates to `against`'s."""
    rate = {name: statistics.median(run.rate for run in timed) for name, timed in runs.items()}
    lines = [
        f"| | stars/s | lowest to highest | of {against} | stars/s of CPU | memory, MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, timed in runs.items():
        rates, cpu = [run.rate for run in timed], statistics.median(run.stars / max(run.cpu_s, 1e-9) for run in timed)
        cells = (
            name, f"{rate[name]:,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}", f"{rate[name] / rate[against]:.2f}", f"{cpu:,.0f}",
            f"{max(run.peak_mb for run in timed):,.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# What contestants may use --------------------------------------------------------------------------------------------
def on_one_core(core: int = 0) -> None:
    """Hold this process, whatever it starts and the libraries' threads to one core."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    torch.set_num_threads(1)
    pa.set_cpu_count(1)


def workers_on_one_core(client: Client) -> None:
    """Hold each worker of a LocalCluster to one core, its own where there are enough."""
    for number, address in enumerate(client.scheduler_info(n_workers=-1)["workers"]):
        client.run(on_one_core, number, workers=[address])


# Stars and models to run on ------------------------------------------------------------------------------------------
RUN = RunPaths("bench")
"""The run of `mock_config`."""


@dataclass(frozen=True)
class TrainedStore:
    """A store whose run has a model."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(str(self.folder))

    @property
    def source(self) -> ModelSource:
        return ModelSource.of(self.store, RUN, Manifest(self.store, RUN).require("train").key)


def mock_config(folder: Path, stars: int, *, partition_mb: float = 64, **sections: Any) -> Any:
    """The configuration of a store of about `stars` mock stars of 25 columns, nulls left as they are."""
    values: dict[str, Any] = {
        "name": RUN.name,
        "store": str(folder),
        "archive": {"kind": "mock", "mock_stars": stars, "chunk_rows": 500_000},
        "selection": {"columns": "seed25", "not_null": []},
        "catalogue": {"partition_mb": partition_mb},
        "model": {"columns": "seed25"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse_config(values)


def all_columns_config(folder: Path, stars: int, **sections: Any) -> Any:
    """The same with every column of the release, all of which the model has that it can; stars are made where they are not there."""
    files = folder / f"stars-{stars}-all"
    write_whole_release(files, stars)
    encoded = [name for name, column in DR2.columns.items() if column.is_encodable]
    given = {"archive": {"kind": "files", "uris": [str(files / "*.parquet")]}, "selection": {"columns": "all"}}
    sections["model"] = {"columns": encoded} | sections.get("model", {})
    return mock_config(folder / f"store-{stars}-all", stars, **given, **sections)


def mock_catalogue(folder: Path, stars: int, *, partition_mb: float = 64) -> CatalogueRecord:
    """A catalogue of `stars` mock stars in `folder`, ingested where it is not there yet (20 s a million)."""
    config = mock_config(folder, stars, partition_mb=partition_mb)
    run_stages(config, ["ingest"])
    return read_catalogue_record(Store(str(folder)))


def bound(function: Callable[..., Any], *given: Any) -> Callable[[], Any]:
    """A contestant: `function` of what is given, picklable."""
    return partial(function, *given)
