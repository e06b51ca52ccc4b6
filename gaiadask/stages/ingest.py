"""Stage ingest: the archive's stars into the store's catalogue, which all runs of the store share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

from pydantic import Field
from rich import filesize

from gaiadask import catalogue, ingest, publishing
from gaiadask.archive.base import Archive
from gaiadask.archive.chunks import Chunk
from gaiadask.catalogue import Partition
from gaiadask.cluster.workers import Task
from gaiadask.errors import ClusterError, DataError, GaiadaskError, KeyMismatchError, summed_up
from gaiadask.ingest_plan import IngestPlan, adopt_store, load_or_make_plan, make_plan, partition_rows, selection_in
from gaiadask.keys import differences
from gaiadask.ledger import ChunkRecord, filed, forget, pending, read_ledger
from gaiadask.merge import LostParts, MergeTiles, TileJob, merged_before, tile_jobs
from gaiadask.progress import Within, reported
from gaiadask.records import JsonObject, StageResult
from gaiadask.stages import margin
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.store import paths
from gaiadask.validate import validate

log = logging.getLogger(__name__)

_FINDINGS_SHOWN = 10


class IngestResult(StageResult):
    """Result of the stage ingest."""

    catalogue_id: str = Field(description="hash over tile, rows and checksum of each partition")
    rows: int = Field(description="stars of the catalogue")
    partitions: int = Field(description="files of the catalogue")
    margin_rows: int = Field(0, description="stars of the margin, each in every partition that it is near to")

    def summary(self) -> str:
        beside = f", {self.margin_rows:,} in the margin" if self.margin_rows else ""
        return f"{self.rows:,} stars in {self.partitions:,} partitions{beside}"


def _inputs(context: Context) -> JsonObject:
    return {"selection": selection_in(context.store, context.config, context.archive).to_json()}


def _make(context: Context, key: str) -> IngestResult:
    ingest_from(context, context.archive)
    record, beside = context.catalogue, margin.make(context)
    return IngestResult(catalogue_id=record.id, rows=record.rows, partitions=len(record.partitions), margin_rows=beside)


def _prepare(context: Context) -> None:
    """Plan the ingest that takes the place of the one there is, while that is still whole. Raises what planning raises."""
    context.hold(paths.INGEST_LEASE)
    context.plan = make_plan(context.config, context.archive)


def _is_present(context: Context) -> bool:
    """Whether the store's catalogue is the one that the run ingested, and whole."""
    store, entry = context.store, context.manifest.entry("ingest")
    if not catalogue.is_published(store, paths.CATALOGUE) or store.exists(paths.PARTS):
        return False
    record = context.catalogue
    asked = entry.inputs.get("selection") if entry else _inputs(context)["selection"]
    recorded = record.selection.to_json()
    if recorded != asked:
        raise KeyMismatchError(
            f"the store {store.uri} holds a catalogue of another selection than run {context.run.name!r} was made from "
            f"({differences(recorded, asked)}): another run has replaced it. Name another store, or drop it and everything "
            "made from it: `gaiadask ingest CONFIG --replace ingest`"
        )
    if entry and entry.result.get("catalogue_id") != record.id:
        return False
    return not _damaged(context)


def _damaged(context: Context) -> list[Partition]:
    """Partitions of the published catalogue whose file is missing, cut, or of another catalogue."""
    record = context.catalogue
    footer = {catalogue.SELECTION_KEY: record.selection.key}
    return context.not_whole(paths.CATALOGUE, record.partitions, lambda _: footer)


def ingest_from(context: Context, archive: Archive) -> None:
    """Fetch an archive's selection into the store's catalogue, and publish it.

    Other runs share the catalogue: one that is already published with this selection is taken as it is. Of one with missing or
    damaged partitions the chunks that these came in are fetched again.
    """
    store = context.store
    selection = selection_in(store, context.config, archive)
    if catalogue.is_published(store, paths.CATALOGUE) and not store.exists(paths.PARTS):
        adopt_store(store, selection)
        if not _damaged(context):
            return
    with context.holding(paths.INGEST_LEASE):
        store = context.store
        adopt_store(store, selection)
        if catalogue.is_published(store, paths.CATALOGUE) and not store.exists(paths.PARTS):
            _reopen(context, archive)
        if not catalogue.is_published(store, paths.CATALOGUE):  # else by another run, meanwhile
            store.sweep(paths.CATALOGUE)
            plan = fetch_chunks(context, archive)
            store.remove(paths.COLLECTION)  # its margin may be of the catalogue before
            ingest.publish(store, archive, selection, merge_tiles(context, archive, plan), context.summary_of)
        if store.exists(paths.PARTS):  # published now, or by a process that was killed before it had looked
            _unpublish_if_wrong(context)
            store.remove(paths.PARTS)


def _reopen(context: Context, archive: Archive) -> None:
    """Take a catalogue with damaged partitions back, if the archive still has their stars."""
    if damaged := _damaged(context):
        asked = selection_in(context.store, context.config, archive, published=False)
        if asked.key != context.catalogue.selection.key:
            raise DataError(
                f"{len(damaged)} partitions are missing or damaged ({damaged[0].tile} first), and the archive has changed since they "
                f"were made ({differences(context.catalogue.selection.to_json(), asked.to_json())}): restore them, or make "
                "the whole catalogue again: `gaiadask ingest CONFIG --replace ingest`"
            )
        ingest.reopen(context.store, damaged)


