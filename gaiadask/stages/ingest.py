"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from gaiadask import catalogue, ingest
from gaiadask.archive.base import Archive
from gaiadask.archive.chunks import Chunk
from gaiadask.cluster.workers import over_partitions
from gaiadask.config.sections import Config
from gaiadask.errors import DataError, GaiadaskError, summed_up
from gaiadask.ingest import CatalogueRecord
from gaiadask.ingest_plan import IngestPlan, Selection, adopt_store, load_or_make_plan, selection_of
from gaiadask.ledger import ChunkRecord, filed, pending, read_ledger
from gaiadask.progress import Progress, Silent, Within, bytes_text
from gaiadask.stages.context import Context, Inputs, Result, log
from gaiadask.store import paths
from gaiadask.store.lease import Lease
from gaiadask.validate import Finding, validate


# Ingest --------------------------------------------------------------------------------------------------------------
def _ingest_inputs(context: Context) -> Inputs:
    return {"selection": selection_of(context.config, context.archive).to_json()}


def _make_ingest(context: Context, key: str) -> Result:
    """Other runs share the catalogue: one that is already published with this selection is taken as it is."""
    store, archive = context.store, context.archive
    selection = selection_of(context.config, archive)
    if catalogue.is_published(store, paths.CATALOGUE) and not store.exists(paths.PARTS):
        adopt_store(store, selection)
    else:
        with Lease(store, paths.INGEST_LEASE):
            adopt_store(store, selection)
            if not catalogue.is_published(store, paths.CATALOGUE):  # by another run, meanwhile
                _fill_catalogue(context, archive, selection)
            if store.exists(paths.PARTS):  # published now, or by a process that was killed before it had looked
                _refuse_what_is_wrong(context)
                store.remove(paths.PARTS)
    record = context.catalogue
    return {"catalogue_id": record.id, "rows": record.rows, "partitions": len(record.partitions)}


def _fill_catalogue(context: Context, archive: Archive, selection: Selection) -> None:
    store = context.store
    store.sweep(paths.CATALOGUE)
    plan = load_or_make_plan(store, context.config, archive)
    ledger = read_ledger(store)
    waiting = pending(plan.chunks, ledger)
    log.info("ingest: %d chunks planned, %d waiting", len(plan.chunks), len(waiting))
    _fetch(context, archive, plan, ledger, waiting)
    jobs = ingest.tile_jobs(filed(plan.chunks, read_ledger(store)), plan.tiles)
    schema = archive.release.catalogue_schema(archive.schema.names)
    merge = partial(ingest.merge_tile, store, schema, selection.key)
    partitions = over_partitions(
        context.client, merge, jobs, task="merge", name_of=lambda job: str(job[0]), progress=context.progress
    )
    ingest.publish(store, archive, selection, partitions)


def _fetch(
    context: Context, archive: Archive, plan: IngestPlan, ledger: Mapping[str, ChunkRecord], waiting: Sequence[Chunk]
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
            more_of=lambda record: pending(record.children, ledger),
            # Limits how many jobs the archive has at once.
            at_once=archive.jobs_at_once,
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
        lines = [f"  {finding.where}: {finding.problem}" for finding in findings[:10]]
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
