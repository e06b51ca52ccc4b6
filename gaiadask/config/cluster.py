"""The section [cluster]: where work runs, and how a cluster for it is started."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gaiadask.config.section import Section

Kind = Literal["auto", "local", "address", "slurm", "kubernetes", "file"]
"""Of a cluster: one of this machine, one that runs, jobs of SLURM, pods of Kubernetes, or what a file describes."""

PATHS = ("file", "logs", "tls_ca", "tls_cert", "tls_key")
"""Options that are paths."""
LOGS = "gaiadask-jobs"
"""The folder `logs` where none is named: beside the configuration's file, which is read where all machines see it more often than not."""

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_MEMORY = re.compile(r"[1-9]\d*(\.\d+)? ?[kMGT]i?B")
_WALLTIME = re.compile(r"(\d+-)?\d{1,2}:\d{2}:\d{2}")


def _memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        raise ValueError("expected a number and a unit, as '4GB' or '1.5 GiB'")
    return text


def known_device(text: str) -> str:
    """The same text, where it is what [cluster] device may be: what a model computes on. Raises ValueError, saying what is expected."""
    if not _DEVICE.fullmatch(text):
        raise ValueError("expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    return text


def _walltime(text: str) -> str:
    if not _WALLTIME.fullmatch(text):
        raise ValueError("expected hours, minutes and seconds, as '04:00:00', with days before them as '2-00:00:00'")
    return text


Memory = Annotated[str, AfterValidator(_memory)]
Device = Annotated[str, AfterValidator(known_device)]
Walltime = Annotated[str, AfterValidator(_walltime)]


class ClusterConfig(Section):
    """Where work runs."""

    kind: Kind = Field(
        "auto",
        description="local: processes of this machine; address: a Dask scheduler that runs; slurm: jobs of SLURM (needs the extra "
        "`slurm`); kubernetes: pods, by Dask's operator (needs the extra `kubernetes`); file: what a file describes; auto: file or "
        "address where one is given, else local",
    )
    address: str = Field("", description="a Dask scheduler's address, tcp://… or tls://…; empty: a cluster of the kind is started")
    file: str = Field(
        "",
        description="a YAML file with cluster_class, cluster_kwargs and adapt_kwargs of any cluster of Dask's; a relative path starts at this file's folder",
    )
    workers: int = Field(
        0,
        ge=0,
        description="local: 0: min(cores, memory in GiB / 4), or one a GPU; slurm, kubernetes: how many jobs or pods, each one worker",
    )
    min_workers: int = Field(1, ge=1, description="slurm, kubernetes, with max_workers: the fewest workers")
    max_workers: int = Field(
        0, ge=0, description="slurm, kubernetes: in place of `workers`: as many as there is work for, up to so many; 0: `workers`"
    )
    cores: int = Field(1, ge=1, description="slurm, kubernetes: cores of each worker")
    # A chunk of the default size takes about half of it on one core.
    memory: Memory = Field("4GB", description="slurm, kubernetes: memory of each worker; about 4 GB a core")
    gpus: int = Field(0, ge=0, le=1, description="slurm, kubernetes: GPUs of each worker; a rank of training takes one")
    queue: str = Field("", description="slurm: the partition that jobs are submitted to; empty: the default one")
    account: str = Field("", description="slurm: the account that they are charged to; empty: yours")
    walltime: Walltime = Field("04:00:00", description="slurm: how long a job may run; one that ends is made up for by another")
    directives: tuple[str, ...] = Field((), description='slurm: further options of sbatch, as ["--constraint=skylake"]')
    prologue: tuple[str, ...] = Field(
        (), description='slurm: shell commands of each job before its worker starts, as ["module load cuda"]'
    )
    interface: str = Field(
        "", description="slurm: network interface that workers reach this machine by, as ib0; empty: that of its default route"
    )
    logs: str = Field(
        "",
        description="slurm, file: folder of the jobs' logs, and of a run's certificates, which all machines see; a relative path starts "
        "at this file's folder; empty: gaiadask-jobs there",
    )
    image: str = Field("", description="kubernetes: image of the pods, with the gaiadask of this machine")
    namespace: str = Field("", description="kubernetes: namespace of the pods; empty: that of your context")
    environment_from: tuple[str, ...] = Field(
        (), description='kubernetes: names of its secrets whose entries are variables of the pods\' environment, as ["gaiadask-s3"]'
    )
    tls_ca: str = Field("", description="file of the authority that signed tls_cert; with it the cluster speaks TLS")
    tls_cert: str = Field("", description="file of the certificate of client, scheduler and workers")
    tls_key: str = Field("", description="file of its key, which all machines see and nobody else may read")
    # Queues of batch systems take hours in the day; whoever waits sees why.
    wait_minutes: float = Field(
        60.0, gt=0, description="slurm, kubernetes, file: how long a cluster may have no worker before the run gives up"
    )
    dashboard: bool = Field(
        True, description="local, slurm: Dask's dashboard on the loopback of this machine, where bokeh is installed"
    )
    device: Device = Field(
        "auto",
        description="where networks run: auto (a GPU where the worker has one, else the CPU), cpu, cuda or cuda:N",
    )

    @property
    def where(self) -> Kind:
        """The kind, `auto` decided."""
        if self.kind != "auto":
            return self.kind
        return "file" if self.file else "address" if self.address else "local"

    @property
    def is_adaptive(self) -> bool:
        """Whether there are as many workers as there is work for."""
        return self.max_workers > 0

    @model_validator(mode="after")
    def _consistent(self) -> ClusterConfig:
        for option, kind in (("address", "address"), ("file", "file")):
            if getattr(self, option) and self.where != kind:
                raise ValueError(f"cluster.{option} is given, but kind is {self.where!r}: leave one out, or set kind = {kind!r}")
            if self.where == kind and not getattr(self, option):
                raise ValueError(f"kind is {kind!r}, but cluster.{option} is empty: name it")
        if self.where in ("slurm", "kubernetes"):
            self._check_number()
        if self.where == "kubernetes" and not self.image:
            raise ValueError("kind is 'kubernetes', but cluster.image is empty: name an image that has gaiadask in it")
        self._check_tls()
        return self

    def _check_number(self) -> None:
        if bool(self.workers) == self.is_adaptive:
            raise ValueError(
                f"kind is {self.where!r}: say how many workers: either cluster.workers, or cluster.max_workers for as many as there is "
                f"work for (found workers = {self.workers}, max_workers = {self.max_workers})"
            )
        if self.is_adaptive and self.min_workers > self.max_workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than max_workers, {self.max_workers}")

    def _check_tls(self) -> None:
        given = [name for name in ("tls_ca", "tls_cert", "tls_key") if getattr(self, name)]
        if not given:
            return
        if len(given) < 3:
            raise ValueError(f"{' and '.join(given)} alone: TLS needs all three of tls_ca, tls_cert and tls_key")
        if self.where == "address" and not self.address.startswith("tls://"):
            raise ValueError(f"tls_ca is given, but the address is {self.address!r}: one that starts with tls:// is needed")
        if self.where in ("kubernetes", "file"):
            raise ValueError(f"tls_ca and kind {self.where!r}: give certificates in the description of that cluster instead")
