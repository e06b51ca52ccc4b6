"""PostgreSQL on loopback, of the machine's packages, with a folder and a port of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path("/usr/lib/postgresql/15/bin")


def lacking() -> list[str]:
    """Programs of PostgreSQL that this machine does not have."""
    return [name for name in ("initdb", "pg_ctl", "psql") if not (BIN / name).exists()]


@contextmanager
def serving(port: int, user: str, password: str, database: str) -> Iterator[None]:
    """A PostgreSQL that runs as long as the block, with a database, its owner and their password."""
    # Not pytest's own folder: that is closed to the user who runs the server where the tests run as root.
    folder = Path(tempfile.mkdtemp(prefix="gaiadask-postgres-"))
    account = "postgres" if os.getuid() == 0 else None
    if account:
        shutil.chown(folder, account, account)

    def run(program: str, *words: str, **more: str) -> None:
        done = subprocess.run(
            [BIN / program, *words], cwd=folder, user=account, group=account, extra_groups=[] if account else None, timeout=60,
            stdout=subprocess.PIPE if program == "psql" else subprocess.DEVNULL, stderr=subprocess.STDOUT, text=True, check=False,
            env=os.environ | {"HOME": str(folder), **more},
        )  # fmt: skip
        assert done.returncode == 0, (program, done.stdout, [log.read_text()[-1500:] for log in folder.glob("*.log")])

    data = str(folder / "data")
    secret = folder / "password"
    secret.write_text(password)
    secret.chmod(0o644)
    try:
        run(
            "initdb",
            "-D",
            data,
            "-U",
            user,
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )
        settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "pg.log"), "-o", settings, "start")
        run(
            "psql",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            user,
            "postgres",
            "-c",
            f"CREATE DATABASE {database}",
            PGPASSWORD=password,
        )
        yield
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def answer(port: int, user: str, password: str, database: str, query: str) -> str:
    """The one value that a query is answered with."""
    psql = [BIN / "psql", "-h", "127.0.0.1", "-p", str(port), "-U", user, database, "-tAc", query]
    done = subprocess.run(psql, env=os.environ | {"PGPASSWORD": password}, timeout=60, check=True, capture_output=True, text=True)
    return done.stdout.strip()
