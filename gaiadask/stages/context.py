"""What the stages of one run share: its configuration, its places, and the workers, opened by the first stage that has work for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

from gaiadask import catalogue, ingest, publishing
from gaiadask.archive.base import Archive, open_archive
from gaiadask.catalogue import Partition, batches, largest_first, shown, tapering
from gaiadask.cluster.clients import open_workers
from gaiadask.cluster.workers import Each, Task, Workers, groups
from gaiadask.config.sections import Config
from gaiadask.ingest import CatalogueRecord
from gaiadask.ingest_plan import IngestPlan
from gaiadask.model.source import ModelSource
from gaiadask.progress import Progress, Silent
from gaiadask.publishing import Summary
from gaiadask.records import Record
from gaiadask.store.files import Fence, Store
from gaiadask.store.lease import Lease
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Options = TypeVar("Options", bound=Record)

Shard = Callable[[str, Callable[[], None]], None]
"""Called with the name and the work of each 50 to 500 chunks that are fetched (the flows make a task of it)."""


MANY = 2_000
"""Partitions whose footers are read by workers: of fewer the client reads them in less time than a cluster takes to start."""
FOOTERS_A_PIECE = 256
"""That are one piece of work."""
_FILES_A_PIECE = 8
"""Files that are read whole in one piece of work."""


class _Looked(NamedTuple):
    """So many partitions were looked at, and these are not whole."""

    partitions: int
    not_whole: list[Partition]


def _looked_at(
    store: Store, folder: str, footer: Callable[[Partition], Mapping[str, str]], partitions: Sequence[Partition]
) -> _Looked:
    return _Looked(len(partitions), catalogue.not_whole(store, folder, partitions, footer))


def _at_once(name: str, work: Callable[[], None]) -> None:
    work()


@dataclass
class Context:
    """What the stages of one run share.

    Attributes:
        config: of the run.
        progress: receives how far each task is.
        request: what an on-request stage was asked for, if it takes a request.
        shard: runs each shard of an ingest.
        given_workers: work is done there instead of on the configuration's cluster.
        resources: closed when the stages end.
        fences: the leases that are held (`holding`, `hold`).
        has_work: whether a stage that is asked for is still to be made, by workers.
        plan: of the ingest, where it was made before the catalogue that it takes the place of is dropped.
    """

    config: Config
    progress: Progress = field(default_factory=Silent)
    request: Record | None = None
    shard: Shard = _at_once
    given_workers: Workers | None = None
    resources: ExitStack = field(default_factory=ExitStack)
    fences: tuple[Fence, ...] = ()
    has_work: bool = False
    plan: IngestPlan | None = None

    @property
    def store(self) -> Store:
        """The store; behind the leases that are held."""
        return Store(self.config.store, self.fences)

    @contextmanager
    def holding(self, lease: str) -> Iterator[None]:
        """Hold a lease of the store as long as the block: what is written meanwhile, here and by workers, is written under it.

        Raises:
            StoreHeldError: another writer holds it.
        """
        if self._holds(lease):
            yield
            return
        with Lease(self.store, lease) as taken:
            before, self.fences = self.fences, (*self.fences, taken.fence)
            try:
                yield
            finally:
                self.fences = before

    def hold(self, lease: str) -> None:
        """Hold a lease until the stages end. Raises StoreHeldError where another writer holds it."""
        if not self._holds(lease):
            taken = self.resources.enter_context(Lease(self.store, lease))
            self.fences = (*self.fences, taken.fence)

    def _holds(self, lease: str) -> bool:
        return any(fence.lease == lease for fence in self.fences)

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
        """Record of the published catalogue. Raises MissingStageError where there is none."""
        return ingest.read_catalogue_record(self.store)

    @property
    def model(self) -> ModelSource:
        """The run's model, for workers. Raises MissingStageError where there is none."""
        return ModelSource.of(self.store, self.run, self.key("train"), self.config.cluster.device)

    @cached_property
    def workers(self) -> Workers:
        """The workers, each of which has been seen to use the store."""
        with ExitStack() as opening:
            workers = self.given_workers or opening.enter_context(open_workers(self.config.cluster))
            for worker, versions in workers.probe(self.store).items():
                log.info("worker %s: %s", worker, versions)
            self.resources.enter_context(opening.pop_all())
        return workers

    def map(self, function: Callable[[T], R], items: Sequence[T], task: Task[T, R]) -> list[R]:
        """`function` of each item on the workers, results in the items' order; see `Workers.map`."""
        return self.workers.map(function, items, task, self.progress)

    def tapering(self, partitions: Sequence[Partition]) -> list[tuple[Partition, ...]]:
        """Pieces of work for the workers that there are, see `catalogue.tapering`."""
        return tapering(partitions, self.workers.threads())

    def map_partitions(self, function: Callable[[Partition], R], partitions: Sequence[Partition], name: str) -> list[R]:
        """`function` of each partition, small ones that follow each other in one piece of work, the largest piece first: so that all
        workers are busy to the end; name: of the task. Results are in the partitions' order."""
        task = Task[Sequence[Partition], list[R]](name, label=shown, amount=len, size=len)
        pieces = largest_first(partitions)
        made = zip(pieces, self.map(Each(function), pieces, task), strict=True)
        by_tile = {p.tile: result for piece, results in made for p, result in zip(piece, results, strict=True)}
        return [by_tile[partition.tile] for partition in partitions]

    def each_file(self, function: Callable[[str], R], names: Sequence[str]) -> list[R]:
        """`function` of each of some names of files on the workers, results in their order."""
        task = Task[Sequence[str], list[R]]("files", unit="files", label=lambda some: some[0], amount=len, size=len)
        return [result for some in self.map(Each(function), groups(names, _FILES_A_PIECE), task) for result in some]

    def not_whole(
        self, folder: str, partitions: Sequence[Partition], footer: Callable[[Partition], Mapping[str, str]]
    ) -> list[Partition]:
        """The partitions below a folder whose file is missing, cut, or of another footer: read by the workers where there are many, and
        work for workers."""
        if len(partitions) < MANY or not self.has_work:
            return catalogue.not_whole(self.store, folder, partitions, footer)
        look = partial(_looked_at, self.store, folder, footer)
        task = Task[Sequence[Partition], _Looked]("footers", label=shown, amount=lambda found: found.partitions, size=len)
        return [partition for found in self.map(look, groups(partitions, FOOTERS_A_PIECE), task) for partition in found.not_whole]

    def summary_of(self, folder: str, partitions: Sequence[Partition], store: Store | None = None) -> Summary:
        """What the metadata of the catalogue at `folder` of a store, the run's by default, say of its partitions' files, summed up by the
        workers."""
        work = partial(publishing.summary_of, store or self.store, folder, publishing.has_footers(partitions))
        return self.workers.reduce(work, publishing.merged_summaries, batches(partitions), "publish", self.progress, size=len)

    def key(self, stage: str) -> str:
        """Key of a finished stage. Raises MissingStageError, naming the command that makes it, where it is missing."""
        return self.manifest.require(stage).key

    def requested(self, options: type[Options]) -> Options:
        """The request of the stage at work, which takes `options`."""
        assert isinstance(self.request, options), f"expected a request of type {options.__name__}, found {self.request!r}"
        return self.request

    def remove(self, *names: str) -> None:
        """Remove files and folders of the store, in this order, those that are there."""
        for name in names:
            self.store.remove(name)
