"""A process that ingests all by itself, client, scheduler and worker in one: what kills it kills them all at once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from distributed import Client, LocalCluster

from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.config.sections import Config
from gaiadask.errors import GaiadaskError
from gaiadask.stages.engine import run_stages

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (0: well; negative: killed) and what it said."""

    code: int
    said: str


class Child:
    """One ingest of `config`. log: a file of everything it logs; environment: beside the inherited one."""

    def __init__(
        self, config: Config, log: Path, environment: Mapping[str, str] | None = None, file_bytes: int | None = None
    ) -> None:
        self._log = log
        self._process = _PROCESSES.Process(target=_ingest, args=(config, str(log), dict(environment or {}), file_bytes))
        self._process.start()

    def kill_when(self, moment: Callable[[], bool], timeout_s: float = 60.0) -> Ended:
        """Kill -9 as soon as it has come; what ends before, has ended."""
        give_up = time.monotonic() + timeout_s
        while self._process.is_alive() and not moment():
            assert time.monotonic() < give_up, "the moment did not come"
            time.sleep(0.0005)
        if self._process.is_alive() and self._process.pid:
            os.kill(self._process.pid, signal.SIGKILL)
        return self.end()

    def end(self, timeout_s: float = 100.0) -> Ended:
        """Wait for its end."""
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, "still running"
        while psutil.pid_exists(self._process.pid or 0):  # until its parent, the fork server, has taken note
            time.sleep(0.01)
        # A process that was killed is told by its signal, as a negative code; the fork server says 255 of it.
        code = self._process.exitcode
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return Ended(code, text.rpartition("ENDED ")[2] if "ENDED " in text else "")


def _ingest(config: Config, log: str, environment: dict[str, str], file_bytes: int | None) -> None:
    os.environ.update(environment)
    logging.basicConfig(level=logging.DEBUG, filename=log, force=True)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        if config.cluster.address:
            run_stages(config, ["ingest"])
        else:
            options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
            with LocalCluster(**options, silence_logs=logging.CRITICAL) as cluster, Client(cluster) as client:
                run_stages(config, ["ingest"], workers=DaskWorkers(client))
    except GaiadaskError as error:
        logging.getLogger("child").error("ENDED %s", error)
        sys.exit(1)
