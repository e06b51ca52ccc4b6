"""How fast stars become latents and latents stars, beside what each needs at least and beside dask's own way. Prints two markdown tables.

    python tests/benchmarks/encode_speed.py                       # 10 million mock stars of 25 columns, made first: some 20 minutes
    python tests/benchmarks/encode_speed.py --stars 500000 --repeats 1
    python tests/benchmarks/encode_speed.py --folder /data/bench  # keeps the stars and the model for the next time

A model of 8 latents and three hidden layers of 128, hardly trained, encodes a catalogue; in turn, each in a fresh process:

- bare read: pyarrow reads the row groups' columns that encoding (decoding) needs, and nothing else.
- forward: the network alone computes as many stars from memory.
- bare write: pyarrow writes as many latents (stars) from memory, as the stage writes them.
- one worker: the stage's own function of each partition on a LocalCluster of one worker that may use every core: it reads and writes in
  threads beside the two that compute. The aim is 0.8 of the slowest of the three above, each of which has one core.
- one core, two cores: the same on one worker that is held to one core, and on two workers held to one each; the aim is 1.8 times.
- map_partitions: `Run.encode` (`Run.decode`) of the lazy frame and dask's `to_parquet`, on two workers.
- by hand: what one writes without gaiadask, on two workers: `map_partitions` of a function that has scikit-learn's
  QuantileTransformer, fitted before, and the same network, in torch, of a whole partition; and `to_parquet`. It keeps no null masks,
  makes no HEALPix index, computes no column from others, checks nothing and may leave half a file.

Workers are started, and have done the smallest partition once (they have the model, and the compiled functions), before their time
begins.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.preprocessing import QuantileTransformer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import (
    RUN,
    Part,
    TrainedStore,
    bound,
    cpu_seconds,
    interleaved,
    mock_catalogue,
    mock_config,
    on_one_core,
    table,
    workers_on_one_core,
)

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.cluster.clients import open_workers
from gaiadask.cluster.here import Here
from gaiadask.cluster.workers import Task
from gaiadask.config.cluster import ClusterConfig
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.ingest import read_catalogue_record
from gaiadask.model.source import ModelSource
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.run import open_run
from gaiadask.stages.decode import DecodePartitions
from gaiadask.stages.encode import EncodePartitions
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store

MODEL = {"latents": 8, "hidden": [128, 128, 128]}
OPTIONS = {"training": {"rows_seen": 100_000, "validation_rows": 2_000}, "model": MODEL, "prior": {"kind": "none"}}


@dataclass(frozen=True)
class Bench(TrainedStore):
    """Of a catalogue, and where results may go."""

    scratch: Path

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return read_catalogue_record(self.store).partitions


def prepared(folder: Path, stars: int) -> None:
    """Make the catalogue, the model and the latents that are not there yet."""
    mock_catalogue(folder, stars)
    run_stages(mock_config(folder, stars, **OPTIONS), ["statistics", "train", "encode"], workers=Here())


def timed(stars: int, work: Callable[[], Any]) -> Part:
    cpu, started = cpu_seconds(), time.perf_counter()
    work()
    return Part(stars, time.perf_counter() - started, cpu_seconds() - cpu)


# What each stage needs at least ---------------------------------------------------------------------------------------
def bare_read(bench: Bench, decoding: bool) -> Part:
    on_one_core()
    transform = bench.source.load().transform
    columns = None if decoding else list(dict.fromkeys((SOURCE_ID, RA, DEC, *transform.columns)))
    folder, partitions = RUN.latent if decoding else paths.CATALOGUE, bench.partitions

    def read() -> None:
        for partition in partitions:
            for _ in catalogue.iterate_partition(bench.store, folder, partition.tile, columns):
                pass

    return timed(sum(partition.rows for partition in partitions), read)


def _first_group(bench: Bench) -> pa.Table:
    """The first row group of the largest partition."""
    largest = max(bench.partitions, key=lambda partition: partition.rows)
    return next(catalogue.iterate_partition(bench.store, paths.CATALOGUE, largest.tile))


def forward(bench: Bench, decoding: bool) -> Part:
    on_one_core()
    model, group = bench.source.load(), _first_group(bench)
    inputs = model.transform.forward(group)
    z = model.encode(inputs)
    times = -(-sum(partition.rows for partition in bench.partitions) // len(group))

    def compute() -> None:
        for _ in range(times):
            _ = model.decode(z, inputs.condition) if decoding else model.encode(inputs)

    return timed(times * len(group), compute)


def bare_write(bench: Bench, decoding: bool) -> Part:
    on_one_core()
    model = bench.source.load()
    rows = encode(_first_group(bench), model)
    rows = decode(rows, model) if decoding else rows
    times = -(-sum(partition.rows for partition in bench.partitions) // len(rows))
    path = bench.scratch / "written.parquet"
    return timed(times * len(rows), lambda: catalogue.write_pieces((rows for _ in range(times)), path, {}))


# The stage ------------------------------------------------------------------------------------------------------------
def stage(bench: Bench, decoding: bool, workers: int, cores_each: int) -> Part:
    source, partitions = bench.source, bench.partitions
    output = Store(str(bench.scratch / "stars"))
    work: Any = DecodePartitions(source, output) if decoding else EncodePartitions(source)

    def remove_made() -> None:
        if not decoding:
            source.store.remove(RUN.latent)
        shutil.rmtree(bench.scratch / "stars", ignore_errors=True)

    remove_made()
    with open_workers(ClusterConfig(workers=workers)) as cluster:
        if cores_each == 1:
            workers_on_one_core(cluster.client)
        cluster.client.run(source.load)
        least = min(partitions, key=lambda partition: partition.rows)
        cluster.client.run(work, [least])  # compiles, or reads what was compiled
        remove_made()
        pieces = catalogue.tapering(partitions, cluster.threads())
        return timed(sum(p.rows for p in partitions), lambda: cluster.map(work, pieces, Task("bench")))


def map_partitions(bench: Bench, decoding: bool) -> Part:
    run = open_run(f"{bench.folder}/runs/{RUN.name}", device="cpu")
    frame = run.decode(run.latent()) if decoding else run.encode(run.catalogue())
    target = bench.scratch / "dask"
    shutil.rmtree(target, ignore_errors=True)
    with open_workers(ClusterConfig(workers=2)) as cluster, cluster.client.as_current():
        some = frame.partitions[[np.argmin([partition.rows for partition in bench.partitions])]]
        cluster.client.run(lambda: len(some.compute(scheduler="synchronous")))  # compiles, or reads what was compiled
        rows = sum(partition.rows for partition in bench.partitions)
        return timed(rows, lambda: frame.to_parquet(str(target), compression="zstd", write_index=False))


class ByHand:
    """A partition's stars to latents, or latents to stars, as one would write it without gaiadask."""

    def __init__(self, source: ModelSource, stars: pd.DataFrame) -> None:
        """source: whose network is taken, and whose columns. stars: that the transformer is fitted to."""
        self.source, model = source, source.load()
        self.columns = [name for name in model.transform.slots if name in stars]
        self.scores = QuantileTransformer(output_distribution="normal").fit(stars[self.columns])
        self.conditions = model.network.shape.n_conditions

    def _condition(self, stars: pd.DataFrame) -> torch.Tensor:
        ra, dec = np.radians(stars["ra"]), np.radians(stars["dec"])
        condition = np.zeros((len(stars), self.conditions), np.float32)  # what is null is not known here, nor asked for
        condition[:, :3] = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
        return torch.from_numpy(condition)

    @torch.inference_mode()
    def encode(self, stars: pd.DataFrame) -> pd.DataFrame:
        values = np.nan_to_num(self.scores.transform(stars[self.columns])).astype(np.float32)
        z = self.source.load().network.mean(torch.from_numpy(values), self._condition(stars)).numpy()
        latents = pd.DataFrame(z, columns=[f"z{i:02d}" for i in range(z.shape[1])])
        return pd.concat([stars[["source_id", "ra", "dec"]].reset_index(drop=True), latents], axis=1)

    @torch.inference_mode()
    def decode(self, latents: pd.DataFrame) -> pd.DataFrame:
        z = torch.from_numpy(latents.filter(regex="^z").to_numpy(np.float32, copy=True))
        values = self.source.load().network.decode(z, self._condition(latents)).numpy()[:, : len(self.columns)]
        stars = pd.DataFrame(self.scores.inverse_transform(values), columns=self.columns)
        return pd.concat([latents[["source_id", "ra", "dec"]].reset_index(drop=True), stars], axis=1)


