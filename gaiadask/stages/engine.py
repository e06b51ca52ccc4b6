"""The engine that runs the stages it is handed: it skips finished ones, replaces no other result, and records each one.

A stage's key is a hash of everything its result depends on. Where the run's manifest has the same key, the stage is skipped; where it
has another one, nothing is overwritten: the run stops and says what differs. A stage runs under the run's lease, and its entry is
written when its work has ended well.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from rich import filesize

from gaiadask import catalogue
from gaiadask.cluster.workers import Workers
from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml
from gaiadask.errors import ConfigurationError, KeyMismatchError, MissingStageError, known_names
from gaiadask.keys import differences, digest
from gaiadask.progress import Progress, Silent
from gaiadask.records import JsonObject, Record, StageResult
from gaiadask.stages.context import Context, Shard
from gaiadask.stages.stage import Stage
from gaiadask.stages.table import STAGES
from gaiadask.store import paths
from gaiadask.store.manifest import StageEntry

log = logging.getLogger(__name__)

Wrap = Callable[[Context, Stage], StageResult]

_NOT_IN_0_1_0: dict[str, tuple[str, ...]] = {"weights": (), "latent": (), "training": ("buffer_rows",)}
"""Inputs that version 0.1.0 did not record, and sections with the options that it left out: an entry without them is compared in the
others."""
_ONLY_IN_0_1_0: dict[str, tuple[str, ...]] = {"training": ("ranks",)}
"""Options that it recorded and that are in no key any more: an entry's own value stands for what is asked."""


