"""Workers as pods of Kubernetes, by Dask's operator: the manifest that it is given, and a cluster of it that ends with a block."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import kr8s
from dask_kubernetes.exceptions import SchedulerStartupError
from dask_kubernetes.operator import KubeCluster, make_cluster_spec
from distributed import Client

from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.rank_process import ALLOCATOR
from gaiadask.cluster.ranks import GPU
from gaiadask.cluster.supply import Fixed, Supply
from gaiadask.config.cluster import ClusterConfig
from gaiadask.errors import ClusterError
from gaiadask.records import JsonObject

_GPU = "nvidia.com/gpu"
"""Of a container: Kubernetes' name of GPUs."""
_ONLY_WHAT_IT_NEEDS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""Of a container: with `runAsNonRoot` of the pod, what namespaces with the standard "restricted" ask for."""


@contextlib.contextmanager
def pod_workers(config: ClusterConfig) -> Iterator[DaskWorkers]:
    """Workers as pods, as the configuration says; they and their scheduler are deleted when the block ends.

    Raises:
        ClusterError: where Kubernetes or Dask's operator does not answer, or no worker comes.
    """
    name = f"gaiadask-{uuid.uuid4().hex[:8]}"
    patience_s = config.wait_minutes * 60
    where = f"pods of namespace {config.namespace or '(of your context)'}, DaskCluster {name}"
    try:
        cluster = KubeCluster(
            custom_cluster_spec=cluster_spec(config, name),
            namespace=config.namespace or None,
            resource_timeout=int(patience_s),
            quiet=True,
        )
    except (
        kr8s.APITimeoutError,
        kr8s.ServerError,
        httpx.HTTPError,
        SchedulerStartupError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        raise ClusterError(
            f"no Dask cluster on Kubernetes ({' '.join(str(error).split()) or type(error).__name__}): does `kubectl get pods` answer, is "
            f"Dask's operator installed (docs/cluster.md), and can the image {config.image} be pulled?"
        ) from error
    with cluster, Client(cluster, set_as_default=False) as client:
        if config.is_adaptive:
            cluster.adapt(minimum=config.min_workers, maximum=config.max_workers)
        supply = Supply() if config.is_adaptive else Fixed(config.workers)
        supply.patience_s = patience_s
        try:
            client.wait_for_workers(1, timeout=patience_s)
        except TimeoutError as error:
            raise ClusterError(
                f"no worker came within cluster.wait_minutes, {config.wait_minutes:.0f} ({where}): `kubectl describe pods` says what they "
                "wait for; ask for less (cores, memory, gpus), or wait longer"
            ) from error
        yield DaskWorkers(client, supply)


def cluster_spec(config: ClusterConfig, name: str) -> JsonObject:
    """The DaskCluster of a name, as its manifest. The scheduler gets one core, and no GPU; no pod is root."""
    size = {"cpu": str(config.cores), "memory": kubernetes_bytes(config.memory)}
    command = ["dask-worker", "--nthreads", str(config.cores), "--memory-limit", config.memory]
    if config.gpus:
        size[_GPU] = str(config.gpus)
        command += ["--resources", f"{GPU}={config.gpus}"]
    spec: Any = make_cluster_spec(
        name=name,
        image=config.image,
        n_workers=config.min_workers if config.is_adaptive else config.workers,
        resources={"requests": size, "limits": size},
        env=dict(ALLOCATOR),
        worker_command=command,
    )
    of_scheduler = {"cpu": "1", "memory": "4Gi"}
    spec["spec"]["scheduler"]["spec"]["containers"][0]["resources"] = {"requests": of_scheduler, "limits": of_scheduler}
    for role in ("scheduler", "worker"):
        pod = spec["spec"][role]["spec"]
        pod["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        pod["containers"][0] |= {
            "securityContext": _ONLY_WHAT_IT_NEEDS,
            "envFrom": [{"secretRef": {"name": name}} for name in config.environment_from],
        }
    manifest: JsonObject = spec
    return manifest


def kubernetes_bytes(memory: str) -> str:
    """A size as Kubernetes writes it.

    >>> kubernetes_bytes("4GB"), kubernetes_bytes("1.5 GiB")
    ('4G', '1.5Gi')
    """
    return memory.removesuffix("B").replace(" ", "")
