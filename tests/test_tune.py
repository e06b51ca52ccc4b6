"""Architecture search: what is tried, that rungs go on from checkpoints, that a search is gone on with, what it tells."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import Client
from made_up import untrained
from small_run import context_of, copied, small_config

from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.workers import RankReport
from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.errors import ConfigurationError, GaiadaskError, KeyMismatchError, LostRankError, MissingStageError, StoreError
from gaiadask.model.files import load_model, save_model
from gaiadask.stages.engine import run_stages
from gaiadask.stages.train import write_validation_stars
from gaiadask.stages.tune import Scoring
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment
from gaiadask.training.events import Done
from gaiadask.training.metrics import read_metrics
from gaiadask.training.search import candidates, options_toml, read_search, search_markdown, search_table

pytestmark = pytest.mark.timeout(400)  # the search starts six processes that import torch; the machine may be busy

HIDDEN = [[8], [32], [32, 32]]
RATES = [1e-3, 3e-3]


def _config(tmp_path: Path, **searched: Any) -> Config:
    return small_config(tmp_path / "store", tune={"model": {"hidden": HIDDEN}, "training": {"learning_rate": RATES}, **searched})


# What is tried --------------------------------------------------------------------------------------------------------
def test_the_grid_is_every_combination_once(tmp_path: Path) -> None:
    found = candidates(_config(tmp_path), "s")
    options = [(list(c.options["model.hidden"]), c.options["training.learning_rate"]) for c in found]
    assert options == [(hidden, rate) for hidden in HIDDEN for rate in RATES]
    assert [(list(c.config.model.hidden), c.config.training.learning_rate) for c in found] == options
    assert len({c.name for c in found}) == len(found)
    # What is not searched is the configuration's own.
    assert {c.config.model.latents for c in found} == {6}
    assert {c.config.training.batch_rows for c in found} == {500}


def test_a_draw_is_of_the_grid_and_of_its_seed(tmp_path: Path) -> None:
    grid = [c.key for c in candidates(_config(tmp_path), "s")]
    drawn = [[c.key for c in candidates(_config(tmp_path, candidates=4, seed=seed), "s")] for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert any(other != drawn[0] for other in drawn[2:])
    for keys in drawn:
        assert len(set(keys)) == 4
        assert set(keys) <= set(grid)
    assert [c.key for c in candidates(_config(tmp_path, candidates=99), "s")] == grid


def test_what_overrides_a_preset_does_so_in_every_candidate(tmp_path: Path) -> None:
    model = {"preset": "keras-2020", "scaling": "quantile", "loss": "mse"}  # quantile is the option's default, not the preset's
    config = parse_config({"model": model, "tune": {"training": {"learning_rate": [1e-3, 1e-2]}}})
    for candidate in candidates(config, "s"):
        assert candidate.config.model == config.model
        assert candidate.config.training.schedule == "step"


def test_a_value_given_twice_is_tried_once(tmp_path: Path) -> None:
    assert len(candidates(_config(tmp_path, training={"learning_rate": [1e-3, 0.001]}), "s")) == len(HIDDEN)


def test_the_key_is_of_all_that_a_candidate_trains_with_but_the_budget(tmp_path: Path) -> None:
    config = _config(tmp_path)
    keys = [c.key for c in candidates(config, "s")]

    def of(**changes: Any) -> list[str]:
        return [c.key for c in candidates(small_config(config.store, tune=config.tune.model_dump(), **changes), "s")]

    assert of(training={"rows_seen": 9_000, "threads": 3, "patience": 2}) == keys
    assert [c.key for c in candidates(config, "other")] != keys
    assert of(training={"seed": 5}) != keys
    assert of(model={"latents": 5}) != keys


@pytest.mark.parametrize(
    ("searched", "told"),
    [
        ({"model": {"widths": [[8]]}}, r"tune: model.widths: unknown option; there are preset, columns, latents, hidden"),
        ({"training": {"rows_seen": [1, 2]}}, r"training.rows_seen cannot be searched: the rungs say"),
        ({"model": {"columns": ["seed16"]}}, r"model.columns cannot be searched"),
        ({"model": {"latents": []}}, r"model.latents: no value to try"),
        ({"factor": 1}, r"tune.factor"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_configuration(searched: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        parse_config({"tune": searched})


@pytest.mark.parametrize(
    ("searched", "told"),
    [
        ({}, "nothing to choose from"),
        ({"model": {"latents": [4]}}, "nothing to choose from"),
        ({"model": {"latents": [4, -1]}}, r"model.latents = -1:\n  model.latents: "),
    ],
)
def test_values_that_make_no_configuration_are_refused_by_name(searched: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        candidates(parse_config({"tune": searched}), "s")


# The search -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def searched(small_run: Config, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of three rates and one that diverges: broken off in its second rung, and gone on with."""
    config = copied(small_run, tmp_path_factory.mktemp("tune") / "store")
    values = {"model": {"hidden": [[8]]}, "training": {"learning_rate": [1e-4, 1e-3, 3e-3, 1e30]}}
    config = parse_config(config.model_dump() | {"tune": values | {"rows_seen": 10_000, "factor": 2, "validation_rows": 400}})
    trained: list[int] = []

    class BrokenOff(DaskWorkers):
        def train(self, assignments: Sequence[Assignment], report: RankReport) -> list[Done | GaiadaskError]:
            if len(assignments) < 3:
                raise StoreError("the disk is full")
            return super().train(assignments, report)

    class Counting(DaskWorkers):
        def train(self, assignments: Sequence[Assignment], report: RankReport) -> list[Done | GaiadaskError]:
            trained.append(len(assignments))
            return super().train(assignments, report)

    with pytest.raises(StoreError, match="disk is full"):
        run_stages(config, ["tune"], workers=BrokenOff(client))
    assert Manifest(Store(config.store), RunPaths(config.name)).entry("tune") is None
    begun = read_search(Store(config.store), RunPaths(config.name))
    assert begun.best is None
    assert {len(c.rungs) for c in begun.candidates.values()} == {0, 1}
    result = run_stages(config, ["tune"], workers=Counting(client))["tune"]
    assert trained == [2], "the first rung was there already"
    assert result.candidates == 4
    return config


