"""A cluster that a YAML file describes: `cluster_class`, `cluster_kwargs`, `adapt_kwargs`, as observatories have them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from distributed import Client
from distributed.deploy.cluster import Cluster
from pydantic import Field

from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.extras import EXTRAS, Arguments, imported
from gaiadask.cluster.supply import Fixed, Supply
from gaiadask.cluster.tls import warn_of_plain_text
from gaiadask.config.cluster import ClusterConfig
from gaiadask.config.toml import parse_options
from gaiadask.errors import ClusterError, ConfigurationError
from gaiadask.records import JsonObject, Record


class Description(Record):
    """What the file says."""

    cluster_class: str = Field(description="module and name of a class of Dask clusters, as dask_jobqueue.SLURMCluster")
    cluster_kwargs: JsonObject = Field({}, description="arguments that it is made with")
    adapt_kwargs: JsonObject = Field(
        {}, description="arguments of its `adapt`, as minimum and maximum; without: n_workers of cluster_kwargs"
    )


def read_description(path: str) -> Description:
    """The description in a file. Raises ConfigurationError, naming the file and what is wrong in it."""
    try:
        values = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cluster.file: {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cluster.file: {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"cluster.file: {path}: expected cluster_class, cluster_kwargs and adapt_kwargs")
    return parse_options(Description, values, where=f"cluster.file: {path}")


@contextlib.contextmanager
def described_workers(config: ClusterConfig) -> Iterator[DaskWorkers]:
    """The workers of the cluster that `config.file` describes; it ends with the block.

    Raises:
        ConfigurationError: where the file does not describe one.
        ClusterError: where it does not start, or no worker comes.
    """
    description = read_description(config.file)
    kind = _class_of(description.cluster_class, config.file)
    options: Arguments = {**description.cluster_kwargs}
    bounds: Arguments = {**description.adapt_kwargs}
    if not bounds and (count := options.pop("n_workers", config.workers)):
        bounds = {"minimum": count, "maximum": count}
    if not bounds:
        raise ConfigurationError(
            f"cluster.file: {config.file} does not say how many workers: give adapt_kwargs (minimum and maximum), n_workers in "
            "cluster_kwargs, or cluster.workers in the configuration"
        )
    try:
        with contextlib.ExitStack() as opening:
            workers = opening.enter_context(_opened(kind, options, bounds, config))
            until_closed = opening.pop_all()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ClusterError(f"{description.cluster_class}, as {config.file} describes it, did not start: {error}") from error
    with until_closed:
        yield workers


@contextlib.contextmanager
def _opened(kind: Any, options: Arguments, bounds: Arguments, config: ClusterConfig) -> Iterator[DaskWorkers]:
    if hasattr(kind, "job_cls"):
        jobs = imported("gaiadask.cluster.jobs", "dask_jobqueue")
        with jobs.job_workers(kind, jobs.with_folders(kind, options, config.logs), bounds, config) as workers:
            yield workers
        return
    with kind(**options) as cluster, Client(cluster, set_as_default=False) as client:
        patience_s = config.wait_minutes * 60
        warn_of_plain_text(cluster.scheduler_address, "Give cluster_kwargs what has it encrypted, for most classes `security`")
        supply = Supply()
        match bounds:
            case {"minimum": int(count), "maximum": maximum} if count == maximum:
                cluster.scale(count)
                supply = Fixed(count)
            case _:
                cluster.adapt(**bounds)
        supply.patience_s = patience_s
        _wait(client, config)
        yield DaskWorkers(client, supply)


def _wait(client: Client, config: ClusterConfig) -> None:
    until = time.monotonic() + config.wait_minutes * 60
    while not client.nthreads():
        if time.monotonic() > until:
            raise ClusterError(
                f"no worker of the cluster that {config.file} describes came within cluster.wait_minutes, {config.wait_minutes:g}: look at "
                "its logs, and at what it was asked for"
            )
        time.sleep(0.2)


def _class_of(name: str, file: str) -> type[Cluster]:
    module, _, attribute = name.rpartition(".")
    package = module.partition(".")[0]
    try:
        if package in EXTRAS:
            found = getattr(imported(module, package), attribute, None)
        else:
            found = getattr(import_module(module), attribute, None) if module else None
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"cluster.file: {file} names {name}: {error}; install what has it") from error
    if not (isinstance(found, type) and issubclass(found, Cluster)):
        raise ConfigurationError(
            f"cluster.file: {file}: cluster_class {name!r} is no class of Dask clusters (as dask_jobqueue.SLURMCluster)"
        )
    return found
