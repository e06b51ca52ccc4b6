"""A store on S3: filled from bulk files, killed and gone on with, trained on, encoded, and read by others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.dataframe as dd
import fsspec
import lsdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from bulk_files import write_bulk_files
from hats.io.validation import is_valid_catalog
from small_catalogue import NUMBERS, TABLE, write_catalogue
from small_run import fetched, small_config
from upath import UPath

import gaiadask
from gaiadask import catalogue, ingest
from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml
from gaiadask.errors import GaiadaskError, StoreHeldError
from gaiadask.ingest_plan import read_plan
from gaiadask.release.column import SOURCE_ID
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease
from gaiadask.store.paths import RunPaths, Tile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STARS = 16_000


@pytest.fixture(scope="module")
def config(s3: fsspec.AbstractFileSystem, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose store is on S3 and whose stars are bulk files there."""
    folder = tmp_path_factory.mktemp("bulk")
    write_bulk_files(folder, STARS, 500)
    s3.put(str(folder), "gaia/bulk", recursive=True)
    archive = {"kind": "files", "uris": ("s3://gaia/bulk/GaiaSource_*.csv.gz",), "chunk_rows": 2_000}
    return small_config("s3://gaia/store", archive=archive, cluster={"workers": 2})


def killed_when(config: Path, moment: Callable[[], bool]) -> None:
    """Start `gaiadask ingest` and kill -9 all its processes at the moment."""
    with subprocess.Popen(
        [sys.executable, "-m", "gaiadask.cli", "ingest", str(config)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr
        try:
            end = time.monotonic() + 100
            while not moment():
                assert process.poll() is None, f"it ended before the moment came: {process.stderr.read()}"
                assert time.monotonic() < end, "the moment did not come"
                time.sleep(0.05)  # the server of the store has one thread
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def etags(s3: fsspec.AbstractFileSystem, store: Store, names: list[str]) -> dict[str, tuple[str, str]]:
    """What tells one write of an object from another."""
    s3.invalidate_cache()
    return {name: (str(s3.info(store.path(name))["ETag"]), str(s3.info(store.path(name))["LastModified"])) for name in names}


def done_chunks(store: Store) -> list[str]:
    return [name for name in store.list(paths.LEDGER, ".json") if store.read_json(name)["state"] == "done"]


def test_ingest_is_killed_twice_and_gone_on_with(s3: fsspec.AbstractFileSystem, config: Config, tmp_path: Path) -> None:
    store, toml = Store(config.store), tmp_path / "gaia.toml"
    toml.write_text(dump_toml(config, comments=False))

    killed_when(toml, lambda: len(done_chunks(store)) >= 3)
    plan = read_plan(store)
    assert 4 < len(plan.chunks) < sum(len(chunk.files) for chunk in plan.chunks)
    done = done_chunks(store)
    assert 3 <= len(done) < len(plan.chunks)
    before = etags(s3, store, done)

    killed_when(toml, lambda: len(store.list(f"{paths.CATALOGUE}/dataset", ".parquet")) >= 2)
    assert etags(s3, store, done) == before
    assert not catalogue.is_published(store, paths.CATALOGUE)

    last = subprocess.run(
        [sys.executable, "-m", "gaiadask.cli", "ingest", str(toml)], capture_output=True, text=True, timeout=120, check=False
    )
    assert last.returncode == 0, last.stderr
    assert etags(s3, store, done) == before
    expected = fetched(config)
    record = ingest.read_catalogue_record(store)
    assert record.rows == len(expected) == STARS
    found = []
    for partition in record.partitions:
        table = catalogue.read_partition(store, paths.CATALOGUE, partition.tile)
        catalogue.check_rows_in_tile(table, partition.tile)
        assert catalogue.reread(store, paths.CATALOGUE, partition.tile) == partition
        found.append(table)
    rows = pa.concat_tables(found).sort_by(SOURCE_ID).select(expected.column_names)
    assert rows.cast(expected.schema).equals(expected)
    assert is_valid_catalog(UPath(store.uri_of(paths.CATALOGUE)), strict=True)
    assert not store.list(paths.PARTS)
    assert not store.exists(paths.INGEST_LEASE)


def test_a_run_is_made_and_read_there(s3: fsspec.AbstractFileSystem, config: Config) -> None:
    store, run = Store(config.store), RunPaths(config.name)
    results = run_stages(config, ["ingest", "statistics", "train", "encode"])
    assert results["encode"].rows == STARS
    record = ingest.read_catalogue_record(store)

    latents = dd.read_parquet(f"{config.store}/{run.latent}/dataset")
    assert latents.npartitions == len(record.partitions)
    ids = np.sort(latents["source_id"].compute().to_numpy())
    assert np.array_equal(ids, fetched(config)[SOURCE_ID].to_numpy())
    opened = gaiadask.open_run(f"{config.store}/{run.root}")
    assert len(opened.latent()) == STARS
    rebuilt = opened.decode(opened.latent()).partitions[0].compute()
    assert rebuilt["parallax"].notna().any()
    assert len(lsdb.open_catalog(UPath(store.uri_of(run.latent)))) == STARS

    again = run_stages(config, ["ingest", "statistics", "train", "encode"])
    assert again == results


def test_batches_are_those_of_a_local_catalogue(s3: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    s3.put(str(write_catalogue(tmp_path / "hats", TABLE)), "gaia/hats", recursive=True)
    own, found = (
        list(gaiadask.batches(where, NUMBERS, batch_rows=512, buffer_rows=1_000)) for where in (tmp_path / "hats", "s3://gaia/hats")
    )
    assert all(torch.equal(a.values, b.values) and torch.equal(a.null, b.null) for a, b in zip(own, found, strict=True))
    rest = list(gaiadask.batches("s3://gaia/hats", NUMBERS, batch_rows=512, buffer_rows=1_000, start=found[4].state))
    assert torch.equal(rest[0].values, own[5].values) and len(rest) == len(own) - 5
    begun = gaiadask.batches("s3://gaia/hats", NUMBERS)
    s3.rm(f"gaia/hats/{Tile(0, 1).file}")
    with pytest.raises(GaiadaskError, match=r"Npix=1.parquet: no such file: restore it, or make it again with what made it"):
        list(begun)
    with pytest.raises(GaiadaskError, match=r"s3://no-such-bucket/hats.*(NoSuchBucket|bucket does not exist)"):
        gaiadask.batches("s3://no-such-bucket/hats", NUMBERS)


def test_one_of_many_writers_gets_the_lease(s3: fsspec.AbstractFileSystem) -> None:
    """A conditional put decides, with nobody holding it before."""
    store = Store("s3://gaia/contested")

    def take(number: int) -> Lease | None:
        try:
            return Lease(store, "lease.json").__enter__()
        except StoreHeldError:
            return None

    for _ in range(3):
        with ThreadPoolExecutor(8) as threads:
            held = [lease for lease in threads.map(take, range(8)) if lease]
        assert len(held) == 1
        with pytest.raises(StoreHeldError, match=f"process {os.getpid()}"):
            Lease(store, "lease.json").__enter__()
        held[0].__exit__()
        assert not store.exists("lease.json")


def test_what_another_process_writes_is_seen_at_once(s3: fsspec.AbstractFileSystem) -> None:
    store = Store("s3://gaia/shared")
    assert store.list("a") == []
    assert not store.exists("a/b.json")
    code = "from gaiadask.store.files import Store; Store('s3://gaia/shared').write_json('a/b.json', {'x': 1})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert store.exists("a/b.json")
    assert store.list("a") == ["a/b.json"]
    assert store.read_json("a/b.json") == {"x": 1}
    assert store.size("a") == store.size("a/b.json") > 0
