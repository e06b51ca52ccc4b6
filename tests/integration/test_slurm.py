"""gaia/train on a real SLURM, by jobs, one of them cancelled and made up for; and what SLURM refuses, told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gaiadask.cluster import jobs
from gaiadask.cluster.clients import open_workers
from gaiadask.config.cluster import ClusterConfig
from gaiadask.config.toml import load_config
from gaiadask.errors import WrongClusterError
from gaiadask.ingest import read_catalogue_record
from gaiadask.store.paths import PARTS
from gaiadask.training.metrics import read_metrics

from .conftest import PrefectServer
from .place import place
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


def test_gaia_train_through_jobs_one_of_which_is_cancelled(slurm: Slurm, prefect_server: PrefectServer, tmp_path: Path) -> None:
    """The flow, in a process of its own as a Prefect worker has it. A job is cancelled amid ingest; training needs two, so its successor is
    one of them."""
    archive = {"kind": "mock", "mock_stars": 10_000, "chunk_rows": 250}
    small = {"archive": archive, "prior": {"kind": "none"}, "quality": {"rows": 400, "two_sample_rows": 100, "two_sample_seeds": 1}}
    run = place(tmp_path, name="by-jobs", training={"ranks": 2}, cluster=by_jobs(tmp_path), **small)
    program = f"from flows.gaia import train; from gaiadask.config.toml import load_config; train(**load_config({str(run.path)!r}).to_json())"
    environment, log = prefect_server.environment | {"SLURM_CONF": slurm.environment["SLURM_CONF"]}, tmp_path / "flow.log"
    with log.open("w") as output:
        flow = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=output, stderr=output, text=True)
    try:
        wait_for(lambda: len(slurm.jobs("R")) == 2, flow)
        first = slurm.jobs()
        assert list((tmp_path / "jobs").glob(".tls-*/key.pem"))
        wait_for(lambda: run.store.list(PARTS), flow)
        slurm.command("scancel", first[0])
        wait_for(lambda: set(slurm.jobs("R")) - set(first), flow)
        ended = flow.wait(200)
    finally:
        flow.kill()
    assert ended == 0, log.read_text()
    (flow_run,) = prefect_server.found("flow_runs", flow_runs={"name": {"any_": ["train by-jobs"]}})
    assert flow_run["state_type"] == "COMPLETED"
    told = prefect_server.log_of(flow_run["id"])
    assert re.search(
        rf"job {first[0]} ended \(CANCELLED\), its log is .*/gaiadask-{first[0]}\.err: another takes its place", told
    ), told
    assert "training with 2 rank(s)" in told
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
        (
            {
                "prologue": [
                    f"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT=1s {sys.executable} -m distributed.cli.dask_worker tcp://127.0.0.1:1; exit 1"
                ]
            },
            r"FAILED\. Its worker has not reached the scheduler at tcp://127\.0\.0\.1:1: a firewall .* cluster\.interface .*\.err",
        ),
        ({"directives": ["--begin=now+1hour"], "wait_minutes": 0.1}, r"no worker came within .*: job \d+ PENDING \(BeginTime\)"),
    ],
)
def test_what_slurm_does_not_take_is_told(
    changes: dict[str, Any], told: str, slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_LOOK_S", 1.0)
    with pytest.raises(WrongClusterError, match=told), open_workers(ClusterConfig(**by_jobs(tmp_path, **{"workers": 1} | changes))):
        pass
    wait_for(lambda: not slurm.jobs())


def test_a_file_of_jobs_has_their_logs_beside_the_configuration(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cluster that an observatory's file describes, whose jobs die; a working folder as a flow run has it is not theirs."""
    monkeypatch.setattr(jobs, "_LOOK_S", 1.0)
    (tmp_path / "gaia.toml").write_text('[cluster]\nfile = "cluster.yaml"\nwait_minutes = 2\n')
    described = {"cores": 1, "memory": "1GB", "walltime": "00:10:00", "interface": "lo", "job_name": "flint"}
    described |= {"job_script_prologue": ["echo no such module >&2; exit 3"]}
    text = {
        "cluster_class": "dask_jobqueue.SLURMCluster",
        "cluster_kwargs": described,
        "adapt_kwargs": {"minimum": 1, "maximum": 1},
    }
    (tmp_path / "cluster.yaml").write_text(json.dumps(text))
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    config = load_config(tmp_path / "gaia.toml").cluster
    with (
        pytest.raises(WrongClusterError, match=r"(?s)3 jobs in a row .*/gaiadask-jobs/flint-\d+\.err:\n  no such module"),
        open_workers(config),
    ):
        pass
    assert not list((tmp_path / "working").iterdir())
    wait_for(lambda: not slurm.jobs())