@pytest.mark.slow
def test_the_best_of_each_rung_go_on_from_their_checkpoints(searched: Config) -> None:
    store, run = Store(searched.store), RunPaths(searched.name)
    record = read_search(store, run)
    by_rungs = {n: [c for c in record.candidates.values() if len(c.rungs) == n] for n in range(3)}
    assert [len(by_rungs[n]) for n in range(3)] == [1, 1, 2]
    # Those that went on had the better scores, and the best of them has the best of the last.
    assert max(c.rungs[0].score for c in by_rungs[2]) <= by_rungs[1][0].rungs[0].score
    best = record.candidates[record.best]
    assert best.rungs[1].score == min(c.rungs[1].score for c in by_rungs[2])
    for name, candidate in record.candidates.items():
        assert [r.budget for r in candidate.rungs] == [10_000, 20_000][: len(candidate.rungs)]
        assert [r.rows_seen for r in candidate.rungs] == [r.budget for r in candidate.rungs]
        if candidate.rungs:
            assert 0 < candidate.rungs[0].score < candidate.rungs[0].worst < 10
            begun = [r.resumed_from_rows for r in read_metrics(store, run.candidate(name)) if r.rows_seen > 0]
            assert begun == [0, 10_000][: len(candidate.rungs)]


def test_each_rung_is_scored_by_its_own_model(small_run: Config, tmp_path: Path) -> None:
    """A candidate's key leaves the budget out, so that a model of the same key is not always the same model."""
    config = copied(small_run, tmp_path / "store")
    store, run = Store(config.store), RunPaths(config.name)
    candidate = candidates(parse_config(config.model_dump() | {"tune": {"model": {"latents": [6, 4]}}}), "s")[0]
    write_validation_stars(context_of(config), run.tuning_validation, 1_000)
    model, scores = load_model(store, run), []
    for _rung in range(2):
        outcome = untrained(config.model, candidate.key)
        save_model(store, run.candidate(candidate.name), model.network, model.transform, outcome)
        scores.append(Scoring(store, run, 1_000)(candidate).score)
        with torch.no_grad():
            next(iter(model.network.decoder.parameters())).mul_(2)
    assert scores[1] > 1.1 * scores[0] > 0


@pytest.mark.slow
def test_a_candidate_that_diverges_is_told_and_stops_nobody(searched: Config) -> None:
    record = read_search(Store(searched.store), RunPaths(searched.name))
    failed = [c for c in record.candidates.values() if c.error]
    assert [c.options["training.learning_rate"] for c in failed] == [1e30]
    assert all("learning_rate" in c.error or "finite" in c.error for c in failed)


