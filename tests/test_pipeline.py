"""The engine: it is handed its stages, and each of them, on request or not, is under the same law."""

from __future__ import annotations

from pathlib import Path

import pytest
from dummies.dummy_stage import CountOptions, CountResult
from small_run import copied

from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.errors import ConfigurationError, KeyMismatchError, MissingStageError, StoreHeldError
from gaiadask.stages.engine import PIPELINE, Pipeline
from gaiadask.stages.stage import Stage
from gaiadask.stages.table import STAGES
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

COUNT = Stage("count", "Count the stars.", needs=("encode",), on_request=True, module="dummies.dummy_stage")


@pytest.fixture
def made(small_run: Config, tmp_path: Path) -> Config:
    """A run made up to its prior, to be changed."""
    return copied(small_run, tmp_path / "store")


def names(stages: tuple[Stage, ...]) -> list[str]:
    return [stage.name for stage in stages]


def test_what_a_stage_needs_is_told_by_the_table() -> None:
    named = PIPELINE.named
    assert names(PIPELINE.of_a_run) == ["ingest", "statistics", "train", "encode", "prior", "evaluate", "report"]
    assert names(PIPELINE.needed_by([named("sample")])) == ["ingest", "statistics", "train", "encode", "prior"]
    assert names(PIPELINE.needed_by([named("tune")])) == ["ingest", "statistics"]
    assert names(PIPELINE.depending_on([named("encode")])) == [
        "encode",
        "prior",
        "evaluate",
        "report",
        "decode",
        "sample",
        "extend",
    ]
    assert names(PIPELINE.depending_on([named("tune")])) == ["tune"]


def test_every_stage_has_its_module() -> None:
    for stage in STAGES:
        work = stage.work
        assert work.result.model_fields, stage.name
        assert all(field.description for field in work.result.model_fields.values()), stage.name
        if work.options:
            assert all(field.description for field in work.options.model_fields.values()), stage.name


@pytest.mark.slow
def test_a_stage_is_one_file_and_one_line_of_the_table(made: Config) -> None:
    """Lease, key, entry, skipping, refusal and --replace come with the line."""
    pipeline, store, run = Pipeline([*STAGES, COUNT]), Store(made.store), RunPaths(made.name)

    def count(times: int, *replacing: str) -> CountResult:
        request = CountOptions(times=times)
        result = pipeline.run(made, ["count"], request=request, replacing=replacing, workers=Here())["count"]
        assert isinstance(result, CountResult)
        return result

    stars = Manifest(store, run).require("encode").result["rows"]
    assert count(1).stars == stars
    entry = Manifest(store, run).require("count")
    written = store.read_json(f"{run.root}/count.json")
    assert written == {"key": entry.key, "stars": stars}
    store.write_json(f"{run.root}/count.json", {"marked": True})
    assert count(1).stars == stars
    assert store.read_json(f"{run.root}/count.json") == {"marked": True}, "made again though it was there"
    with pytest.raises(
        KeyMismatchError, match=r"has a count made from other inputs \(times: 1 there, 2 asked for\).*--replace count"
    ):
        count(2)
    with pytest.raises(ConfigurationError, match="only count itself"):
        count(2, "train")
    with Lease(store, run.lease), pytest.raises(StoreHeldError, match="one writer at a time"):
        count(2, "count")
    assert int(count(2, "count").stars) == 2 * int(str(stars))
    # What it was made from is dropped, and with it what depends on it.
    pipeline.run(made, ["statistics"], replacing=["encode"], workers=Here())
    assert not store.exists(f"{run.root}/count.json")
    with pytest.raises(MissingStageError, match="make it with `gaiadask encode CONFIG`"):
        count(1)


def test_stages_stand_after_those_that_they_need() -> None:
    with pytest.raises(AssertionError, match="stage count stands before one that it needs"):
        Pipeline([COUNT, *STAGES])
