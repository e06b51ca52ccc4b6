"""The flow `gaia`: what a Prefect worker runs. Prefect wraps the stages and tells how they go; it does none of their work.

Each function below is a deployment (gaia/train, gaia/ingest, gaia/encode, gaia/sample, gaia/tune). Its parameters are
the configuration, section by section, and its own beside them, so that wrong ones are refused before a run exists:

    prefect deployment run gaia/train --watch
    prefect deployment run gaia/train --watch --param name=wide --param model='{"hidden": [512, 512]}'
    prefect deployment run gaia/sample --watch --param stars=1000000 --param seed=7

A section given with --param takes the place of the deployment's whole section: options that it leaves out have the
defaults of `gaiadask init`, not the deployment's (so a section `archive` must say its kind, or it is ESA's service).
Passwords are never parameters.

A flow run is one process, and its stages share one Dask cluster. A stage is one Prefect task, and so is each shard of 50 to
500 chunks that it fetches; what these are made of (chunks, partitions, ranks) is placed by Dask, and what is finished is known by the store, not by Prefect: a run that failed or was
cancelled goes on from there when it is started again.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from distributed.scheduler import KilledWorker
from prefect import Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from pydantic import Field

from flows.login import login_from_block
from flows.reporting import LogProgress, library_logs, publish
from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.errors import ConfigurationError, DataError, GaiadaskError, KeyMismatchError, MissingStageError, StoreHeldError
from gaiadask.outputs import sample_all
from gaiadask.prior import Cone
from gaiadask.sample import Wanted
from gaiadask.stages.context import Context, Result, Stage
from gaiadask.stages.engine import run_on_request, run_stages, walk
from gaiadask.stages.tune import AFTER, TUNE

log = logging.getLogger(__name__)

FLOW = "gaia"
RETRIES = 2
RETRY_DELAY_S = 5.0
PERMANENT = (ConfigurationError, DataError, KeyMismatchError, MissingStageError, StoreHeldError)
"""Errors that come again however often a stage is tried."""
PASSING = (GaiadaskError, KilledWorker, OSError)
"""Errors that another try may not meet: of the archive, the store, the cluster and its workers. Anything else is a bug."""


def configured(body: Callable[..., None]) -> Callable[..., State[Any] | None]:
    """`body` as a function whose parameters are the configuration's fields, with their types, limits and defaults, and those
    that `body` takes beside its configuration.

    Prefect reads a flow's parameters from the signature; made here, an option's default keeps its one home.
    """
    own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]

    def function(**options: Any) -> State[Any] | None:
        told = {parameter.name: options.pop(parameter.name) for parameter in own}
        try:
            body(parse_config(options, where=f"parameters of {FLOW}/{body.__name__}"), **told)
        except GaiadaskError as error:
            return Failed(message=_told(error))
        return None

    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=field.get_default(), annotation=Annotated[field.annotation, field]
        )
        for name, field in Config.model_fields.items()
    ]
    function.__signature__ = inspect.Signature([*parameters, *own], return_annotation=None)  # type: ignore[attr-defined]
    for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(function, attribute, getattr(body, attribute))
    return function


@flow(name=FLOW)
@configured
def train(config: Config) -> None:
    """All stages, from the archive to the report: the same as `gaiadask run`. What is already there is skipped."""
    run(config)


@flow(name=FLOW)
@configured
def ingest(config: Config) -> None:
    """Fetch the selection into the store's catalogue: the same as `gaiadask ingest`."""
    run(config, ["ingest"])


@flow(name=FLOW)
@configured
def encode(config: Config) -> None:
    """Every star of the catalogue to its latents, with the run's model: the same as `gaiadask encode`."""
    run(config, ["encode"])


@flow(name=FLOW)
@configured
def sample(
    config: Config,
    *,
    stars: Annotated[int, Field(ge=1, description="how many new stars")] = 1_000_000,
    seed: Annotated[int, Field(ge=0, description="the same seed gives the same stars")] = 0,
    cone: Annotated[tuple[float, float, float] | None, Field(description="only in this circle: ra, dec, radius, degrees")] = None,
    magnitude: Annotated[tuple[float, float] | None, Field(description="only of G between these, bright end first")] = None,
    output: Annotated[str, Field(description="folder (any fsspec URI) of the files; empty: the run's samples/")] = "",
) -> None:
    """New stars from the run's prior, as parquet files: the same as `gaiadask sample`."""
    wanted = Wanted(cone=Cone(*cone) if cone else None, magnitude=magnitude)
    with library_logs():
        log.info("%d new stars of run %s in %s, seed %d, %s", stars, config.name, config.store, seed, wanted.to_json())
        as_task("sample", "draw new stars", lambda: sample_all(config, stars, seed, wanted, output, LogProgress()))


@flow(name=FLOW)
@configured
def tune(config: Config) -> None:
    """Search [model] and [training] on the store's catalogue: the same as `gaiadask tune`."""
    with library_logs():
        run_on_request(config, TUNE, AFTER, progress=LogProgress(), through=in_task)


def run(config: Config, stages: Sequence[str] | None = None) -> None:
    """The stages of these names (all by default), one Prefect task each. Raises what the first failing one raises."""
    with library_logs(), login_from_block(config):
        log.info("run %s in %s; not at their defaults: %s", config.name, config.store, config.model_dump(exclude_defaults=True))
        run_stages(config, stages, progress=LogProgress(), through=in_task, shard=shard_in_task)


def in_task(context: Context, stage: Stage) -> Result:
    """One stage as one task, and its artifacts."""

    def make() -> Result:
        result = walk(context, stage)
        publish(context, stage)
        return result

    return as_task(stage.name, stage.does, make)


def as_task(name: str, does: str, work: Callable[[], Result]) -> Result:
    """`work` as one task: without parameters, so that Prefect neither hashes nor serialises what it works on."""

    @task(
        name=name, description=does, task_run_name=name, cache_policy=NO_CACHE, persist_result=False,
        retries=RETRIES, retry_delay_seconds=RETRY_DELAY_S, retry_condition_fn=may_pass,
    )  # fmt: skip
    def make() -> Result | State[Any]:
        try:
            result = work()
        except GaiadaskError as error:
            return Failed(message=_told(error), data=error)
        log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in result.items()))
        return result

    state: State[Any] = make(return_state=True)
    result: Result = state.result()  # raises what the task failed with
    return result


def shard_in_task(name: str, work: Callable[[], None]) -> None:
    """Some 50 to 500 chunks as one task within their stage's. What failed is tried again by the stage."""

    @task(name="shard", task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    def make() -> State[Any] | None:
        try:
            work()
        except GaiadaskError as error:
            return Failed(message=_told(error), data=error)
        return None

    make(return_state=True).result()


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage that failed is worth another try."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, PASSING) and not isinstance(error, PERMANENT)


def _told(error: GaiadaskError) -> str:
    """What a failed state says: what users can cause is told by its message, not by a traceback."""
    return f"{type(error).__name__}: {error}"
