"""What one stage of a run costs its client and its two workers."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from unittest import mock

import psutil

from gaiadask.cluster.clients import open_workers
from gaiadask.config.sections import ClusterConfig, Config
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.validation import validate_run
from gaiadask.store.files import Store

STAGES = ("ingest", "validate", "statistics", "train", "encode", "prior", "evaluate", "compress", "decode", "resume")
"""validate is `gaiadask validate`; resume finds that all stages of a run are there."""


@dataclass(frozen=True)
class Cost:
    """Of one stage: seconds by the clock, CPU seconds of the client and of all processes, largest memory of client and worker, MB."""

    wall_s: float
    client_s: float
    cpu_s: float
    client_mb: float
    worker_mb: float


def cost_of(config: Config, stage: str, around: Callable[[], AbstractContextManager[object]] = nullcontext) -> Cost:
    """Run one stage in a fresh process, with two workers that have started already.

    Args:
        config: the run.
        stage: one of STAGES.
        around: makes what the stage runs in; pickled.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, config, stage, around).result()


def _run(config: Config, stage: str, around: Callable[[], AbstractContextManager[object]]) -> Cost:
    with open_workers(ClusterConfig(workers=2)) as workers, around():
        workers.probe(Store(config.store))
        processes = [psutil.Process(pid) for pid in workers.client.run(os.getpid).values()]
        before, client = sum(map(_cpu, processes)), _cpu(psutil.Process())
        started = perf_counter()
        if stage == "resume":
            run_stages(config, workers=workers)
        elif stage == "validate":
            with mock.patch("gaiadask.stages.context.open_workers", lambda _: mock.MagicMock(__enter__=lambda _: workers)):
                assert not validate_run(config, quick=False).findings
        else:
            request = DecodeOptions(output=f"{config.store}-decoded") if stage == "decode" else None
            run_stages(config, [stage], request=request, workers=workers)
        wall, used = perf_counter() - started, _cpu(psutil.Process()) - client
        memory = max(workers.client.run(_peak_mb).values())
        return Cost(wall, used, sum(map(_cpu, processes)) - before + used, _peak_mb(), memory)


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def _peak_mb() -> float:
    """The largest resident set of this process so far."""
    text = Path("/proc/self/status").read_text()
    return float(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3
