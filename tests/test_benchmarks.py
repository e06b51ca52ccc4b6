"""The benchmarks: what keeps them from rotting between their runs, which are by hand."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gaiadask.config import presets as config

FOLDER = Path(__file__).parent / "benchmarks"
OPTIONS = {"stars": 1_000, "seconds": 1.0, "prior_seconds": 1.0, "auc_rows": 100, "seeds": 1, "seed": 0, "workers": 2, "rows": [""]}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_can_be_imported_and_says_how_it_is_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    if name == "keras_parity":
        pytest.importorskip("keras", reason="keras is in the extra `benchmark`, which tests do without")
    module = importlib.import_module(name)
    assert f"python tests/benchmarks/{name}.py" in str(module.__doc__)
    assert callable(module.main)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("models")


def test_a_row_of_the_table_is_kept_by_all_it_depends_on(
    models: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = models.Bench(tmp_path, None, argparse.Namespace(**OPTIONS))
    names = ("vae, 8 latents", "PCA, 8 components", "independent columns")
    before = {name: models.kept(bench, models.ROWS[name]) for name in names}
    assert len(set(before.values())) == 3
    other = replace(bench, options=argparse.Namespace(**{**OPTIONS, "workers": 1, "rows": ["PCA"]}))
    assert {name: models.kept(other, models.ROWS[name]) for name in names} == before
    # Another default of [model], and no row is taken for what it was: neither the model's nor those that are held against it.
    monkeypatch.setitem(config.MODEL_PRESETS, "vae", {"hidden": (7,)})
    assert all(models.kept(bench, models.ROWS[name]) != path for name, path in before.items())


def test_a_line_of_the_table_has_a_cell_for_each_head(models: ModuleType) -> None:
    summary = {"mean": 0.01, "worst": 0.2}
    headline = {part: dict.fromkeys(("median", "p90", "p99", "ks"), summary) for part in ("beside_position", "all_columns")}
    shares = {"within_1_sigma": 0.5, "beyond_3_sigma": 0.25}
    columns: dict[str, Any] = {"ra": {"error_in_sigma": {"within_1_sigma": 1.0, "beyond_3_sigma": 0.0}}}
    columns |= {"pmra": {"error_in_sigma": shares}, "a_g_val": {"error_in_sigma": None}}
    aucs = dict.fromkeys(models.FEATURES, 0.5)
    found = {
        "reconstruction": {"headline": headline, "columns": columns}, "rebuilt": aucs, "sampled": aucs, "sampled_ks": summary,
        "active_units": 8, "seconds": 300.2, "prior_seconds": 20.0, "rows_seen": 1_000_000,
    }  # fmt: skip
    told = dict(zip(models.HEAD, models.line("x", found), strict=True))
    assert (told["within 1σ"], told["beyond 3σ"]) == ("0.500", "0.250"), "positions are carried, not rebuilt"
    assert (told["seconds"], told["rows seen"], told["latents in use"]) == ("300 + 20", "1,000,000", "8")
    assert len(models.line("x", {})) == len(models.HEAD)
