"""Workers as jobs of a batch system, by dask-jobqueue: submitted, kept at their number, and made up for when they end.

Dask's own adaptivity submits what is missing of the number that it wants. It does not see that a job has ended without a word
(cancelled, at its walltime, failed before its worker started); `KeptJobs` looks at the queue for that, and lets go of such a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue.slurm import SLURMCluster, SLURMJob
from distributed import Adaptive, Client
from distributed.deploy.spec import ProcessInterface

from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.extras import Arguments
from gaiadask.cluster.futures import AGAIN
from gaiadask.cluster.local import scheduler_options, tell_dashboard
from gaiadask.cluster.rank_process import ALLOCATOR
from gaiadask.cluster.ranks import GPU
from gaiadask.cluster.supply import Supply
from gaiadask.cluster.tls import made_security, security_of, warn_of_plain_text
from gaiadask.config.cluster import LOGS, ClusterConfig
from gaiadask.errors import ClusterError, WrongClusterError

log = logging.getLogger(__name__)

_LOOK_S = 5.0
"""How often the queue is looked at while a worker that was there is missing."""
_SOON_S = 60.0
"""So long after the start the queue is looked at as often: what it will never start, it says by then."""
_LOOK_PENDING_S = 30.0
"""The same, while jobs only wait for their turn: what asks a busy controller more often is frowned upon."""
_RESTART_S = 120.0
"""A job that runs without its worker is given up after so long: within it, a nanny has started another worker."""
_STARTS = 3
"""So many jobs in a row may end before their worker has come; then something is wrong that the next one would meet too."""
_TOLD_S = 60.0
"""How often it is told that no worker has come yet."""
_LINES_OF_LOG = 8
_UNREACHED = re.compile(r"Timed out trying to connect to (\w+://\S+)")
"""In the log of a worker that has not reached its scheduler, far above the last lines."""
_BUSY = ("timed out", "Unable to contact slurm controller", "temporarily unable")
"""In what sbatch says where it may take the same job a little later."""
_ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "REQUEUED", "RESIZING", "REQUEUE_HOLD", "SIGNALING"}
_HOPELESS = ("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "Invalid", "MaxWallDurationPerJob", "PerJobLimit")
"""In what SLURM gives as the reason why a job waits, where it will wait for ever."""
_NEVER = "10000 days"
# Dask would let go of a job's successor too, while that waits in the queue.
_SETTINGS = {"distributed.deploy.lost-worker-timeout": _NEVER}


@contextlib.contextmanager
def slurm_workers(config: ClusterConfig) -> Iterator[DaskWorkers]:
    """Workers as jobs of SLURM, as the configuration says; they are cancelled when the block ends.

    Raises:
        WrongClusterError: where there is no SLURM here, a job is refused, or no worker comes.
        ClusterError: where SLURM does not answer.
    """
    if not shutil.which("sbatch"):
        raise WrongClusterError(
            "cluster.kind is 'slurm', but this machine has no command `sbatch`: run gaiadask on a login node of the cluster (or in a job "
            "there), or load SLURM's module"
        )
    logs = Path(config.logs or LOGS).expanduser().absolute()
    _make(logs)
    count = config.max_workers or config.workers
    bounds: Arguments = {"minimum": config.min_workers if config.is_adaptive else count, "maximum": count}
    with (
        tempfile.TemporaryDirectory(prefix=".tls-", dir=logs, ignore_cleanup_errors=True) as secret,
        job_workers(SLURMCluster, slurm_options(config, logs, secret), bounds, config) as workers,
    ):
        yield workers


def slurm_options(config: ClusterConfig, logs: Path, secret: str) -> Arguments:
    """Arguments of SLURMCluster. secret: a folder for the run's certificate and key."""
    given = {"queue": config.queue, "account": config.account, "interface": config.interface}
    gpu = [f"--gres=gpu:{config.gpus}"] if config.gpus else []
    return {
        "cores": config.cores,
        "processes": 1,
        "memory": config.memory,
        "walltime": config.walltime,
        "job_name": "gaiadask",
        "job_extra_directives": [*gpu, *config.directives],
        "job_script_prologue": [*(f"export {name}={value}" for name, value in ALLOCATOR.items()), *config.prologue],
        "worker_extra_args": ["--no-dashboard", *(["--resources", f"{GPU}={config.gpus}"] if config.gpus else [])],
        "log_directory": str(logs),
        "security": security_of(config) or made_security(secret),
        "scheduler_options": scheduler_options(config),
        "silence_logs": "error",
        **{option: value for option, value in given.items() if value},
    }


