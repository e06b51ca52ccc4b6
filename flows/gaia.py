"""The flow `gaia`: what a Prefect worker runs. Prefect wraps the stages and tells how they go; it does none of their work.

`train`, `ingest`, `encode`, `sample`, `compress` and `tune` below are deployments (gaia/train, …). Their parameters are the
configuration, section by section, and their own beside them, so that wrong ones are refused before a run exists:

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
from functools import partial
from typing import Annotated, Any

from prefect import Flow, Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from pydantic.fields import FieldInfo

from flows.login import login_from_block
from flows.reporting import LogProgress, ProgressArtifact, library_logs, publish
from gaiadask import __version__
from gaiadask.config.presets import DEFAULT_PRESET, MODEL_PRESETS, SECTION_PRESETS, set_beside_model
from gaiadask.config.section import Section
from gaiadask.config.sections import Config, LatentConfig
from gaiadask.config.toml import parse_config, parse_options
from gaiadask.errors import (
    ConfigurationError,
    DataError,
    GaiadaskError,
    KeyMismatchError,
    MissingStageError,
    StoreHeldError,
    WrongClusterError,
)
from gaiadask.records import Record, StageResult
from gaiadask.stages.context import Context
from gaiadask.stages.engine import PIPELINE, run_stage
from gaiadask.stages.stage import Stage

log = logging.getLogger(__name__)

FLOW = "gaia"
# Requests and chunks have retries of their own: these are for a lost worker, or a store that fails for some seconds.
RETRIES = 2
RETRY_DELAY_S = 5.0
PERMANENT = (ConfigurationError, DataError, KeyMismatchError, MissingStageError, StoreHeldError, WrongClusterError)
"""Errors that come again however often a stage is tried."""
PASSING = (GaiadaskError, OSError)
"""Errors that another try may not meet: of the archive, the store, the cluster and its workers. Anything else is a bug."""


def deployment(name: str, help: str, work: Callable[[Config, Record | None], None], options: type[Record] | None) -> Flow[..., Any]:
    """A function `name` of the flow whose parameters are the configuration's fields and those of `options`, with their types,
    limits and defaults.

    Prefect reads a flow's parameters from the signature; made here, an option's default keeps its one home.
    """
    own = options.model_fields if options else {}

    def function(**parameters: Any) -> State[Any] | None:
        where = f"parameters of {FLOW}/{name}"
        asked = {name: parameters.pop(name) for name in own}
        try:
            work(parse_config(as_chosen(parameters), where), parse_options(options, asked, where) if options else None)
        except GaiadaskError as error:
            return Failed(message=_message(error))
        return None

    fields = {**own, **Config.model_fields}  # the form shows them in this order
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                parameter,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.get_default(),
                annotation=Annotated[field.annotation, field],
            )
            for parameter, field in fields.items()
        ],
        return_annotation=None,
    )
    function.__name__ = function.__qualname__ = name
    # Prefect takes the form's descriptions from the docstring.
    function.__doc__ = "\n".join([help, "", "Args:", *(f"    {name}: {_described(field)}" for name, field in fields.items())])
    # Of every deployment: its runs are named "train dr2".
    return flow(name=FLOW, description=help, flow_run_name=f"{name} {{name}}", version=__version__)(function)


def _described(field: FieldInfo) -> str:
    text = field.description or inspect.getdoc(field.annotation) or ""
    return " ".join(text.split())


def as_chosen(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters without options that another preset of [model] sets and that have the defaults of the default one.

    A form posts every field of a section. Who chooses the preset keras-2020 there, and nothing else, must get keras-2020, and not
    the default preset's options under its name.
    """
    sections = {name: _given(parameters[name]) for name in ("model", "latent", *SECTION_PRESETS) if name in parameters}
    preset = str(sections.get("model", {}).get("preset", DEFAULT_PRESET))
    follows = {"model": MODEL_PRESETS[preset], "latent": LatentConfig.model_fields, **set_beside_model(preset)}
    for name, given in sections.items():
        fields = Config.model_fields[name].annotation.model_fields  # type: ignore[union-attr]
        sections[name] = {
            option: value for option, value in given.items() if option not in follows[name] or value != fields[option].get_default()
        }
    return parameters | sections


def _given(section: Any) -> dict[str, Any]:
    return section.model_dump(exclude_unset=True) if isinstance(section, Section) else dict(section)


def deployed_stage(name: str) -> Flow[..., Any]:
    """The deployment of one stage: the same as its command."""
    stage = PIPELINE.named(name)
    assert stage.deployed

    def work(config: Config, request: Record | None) -> None:
        run(config, [name], request)

    return deployment(name, f"{stage.help} The same as `gaiadask {name}`.", work, stage.work.options)


train = deployment(
    "train",
    "All stages, from the archive to the report: the same as `gaiadask run`. What is already there is skipped.",
    lambda config, _: run(config),
    None,
)
ingest = deployed_stage("ingest")
encode = deployed_stage("encode")
sample = deployed_stage("sample")
compress = deployed_stage("compress")
tune = deployed_stage("tune")


def run(config: Config, stages: Sequence[str] | None = None, request: Record | None = None) -> None:
    """The stages of these names (all by default), one Prefect task each. Raises what the first failing one raises."""
    if config.cluster.where == "slurm" and not config.cluster.logs:
        raise ConfigurationError(
            "cluster.logs is empty: name a folder that all machines see, since a flow run's working folder is a temporary one of this "
            "machine (`gaiadask deploy` puts in gaiadask-jobs beside the configuration's file)"
        )
    with library_logs(), login_from_block(config):
        log.info("run %s in %s; not at their defaults: %s", config.name, config.store, config.model_dump(exclude_defaults=True))
        if request is not None:
            log.info("asked for: %s", request.to_json())
        progress = LogProgress(partial(ProgressArtifact, config.name))
        PIPELINE.run(config, stages, request=request, progress=progress, wrap=in_task, shard=shard_in_task)


def in_task(context: Context, stage: Stage) -> StageResult:
    """One stage as one task, and its artifacts."""

    def make() -> StageResult:
        result = run_stage(context, stage)
        publish(context, stage)
        return result

    return as_task(stage.name, stage.help, make)


def as_task(name: str, help: str, work: Callable[[], StageResult]) -> StageResult:
    """`work` as one task: without parameters, so that Prefect neither hashes nor serialises what it works on."""

    @task(
        name=name, description=help, task_run_name=name, cache_policy=NO_CACHE, persist_result=False,
        retries=RETRIES, retry_delay_seconds=RETRY_DELAY_S, retry_condition_fn=may_pass,
    )  # fmt: skip
    def make() -> StageResult | State[Any]:
        try:
            result = work()
        except GaiadaskError as error:
            return Failed(message=_message(error), data=error)
        log.info("%s: %s", name, result.summary())
        return result

    state: State[Any] = make(return_state=True)
    result: StageResult = state.result()  # raises what the task failed with
    return result


def shard_in_task(name: str, work: Callable[[], None]) -> None:
    """Some 50 to 500 chunks as one task within their stage's. What failed is tried again by the stage."""

    @task(name="shard", task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    def make() -> State[Any] | None:
        try:
            work()
        except GaiadaskError as error:
            return Failed(message=_message(error), data=error)
        return None

    make(return_state=True).result()


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage that failed is worth another try."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, PASSING) and not isinstance(error, PERMANENT)


def _message(error: GaiadaskError) -> str:
    """Message of a failed state: what users can cause is explained by its message, not by a traceback."""
    return f"{type(error).__name__}: {error}"
