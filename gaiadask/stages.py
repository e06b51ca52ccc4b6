"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Client

from gaiadask import catalogue, ingest, paths
from gaiadask.archive import Archive, Chunk, open_archive
from gaiadask.cluster import open_client, over_partitions, probe, run_one, train_rank, tree_reduce
from gaiadask.columns import catalogue_schema
from gaiadask.config import Config, digest, dump_toml
from gaiadask.encode import encode_partition
from gaiadask.errors import (
    ConfigurationError,
    DataError,
    GaiadaskError,
    KeyMismatchError,
    MissingStageError,
    summed_up,
)
from gaiadask.evaluate import (
    BASELINE_STARS,
    COMPARED_STARS,
    Gather,
    hash_bound,
    join,
    read_rated,
    read_walks,
    save_rated,
    save_walks,
    storage,
    walks,
    with_baseline,
)
from gaiadask.ingest import CatalogueRecord, ChunkRecord, differences
from gaiadask.manifest import Entry, Manifest
from gaiadask.model.artifact import load_model_cached
from gaiadask.model.checkpoint import read_metrics
from gaiadask.paths import RunPaths
from gaiadask.prior import GatherPrior, PriorStars, SkyCounts, make_prior
from gaiadask.progress import Progress, Silent, Within, bytes_text
from gaiadask.quality import rate, run_job, two_sample_jobs
from gaiadask.report import ReportInputs, render
from gaiadask.sample import Request, SampleBlocks, blocks_of
from gaiadask.split import RULE, Part
from gaiadask.statistics import FORMAT_VERSION as STATISTICS_FORMAT
from gaiadask.statistics import Statistics
from gaiadask.store import Lease, Store
from gaiadask.training import Assignment
from gaiadask.transform import Transform
from gaiadask.validate import Finding, validate

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


def _remove(*names: Callable[[RunPaths], str]) -> Callable[[Context], None]:
    def drop(context: Context) -> None:
        for name in names:
            context.store.remove(name(context.run))

    return drop


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
    schema = catalogue_schema(archive.schema.names)
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
    findings = validate(context.client, context.store, context.progress, quick=True)
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
        return record, validate(context.client, context.store, context.progress, quick=quick)


# Statistics ----------------------------------------------------------------------------------------------------------
def _statistics_inputs(context: Context) -> Inputs:
    return {"catalogue_id": context.catalogue.id, "split": RULE, "format": STATISTICS_FORMAT}


def _make_statistics(context: Context, key: str) -> Result:
    record = context.catalogue
    result = tree_reduce(
        context.client, partial(partition_statistics, context.store), merge_statistics, record.partitions,
        task="statistics", progress=context.progress,
    )  # fmt: skip
    if result.all.rows != record.rows:
        raise DataError(
            f"the catalogue has {record.rows} rows, its partitions gave statistics of {result.all.rows}: changed from outside"
        )
    context.store.write_json(context.run.statistics, {"key": key, **result.to_json()})
    return {"rows": result.all.rows, "train_rows": result.train.rows}


def partition_statistics(store: Store, partition: catalogue.Partition) -> Statistics:
    """Statistics of one partition, row group by row group."""
    tables = catalogue.iterate_partition(store, paths.CATALOGUE, partition.tile)
    return merge_statistics([Statistics.from_table(table) for table in tables])


def merge_statistics(records: Sequence[Statistics]) -> Statistics:
    """Several records as one."""
    return reduce(Statistics.merge, records)


# Train ---------------------------------------------------------------------------------------------------------------
def _train_inputs(context: Context) -> Inputs:
    training = context.config.training.model_dump(exclude={"threads", "buffer_rows", "tensorboard"})
    return {"statistics": context.key("statistics"), "model": context.config.model.model_dump(), "training": training}


def _make_train(context: Context, key: str) -> Result:
    statistics = Statistics.from_json(context.store.read_json(context.run.statistics))
    told = assignment(context.store, context.catalogue, statistics, context.config, context.run, key)
    with _training_progress(context) as report:
        last = train_rank(context.client, told.model_dump(mode="json"), report)
    return {k: v for k, v in last.items() if k != "event"}


