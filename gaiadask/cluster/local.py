"""A Dask cluster of this machine, on its loopback: one process a worker, one worker a core or a GPU."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from multiprocessing import resource_tracker
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster, Status
from distributed.system import MEMORY_LIMIT

from gaiadask.cluster.extras import Arguments
from gaiadask.cluster.rank_process import ALLOCATOR
from gaiadask.cluster.ranks import GPU
from gaiadask.cluster.tls import security_of
from gaiadask.config.cluster import ClusterConfig
from gaiadask.errors import ClusterError

log = logging.getLogger(__name__)

_BYTES_A_WORKER = 2**32
"""Memory of the machine for each worker: a chunk of the default size takes about half of it."""
_START_S = 120.0
"""A worker imports dask, pyarrow and torch: some seconds each, many times that on a busy machine or a network disk."""
_SETTINGS: dict[str, Any] = {
    # A killed worker's successor may take longer than Dask's 15 s to start: then its nanny would be given up for good.
    "distributed.deploy.lost-worker-timeout": "1h",
    # Dask looks at each thread's stack every 10 ms, and at each event loop every 20: together 6 % of a core for two workers, busy or not.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    # A variable of the environment goes before these.
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ALLOCATOR.items()},
}
"""Of Dask, while the cluster runs."""


@contextlib.contextmanager
def local_client(config: ClusterConfig) -> Iterator[Client]:
    """A client of a cluster of this machine, which ends with the block."""
    with (
        dask.config.set(_SETTINGS),
        _local_cluster(config) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        try:
            client.wait_for_workers(len(cluster.workers), timeout=_START_S)
        except TimeoutError as error:
            raise ClusterError(
                f"the {len(cluster.workers)} workers of this machine did not start in {_START_S:.0f} s ({error}): is it busy, or "
                "short of memory? Run the same command again, or with a lower cluster.workers"
            ) from error
        log.info("LocalCluster of %d workers at %s", len(cluster.workers), cluster.scheduler_address)
        tell_dashboard(config, client)
        yield client


def scheduler_options(config: ClusterConfig) -> Arguments:
    """Options of a scheduler in this process: where it has a dashboard, on loopback alone."""
    return {"dashboard": config.dashboard and find_spec("bokeh") is not None, "dashboard_address": "127.0.0.1:0"}


def tell_dashboard(config: ClusterConfig, client: Client) -> None:
    """Log the address of the dashboard, or what it lacks."""
    if not config.dashboard:
        return
    if find_spec("bokeh") is None:
        log.info("no dashboard: it needs bokeh (pip install 'gaiadask[dashboard]')")
    else:
        log.info("dashboard: http://127.0.0.1:%s/status", client.scheduler_info(n_workers=0)["services"]["dashboard"])


class _Nanny(Nanny):
    """A nanny whose worker does not hear Ctrl-C.

    A terminal interrupts all processes that it shows, workers among them: each would end with a traceback of Dask's. Only the client is
    to hear it, and ends the cluster. What is blocked where a process is started is blocked in it from its first moment.
    """

    async def instantiate(self) -> Status:
        if threading.current_thread() is not threading.main_thread():  # which hears Ctrl-C for the client
            # It unblocks the signal where it starts.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return await super().instantiate()


def _local_cluster(config: ClusterConfig) -> SpecCluster:
    gpus = _visible_gpus()
    cores = len(os.sched_getaffinity(0))
    count = config.workers or len(gpus) or max(1, min(cores, MEMORY_LIMIT // _BYTES_A_WORKER))
    security = security_of(config)
    protocol = "tls://" if security else "tcp://"
    common = {
        "nthreads": 1,
        "host": "127.0.0.1",
        "dashboard_address": None,
        # The client reports what fails on a worker, once and without a traceback.
        "silence_logs": logging.CRITICAL,
        "memory_limit": MEMORY_LIMIT // count,
        "security": security,
        "protocol": protocol,
    }
    specification = {
        rank: {
            "cls": _Nanny,
            "options": common
            | (
                {"env": {"CUDA_VISIBLE_DEVICES": gpus[rank % len(gpus)]}, "resources": {GPU: int(rank < len(gpus))}} if gpus else {}
            ),
        }
        for rank in range(count)
    }
    options = {"host": "127.0.0.1", "security": security, "protocol": protocol, **scheduler_options(config)}
    scheduler = {"cls": Scheduler, "options": options}
    return SpecCluster(workers=specification, scheduler=scheduler, security=security, silence_logs=logging.ERROR)


def _visible_gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu and gpu != "-1"]
    from gaiadask.model.device import gpu_count  # only here: the client needs torch for nothing else

    return [str(number) for number in range(gpu_count())]
