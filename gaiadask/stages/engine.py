"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from distributed import Client

from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml
from gaiadask.errors import ConfigurationError, KeyMismatchError
from gaiadask.ingest_plan import differences
from gaiadask.keys import digest
from gaiadask.progress import Progress, Silent
from gaiadask.stages.context import Context, Inputs, Result, Shard, Stage, log
from gaiadask.stages.table import STAGES
from gaiadask.store.lease import Lease
from gaiadask.store.manifest import Entry


def run_stages(
    config: Config,
    names: Sequence[str] | None = None,
    *,
    replace: Sequence[str] = (),
    progress: Progress | None = None,
    through: Callable[[Context, Stage], Result] | None = None,
    shard: Shard | None = None,
    client: Client | None = None,
) -> dict[str, Result]:
    """Walk the stages called `names` (all by default) in order, skipping what is already there with the same key.

    replace: stages to drop first, with all that depends on them. through: called for each stage instead of `walk`, which
    it calls in turn (the flows wrap each in a task). shard: called with the name and the work of each 50 to 500 chunks that
    are fetched (the flows make a task of it). client: works there instead of on the configuration's cluster.

    Returns each walked stage's result. Raises KeyMismatchError where the run holds a result, of these stages or of one before
    them, made from other inputs, MissingStageError where an earlier stage is missing, and whatever a stage raises.
    """
    chosen = [stage_named(n) for n in names] if names is not None else list(STAGES)
    with ExitStack() as resources:
        context = Context(config, progress or Silent(), resources, client)
        context.shard = shard or context.shard
        _replace(context, replace)
        results: dict[str, Result] = {}
        for stage in STAGES[: 1 + max(STAGES.index(c) for c in chosen)]:
            if stage in chosen:
                results[stage.name] = (through or walk)(context, stage)
            elif stage.name != "ingest":  # the catalogue is the store's: its files or service may be gone by now
                _find_made(context, stage)
        return results


def run_on_request(
    config: Config,
    stage: Stage,
    after: str,
    *,
    replace: Sequence[str] = (),
    progress: Progress | None = None,
    through: Callable[[Context, Stage], Result] | None = None,
    client: Client | None = None,
) -> Result:
    """Make a stage that is none of `STAGES` and runs when asked: it builds on those up to `after`, which must be there.

    replace: this stage's name, where its result is to be dropped first. The rest, and what is raised, as in `run_stages`.
    """
    if strangers := set(replace) - {stage.name}:
        raise ConfigurationError(f"--replace {min(strangers)}: only {stage.name} itself can be replaced here")
    with ExitStack() as resources:
        context = Context(config, progress or Silent(), resources, client)
        if replace:
            with Lease(context.store, context.run.lease):
                context.manifest.remove(stage.name)
                stage.drop(context)
        for earlier in STAGES[1 : 1 + STAGES.index(stage_named(after))]:
            _find_made(context, earlier)
        return (through or walk)(context, stage)


def stage_named(name: str) -> Stage:
    """Raises ConfigurationError for a name that is none of the stages'."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ConfigurationError(f"unknown stage {name!r}: the stages are {', '.join(s.name for s in STAGES)}")


def walk(context: Context, stage: Stage) -> Result:
    """Make one stage, or find it made. Returns its result."""
    held = _find_made(context, stage)
    if held is not None:
        log.info("%s: already there (key %s), skipped", stage.name, held.key)
        return dict(held.result)
    inputs = _inputs_of(context, stage)
    started = time.monotonic()
    log.info("%s: %s", stage.name, stage.does)
    with Lease(context.store, context.run.lease):
        context.store.write_bytes(context.run.config, dump_toml(context.config, comments=False).encode())
        result = stage.make(context, digest(inputs))
        context.manifest.write(stage.name, inputs, result, time.monotonic() - started)
    return result


def _inputs_of(context: Context, stage: Stage) -> Inputs:
    # Through JSON, as the manifest holds them, so that like is compared with like.
    return dict(json.loads(json.dumps(stage.inputs(context))))


def _find_made(context: Context, stage: Stage) -> Entry | None:
    """The stage's entry, or None where it is not made. Raises KeyMismatchError where it was made from other inputs."""
    held = context.manifest.entry(stage.name)
    if held is None:
        return None
    inputs = _inputs_of(context, stage)
    if held.key != digest(inputs):
        raise KeyMismatchError(
            f"run {context.run.name!r} holds a {stage.name} made from other inputs ({differences(dict(held.inputs), inputs)}). "
            f"Nothing was overwritten: give the new run another name, name another store, or drop the old one with "
            f"--replace {stage.name}"
        )
    return held


def _replace(context: Context, names: Sequence[str]) -> None:
    if not names:
        return
    first = min(STAGES.index(stage_named(name)) for name in names)
    dropped = STAGES[first:]
    with Lease(context.store, context.run.lease):
        context.manifest.remove(*(s.name for s in dropped))
        for stage in reversed(dropped):
            stage.drop(context)
    log.warning("dropped %s of run %s", ", ".join(s.name for s in dropped), context.run.name)
