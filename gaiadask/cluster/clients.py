"""Dask clients by kind: a LocalCluster of this machine, or a scheduler by its address (tcp://…, tls://…)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.system import MEMORY_LIMIT

from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.rank_process import ALLOCATOR
from gaiadask.cluster.ranks import GPU
from gaiadask.config.sections import ClusterConfig
from gaiadask.errors import ClusterError, GaiadaskError

log = logging.getLogger(__name__)

_BYTES_A_WORKER = 2**32
"""Memory of the machine for each worker of a LocalCluster: a chunk of the default size takes about half of it."""
_LOCAL_START_S = 120.0
"""A worker imports dask, pyarrow and torch: some seconds each, many times that on a busy machine or a network disk."""
_ANSWER_S = "15s"
"""A scheduler that runs answers at once; a wrong address should not keep a user waiting."""
_SETTINGS: dict[str, Any] = {
    # A killed worker's successor may take longer than Dask's 15 s to start: then its nanny would be given up for good.
    "distributed.deploy.lost-worker-timeout": "1h",
    # A variable of the environment goes before these.
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ALLOCATOR.items()},
}
"""Of Dask, while a LocalCluster runs."""


@contextlib.contextmanager
def open_workers(config: ClusterConfig) -> Iterator[DaskWorkers]:
    """The workers of the scheduler at `config.address`, or of a cluster of this machine that ends with the block.

    Raises:
        GaiadaskError: where the scheduler does not answer or has no workers.
    """
    with _remote_client(config.address) if config.address else _local_client(config.workers) as client:
        yield DaskWorkers(client)


@contextlib.contextmanager
def _local_client(workers: int) -> Iterator[Client]:
    with (
        dask.config.set(_SETTINGS),
        _local_cluster(workers) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        try:
            client.wait_for_workers(len(cluster.workers), timeout=_LOCAL_START_S)
        except TimeoutError as error:
            raise ClusterError(
                f"the {len(cluster.workers)} workers of this machine did not start in {_LOCAL_START_S:.0f} s ({error}): is it busy, or "
                "short of memory? Run the same command again, or with a lower cluster.workers"
            ) from error
        log.info("LocalCluster of %d workers at %s", len(cluster.workers), cluster.scheduler_address)
        yield client


@contextlib.contextmanager
def _remote_client(address: str) -> Iterator[Client]:
    try:
        # Certificates of a tls:// address are those of Dask's own configuration (distributed.comm.tls).
        client = Client(address, set_as_default=False, timeout=_ANSWER_S)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise GaiadaskError(f"no Dask scheduler answers at cluster.address {address!r}: {error}") from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise GaiadaskError(f"the Dask scheduler at {address} has no workers: start some (`dask worker {address}`)")
        yield client


def _local_cluster(workers: int) -> SpecCluster:
    gpus = _visible_gpus()
    cores = len(os.sched_getaffinity(0))
    count = workers or len(gpus) or max(1, min(cores, MEMORY_LIMIT // _BYTES_A_WORKER))
    common = {
        "nthreads": 1,
        "host": "127.0.0.1",
        "dashboard_address": None,
        # The client reports what fails on a worker, once and without a traceback.
        "silence_logs": logging.CRITICAL,
        "memory_limit": MEMORY_LIMIT // count,
    }
    specification = {
        rank: {
            "cls": Nanny,
            "options": common
            | (
                {"env": {"CUDA_VISIBLE_DEVICES": gpus[rank % len(gpus)]}, "resources": {GPU: int(rank < len(gpus))}} if gpus else {}
            ),
        }
        for rank in range(count)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(workers=specification, scheduler=scheduler, silence_logs=logging.ERROR)


def _visible_gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu and gpu != "-1"]
    from gaiadask.model.device import gpu_count  # only here: the client needs torch for nothing else

    return [str(number) for number in range(gpu_count())]
