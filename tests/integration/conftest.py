"""The services that integration tests run against, each one real and on loopback."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gaiadask.archive.base import open_archive
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.release.dr2 import COLUMNS, MOCK_COLUMNS

from . import slurm as slurm_on_loopback
from .compose import Compose
from .dachs.table import write_tables
from .place import STAGES, Place, place
from .processes import end, free_ports

HARD_MAXREC = 4_000
MADE_UP_STARS = 5_000
SCRIPTS = Path(__file__).parent / "dachs"
POSTGRESQL = Path("/usr/lib/postgresql/15/bin/initdb")
EXTENSIONS = Path("/usr/share/postgresql/15/extension")


@dataclass(frozen=True)
class Dachs:
    """A running TAP service.

    folder: where its servers keep their files. user, password: of somebody who may log in.
    rows: what gaiadr2.gaia_source holds: the rows of GAIADASK_REAL_ROWS where that is set, else the made-up ones.
    mock_rows: what gaiadr2.mock_source holds: mock stars, nulls and edges among them; more than row_limit.
    row_limit: the most rows of one answer.

    A third table, gaiadr2.wrong_units, claims that its parallax is in arcsec.
    """

    url: str
    port: int
    rows: pa.Table
    mock_rows: pa.Table
    folder: Path
    row_limit: int = HARD_MAXREC
    user: str = "cecilia"
    password: str = "a-secret-of-the-tests"

    def kill(self) -> None:
        """As by the machine's end: the server and the jobs that it runs."""
        server = psutil.Process(int((self.folder / "dachs.pid").read_text()))
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        server.wait(10)

    def serve(self) -> None:
        """Start the server that was killed; returns when it answers."""
        with (self.folder / "start.log").open("a") as log:
            subprocess.run([SCRIPTS / "serve.sh", self.folder], check=True, stdout=log, stderr=log, timeout=100)

    def sql(self, statements: str) -> subprocess.Popen[bytes]:
        """Statements on their way to the database, as its owner."""
        port = re.findall(r"^port = (\d+)", (self.folder / "pg" / "postgresql.conf").read_text(), re.MULTILINE)[-1]
        psql = [POSTGRESQL.with_name("psql"), "-q", "-h", "127.0.0.1", "-p", port, "-U", "gavoadmin", "gavo", "-c", statements]
        return subprocess.Popen(psql, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def dachs() -> Iterator[Dachs]:
    """GAVO DaCHS on PostgreSQL, one for the whole session; skips where either is not installed."""
    if lacking := lacking_of_dachs():
        pytest.skip(f"needs a TAP service to test against: {', '.join(lacking)} not installed (.ci/run installs them)")
    with serving() as service:
        yield service


def lacking_of_dachs() -> list[str]:
    """What is not installed of what `serving` needs."""
    return [
        name
        for name, found in (
            ("dachs", shutil.which("dachs")),
            ("PostgreSQL 15", POSTGRESQL.exists()),
            ("pg_sphere", (EXTENSIONS / "pg_sphere.control").exists()),
            ("q3c", (EXTENSIONS / "q3c.control").exists()),
        )
        if not found
    ]


@contextmanager
def serving() -> Iterator[Dachs]:
    """A TAP service that runs as long as the block."""
    mock_rows = _made_up_stars()
    real_rows = _real_rows()
    rows = mock_rows if real_rows is None else real_rows
    # Not pytest's own folder: that is closed to the user who runs the servers where the tests run as root.
    folder = Path(tempfile.mkdtemp(prefix="gaiadask-dachs-"))
    folder.chmod(0o755)
    try:
        wrong = mock_rows.select(["source_id", "ra", "dec", "parallax"]).slice(0, 10)
        tables = {"gaia_source": rows, "mock_source": mock_rows, "wrong_units": wrong}
        write_tables(tables, folder, units={"wrong_units": {"parallax": "arcsec"}})
        port = _start(folder)
        yield Dachs(f"http://127.0.0.1:{port}/tap", port, rows, mock_rows, folder)
    finally:
        subprocess.run([SCRIPTS / "stop.sh", folder], check=True, capture_output=True, timeout=60)


def _start(folder: Path) -> int:
    tap_port, pg_port = free_ports(2)
    environment = {**os.environ, "TAP_PORT": str(tap_port), "PG_PORT": str(pg_port), "HARD_MAXREC": str(HARD_MAXREC)}
    environment |= {"TAP_USER": Dachs.user, "TAP_PASSWORD": Dachs.password}
    # Output goes to a file: the servers inherit it, and a pipe would stay open with them.
    with (folder / "start.log").open("w") as log:
        done = subprocess.run([SCRIPTS / "start.sh", folder], env=environment, stdout=log, stderr=log, timeout=110, check=False)
    if done.returncode:
        logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[-2:]
        tails = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in logs)
        raise RuntimeError(f"the TAP service did not start:\n{tails}")
    return tap_port


