"""The services of deploy/compose.yaml on this machine instead of in containers: their commands, environments, secrets and health checks,
with PostgreSQL of the machine's packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from . import postgres
from .processes import end, free_ports

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICES: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
_HOSTS = r"\b(0\.0\.0\.0|prefect-server|dask-scheduler|postgres)(?=$|:)"
_DATABASE = "PREFECT_SERVER_DATABASE_"


class Compose:
    """The services, each on free ports of loopback. Where PostgreSQL is not installed, Prefect's server is on SQLite.

    folder: of secrets, logs and Prefect's files.
    """

    def __init__(self, folder: Path) -> None:
        names = ("4200", "5432", "8080", "8786", "8787", "8788")
        self.folder = folder
        self.ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
        self.has_postgres = not postgres.lacking()

    def here(self, name: str, text: str) -> str:
        """Words of a service, with hosts and ports of this machine."""
        ports = self.ports | ({"8787": self.ports["8788"]} if name == "dask-worker" else {})
        return re.sub(r"\b\d{4}\b", lambda found: ports.get(found[0], found[0]), re.sub(_HOSTS, "127.0.0.1", text))

    def environment(self, name: str) -> dict[str, str]:
        """Of a service's processes: what compose says, and nothing that the tests' own process has of it."""
        outside = {variable: value for variable, value in os.environ.items() if not variable.startswith(("PREFECT_", "AWS_"))}
        inside = {
            variable: self.here(name, value)
            for variable, value in SERVICES[name].get("environment", {}).items()
            if self.has_postgres or not variable.startswith(_DATABASE)
        }
        if "AWS_ENDPOINT_URL" in inside and (moto := os.environ.get("AWS_ENDPOINT_URL")):
            inside["AWS_ENDPOINT_URL"] = moto
        return outside | inside | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SECRETS": str(self._secrets(name)),
            "PREFECT_HOME": str(self.folder / name / "home"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_WEBSERVER_PORT": self.ports["8080"],
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
        }  # fmt: skip

    def _secrets(self, name: str) -> Path:
        folder = self.folder / name / "secrets"
        folder.mkdir(parents=True, exist_ok=True)
        for secret in SERVICES[name].get("secrets", ()):
            if self.has_postgres or not secret.startswith(_DATABASE):
                (folder / secret).write_text(f"the {secret}\n")
        return folder

    @contextmanager
    def up(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A service, healthy, as long as the block."""
        words = [DEPLOY / "container" / "entrypoint.sh", *(self.here(name, word) for word in SERVICES[name]["command"])]
        environment = self.environment(name)
        log = self.folder / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                words, env=environment, cwd=self.folder, stdout=output, stderr=output, start_new_session=True
            )
        try:
            self._wait(name, process, environment, log)
            yield process
        finally:
            end(process)

    def _wait(self, name: str, process: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> None:
        kind, *check = (self.here(name, word) for word in SERVICES[name]["healthcheck"]["test"])
        assert kind == "CMD"
        until = time.monotonic() + 120
        while subprocess.run(check, env=environment, capture_output=True, timeout=30, check=False).returncode:
            assert process.poll() is None and time.monotonic() < until, f"{name} is not healthy: {log.read_text()[-3000:]}"
            time.sleep(0.5)

    @contextmanager
    def database(self) -> Iterator[None]:
        """The service postgres as long as the block, where PostgreSQL is installed."""
        if not self.has_postgres:
            yield
            return
        account = SERVICES["postgres"]["environment"]
        with postgres.serving(
            int(self.ports["5432"]), account["POSTGRES_USER"], f"the {_DATABASE}PASSWORD", account["POSTGRES_DB"]
        ):
            yield

    def rows(self, table: str) -> int:
        """Of a table of Prefect's in PostgreSQL."""
        account = SERVICES["postgres"]["environment"]
        return int(
            postgres.answer(
                int(self.ports["5432"]), account["POSTGRES_USER"], f"the {_DATABASE}PASSWORD", account["POSTGRES_DB"],
                f"SELECT count(*) FROM {table}",
            )
        )  # fmt: skip
