"""The benchmarks: what keeps them from rotting between their runs, which are by hand."""

from __future__ import annotations

import argparse
import ast
import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mutants import mutants

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


# Mutations ----------------------------------------------------------------------------------------------------------------
MUTATED = """def first(rows, stop):
    \"\"\"Words.\"\"\"
    if rows < stop and not closed(rows,
                                  stop):
        log.info("%d", rows)
        raise ValueError(f"{rows + 1}")
    with held():
        rows += 1
    return rows - 1
"""


def test_a_mutant_is_the_module_with_one_error() -> None:
    found = mutants(MUTATED)
    assert {(m.line, m.before, m.after) for m in found} >= {
        (3, "rows < stop", "rows <= stop"), (3, "rows < stop", "rows >= stop"),
        (3, "rows < stop and (not closed(rows, stop))", "rows < stop or not closed(rows, stop)"),
        (3, "not closed(rows, stop)", "closed(rows, stop)"), (3, "closed(rows, stop)", "closed(stop, rows)"),
        (6, "raise ValueError(f'{rows + 1}')", "pass"), (7, "with held():\n    rows += 1", "if True:\n    rows += 1"),
        (8, "rows += 1", "rows -= 1"), (8, "1", "2"), (9, "return rows - 1", "return None"), (9, "rows - 1", "rows + 1"),
    }  # fmt: skip
    assert not [m for m in found if m.line == 5], "words for people are not mutated"
    for mutant in found:
        ast.parse(mutant.text)
        before, after = MUTATED.splitlines(), mutant.text.splitlines()
        assert len(after) == len(before), "lines keep their numbers"
        changed = {number for number, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b}
        assert changed and changed <= set(range(mutant.line, mutant.last_line + 1))


def test_each_mutated_module_is_there_and_so_are_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    modules = importlib.import_module("mutations").MODULES
    root = FOLDER.parents[1]
    assert all((root / module).exists() for module in modules)
    assert all((root / f"tests/test_{name}.py").exists() for names in modules.values() for name in names)


# Tables of the pages -------------------------------------------------------------------------------------------------------
PAGES = FOLDER.parents[1] / "docs"


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("results")


def test_each_result_has_its_place_in_a_page_and_stands_there_as_its_command_prints_it(results: ModuleType) -> None:
    places = {(page.stem, name) for page in PAGES.glob("*.md") for name in results.names_in(page.read_text(encoding="utf-8"))}
    assert places == {(result.page, name) for name, result in results.RESULTS.items()}
    for name, result in results.RESULTS.items():
        assert (FOLDER / f"{result.script}.py").exists(), name
        text = (PAGES / f"{result.page}.md").read_text(encoding="utf-8")
        between = text.partition(results.begin_of(name))[2].partition(results.END)[0]
        assert not between or between.startswith(f"\n    {result.command}\n\n"), f"{name}: measured by another command"


def test_a_result_replaces_the_one_before_and_nothing_else(results: ModuleType) -> None:
    result = results.Result("speed", "memory", "--repeats 1")
    page = f"# Head\n\n{results.begin_of('memory')}old\n{results.END}\n{results.begin_of('other')}kept\n{results.END}"
    once = results.with_result(page, "memory", results.block(result, "| a |\n| --- |\n| 1 |\n", "today"))
    assert "old" not in once
    assert once.endswith(f"{results.END}\n{results.begin_of('other')}kept\n{results.END}")
    assert results.names_in(once) == ["memory", "other"]
    assert results.with_result(once, "memory", "old\n") == page
    with pytest.raises(ValueError, match=r"no marks .*gone"):
        results.with_result(page, "gone", "new")


@pytest.mark.slow
def test_a_table_is_what_the_command_prints(results: ModuleType, tmp_path: Path) -> None:
    text = results.run("memory", results.Result("speed", "kl_of_features", "--help"), tmp_path)
    assert text.startswith("\n    python tests/benchmarks/kl_of_features.py --help\n\n20")
    assert "usage: kl_of_features.py" in text
