"""Dask clients: of a LocalCluster of this machine, or of a scheduler by its address."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.system import MEMORY_LIMIT

from gaiadask.cluster.workers import log
from gaiadask.config.sections import ClusterConfig
from gaiadask.errors import GaiadaskError

GPU = "GPU"


@contextlib.contextmanager
def open_client(config: ClusterConfig) -> Iterator[Client]:
    """A client of the scheduler at `config.address`, or of a cluster of this machine that ends with the block.

    Raises GaiadaskError where the scheduler does not answer or has no workers.
    """
    if config.address:
        with _remote_client(config.address) as client:
            yield client
        return
    with (
        # A killed worker's successor may take longer than Dask's 15 s to start: then its nanny would be given up for good.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        _local_cluster(config.workers) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(len(cluster.workers), timeout=120)
        log.info("LocalCluster of %d workers at %s", len(cluster.workers), cluster.scheduler_address)
        yield client


def _remote_client(address: str) -> Client:
    try:
        client = Client(address, set_as_default=False, timeout="15s")
    except (OSError, TimeoutError, ValueError) as error:
        raise GaiadaskError(f"no Dask scheduler answers at cluster.address {address!r}: {error}") from error
    if not client.scheduler_info()["workers"]:
        client.close()
        raise GaiadaskError(f"the Dask scheduler at {address} has no workers: start some (`dask worker {address}`)")
    return client


def _local_cluster(workers: int) -> SpecCluster:
    gpus = _visible_gpus()
    cores = len(os.sched_getaffinity(0))
    count = workers or len(gpus) or max(1, min(cores, MEMORY_LIMIT // 2**32))
    common = {
        "nthreads": 1,
        "host": "127.0.0.1",
        "dashboard_address": None,
        # What fails on a worker is told by the client, once and without a traceback.
        "silence_logs": logging.CRITICAL,
        "memory_limit": MEMORY_LIMIT // count,
    }
    specification = {
        rank: {
            "cls": Nanny,
            "options": common | ({"env": {"CUDA_VISIBLE_DEVICES": gpus[rank % len(gpus)]}, "resources": {GPU: 1}} if gpus else {}),
        }
        for rank in range(count)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(workers=specification, scheduler=scheduler, silence_logs=logging.ERROR)


def _visible_gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu and gpu != "-1"]
    import torch  # only here: the client needs it for nothing else

    return [str(i) for i in range(torch.cuda.device_count())]