@contextlib.contextmanager
def job_workers(kind: Any, options: Arguments, bounds: Arguments, config: ClusterConfig) -> Iterator[DaskWorkers]:
    """The workers of a cluster of jobs, a class of dask-jobqueue's made with `options`, of which there are between `bounds` (arguments of its `adapt`).

    Raises:
        WrongClusterError: where a job is refused, or no worker comes.
        ClusterError: where the batch system does not answer.
    """
    job_class = type("KeptJob", (_Job, kind.job_cls), {})
    with dask.config.set(_SETTINGS), kind(job_cls=job_class, **options) as cluster:
        warn_of_plain_text(cluster.scheduler_address, "Give cluster_kwargs `security: true`")
        adaptive = cluster.adapt(Adaptive=KeptJobs, **bounds)
        with Client(cluster, set_as_default=False) as client:
            supply = Jobs(adaptive, config.wait_minutes * 60)
            tell_dashboard(config, client)
            supply.wait(client)
            yield DaskWorkers(client, supply)


class _Job(ProcessInterface):
    """A job, as a class before one of dask-jobqueue's. refusal: what the batch system said where it did not take it."""

    refusal = ""
    submitted = 0.0

    async def start(self) -> None:
        self.submitted = time.monotonic()
        try:
            await super().start()
        except (RuntimeError, ValueError, OSError) as error:
            self.refusal = _said(str(error))
            await ProcessInterface.start(self)


class KeptJobs(Adaptive):
    """Dask's adaptivity, for jobs: those that ended are let go of, so that others take their place.

    Attributes:
        trouble: why no job can come any more; "" where they can.
        states: of the jobs that wait or run without their worker, by id, as the queue told them at last.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.trouble = ""
        self.states: dict[str, tuple[str, str]] = {}
        self._came: set[str] = set()
        self._missing_since: dict[str, float] = {}
        self._ended_early = 0
        self._began, self._looked = time.monotonic(), 0.0
        super().__init__(*arguments, **options)

    @property
    def _jobs(self) -> Any:
        """The cluster, which has jobs."""
        return self.cluster

    async def adapt(self) -> None:
        if self.trouble:
            return
        jobs = {name: job for name, job in self._jobs.workers.items() if name in self._jobs.worker_spec}
        if refused := next((job.refusal for job in jobs.values() if job.refusal), ""):
            self.trouble = f"the batch system refused a job: {refused}"
            return
        here = self.cluster.observed
        missing = {name: job for name, job in jobs.items() if not self._members(name) <= here}
        for name in set(jobs) - set(missing):
            self._came.add(jobs[name].job_id)
            self._ended_early = 0
        now = time.monotonic()
        self._missing_since = {name: self._missing_since.get(name, now) for name in missing}
        soon = now - self._began < _SOON_S or self._ended_early or any(job.job_id in self._came for job in missing.values())
        if missing and now - self._looked > (_LOOK_S if soon else _LOOK_PENDING_S):
            self._looked = now
            await self._look(list(missing.items()), now)
        self.states = {job.job_id: self.states[job.job_id] for job in missing.values() if job.job_id in self.states}
        await super().adapt()

    async def _look(self, missing: list[tuple[str, Any]], now: float) -> None:
        states = await _states([job.job_id for _, job in missing]) if shutil.which("squeue") else None
        for name, job in missing:
            if now - job.submitted < _LOOK_S:  # the queue may not show it yet
                continue
            came = job.job_id in self._came
            state, reason = states.get(job.job_id, ("GONE", "")) if states is not None else ("", "")
            self.states[job.job_id] = (state, reason)
            if state == "PENDING" and any(word in reason for word in _HOPELESS):
                self.trouble = f"job {job.job_id} will never start: SLURM says {reason}"
            ended = bool(state) and state not in _ALIVE
            lost = came and now - self._missing_since[name] > _RESTART_S
            if ended or lost:
                await self._let_go(name, job, state if ended else "without a worker", came)

    async def _let_go(self, name: str, job: Any, state: str, came: bool) -> None:
        self._ended_early = 0 if came else self._ended_early + 1
        record = log_of(job)
        log.warning("job %s ended (%s)%s: another takes its place", job.job_id, state, f", its log is {record}" if record else "")
        if self._ended_early >= _STARTS:
            self.trouble = (
                f"{_STARTS} jobs in a row ended before their worker came, the last one, {job.job_id}, {state}.{_last_lines(record)}"
            )
        del self._jobs.workers[name]
        await job.close()

    def _members(self, name: str) -> set[str]:
        """Names of the workers of a job."""
        return {f"{name}{suffix}" for suffix in self._jobs.worker_spec[name].get("group", [""])}


class Jobs(Supply):
    """What is known of jobs that are still to come."""

    def __init__(self, adaptive: KeptJobs, patience_s: float) -> None:
        self.patience_s = patience_s
        self._adaptive = adaptive

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[int]:
        adaptive = self._adaptive
        before, most = adaptive.minimum, adaptive.maximum
        wanted = int(min(count, most)) if count else before if most == float("inf") else int(most)
        adaptive.minimum = max(before, wanted)
        try:
            yield wanted
        finally:
            adaptive.minimum = before

    def check(self) -> None:
        if trouble := self._adaptive.trouble:
            raise (ClusterError if any(word in trouble for word in _BUSY) else WrongClusterError)(
                f"{trouble}\nLook at the options of [cluster] (queue, account, walltime, cores, memory, gpus, directives, prologue, "
                f"interface); then {AGAIN}"
            )

    def news(self) -> str:
        told = sorted(self._adaptive.states.items())
        shown = [f"job {job} {state}{f' ({reason})' if reason not in ('', 'None') else ''}" for job, (state, reason) in told]
        return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")

    def wait(self, client: Client) -> None:
        """Until the first worker has come. Raises WrongClusterError where none will, or none came for too long."""
        began = told = time.monotonic()
        while not client.nthreads():
            self.check()
            now = time.monotonic()
            if now - began > (self.patience_s or 0):
                raise WrongClusterError(
                    f"no worker came within cluster.wait_minutes, {(now - began) / 60:.2g}: {self.news() or 'no job was submitted'}. "
                    "See `squeue` for when they start, and the jobs' logs in cluster.logs; ask for less (cores, memory, walltime), for "
                    "another queue, or wait longer"
                )
            if now - told > _TOLD_S:
                told = now
                log.warning("no worker yet after %.0f min: %s", (now - began) / 60, self.news() or "jobs are being submitted")
            time.sleep(0.2)


def with_folders(kind: Any, options: Arguments, logs: str) -> Arguments:
    """Arguments of a class of dask-jobqueue's, with the folder of logs, and of certificates that it makes, where neither they nor
    dask-jobqueue's own files name one: its own choice, the working folder, is not seen by other machines in a flow run."""
    named = f"jobqueue.{kind.job_cls.config_name}"
    wanted = {option: logs for option in ("log_directory", "shared_temp_directory") if logs}
    lacking = {
        option: folder for option, folder in wanted.items() if not dask.config.get(f"{named}.{option.replace('_', '-')}", None)
    }
    for folder in lacking.values():
        _make(Path(folder))
    return lacking | options