@pytest.mark.slow
def test_a_candidate_that_loses_its_stars_is_told_and_stops_nobody(small_run: Config, client: Client, tmp_path: Path) -> None:
    """Trained without a hitch, it gives negative fluxes, which have no colour: there is nothing to score."""
    config = copied(small_run, tmp_path / "store")
    model = {"preset": "autoencoder", "latents": 6, "hidden": [8], "loss": "mse", "linear_path": False}
    values = {"model": {"scaling": ["quantile", "min-max"]}, "rows_seen": 10_000, "factor": 2, "validation_rows": 400}
    config = parse_config(config.model_dump(exclude={"model", "latent"}) | {"model": model, "tune": values})
    result = run_stages(config, ["tune"], workers=DaskWorkers(client))["tune"]
    assert result.best == {"model.scaling": "quantile"}
    failed = [c for c in read_search(Store(config.store), RunPaths(config.name)).candidates.values() if c.error]
    assert [c.options["model.scaling"] for c in failed] == ["min-max"]
    assert "more than half its values are lost" in failed[0].error


@pytest.mark.slow
def test_a_rank_that_was_killed_is_no_candidates_fault(small_run: Config, client: Client, tmp_path: Path) -> None:
    config = copied(small_run, tmp_path / "store")
    values = {"training": {"learning_rate": [1e-3, 3e-3]}, "rows_seen": 10_000, "validation_rows": 400}
    config = parse_config(config.model_dump() | {"tune": values})

    class Killed(DaskWorkers):
        def train(self, assignments: Sequence[Assignment], report: RankReport) -> list[Done | GaiadaskError]:
            return [LostRankError("the rank ended with code -9")] * len(assignments)

    with pytest.raises(LostRankError, match="code -9"):
        run_stages(config, ["tune"], workers=Killed(client))
    store, run = Store(config.store), RunPaths(config.name)
    tried = read_search(store, run).candidates if store.exists(run.tuned) else {}
    assert all(candidate.error is None for candidate in tried.values())


def test_the_best_options_are_lines_of_a_configuration() -> None:
    options = {"model.column_weights": {"pmra": 2.0}, "model.loss": "weighted-mse", "training.learning_rate": 1e-3}
    assert tomllib.loads(options_toml(options)) == {
        "model": {"column_weights": {"pmra": 2.0}, "loss": "weighted-mse"}, "training": {"learning_rate": 1e-3},
    }  # fmt: skip


@pytest.mark.slow
def test_what_was_tried_is_a_table(searched: Config) -> None:
    record = read_search(Store(searched.store), RunPaths(searched.name))
    by_score = sorted((c for c in record.candidates.values() if len(c.rungs) == 1), key=lambda c: c.rungs[0].score)
    head, rows = search_table(record)
    assert head[:3] == ["hidden", "learning_rate", "parameters"]
    assert head[3:5] == ["error at 0.01 M stars", "error at 0.02 M stars"]
    assert len(rows) == 4
    assert {len(row) for row in rows} == {len(head)}
    best = record.candidates[record.best]
    assert rows[0][:2] == [str(best.options["model.hidden"]), str(best.options["training.learning_rate"])]
    assert [row[3] for row in rows[-2:]] == [f"{by_score[-1].rungs[0].score:.4f}", "failed"]
    assert len(search_markdown(record).splitlines()) == 6
    parsed = small_config(searched.store, **tomllib.loads(options_toml(best.options)))
    assert list(parsed.model.hidden) == best.options["model.hidden"]
    assert parsed.training.learning_rate == best.options["training.learning_rate"]


@pytest.mark.slow
def test_a_search_that_is_there_is_skipped_and_another_one_asks_first(searched: Config) -> None:
    store, run = Store(searched.store), RunPaths(searched.name)
    before = store.read_bytes(run.tuned)
    # Neither needs a cluster: nothing is done.
    run_stages(searched, ["tune"])
    other = parse_config(searched.model_dump() | {"tune": {**searched.tune.model_dump(), "rows_seen": 5_000}})
    with pytest.raises(KeyMismatchError, match="--replace tune"):
        run_stages(other, ["tune"])
    with pytest.raises(ConfigurationError, match="only tune itself"):
        run_stages(other, ["tune"], replacing=["train"])
    assert store.read_bytes(run.tuned) == before
    left = {name.rsplit("/", 1)[1] for name in store.list(run.tuning)}
    assert left == {"metrics.jsonl", "validation.parquet"}, "weights and checkpoints of candidates are gone"


def test_a_search_needs_statistics(tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match="gaiadask statistics"):
        run_stages(_config(tmp_path), ["tune"])
    with pytest.raises(MissingStageError, match="gaiadask tune"):
        read_search(Store(str(tmp_path)), RunPaths("dr2"))