class Pipeline:
    """Stages in the order in which they run, those on request among them.

    Args:
        stages: each after those that it needs.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self._by_name: dict[str, Stage] = {}
        for stage in self.stages:
            assert set(stage.needs) <= self._by_name.keys(), f"stage {stage.name} stands before one that it needs"
            self._by_name[stage.name] = stage

    def named(self, name: str) -> Stage:
        """The stage of this name.

        Raises:
            ConfigurationError: where there is none.
        """
        if name not in self._by_name:
            raise ConfigurationError(f"unknown stage {name!r}: {known_names([name], self._by_name)}")
        return self._by_name[name]

    @property
    def of_a_run(self) -> tuple[Stage, ...]:
        """The stages of every run."""
        return tuple(stage for stage in self.stages if not stage.on_request)

    def needed_by(self, stages: Iterable[Stage]) -> tuple[Stage, ...]:
        """All stages that these are made from, directly or not, in order."""
        found: set[str] = set()
        for stage in reversed(self.stages):
            if any(stage.name in other.needs for other in (*stages, *(self._by_name[name] for name in found))):
                found.add(stage.name)
        return tuple(stage for stage in self.stages if stage.name in found)

    def depending_on(self, stages: Iterable[Stage]) -> tuple[Stage, ...]:
        """These stages and all that are made from them, directly or not, in order."""
        found = {stage.name for stage in stages}
        for stage in self.stages:
            if found & set(stage.needs):
                found.add(stage.name)
        return tuple(stage for stage in self.stages if stage.name in found)

    def run(
        self,
        config: Config,
        names: Sequence[str] | None = None,
        *,
        request: Record | None = None,
        replacing: Sequence[str] = (),
        progress: Progress | None = None,
        wrap: Wrap | None = None,
        shard: Shard | None = None,
        workers: Workers | None = None,
    ) -> dict[str, StageResult]:
        """Run stages in order, skipping what is there already with the same key.

        Args:
            config: of the run.
            names: of the stages to run; by default all that are not on request.
            request: what an on-request stage is asked for, where it takes a request.
            replacing: names of stages whose results are dropped first, with all that depends on them.
            progress: receives how far each task is.
            wrap: called for each stage instead of `run_stage`, which it calls in turn (the flows make a task of it).
            shard: called with the name and the work of each 50 to 500 chunks that are fetched.
            workers: where work is done, instead of on the configuration's cluster.

        Returns:
            The result of each stage that was to run, by name.

        Raises:
            KeyMismatchError: where the run has a result, of these stages or of one that they need, made from other inputs.
            MissingStageError: where a stage that is needed has not run.
            GaiadaskError: whatever a stage raises.
        """
        chosen = [self.named(name) for name in names] if names is not None else list(self.of_a_run)
        chosen.sort(key=self.stages.index)
        on_request = bool(chosen) and all(stage.on_request for stage in chosen)
        if on_request and (others := set(replacing) - {stage.name for stage in chosen}):
            raise ConfigurationError(f"--replace {min(others)}: only {chosen[0].name} itself can be replaced here")
        with ExitStack() as resources:
            context = Context(config, progress or Silent(), request, resources=resources, given_workers=workers)
            context.shard = shard or context.shard
            if replacing:
                self._replace(context, [self.named(name) for name in replacing], chosen)
            context.has_work = any(stage.on_workers and context.manifest.entry(stage.entry(context)) is None for stage in chosen)
            results: dict[str, StageResult] = {}
            for stage in sorted({*self.needed_by(chosen), *chosen}, key=self.stages.index):
                if stage in chosen:
                    results[stage.name] = (wrap or run_stage)(context, stage)
                else:
                    _check_needed(context, stage)
            return results

    def _replace(self, context: Context, stages: Sequence[Stage], chosen: Sequence[Stage]) -> None:
        """Drop the stages' results and all that depends on them, once nothing is left that would refuse to make them again."""
        dropped = self.depending_on(stages)
        if lacking := [stage.name for stage in self.needed_by(chosen) if stage in dropped and stage not in chosen]:
            raise ConfigurationError(
                f"--replace {stages[0].name}: {', '.join(lacking)} would be dropped, which this command needs and does not make: run "
                f"`gaiadask run CONFIG --replace {stages[0].name}`, or replace it with its own command first"
            )
        context.hold(context.run.lease)
        for stage in sorted({*self.needed_by(chosen), *chosen}, key=self.stages.index):
            if set(stage.needs) & {other.name for other in dropped}:
                continue  # what it is made from is made first
            if stage not in dropped:
                _check_needed(context, stage)
            elif stage in chosen:
                stage.work.inputs(context)
                stage.work.prepare(context)
        self._drop(context, dropped, chosen, stages)

    def _drop(self, context: Context, dropped: Sequence[Stage], chosen: Sequence[Stage], named: Sequence[Stage]) -> None:
        """Drop results, the last first; what is dropped is logged before."""
        entries = context.manifest.read().stages
        own = {stage: context if stage in chosen else replace(context, request=None) for stage in dropped}
        # A request is that of the stage that it was given with.
        shown = [_described(own[stage], stage) for stage in dropped if stage in named or _entries_of(stage, entries)]
        log.warning("dropped %s of run %s", ", ".join(shown), context.run.name)
        names = [[stage.entry(context)] if stage in named and stage in chosen else _entries_of(stage, entries) for stage in dropped]
        files_first = all(stage.on_request for stage in dropped)  # a folder of stars may turn out to be somebody's
        if not files_first:
            context.manifest.remove(*(name for each in names for name in each))
        for stage in reversed(dropped):
            stage.work.remove(own[stage])
        if files_first:
            context.manifest.remove(*(name for each in names for name in each))


def _described(context: Context, stage: Stage) -> str:
    """A result that is dropped, with its size: that of the run's own files."""
    size = sum(context.store.size(name) for name in stage.work.files(context))
    return f"{stage.name} ({filesize.decimal(size)})" if size else stage.name


def _entries_of(stage: Stage, entries: Iterable[str]) -> list[str]:
    """A stage's entries, one for each place where it has a result."""
    return [name for name in entries if name.split(" ", 1)[0] == stage.name]


PIPELINE = Pipeline(STAGES)
run_stages = PIPELINE.run