def fetch_chunks(context: Context, archive: Archive) -> IngestPlan:
    """Plan the chunks, or take up the plan that is there, and file every chunk's rows into parts by tile."""
    plan = load_or_make_plan(context.store, context.config, archive, context.plan)
    ledger = read_ledger(context.store)
    waiting = pending(plan.chunks, ledger)
    log.info("ingest: %d chunks planned, %d waiting", len(plan.chunks), len(waiting))
    _fetch(context, archive, plan, ledger, waiting)
    return plan


def merge_tiles(context: Context, archive: Archive, plan: IngestPlan) -> list[Partition]:
    """Merge each tile's parts into its partitions. Where parts are lost, their chunks are fetched again, once."""
    store, schema = context.store, archive.release.catalogue_schema(archive.schema.names)
    selection = selection_in(store, context.config, archive)
    merge = MergeTiles(store, schema, selection.key, partition_rows(context.config, archive))
    task = Task[Sequence[TileJob], tuple[Partition, ...] | LostParts]("merge", label=_tiles, amount=_merged_tiles, size=len)
    for is_last in (False, True):
        jobs = tile_jobs(filed(plan.chunks, read_ledger(store)), plan.tiles, merged_before(store, plan))
        done = context.map(merge, catalogue.batches(jobs), task)
        lost = [tile for tile in done if isinstance(tile, LostParts)]
        if not lost:
            return [partition for tile in done for partition in tile if isinstance(partition, Partition)]
        chunks = sorted({chunk for tile in lost for chunk in tile.chunks})
        forget(store, chunks)  # so that they are fetched again, now or by the next start
        problem = f"parts of {len(lost)} tiles are missing or damaged ({lost[0].tile} first), of the chunks {', '.join(chunks[:5])}"
        if is_last:
            break
        log.warning("%s: these are fetched again", problem)
        fetch_chunks(context, archive)
    raise DataError(
        f"{problem}, once more after they were fetched again: look after the store's disk, then run `gaiadask ingest CONFIG`"
    )


def _tiles(jobs: Sequence[TileJob]) -> str:
    return catalogue.shown([job.tile for job in jobs])


def _merged_tiles(merged: tuple[Partition, ...] | LostParts) -> int:
    return 0 if isinstance(merged, LostParts) else len(merged)


def _fetch(
    context: Context, archive: Archive, plan: IngestPlan, ledger: Mapping[str, ChunkRecord], waiting: Sequence[Chunk]
) -> None:
    """The waiting chunks, shard by shard. What fails does not stop the others, unless a whole shard fails."""
    function, filed_bytes = ingest.fetching(context.store, archive, plan), 0

    def note(record: ChunkRecord) -> str:
        nonlocal filed_bytes
        filed_bytes += record.bytes
        return filesize.decimal(filed_bytes)

    task: Task[Chunk, ChunkRecord] = Task(
        "fetch", label=lambda chunk: chunk.name, amount=lambda record: record.rows, note=note,
        more=lambda record: pending(record.children, ledger),
        # Limits how many jobs the archive has at once, wherever the workers are.
        at_once=archive.jobs_at_once,
    )  # fmt: skip

    def fetch(chunks: Sequence[Chunk]) -> None:
        context.workers.map(function, chunks, task, Within(context.progress))

    failures: dict[str, GaiadaskError] = {}
    with reported(context.progress, "fetch", max(0, plan.rows - sum(record.rows for record in ledger.values())), "stars"):
        for number, chunks in enumerate(shards := ingest.shards(waiting), 1):
            try:
                context.shard(f"fetch {number} of {len(shards)}", partial(fetch, chunks))
            except ClusterError:
                raise  # nobody is there to fetch the next shard either
            except GaiadaskError as error:
                failures |= error.failures or {chunks[0].name: error}
                if all(chunk.name in failures for chunk in chunks):
                    break  # not one chunk came: the archive or the store is down
        if failures:
            raise summed_up("fetch", len(waiting), failures)


def _unpublish_if_wrong(context: Context) -> None:
    """Validate the catalogue that was published now. The quick way: each partition's checksum was made when it was written."""
    findings = validate(context.workers, context.store, context.config.release, context.progress, quick=True)
    if findings:
        catalogue.unpublish(context.store, paths.CATALOGUE)
        lines = [f"  {finding.where}: {finding.problem}" for finding in findings[:_FINDINGS_SHOWN]]
        raise DataError(
            f"the new catalogue has {len(findings)} errors and was unpublished. Start again with "
            "`gaiadask ingest CONFIG --replace ingest`\n" + "\n".join(lines)
        )


def _drop(context: Context) -> None:
    others = {name.split("/")[1] for name in context.store.list(paths.RUNS)} - {context.run.name}
    if others:
        log.warning("the runs %s of this store were made from the catalogue that is dropped now", sorted(others))
    with context.holding(paths.INGEST_LEASE):
        margin.remove(context)
        catalogue.unpublish(context.store, paths.CATALOGUE)
        for name in _content(context):
            context.store.remove(name)


def _content(context: Context) -> list[str]:
    """Names of all files and folders of the catalogue but its lease."""
    inside = (f"{paths.CATALOGUE}/{name}" for name in ("dataset", *publishing.METADATA_FILES[2:]))
    return [*inside, paths.SELECTION, paths.PUBLISHED, paths.PLAN, paths.LEDGER, paths.PARTS, paths.TILES]


WORK = StageWork(
    _inputs,
    _make,
    IngestResult,
    _drop,
    present=_is_present,
    whole=margin.is_present,
    prepare=_prepare,
    files=lambda _: (paths.CATALOGUE,),
)
