"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from gaiadask import catalogue, ingest
from gaiadask.archive.base import Archive
from gaiadask.archive.chunks import Chunk
from gaiadask.cluster.workers import over_partitions
from gaiadask.config.sections import Config
from gaiadask.errors import DataError, GaiadaskError, summed_up
from gaiadask.ingest import CatalogueRecord, ChunkRecord
from gaiadask.keys import digest
from gaiadask.progress import Progress, Silent, Within, bytes_text
from gaiadask.stages.context import Context, Inputs, Result, log
from gaiadask.store import paths
from gaiadask.store.lease import Lease
from gaiadask.validate import Finding, validate


# Ingest --------------------------------------------------------------------------------------------------------------
def _ingest_inputs(context: Context) -> Inputs:
    return {"selection": ingest.selection_of(context.config, context.archive)}


def _make_ingest(context: Context, key: str) -> Result:
    """Other runs share the catalogue: one that is already published with this selection is taken as it is."""
    store, archive = context.store, context.archive
    selection = ingest.selection_of(context.config, archive)
    if catalogue.is_published(store, paths.CATALOGUE) and not store.exists(paths.PARTS):
        ingest.claim(store, selection)
    else:
        with Lease(store, paths.INGEST_LEASE):
            ingest.claim(store, selection)
            if not catalogue.is_published(store, paths.CATALOGUE):  # by another run, meanwhile
                _fill_catalogue(context, archive, selection)
            if store.exists(paths.PARTS):  # published now, or by a process that was killed before it had looked
                _refuse_what_is_wrong(context)
                store.remove(paths.PARTS)
    record = context.catalogue
    return {"catalogue_id": record.id, "rows": record.rows, "partitions": len(record.partitions)}


def _fill_catalogue(context: Context, archive: Archive, selection: Mapping[str, Any]) -> None:
    store = context.store
    store.sweep(paths.CATALOGUE)
    plan = ingest.load_or_make_plan(store, context.config, archive)
    ledger = ingest.read_ledger(store)
    waiting = ingest.pending(plan, ledger)
    log.info("ingest: %d chunks planned, %d waiting", len(plan.chunks), len(waiting))
    _fetch(context, archive, plan, ledger, waiting)
    jobs = ingest.tile_jobs(ingest.filed(plan, ingest.read_ledger(store)), plan.tiles)
    schema = archive.release.catalogue_schema(archive.schema.names)
    merge = partial(ingest.merge_tile, store, schema, digest(selection))
    partitions = over_partitions(
        context.client, merge, jobs, task="merge", name_of=lambda job: str(job[0]), progress=context.progress
    )
    ingest.publish(store, archive, selection, partitions)


def _fetch(
    context: Context, archive: Archive, plan: ingest.IngestPlan, ledger: Mapping[str, ChunkRecord], waiting: Sequence[Chunk]
) -> None:
    """The waiting chunks, shard by shard. What fails does not stop the others, unless a whole shard fails."""
    function, filed_bytes = ingest.fetching(context.store, archive, plan), 0

    def note(record: ChunkRecord) -> str:
        nonlocal filed_bytes
        filed_bytes += record.bytes
        return bytes_text(filed_bytes)

    def fetch(chunks: Sequence[Chunk]) -> None:
        over_partitions(
            context.client, function, chunks, task="fetch", name_of=lambda chunk: chunk.name,
            weight_of=lambda record: record.rows, note_of=note, progress=Within(context.progress),
            more_of=lambda record: ingest.pending(ingest.IngestPlan(record.children, ()), ledger),
            # Manners: what is under way is what is submitted, so this bounds the archive's jobs wherever workers are.
            at_once=context.config.archive.max_jobs if context.config.archive.kind == "tap" else None,
        )  # fmt: skip

    failures: dict[str, GaiadaskError] = {}
    context.progress.start("fetch", max(0, plan.rows - sum(record.rows for record in ledger.values())), "stars")
    try:
        for number, chunks in enumerate(shards := ingest.shards(waiting), 1):
            try:
                context.shard(f"fetch {number} of {len(shards)}", partial(fetch, chunks))
            except GaiadaskError as error:
                failures |= error.failures or {chunks[0].name: error}
                if all(chunk.name in failures for chunk in chunks):
                    break  # not one chunk came: the archive or the store is down
    finally:
        context.progress.finish("fetch")
    if failures:
        raise summed_up("fetch", len(waiting), failures)


def _refuse_what_is_wrong(context: Context) -> None:
    """Validate the catalogue that was published now. The quick way: each partition's checksum was made when it was written."""
    findings = validate(context.client, context.store, context.config.release, context.progress, quick=True)
    if findings:
        catalogue.unpublish(context.store, paths.CATALOGUE)
        lines = [f"  {finding.where}: {finding.what}" for finding in findings[:10]]
        raise DataError(
            f"the catalogue is not whole and right, so it was taken back ({len(findings)} findings). Start over with "
            "--replace ingest\n" + "\n".join(lines)
        )


def validate_catalogue(config: Config, quick: bool, progress: Progress | None = None) -> tuple[CatalogueRecord, list[Finding]]:
    """The store's catalogue and everything that is wrong with it. Raises MissingStageError where there is none."""
    with ExitStack() as resources:
        context = Context(config, progress or Silent(), resources)
        record = context.catalogue
        return record, validate(context.client, context.store, context.config.release, context.progress, quick=quick)


def _drop_catalogue(context: Context) -> None:
    others = {name.split("/")[1] for name in context.store.list(paths.RUNS)} - {context.run.name}
    if others:
        log.warning("the runs %s of this store were made from the catalogue that is dropped now", sorted(others))
    with Lease(context.store, paths.INGEST_LEASE):
        catalogue.unpublish(context.store, paths.CATALOGUE)
        context.store.remove(paths.CATALOGUE)
