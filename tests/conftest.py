"""Fixtures that several test files share."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import dask
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from distributed import Client
from report_inputs import complete, mock_inputs
from small_catalogue import TABLE, write_catalogue
from small_run import make_run, small_config

from gaiadask.cluster.clients import open_workers
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.config.sections import ClusterConfig, Config
from gaiadask.model import StarModel, load_model
from gaiadask.report import render
from gaiadask.run import Run, open_run
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

REAL_ROWS = "GAIADASK_REAL_ROWS"
os.environ.setdefault("DO_NOT_TRACK", "1")  # or Prefect reports its first import to its makers
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so a shell starts what it runs in the background, and that what it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _every_level_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    """A cluster that starts silences the handlers of distributed's logger, pytest's own among them, for every later test."""
    caplog.handler.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def real_rows_path() -> Path:
    """The parquet file of real Gaia DR2 rows; skips where the environment names none."""
    path = os.environ.get(REAL_ROWS)
    if not path:
        pytest.skip(f"needs real Gaia DR2 rows: set {REAL_ROWS} to a parquet file of gaia_source rows (docs/real_rows.md)")
    return Path(path)


@pytest.fixture(scope="session")
def real_rows(real_rows_path: Path) -> pa.Table:
    """Real rows of gaia_source, every column the file has."""
    return pq.read_table(real_rows_path)


@pytest.fixture(scope="session")
def report_page() -> str:
    """A report with every section, of 400 mock stars."""
    return render(complete(mock_inputs(400)))


@pytest.fixture(scope="session")
def workers() -> Iterator[DaskWorkers]:
    """The two workers of a LocalCluster, one for the whole session."""
    with open_workers(ClusterConfig(workers=2, dashboard=False)) as workers:
        yield workers


@pytest.fixture(scope="session")
def client(workers: DaskWorkers) -> Client:
    """The client of that cluster."""
    return workers.client


@pytest.fixture(scope="session")
def small_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HATS catalogue that another program wrote, of small_catalogue.TABLE; tests copy what they change."""
    return write_catalogue(tmp_path_factory.mktemp("hats"), TABLE)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a run made up to its latents, nulls and all; tests copy what they change."""
    torch.set_num_threads(1)
    config = small_config(tmp_path_factory.mktemp("small") / "store")
    make_run(config)
    return config


@pytest.fixture(scope="module")
def run(small_run: Config) -> Run:
    """The small run, opened once a module: what it has read it keeps."""
    return open_run(f"{small_run.store}/runs/{small_run.name}")


@pytest.fixture
def in_this_process() -> Iterator[None]:
    """Dask's lazy frames are computed in this thread."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="session")
def star_model(small_run: Config) -> StarModel:
    """The small run's model: position a condition, seven derived columns among sixteen."""
    return load_model(Store(small_run.store), RunPaths(small_run.name))
