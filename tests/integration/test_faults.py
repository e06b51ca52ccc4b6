"""Faults between an ingest and its service: the catalogue is the served table, or the run says what is missing and goes on from there.

One row of each kind; `python tests/benchmarks/fault_sweep.py` goes through the whole table, as often as it is told.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from gaiadask.archive.base import open_archive
from gaiadask.archive.tap.login import PASSWORD_VARIABLE, USER_VARIABLE
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.config.toml import dump_toml
from gaiadask.ledger import read_ledger
from gaiadask.store.files import Store

from .child import Child
from .conftest import Dachs
from .fault_rows import CHUNKS, CREATE, DELETE, RESULT, ROWS, Setting
from .faults import Fault, standing_before

# Jobs whose end the service never learns: the process died before it knew their address, or that answer was lost on the way. At most
# as many as a run makes at once: one where the chunks come one after another, else CHUNKS.
LEFT_BEHIND = {
    "client killed as the job is made": 1,
    "client killed, its workers keep running": CHUNKS,
    "worker killed during a chunk": CHUNKS,
}


TRIED = (
    "connection reset at each request", "answer lost after the service acted", "body cut, without Content-Length",
    "stall in the body", "503 with Retry-After", "maintenance page with 200", "job aborted on the server",
    "job that executes for ever", "one row more than the service gives", "ADQL error", "one chunk fails at every attempt",
    "server killed and started again", "client killed as the job is made", "client killed half-way through the body",
    "client killed as tiles are merged", "client killed, its workers keep running", "worker killed during a chunk", "disk full",
)  # fmt: skip


@pytest.fixture(scope="module")
def setting(dachs: Dachs, workers: DaskWorkers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with standing_before("127.0.0.1", dachs.port) as proxy:
        yield Setting(dachs, proxy, workers, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", TRIED)
def test_no_row_is_lost_without_a_word(name: str, setting: Setting, tmp_path: Path) -> None:
    try:
        outcome = ROWS[name].run(setting, tmp_path / "store", Random(name))
    except PermissionError as error:
        pytest.skip(str(error))
    assert outcome.fired, outcome
    assert outcome.right, outcome
    assert outcome.well or not ROWS[name].survives, outcome
    assert outcome.left <= LEFT_BEHIND.get(name, 0), outcome


def test_the_command_names_the_chunk_and_goes_on_when_given_again(setting: Setting, tmp_path: Path) -> None:
    config = setting.planned(tmp_path / "store", attempts=1, address=setting.workers.client.scheduler.address)
    chunk = open_archive(config.archive, config.selection).plan().chunks[1]
    (tmp_path / "gaia.toml").write_text(dump_toml(config))
    command = [Path(sys.executable).with_name("gaiadask"), "ingest", tmp_path / "gaia.toml"]
    setting.proxy.forget()
    with setting.proxy.broken(Fault("busy", rf"{CREATE}.*source_id >= {chunk.first} ", status=500, times=1_000)):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert f"1 of {CHUNKS} failed" in ended.stderr
    assert f"{chunk.name}: chunk {chunk.name}: " in " ".join(ended.stderr.split())
    created = setting.proxy.created
    again = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert again.returncode == 0, again.stderr
    assert setting.proxy.created == created + 1
    assert setting.is_complete(config)


@pytest.mark.parametrize("max_jobs", [1, 2])
def test_no_more_jobs_at_once_than_allowed(max_jobs: int, setting: Setting, tmp_path: Path) -> None:
    config = setting.planned(tmp_path / "store", max_jobs=max_jobs)
    with setting.proxy.broken(Fault("cut", RESULT), Fault("reset", DELETE)):
        assert setting.here(config).code == 0
    assert setting.proxy.most_jobs == max_jobs
    assert setting.proxy.created == CHUNKS
    assert not setting.proxy.jobs


def test_a_refused_login_is_told_at_once(setting: Setting, tmp_path: Path) -> None:
    config = setting.config(tmp_path / "store")
    wrong = {USER_VARIABLE: setting.dachs.user, PASSWORD_VARIABLE: "another-secret"}
    ended = Child(config, tmp_path / "log", wrong).end()
    assert ended.code == 1
    assert "refused access" in ended.said
    log = (tmp_path / "log").read_text()
    assert "attempt 2" not in log
    assert "another-secret" not in log


def test_a_password_is_told_nowhere(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the store nor in any log down to DEBUG, not even when things break."""
    config = setting.planned(tmp_path / "store")
    login = {USER_VARIABLE: setting.dachs.user, PASSWORD_VARIABLE: setting.dachs.password}
    faults = (Fault("cut", RESULT, times=2), Fault("busy", CREATE), Fault("page", RESULT, status=500))
    with setting.proxy.broken(*faults):
        assert Child(config, tmp_path / "log", login).end().code == 0
    assert setting.is_complete(config)
    assert all(fault.fired for fault in faults)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".json" for path in files)
    assert (tmp_path / "log").stat().st_size > 1_000
    secret = setting.dachs.password.encode()
    assert not [path for path in files if secret in path.read_bytes()]
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    archive = open_archive(config.archive, config.selection)
    told = [repr(config), repr(archive), repr(archive._service()), json.dumps(archive.identity().to_json())]  # type: ignore[attr-defined]
    told += [repr(record) for record in read_ledger(Store(config.store)).values()]
    assert not [text for text in told if setting.dachs.password in text]
