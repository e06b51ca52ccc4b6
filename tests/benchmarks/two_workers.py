"""What a second worker brings, stage by stage: the same work on one worker and on two. Prints a markdown table.

    python tests/benchmarks/two_workers.py                           # 2 million mock stars, three rounds
    python tests/benchmarks/two_workers.py --stars 200000 --rounds 1
    python tests/benchmarks/two_workers.py --folder STORE            # keeps the store of mock stars for the next time
    python tests/benchmarks/two_workers.py --all-columns --stars 1000000

Two LocalClusters, of one worker and of two, stand beside each other with their modules loaded, and take each stage in turn, so
that what slows the machine for a while slows both. Each worker is held to a core of its own: one that has more reads, packs and computes in
threads on all of them, which is not what a second worker brings. Training, which is not measured here, has its own benchmark; it runs once, briefly,
for the model that encode, decode, the prior and sample need. Of the prior and of compress, the part over partitions counts (the
gathering of stars; coding and reading back): the fit is one process. The table has the medians of wall seconds, their ratio (2 is ideal; both cores must be free), CPU seconds of the workers, and what
share of the two workers' time was spent on the CPU: where it is low, they wait.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import all_columns_config, mock_config, workers_on_one_core

from gaiadask.catalogue import batches
from gaiadask.cluster.clients import open_workers
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.workers import Task
from gaiadask.codec.compressed import Compressed
from gaiadask.config.sections import ClusterConfig, Config, PriorConfig
from gaiadask.prior.fitting import GatherPrior
from gaiadask.split import Part, hash_bound
from gaiadask.stages.compress import CompressPartition
from gaiadask.stages.context import Context
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.decompress import DecompressOptions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.sample import SampleOptions
from gaiadask.stages.table import STAGES

YARDSTICKS = ("sort in a cache", "copy memory")
MEASURED = (*YARDSTICKS, "ingest", "statistics", "encode", "prior", "decode", "sample", "compress", "decompress")


class Run(NamedTuple):
    """One stage on one cluster: seconds by the clock, and CPU seconds of its workers."""

    wall_s: float
    cpu_s: float


def worker_processes(workers: DaskWorkers) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in workers.client.run(lambda: __import__("os").getpid()).values()]


def timed(work: Callable[[], Any], of: list[psutil.Process]) -> Run:
    def cpu() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in of)

    before, started = cpu(), time.perf_counter()
    work()
    return Run(time.perf_counter() - started, cpu() - before)


def gather(context: Context) -> None:
    """The prior's part over partitions, of as many stars as [prior] asks for by default."""
    config, rows = PriorConfig(), context.catalogue.rows
    bounds = hash_bound(Part.TRAIN, config.stars, rows), hash_bound(Part.VALIDATION, config.validation_stars, rows)
    work = GatherPrior(context.model, config, *bounds)
    context.workers.reduce(work, work.joined, batches(context.catalogue.partitions), "gather")


def compress(context: Context, folder: str) -> None:
    """What compress does over partitions, with the card that was fitted, into a place of its own."""
    made = Compressed(context.store, context.run.compressed)
    product = Compressed(context.store, f"{context.run.root}/{Path(folder).name}")
    sha256 = product.write_card(made.card)
    work = CompressPartition(product, context.config.release, "measured", sha256)
    context.map_partitions(work, context.catalogue.partitions, "compress")


def sort_in_cache(times: int) -> None:
    """32,768 numbers sorted again and again."""
    numbers = np.random.default_rng(0).random(32_768)
    for _ in range(times):
        np.sort(numbers)


def copy_memory(times: int) -> None:
    """64 MB copied again and again."""
    numbers = np.zeros(8_000_000)
    there = np.empty_like(numbers)
    for _ in range(times):
        np.copyto(there, numbers)


def stage_work(config: Config, name: str, workers: DaskWorkers, drawn: int, scratch: str) -> Callable[[], Any]:
    """What a stage does over partitions and what it writes of all of them, as a function: its result is made anew."""
    folder = tempfile.mkdtemp(dir=scratch)
    match name:
        case "sort in a cache":
            return lambda: workers.map(sort_in_cache, [2_000] * 8, Task(name))
        case "copy memory":
            return lambda: workers.map(copy_memory, [50] * 8, Task(name))
        case "ingest":
            own = config.model_copy(update={"store": folder})
            return lambda: run_stages(own, ["ingest"], workers=workers)
        case "decode":
            context = Context(config, request=DecodeOptions(output=folder), given_workers=workers)
        case "sample":
            context = Context(config, request=SampleOptions(stars=drawn, output=folder), given_workers=workers)
        case "decompress":
            context = Context(config, request=DecompressOptions(output=folder), given_workers=workers)
        case _:
            context = Context(config, given_workers=workers)
    if name == "compress":
        return lambda: compress(context, folder)
    if name == "prior":
        return lambda: gather(context)
    if name == "encode":
        context.remove(context.run.latent)
    stage = next(stage for stage in STAGES if stage.name == name)
    key = "" if stage.on_request else context.key(name)
    return lambda: stage.work.make(context, key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=2_000_000)
    parser.add_argument(
        "--all-columns", action="store_true", help="the release's 94 columns, of which the model has all that it can"
    )
    parser.add_argument("--drawn", type=int, default=131_072, help="new stars that sample draws")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stages", nargs="+", default=list(MEASURED), choices=MEASURED)
    parser.add_argument("--folder", type=Path, help="where the store is kept; a temporary folder by default")
    options = parser.parse_args()
    with ExitStack() as open_until_end:
        scratch = open_until_end.enter_context(tempfile.TemporaryDirectory(prefix="two-workers-", dir=options.folder))
        make = all_columns_config if options.all_columns else mock_config
        config = make(
            options.folder or Path(scratch), options.stars,
            training={"rows_seen": 200_000, "validation_rows": 1_000}, prior={"rows_seen": 20_000, "stars": 20_000},
        )  # fmt: skip
        clusters = {count: open_until_end.enter_context(open_workers(ClusterConfig(workers=count))) for count in (1, 2)}
        for workers in clusters.values():
            workers_on_one_core(workers.client)
            for module in ("gaiadask.stages.table", "gaiadask.sample", "gaiadask.archive.mock.archive"):
                workers.client.run(importlib.import_module, module)
        run_stages(config, ["ingest", "statistics", "train", "encode", "prior"], workers=clusters[2])
        run_stages(config, ["compress"], workers=clusters[2])
        rows = Context(config).catalogue.rows
        runs: dict[tuple[str, int], list[Run]] = {}
        for _ in range(options.rounds):
            for name in options.stages:
                for count, workers in clusters.items():
                    work = stage_work(config, name, workers, options.drawn, scratch)
                    runs.setdefault((name, count), []).append(timed(work, worker_processes(workers)))
    shown = {"sample": options.drawn, **dict.fromkeys(YARDSTICKS, None)}
    print("| stage | one worker, s | two workers, s | ratio | CPU s of one, of two | on the CPU | stars/s of two |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.stages:
        one, two = (statistics.median(run.wall_s for run in runs[name, count]) for count in (1, 2))
        cpu_one, cpu_two = (statistics.median(run.cpu_s for run in runs[name, count]) for count in (1, 2))
        stars = shown.get(name, rows)
        print(
            f"| {name} | {one:.1f} | {two:.1f} | {one / two:.2f} | {cpu_one:.1f}, {cpu_two:.1f} | {cpu_two / (2 * two):.0%} | "
            f"{f'{stars / two:,.0f}' if stars else ''} |"
        )


if __name__ == "__main__":
    main()
