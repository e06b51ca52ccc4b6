"""A worker is killed in every stage: the stage ends well, and comes to what it comes to undisturbed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import Client
from small_run import context_of, copied, small_config

from gaiadask.cluster.here import Here
from gaiadask.cluster.workers import Workers
from gaiadask.config.sections import Config
from gaiadask.records import Record
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.sample import SampleOptions
from gaiadask.training.search import read_search
from gaiadask.validate import validate

from .killing import DyingWorkers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@dataclass(frozen=True)
class Disturbed:
    """A stage: the tasks in which a worker is killed, and the files beside or in the store that the stage makes."""

    tasks: frozenset[str]
    files: str


STAGES = {
    "ingest": Disturbed(frozenset({"fetch", "merge"}), "store/catalogue/dataset/**/*.parquet"),
    "statistics": Disturbed(frozenset({"statistics"}), "store/runs/small/statistics.json"),
    "train": Disturbed(frozenset({"training"}), "store/runs/small/model/weights.safetensors"),
    "encode": Disturbed(frozenset({"encode"}), "store/runs/small/latent/dataset/**/*.parquet"),
    "prior": Disturbed(frozenset({"prior"}), "store/runs/small/prior/weights.safetensors"),
    "evaluate": Disturbed(frozenset({"two-sample"}), "store/runs/small/rated/*.parquet"),
    "decode": Disturbed(frozenset({"decode"}), "decode/*.parquet"),
    "sample": Disturbed(frozenset({"sample"}), "sample/*.parquet"),
    "tune": Disturbed(frozenset({"training"}), "store/runs/small/tune/*.parquet"),
}


def make(config: Config, stage: str, workers: Workers, *replacing: str) -> None:
    folder = str(Path(config.store).parent / stage)
    requests: dict[str, Record] = {"decode": DecodeOptions(output=folder), "sample": SampleOptions(stars=700, output=folder)}
    run_stages(config, [stage], request=requests.get(stage), workers=workers, replacing=replacing)


def made(config: Config, stage: str) -> dict[str, str]:
    """Hashes of the files that a stage made; none of them tells a time."""
    root = Path(config.store).parent
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.glob(STAGES[stage].files)}


def numbers(config: Config, stage: str) -> Any:
    """What evaluate and tune found, without how long it took."""
    context = context_of(config)
    if stage == "evaluate":
        text = context.store.read_bytes(context.run.quality).decode()
        return re.sub(r'"seconds_per_fit": [\d.e-]+', "", text)
    search = read_search(context.store, context.run)
    return [rung.score for candidate in search.candidates.values() for rung in candidate.rungs]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of every stage, made in this process."""
    torch.set_num_threads(1)
    config = small_config(
        tmp_path_factory.mktemp("undisturbed") / "store",
        archive={"mock_stars": 4_000, "chunk_rows": 1_000},
        model={"hidden": (16,)},
        training={"rows_seen": 12_000, "validate_every_rows": 4_000},
        prior={"rows_seen": 2_000},
        quality={"rows": 200, "two_sample_rows": 100, "two_sample_seeds": 1},
        tune={"model": {"latents": [4, 6]}, "rows_seen": 1_000, "factor": 2, "validation_rows": 200},
    )
    for stage in STAGES:
        make(config, stage, Here())
    return config


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_whose_worker_dies_comes_to_the_same(stage: str, undisturbed: Config, client: Client, tmp_path: Path) -> None:
    config = copied(undisturbed, tmp_path / "store")
    (tmp_path / "marks").mkdir()
    workers = DyingWorkers(client, tmp_path / "marks", STAGES[stage].tasks)
    make(config, stage, workers, stage)
    assert workers.died == STAGES[stage].tasks
    assert made(config, stage) == made(undisturbed, stage) != {}
    if stage in ("evaluate", "tune"):
        assert numbers(config, stage) == numbers(undisturbed, stage)
    if stage == "prior":
        assert not list(tmp_path.rglob("stars.safetensors"))
    client.wait_for_workers(2, timeout=60)


def test_a_validation_whose_worker_dies_finds_the_same(undisturbed: Config, client: Client, tmp_path: Path) -> None:
    context = context_of(copied(undisturbed, tmp_path / "store"))
    gone = context.store.list("catalogue/dataset", ".parquet")[0]
    context.store.remove(gone)
    workers = DyingWorkers(client, tmp_path, frozenset({"validate"}))
    found = validate(workers, context.store, context.config.release)
    assert found == validate(Here(), context.store, context.config.release) != []
    assert workers.died == {"validate"}
    client.wait_for_workers(2, timeout=60)