def by_hand(bench: Bench, decoding: bool) -> Part:
    work = ByHand(bench.source, _first_group(bench).to_pandas())
    columns = list(dict.fromkeys(["source_id", "ra", "dec", *work.columns]))
    folder = RUN.latent if decoding else paths.CATALOGUE
    files = sorted(str(file) for file in (bench.folder / folder / "dataset").rglob("Npix=*.parquet"))
    target = bench.scratch / "by-hand"
    shutil.rmtree(target, ignore_errors=True)
    with open_workers(ClusterConfig(workers=2)) as cluster, cluster.client.as_current():
        frame = dd.read_parquet(files, columns=None if decoding else columns)
        made = frame.map_partitions(work.decode if decoding else work.encode)
        cluster.client.run(bench.source.load)
        rows = sum(partition.rows for partition in bench.partitions)
        return timed(rows, lambda: made.to_parquet(str(target), compression="zstd", write_index=False))


def contest(bench: Bench, decoding: bool, repeats: int) -> str:
    runs = interleaved(
        {
            "bare read": bound(bare_read, bench, decoding),
            "forward": bound(forward, bench, decoding),
            "bare write": bound(bare_write, bench, decoding),
            "one worker": bound(stage, bench, decoding, 1, 0),
            "one worker of one core": bound(stage, bench, decoding, 1, 1),
            "two workers of one core each": bound(stage, bench, decoding, 2, 1),
            "map_partitions(...).to_parquet, two workers": bound(map_partitions, bench, decoding),
            "by hand, two workers": bound(by_hand, bench, decoding),
        },
        repeats,
    )
    floors = {name: np.median([run.rate for run in runs[name]]) for name in ("bare read", "forward", "bare write")}
    return table(runs, min(floors, key=lambda name: floors[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast encode and decode are.")
    parser.add_argument("--stars", type=int, default=10_000_000, help="mock stars (default 10 million)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contestant (default 3)")
    parser.add_argument("--folder", default="", help="where the store is kept (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gaiadask-bench-") as scratch:
        bench = Bench(Path(options.folder or f"{scratch}/store"), Path(scratch))
        prepared(bench.folder, options.stars)
        for title, decoding in (("Decode", True), ("Encode", False)):
            print(f"\n### {title}\n\n{contest(bench, decoding, options.repeats)}", flush=True)
        run_stages(mock_config(bench.folder, options.stars, **OPTIONS), ["encode"], workers=Here())  # whole again for the next time


if __name__ == "__main__":
    main()