def _real_rows() -> pa.Table | None:
    path = os.environ.get("GAIADASK_REAL_ROWS")
    return pq.read_table(path, columns=list(COLUMNS)) if path else None


def _made_up_stars() -> pa.Table:
    """Stars of the mock archive in all columns that it makes, the first few with values at the types' edges."""
    archive = open_archive(
        ArchiveConfig(kind="mock", mock_stars=MADE_UP_STARS, chunk_rows=MADE_UP_STARS),
        SelectionConfig(columns=MOCK_COLUMNS, not_null=()),
    )
    chunks = archive.plan().chunks
    table = pa.concat_tables([rows for chunk in chunks for rows in archive.fetch(chunk, lambda _: None)]).combine_chunks()
    edges = {
        "source_id": [0, 2**53 + 1, (12 * 4**12 << 35) - 1],
        "random_index": [2**53 + 3, 2**62 + 1, 2**63 - 1],
        "parallax": [5e-324, -1.7976931348623157e308, -0.0],
        "pmra": [0.1 + 0.2, -2.2250738585072014e-308, 123456789.12345679],
        "teff_val": [np.float32(1e-45), np.float32(3.4028235e38), np.float32(-0.0)],
        "a_g_val": [np.float32(0.1), None, np.float32(16777217)],
    }
    for name, values in edges.items():
        index, dtype = table.schema.get_field_index(name), COLUMNS[name].dtype
        column = pa.concat_arrays([pa.array(values, dtype), table.column(name).chunk(0).slice(len(values))])
        table = table.set_column(index, table.schema.field(index), column)
    return table


# SLURM ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def slurm_of_session() -> Iterator[slurm_on_loopback.Slurm]:
    """SLURM on this machine alone, one for the whole session; skips where it is not installed."""
    if lacking := slurm_on_loopback.lacking():
        pytest.skip(f"needs SLURM to test against: {', '.join(lacking)} not installed (.ci/run installs slurm-wlm and munge)")
    with slurm_on_loopback.serving() as slurm:
        yield slurm


@pytest.fixture
def slurm(slurm_of_session: slurm_on_loopback.Slurm, monkeypatch: pytest.MonkeyPatch) -> slurm_on_loopback.Slurm:
    """The same; what a test starts finds it by itself."""
    monkeypatch.setenv("SLURM_CONF", slurm_of_session.environment["SLURM_CONF"])
    return slurm_of_session


# Prefect -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PrefectServer:
    """A running Prefect server.

    environment: of the commands that talk to it; nothing of the user's own Prefect is in it. folder: for logs. compose: it is one of
    these services.
    """

    url: str
    environment: dict[str, str]
    folder: Path
    compose: Compose

    def command(self, *words: str | Path, cwd: Path | None = None, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment (prefect, gaiadask) to its end; stdout and stderr are both in `stdout`."""
        program = Path(sys.executable).with_name(str(words[0]))
        return subprocess.run(
            [program, *words[1:]], env=self.environment, cwd=cwd or self.folder, timeout=timeout_s, check=False,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def found(self, what: str, **query: object) -> list[dict[str, Any]]:
        """What the API has of these: flow_runs, task_runs, logs, artifacts, deployments."""
        response = httpx.post(f"{self.url}/{what}/filter", json=query, timeout=30)
        response.raise_for_status()
        return list(response.json())

    def log_of(self, flow_run: str) -> str:
        """Every line of a flow run's log, its tasks' too."""
        runs = {"flow_run_id": {"any_": [flow_run]}}
        return "\n".join(f"{line['name']} | {line['message']}" for line in self.found("logs", logs=runs, sort="TIMESTAMP_ASC"))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The Prefect server of deploy/compose.yaml with a home of its own, one for the whole session; nothing leaves this machine."""
    folder = tmp_path_factory.mktemp("prefect")
    compose = Compose(folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{compose.ports['4200']}/api",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_CLI_COLORS": "false",
        "DO_NOT_TRACK": "1",
        "COLUMNS": "1000",  # messages stay on one line
    }
    with compose.database(), compose.up("prefect-server"):
        yield PrefectServer(environment["PREFECT_API_URL"], environment, folder, compose)


# S3 ------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fsspec.AbstractFileSystem]:
    """moto's S3 server with a bucket `gaia`, one for the whole session; every process started meanwhile finds it by itself."""
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    program, log = Path(sys.executable).with_name("moto_server"), tmp_path_factory.mktemp("s3") / "moto.log"
    with log.open("w") as output, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        process = subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(port)], stdout=output, stderr=output, start_new_session=True
        )
        try:
            until = time.monotonic() + 60
            while not _answers(f"{url}/moto-api/"):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"moto's server did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.1)
            filesystem = fsspec.filesystem("s3")
            filesystem.mkdir("gaia")
            yield filesystem
        finally:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            end(process)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=5).is_success
    return False


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run "dr2" of stars with nulls, made by `gaiadask run`."""
    made = place(tmp_path_factory.mktemp("finished"), name="dr2")
    done = made.command("run")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()][:7] == STAGES
    return made
