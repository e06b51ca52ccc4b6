"""A slice of `tests/benchmarks/operation_sweep.py`: each work with some of its operations failing, in every mode."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from every_operation import BY_NAME, Bench, table
from faulty_store import MODES, Mode, drawn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

RUNS = 30
"""Of each work: some two minutes in all on two cores."""
SEED = os.environ.get("GAIADASK_FAULTS_SEED", "0")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    return Bench(tmp_path_factory.mktemp("every"))


@pytest.mark.parametrize("name", BY_NAME)
def test_every_run_is_whole_or_says_so_and_then_is(name: str, bench: Bench) -> None:
    work = BY_NAME[name]
    outcomes = [bench.run(work, MODES[mode], number) for mode, number in drawn(bench.faults(work), RUNS, f"{SEED} {name}")]
    wrong = [outcome for outcome in outcomes if outcome.problem]
    assert not wrong, f"{wrong[:3]}\n{table(outcomes)}\nagain with GAIADASK_FAULTS_SEED={SEED}"
    assert sum(outcome.fired > 0 for outcome in outcomes) >= RUNS - 2
    lasting = {outcome.at_once for outcome in outcomes if not MODES[outcome.mode].lasts}
    assert lasting == {True, False}, "errors that pass are waited for, deaths are not"


def test_what_is_right_is_looked_at(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench itself would notice: a store without a file, one with another, one that differs in a byte."""
    work = BY_NAME["statistics"]
    assert not bench.run(work, Mode("error before"), 10**6).problem
    for change in (
        lambda root: (root / "store/runs/r/statistics.json").unlink(),
        lambda root: (root / "store/runs/r/other.json").write_text("{}"),
        lambda root: (root / "store/catalogue/partition_info.csv").write_bytes(b"x"),
    ):
        found = bench.found

        def changed(change=change, found=found) -> dict[str, object]:  # type: ignore[no-untyped-def]
            change(Path(bench.folder) / "work")
            return found()

        monkeypatch.setattr(bench, "found", changed)
        assert bench.run(work, Mode("error before"), 10**6).problem
        monkeypatch.setattr(bench, "found", found)