def assignment(
    store: Store, record: CatalogueRecord, statistics: Statistics, config: Config, run: RunPaths, key: str
) -> Assignment:
    """What the rank is told that trains the model of `config` on a catalogue and leaves it, with this key, in `run`."""
    model = config.model
    transform = Transform.fit(config.model_columns, statistics.train, model.position, model.scaling, model.derive)
    names = [f"{paths.CATALOGUE}/{tile.file}" for tile in record.tiles]
    metadata = {"catalogue_id": record.id, "catalogue_rows": record.rows, "split": RULE}
    return Assignment(
        store=store.uri, run=run.name, partitions=tuple(names), transform=transform.to_json(), model=config.model,
        training=config.training, key=key, attempt=uuid.uuid4().hex[:8], metadata=metadata,
    )  # fmt: skip


@contextmanager
def _training_progress(context: Context) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    seen = 0

    def report(event: Mapping[str, Any]) -> None:
        nonlocal seen
        rows = int(event.get("rows_seen", seen))
        note = f"loss {event['loss']:.4g}" if "loss" in event else ""
        context.progress.advance("train", rows - seen, note)
        seen = rows

    context.progress.start("train", context.config.training.rows_seen, "stars")
    try:
        yield report
    finally:
        context.progress.finish("train")


# Encode --------------------------------------------------------------------------------------------------------------
def _encode_inputs(context: Context) -> Inputs:
    return {"train": context.key("train"), "catalogue_id": context.catalogue.id}


def _make_encode(context: Context, key: str) -> Result:
    store, run, record = context.store, context.run, context.catalogue
    catalogue.unpublish(store, run.latent)
    partitions = over_partitions(
        context.client, partial(encode_partition, store, run, context.key("train")), record.partitions,
        task="encode", name_of=lambda p: str(p.tile), progress=context.progress,
    )  # fmt: skip
    rows = sum(p.rows for p in partitions)
    if rows != record.rows:
        raise DataError(f"{record.rows} stars were written, {rows} encoded: not published")
    catalogue.publish(
        store, run.latent, f"{context.run.name} latents", partitions, {"gaiadask_catalogue_id": record.id, "gaiadask_key": key}
    )
    return {"rows": rows, "partitions": len(partitions)}


# Prior ---------------------------------------------------------------------------------------------------------------
def _prior_inputs(context: Context) -> Inputs:
    return {"train": context.key("train"), "encode": context.key("encode"), "prior": context.config.prior.model_dump()}


def _make_prior(context: Context, key: str) -> Result:
    store, run, record, config = context.store, context.run, context.catalogue, context.config.prior
    if config.kind == "none":
        return {"kind": "none"}
    model_key = context.key("train")
    bounds = (
        hash_bound(part, n, record.rows) for part, n in ((Part.TRAIN, config.stars), (Part.VALIDATION, config.validation_stars))
    )
    gathered = over_partitions(
        context.client, GatherPrior(store, run, model_key, *bounds), record.partitions,
        task="prior stars", name_of=lambda p: str(p.tile), progress=context.progress,
    )  # fmt: skip
    stars = (
        PriorStars.join([g.train for g in gathered], config.stars),
        PriorStars.join([g.validation for g in gathered], config.validation_stars),
    )
    statistics = Statistics.from_json(store.read_json(run.statistics)).train
    work = partial(make_prior, store, run, config, key, model_key, statistics)
    # Not with the task's description, and to every worker: one that dies takes no star with it.
    given = context.client.scatter((SkyCounts.merge([g.counts for g in gathered]), *stars), hash=False, broadcast=True)
    return dict(run_one(context.client, work, given, task="prior", progress=context.progress))


# Evaluate and report -------------------------------------------------------------------------------------------------
def _evaluate_inputs(context: Context) -> Inputs:
    return {"encode": context.key("encode"), "prior": context.key("prior"), "quality": context.config.quality.model_dump()}


def _make_evaluate(context: Context, key: str) -> Result:
    store, run, record, config = context.store, context.run, context.catalogue, context.config.quality
    model = load_model_cached(store, run, context.key("train"))
    gather = Gather(store, run, model.key)
    test_below = hash_bound(Part.TEST, config.rows, record.rows)
    train_below = hash_bound(Part.TRAIN, BASELINE_STARS, record.rows)

    def gathered(work: Callable[[catalogue.Partition], Any], task: str) -> list[Any]:
        return over_partitions(
            context.client, work, record.partitions, task=task, name_of=lambda p: str(p.tile), progress=context.progress
        )

    stars = join(gathered(partial(gather.test_stars, test_below), "test stars"), config.rows)
    sampled = _sampled(context, stars.real.num_rows)
    compared_below = hash_bound(Part.TRAIN, COMPARED_STARS, record.rows)
    train = pa.concat_tables(gathered(partial(gather.train_stars, compared_below), "train stars")) if sampled is not None else None
    values = np.concatenate(gathered(partial(gather.train_values, train_below), "baseline"))
    rated = with_baseline(stars, model, values, sampled)
    jobs = two_sample_jobs(rated, config)
    aucs = over_partitions(
        context.client, run_job, jobs, task="two-sample", unit="tests", name_of=lambda job: job.name, progress=context.progress
    )
    named = {job.name: auc for job, auc in zip(jobs, aucs, strict=True)}
    quality = rate(rated, config, named, storage(store, run, model, record.rows), train)
    save_rated(store, run, rated)
    save_walks(store, run, walks(model, rated))
    store.write_json(run.quality, {"key": key, **quality})
    return _summary(quality)