def _make(logs: Path) -> None:
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongClusterError(f"cluster.logs: the folder {logs} cannot be made: {error.strerror}") from error


def log_of(job: Any) -> Path | None:
    """The file that a job of SLURM writes its errors to; None where it is not known, and of other batch systems, which name it otherwise."""
    folder = getattr(job, "log_directory", None) if getattr(job, "submit_command", "") == SLURMJob.submit_command else None
    return Path(folder) / f"{job.job_name or 'worker'}-{job.job_id}.err" if folder and job.job_id else None


def _last_lines(record: Path | None) -> str:
    """What a job's log says of its end: the network where its worker has not come through, else the last lines."""
    try:
        text = record.read_text(errors="replace") if record else ""
    except OSError:
        return f" Its log, {record}, is not there: does every machine see that folder?"
    if unreached := _UNREACHED.search(text):
        return (
            f" Its worker has not reached the scheduler at {unreached[1]}: a firewall may be between its machine and this one, or "
            f"cluster.interface must name the network that both have (`ip address` lists those of this machine). All of it: {record}"
        )
    lines = [f"  {line[:200]}" for line in text.splitlines()[-_LINES_OF_LOG:]]
    return "\n".join([f" The last lines of {record}:", *lines]) if lines else ""


async def _states(ids: list[str]) -> dict[str, tuple[str, str]] | None:
    """States of jobs, and why they wait, by their ids, those that SLURM knows; None where it does not answer."""
    words = ("squeue", "--noheader", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(ids)}")
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    output, said = await process.communicate()
    if process.returncode and b"Invalid job id" not in said:  # of one alone that it does not know any more
        return None
    lines = [line.split("|", 2) for line in output.decode().splitlines() if line.count("|") == 2]
    return {job: (state, reason) for job, state, reason in lines}


def _said(error: str) -> str:
    """What a command wrote to stderr, of dask-jobqueue's error."""
    _, _, told = error.partition("stderr:\n")
    return " ".join((told or error).split())
