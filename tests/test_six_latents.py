"""What a network is worth: with fewer latents than free columns it rebuilds stars better than PCA of its own inputs, and its
new stars are harder to tell than a Gaussian copula's."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaiadask.config.toml import parse_config
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_six_latents_beat_pca_of_the_same_inputs_in_all_four(tmp_path: Path) -> None:
    config = parse_config(
        {
            "name": "six",
            "store": str(tmp_path / "store"),
            "archive": {"kind": "mock", "mock_stars": 120_000, "chunk_rows": 20_000},
            "model": {"latents": 6, "hidden": [128, 128, 128]},
            "training": {"rows_seen": 1_000_000, "validate_every_rows": 500_000, "validation_rows": 5_000},
            "prior": {"stars": 20_000, "validation_stars": 2_000, "rows_seen": 100_000},
            "quality": {"rows": 5_000, "two_sample_rows": 1_000, "two_sample_seeds": 1},
        }
    )
    results = run_stages(config, ["ingest", "statistics", "train", "encode", "prior", "evaluate"])
    rebuilt, pca = results["evaluate"].rebuilt, results["evaluate"].baseline
    for measure in ("median_mean", "median_worst", "ks_mean", "ks_worst"):
        value, baseline = getattr(rebuilt, measure), getattr(pca, measure)
        assert value < 0.7 * baseline, f"{measure}: the model's {value:.4f} against PCA's {baseline:.4f}"
    store, run = Store(config.store), RunPaths(config.name)
    assert store.read_json(run.card)["metrics"]["active_units"] == 6
    told = store.read_json(run.quality)["two_sample"]["comparisons"]
    aucs = {who: {c: found["mean"] for c, found in told[who]["classifiers"].items()} for who in ("sampled", "copula", "real")}
    for classifier, auc in aucs["sampled"].items():
        assert auc - 0.5 < 0.5 * (aucs["copula"][classifier] - 0.5), aucs