def run_stage(context: Context, stage: Stage) -> StageResult:
    """Run one stage, or find that it has run.

    Raises:
        KeyMismatchError: where it has run with other inputs.
    """
    work = stage.work
    entry = find_entry(context, stage)
    is_present = entry is not None and work.present(context)
    if entry is not None and is_present and work.whole(context):
        log.info("%s: already there (key %s), skipped", stage.name, entry.key)
        return context.manifest.result(stage.entry(context), work.result)
    if entry is not None and not is_present:
        log.warning("%s: its files are missing or damaged, or belong to something else: it is made again", stage.name)
    inputs = _inputs_of(context, stage)
    compared = stage.from_catalogue and not stage.outside
    stars = context.catalogue.id if compared else ""
    started = time.monotonic()
    log.info("%s: %s", stage.name, stage.help)
    with context.holding(context.run.lease):
        context.store.sweep(context.run.root)
        # config.toml is what the run's own stages were made with; one that has none but those on request has the first one's.
        if not stage.on_request or not context.store.exists(context.run.config):
            context.store.write_bytes(context.run.config, dump_toml(context.config, comments=False).encode())
        result = work.make(context, digest(inputs))
        if compared:
            changed = differences({**inputs, "stars of": stars}, {**_inputs_of(context, stage), "stars of": context.catalogue.id})
            if changed:
                raise KeyMismatchError(
                    f"{stage.name}: what it is made from was replaced while it was made ({changed}): the result is not entered. Run "
                    "again when nothing else writes to the store"
                )
        context.manifest.write(stage.entry(context), inputs, result, time.monotonic() - started)
    return result


def _check_needed(context: Context, stage: Stage) -> None:
    """Make sure that a stage that is needed is as it was made.

    Raises:
        KeyMismatchError: it was made from other inputs.
        MissingStageError: its files are gone.
    """
    entry = context.manifest.entry(stage.entry(context)) if stage.outside else find_entry(context, stage)
    # A run may use what another one has ingested: it has no entry of its own then, and is compared all the same.
    present = stage.work.present(context) if entry or stage.outside else True
    if not present and (entry or catalogue.is_published(context.store, paths.CATALOGUE)):
        raise MissingStageError(
            f"run {context.run.name!r}: what {stage.name} made is missing or damaged: make it again with `gaiadask {stage.name} CONFIG`"
        )


def _compared(recorded: JsonObject, asked: JsonObject) -> JsonObject:
    """What is asked for as far as an entry of an earlier version records it."""
    own = dict(asked)
    for section, names in _NOT_IN_0_1_0.items():
        options, old = own.get(section), recorded.get(section)
        if not names and section not in recorded:
            own.pop(section, None)
        elif isinstance(options, dict) and isinstance(old, dict):
            own[section] = {name: value for name, value in options.items() if name in old or name not in names}
    for section, names in _ONLY_IN_0_1_0.items():
        options, old = own.get(section), recorded.get(section)
        if isinstance(options, dict) and isinstance(old, dict):
            own[section] = options | {name: old[name] for name in names if name in old}
    return own


def find_entry(context: Context, stage: Stage) -> StageEntry | None:
    """The stage's entry in the manifest, None where it has not run.

    Raises:
        KeyMismatchError: where it has run with other inputs.
    """
    entry = context.manifest.entry(stage.entry(context))
    if entry is None:
        return None
    inputs = _inputs_of(context, stage)
    inputs = _compared(entry.inputs, inputs)
    if entry.key != digest(inputs):
        elsewhere, replacing = "give the new run another name, name another store", f"`gaiadask run CONFIG --replace {stage.name}`"
        if stage.on_request:
            replacing = f"give the same command with --replace {stage.name}"
        if stage.work.options:
            elsewhere = "name another folder with --output"
        raise KeyMismatchError(
            f"run {context.run.name!r} has a {stage.name} made from other inputs ({differences(entry.inputs, inputs)}). "
            f"Nothing was overwritten: {elsewhere}, or drop the old one: {replacing}"
        )
    return entry


def _inputs_of(context: Context, stage: Stage) -> JsonObject:
    # Through JSON, as the manifest has them, so that like is compared with like.
    return dict(json.loads(json.dumps(stage.work.inputs(context))))