def _sampled(context: Context, stars: int) -> pa.Table | None:
    """New stars to be rated; None where the run was asked for no prior."""
    if context.config.prior.kind == "none":
        return None
    draw = SampleBlocks(context.store, context.run, Request.of(context.store, context.manifest, stars))
    blocks = range(blocks_of(stars))
    return pa.concat_tables(over_partitions(context.client, draw, blocks, task="sample", unit="blocks", progress=context.progress))


def _summary(quality: Mapping[str, Any]) -> Result:
    """The headline, for manifest and terminal."""
    result: Result = {"test_stars": quality["stars"]}
    for what, rating in quality["reconstruction"].items():
        headline = rating["headline"]["beside_position"]
        result[what] = {f"{q}_{of}": headline[q][of] for q in ("median", "ks") for of in ("mean", "worst")}
    if quality["two_sample"]:
        comparisons = quality["two_sample"]["comparisons"]
        result["two_sample_auc"] = comparisons["rebuilt"]["auc"]
        if "sampled" in comparisons:
            result["sampled_auc"] = comparisons["sampled"]["auc"]
    if quality["storage"]:
        result["bytes_a_star"] = quality["storage"]["on_disk"]
    return result


def _report_inputs(context: Context) -> Inputs:
    return {"evaluate": context.key("evaluate")}


def _make_report(context: Context, key: str) -> Result:
    store, run = context.store, context.run
    manifest = context.manifest.to_json()
    inputs = ReportInputs(
        config=context.config, card=store.read_json(run.card), manifest=manifest, quality=store.read_json(run.quality),
        metrics=read_metrics(store, run), rated=read_rated(store, run), sky_counts=catalogue.read_skymap(store, paths.CATALOGUE),
        rows={"written": context.catalogue.rows, "encoded": manifest["stages"]["encode"]["result"]["rows"]},
        walks=read_walks(store, run),
    )  # fmt: skip
    store.write_bytes(run.report, render(inputs).encode())
    return {"uri": store.uri_of(run.report)}


def _drop_catalogue(context: Context) -> None:
    others = {name.split("/")[1] for name in context.store.list(paths.RUNS)} - {context.run.name}
    if others:
        log.warning("the runs %s of this store were made from the catalogue that is dropped now", sorted(others))
    with Lease(context.store, paths.INGEST_LEASE):
        catalogue.unpublish(context.store, paths.CATALOGUE)
        context.store.remove(paths.CATALOGUE)


def _drop_latent(context: Context) -> None:
    catalogue.unpublish(context.store, context.run.latent)
    context.store.remove(context.run.latent)


STAGES: tuple[Stage, ...] = (
    Stage("ingest", "fetch the selection into the catalogue", _ingest_inputs, _make_ingest, _drop_catalogue),
    Stage("statistics", "one pass over the catalogue", _statistics_inputs, _make_statistics, _remove(lambda r: r.statistics)),
    Stage(
        "train", "fit the autoencoder", _train_inputs, _make_train,
        _remove(lambda r: r.card, lambda r: r.model, lambda r: r.checkpoints, lambda r: r.metrics, lambda r: r.tensorboard),
    ),
    Stage("encode", "every star to its latents", _encode_inputs, _make_encode, _drop_latent),
    Stage(
        "prior", "learn what new stars are drawn from", _prior_inputs, _make_prior,
        _remove(lambda r: r.prior_card, lambda r: r.prior, lambda r: r.samples),
    ),
    Stage("evaluate", "rate the test stars and new ones", _evaluate_inputs, _make_evaluate, _remove(lambda r: r.quality, lambda r: r.rated)),
    Stage("report", "the page with the pictures", _report_inputs, _make_report, _remove(lambda r: r.report)),
)  # fmt: skip
