"""`[cluster] device` reaches everything that runs a network: a device that is not there is named by each of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from small_run import copied, fetched

from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml, parse_config
from gaiadask.errors import ConfigurationError
from gaiadask.model.device import torch_device
from gaiadask.model.source import ModelSource
from gaiadask.records import Record
from gaiadask.run import open_run
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.sample import SampleOptions
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

MISSING = r"device 'cuda:99' is not there, torch sees \d+ GPUs .*set \[cluster\] device to 'auto' or 'cpu'"


def test_auto_is_a_gpu_where_there_is_one() -> None:
    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert torch_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigurationError, match=MISSING):
        torch_device("cuda:99")


@pytest.mark.parametrize("device", ["abacus", "mps", "meta", "gpu", "cuda:", "cuda:x", ""])
def test_a_device_of_no_kind_is_refused_where_it_is_given(device: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cluster\.device: .*expected 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        parse_config({"name": "a", "store": "b", "cluster": {"device": device}})
    with pytest.raises(ConfigurationError, match=f"device is '{device}': expected 'auto'"):
        torch_device(device)


@pytest.fixture
def elsewhere(small_run: Config, tmp_path: Path) -> Config:
    """A run made up to its prior, whose networks are to run on a device that no machine has."""
    config = copied(small_run, tmp_path / "store")
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": "cuda:99"})})


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "encode", "prior", "evaluate", "decode", "sample"])
def test_every_stage_with_a_network_runs_it_there(elsewhere: Config, tmp_path: Path, stage: str) -> None:
    requests: dict[str, Record] = {"decode": DecodeOptions(output=str(tmp_path / "stars")), "sample": SampleOptions(stars=10)}
    manifest = Manifest(Store(elsewhere.store), RunPaths(elsewhere.name))
    manifest.remove(stage)
    if stage == "encode":
        Store(elsewhere.store).remove(RunPaths(elsewhere.name).latent)
    with pytest.raises(ConfigurationError, match=MISSING):
        run_stages(elsewhere, [stage], request=requests.get(stage), workers=Here())


def test_a_run_that_users_open_runs_its_network_there(elsewhere: Config, small_run: Config) -> None:
    run = open_run(f"{elsewhere.store}/runs/{elsewhere.name}", device="cuda:99")
    with pytest.raises(ConfigurationError, match=MISSING):
        _ = run.model
    stars: pa.Table = fetched(small_run).slice(0, 10)
    with pytest.raises(ConfigurationError, match=MISSING):
        run.encode(stars)


@pytest.mark.slow
def test_a_run_that_was_made_on_a_gpu_is_read_without_one(elsewhere: Config) -> None:
    Store(elsewhere.store).write_bytes(RunPaths(elsewhere.name).config, dump_toml(elsewhere, comments=False).encode())
    run = open_run(f"{elsewhere.store}/runs/{elsewhere.name}")
    assert len(run.decode(run.latent().get_partition(0)).compute())
    assert len(run.sample(10).compute()) == 10


def test_the_device_enters_no_key(small_run: Config, elsewhere: Config) -> None:
    """Stages that have run are skipped, on whatever device they ran."""
    run_stages(elsewhere, ["statistics", "train", "encode", "prior"], workers=Here())
    store, run = Store(small_run.store), RunPaths(small_run.name)
    key = Manifest(store, run).require("train").key
    assert next(ModelSource(store, run, key, "cpu").load().network.parameters()).device == torch.device("cpu")
