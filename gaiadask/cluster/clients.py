"""Dask clients by kind: of this machine, of a scheduler by its address, of jobs of SLURM, of pods, of what a file describes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from distributed import Client

from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.described import described_workers
from gaiadask.cluster.extras import imported
from gaiadask.cluster.local import local_client
from gaiadask.cluster.tls import security_of, warn_of_plain_text
from gaiadask.config.cluster import ClusterConfig
from gaiadask.errors import GaiadaskError

log = logging.getLogger(__name__)

_ANSWER_S = "15s"
"""A scheduler that runs answers at once; a wrong address should not keep a user waiting."""


@contextlib.contextmanager
def open_workers(config: ClusterConfig) -> Iterator[DaskWorkers]:
    """The workers of the scheduler at `config.address`, or of a cluster of the kind that is asked for; it ends with the block.

    Raises:
        GaiadaskError: where the scheduler does not answer, or no worker comes.
    """
    match config.where:
        case "address":
            with _remote_client(config) as client:
                yield DaskWorkers(client)
        case "slurm":
            jobs = imported("gaiadask.cluster.jobs", "dask_jobqueue")
            with jobs.slurm_workers(config) as workers:
                yield workers
        case "kubernetes":
            pods = imported("gaiadask.cluster.pods", "dask_kubernetes")
            with pods.pod_workers(config) as workers:
                yield workers
        case "file":
            with described_workers(config) as workers:
                yield workers
        case _:
            with local_client(config) as client:
                yield DaskWorkers(client)


@contextlib.contextmanager
def _remote_client(config: ClusterConfig) -> Iterator[Client]:
    address = config.address
    warn_of_plain_text(address)
    try:
        # Where no certificates are named, those of a tls:// address are those of Dask's own configuration (distributed.comm.tls).
        client = Client(address, security=security_of(config), set_as_default=False, timeout=_ANSWER_S)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise GaiadaskError(f"no Dask scheduler answers at cluster.address {address!r}: {error}") from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise GaiadaskError(f"the Dask scheduler at {address} has no workers: start some (`dask worker {address}`)")
        yield client
