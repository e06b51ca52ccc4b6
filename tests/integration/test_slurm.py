"""A run on a real SLURM, by jobs, one of them cancelled and made up for; and what SLURM refuses, told."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gaiadask.cluster import jobs
from gaiadask.cluster.clients import open_workers
from gaiadask.config.cluster import ClusterConfig
from gaiadask.errors import ClusterError
from gaiadask.ingest import read_catalogue_record
from gaiadask.store.paths import PARTS
from gaiadask.training.metrics import read_metrics

from .place import GAIADASK, place
from .slurm import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def by_jobs(folder: Path, **changes: Any) -> dict[str, Any]:
    """The section [cluster] of a run through two jobs."""
    options = {"kind": "slurm", "workers": 2, "memory": "2GB", "walltime": "00:10:00", "interface": "lo", "dashboard": False}
    return options | {"logs": str(folder / "jobs"), "wait_minutes": 2.0} | changes


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        assert process is None or process.poll() is None, "the command has ended"
        time.sleep(0.1)


def test_a_run_through_jobs_one_of_which_is_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    """It is cancelled amid ingest; training needs two, so its successor is one of them."""
    archive = {"kind": "mock", "mock_stars": 10_000, "chunk_rows": 250}
    small = {"archive": archive, "prior": {"kind": "none"}, "quality": {"rows": 400, "two_sample_rows": 200}}
    run, log = place(tmp_path, training={"ranks": 2}, cluster=by_jobs(tmp_path), **small), tmp_path / "told.txt"
    with (
        log.open("w") as told,
        subprocess.Popen([*GAIADASK, "run", str(run.path)], stdout=told, stderr=told, text=True) as command,
    ):
        wait_for(lambda: len(slurm.jobs("R")) == 2, command)
        first = slurm.jobs()
        assert list((tmp_path / "jobs").glob(".tls-*/key.pem"))
        wait_for(lambda: run.store.list(PARTS), command)
        slurm.command("scancel", first[0])
        wait_for(lambda: set(slurm.jobs("R")) - set(first), command)
        ended = command.wait(200)
    text = "".join(log.read_text().split())  # the terminal has broken its lines
    assert ended == 0, log.read_text()
    assert f"job{first[0]}ended(CANCELLED)" in text
    assert f"gaiadask-{first[0]}.err:anothertakesitsplace" in text
    wait_for(lambda: not slurm.jobs())
    assert read_catalogue_record(run.store).rows == 10_000
    assert read_metrics(run.store, run.run)[-1].rows_seen == run.config.training.rows_seen
    assert not list((tmp_path / "jobs").glob(".*")), "certificate and key of the run are left"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"queue": "galaxies"}, r"the batch system refused a job: .*[iI]nvalid partition.*\n.*queue, account, walltime"),
        ({"walltime": "2-00:00:00"}, r"job \d+ will never start: SLURM says PartitionTimeLimit\n.*walltime"),
        (
            {"prologue": ["echo no such module >&2; exit 3"]},
            r"(?s)3 jobs in a row ended .*, FAILED\. The last lines of .*err:\n  no such module",
        ),
        ({"directives": ["--begin=now+1hour"], "wait_minutes": 0.1}, r"no worker came within .*: job \d+ PENDING \(BeginTime\)"),
    ],
)
def test_what_slurm_does_not_take_is_told(
    changes: dict[str, Any], told: str, slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_LOOK_S", 1.0)
    with pytest.raises(ClusterError, match=told), open_workers(ClusterConfig(**by_jobs(tmp_path, **{"workers": 1} | changes))):
        pass
    wait_for(lambda: not slurm.jobs())
