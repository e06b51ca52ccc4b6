"""What the stages of one walk share, and what a stage is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from distributed import Client

from gaiadask import ingest
from gaiadask.archive.base import Archive, open_archive
from gaiadask.cluster.clients import open_client
from gaiadask.cluster.workers import probe
from gaiadask.config.sections import Config
from gaiadask.errors import MissingStageError
from gaiadask.ingest import CatalogueRecord
from gaiadask.progress import Progress, Silent
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

log = logging.getLogger(__name__)


Inputs = dict[str, Any]


Result = dict[str, Any]


Shard = Callable[[str, Callable[[], None]], None]


@dataclass
class Context:
    """What the stages of one walk share. The cluster is opened by the first stage that has work for it."""

    config: Config
    progress: Progress = field(default_factory=Silent)
    resources: ExitStack = field(default_factory=ExitStack)
    given_client: Client | None = None
    shard: Shard = field(default=lambda name, work: work())

    @property
    def store(self) -> Store:
        return Store(self.config.store)

    @property
    def run(self) -> RunPaths:
        return RunPaths(self.config.name)

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.store, self.run)

    @property
    def archive(self) -> Archive:
        return open_archive(self.config.archive, self.config.selection)

    @property
    def catalogue(self) -> CatalogueRecord:
        return ingest.read_catalogue_record(self.store)

    @cached_property
    def client(self) -> Client:
        with ExitStack() as opening:
            client = self.given_client or opening.enter_context(open_client(self.config.cluster))
            for worker, versions in probe(client, self.store).items():
                log.info("worker %s: %s", worker, versions)
            self.resources.enter_context(opening.pop_all())
        return client

    def key(self, stage: str) -> str:
        """Key of a finished stage. Raises MissingStageError naming the command that makes it."""
        entry = self.manifest.entry(stage)
        if entry is None:
            raise MissingStageError(f"run {self.run.name!r} has no {stage} yet: make it with `gaiadask {stage}`")
        return entry.key


@dataclass(frozen=True)
class Stage:
    """One stage.

    inputs: everything its result depends on, from finished stages and the configuration; raises MissingStageError where
    an earlier stage is missing. make: does the work and returns what it says of itself. drop: removes what it made.
    """

    name: str
    does: str
    inputs: Callable[[Context], Inputs]
    make: Callable[[Context, str], Result]
    drop: Callable[[Context], None]


def _remove(*names: Callable[[RunPaths], str]) -> Callable[[Context], None]:
    def drop(context: Context) -> None:
        for name in names:
            context.store.remove(name(context.run))

    return drop
