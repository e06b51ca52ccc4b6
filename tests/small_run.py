"""A small run of made-up stars, made step by step without a cluster: what the tests of readers read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from gaiadask import catalogue, ingest
from gaiadask.archive.base import Archive, open_archive
from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml, parse_config
from gaiadask.encode import encode_partition
from gaiadask.ingest import CatalogueRecord
from gaiadask.ingest_plan import IngestPlan, adopt_store, load_or_make_plan, selection_of
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.ledger import pending, read_ledger
from gaiadask.prior import GatherPrior, PriorStars, SkyCounts, make_prior
from gaiadask.release.dr2 import DR2
from gaiadask.stages.context import Context
from gaiadask.stages.engine import stage_named
from gaiadask.stages.statistics import merge_statistics, partition_statistics
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment
from gaiadask.training.loop import train


def small_config(store: str | Path, **changes: Any) -> Config:
    """A run that takes seconds; each of `changes` updates a section, or replaces a top-level option."""
    values: dict[str, Any] = {
        "name": "small",
        "store": str(store),
        "archive": {"kind": "mock", "mock_stars": 12_000, "chunk_rows": 4_000},
        "selection": {"not_null": ()},
        "catalogue": {"partition_mb": 1},
        "model": {"latents": 6, "hidden": (32,), "noise_scale": 0.05},
        "training": {"rows_seen": 60_000, "validate_every_rows": 20_000, "batch_rows": 500, "validation_rows": 500, "threads": 1},
        "prior": {"rows_seen": 8_000, "batch_rows": 250, "hidden": (24,), "transforms": 2, "bins": 6},
        "quality": {"rows": 1_000, "two_sample_rows": 500, "two_sample_seeds": 1},
        "cluster": {"workers": 2},
    }
    for name, change in changes.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return parse_config(values)


def fetched(config: Config) -> pa.Table:
    """Every row of the configuration's archive and selection, by source_id."""
    archive = open_archive(config.archive, config.selection)
    tables = [table for chunk in archive.plan().chunks for table in archive.fetch(chunk, lambda _: None)]
    return pa.concat_tables([archive.schema.empty_table(), *tables]).sort_by("source_id")


def fill_parts(config: Config, archive: Archive | None = None) -> IngestPlan:
    """Claim the store and fetch every chunk."""
    store, archive = Store(config.store), archive or open_archive(config.archive, config.selection)
    adopt_store(store, selection_of(config, archive))
    plan = load_or_make_plan(store, config, archive)
    for chunk in pending(plan.chunks, read_ledger(store)):
        ingest.ingest_chunk(store, archive, plan.tiles, chunk)
    return plan


def merge_parts(config: Config, archive: Archive | None = None) -> list[catalogue.Partition]:
    """Merge every tile that has parts."""
    store, archive = Store(config.store), archive or open_archive(config.archive, config.selection)
    plan = load_or_make_plan(store, config, archive)
    schema, key = DR2.catalogue_schema(archive.schema.names), selection_of(config, archive).key
    return [ingest.merge_tile(store, schema, key, job) for job in ingest.tile_jobs(read_ledger(store), plan.tiles)]


def make_catalogue(config: Config, archive: Archive | None = None) -> CatalogueRecord:
    """Fetch, merge, publish."""
    archive = archive or open_archive(config.archive, config.selection)
    fill_parts(config, archive)
    partitions = merge_parts(config, archive)
    return ingest.publish(Store(config.store), archive, selection_of(config, archive), partitions)


def make_run(config: Config) -> None:
    """Ingest, statistics, train, encode and prior, with their entries in the manifest."""
    context, store, run = Context(config), Store(config.store), RunPaths(config.name)
    record = make_catalogue(config)
    store.write_bytes(run.config, dump_toml(config, comments=False).encode())
    _enter(context, "ingest")
    statistics = merge_statistics([partition_statistics(store, config.release, p) for p in record.partitions])
    store.write_json(run.statistics, {"key": _enter(context, "statistics"), **statistics.to_json()})
    model = config.model
    transform = Transform.fit(config.model_columns, statistics.train, DR2, model.position, model.scaling, model.derive)
    key = _enter(context, "train")
    names = tuple(f"{paths.CATALOGUE}/{tile.file}" for tile in record.tiles)
    told = {"store": config.store, "run": config.name, "partitions": names, "transform": transform.to_json(), "key": key}
    train(Assignment(**told, model=config.model, training=config.training, attempt="a"), lambda _: None)
    latents = [encode_partition(store, run, key, p) for p in record.partitions]
    catalogue.publish(store, run.latent, "latents", latents, {})
    _enter(context, "encode")
    make_prior_here(config)


def make_prior_here(config: Config) -> None:
    """The prior of a run that has latents, with its entry in the manifest: as a worker makes it, without a cluster."""
    store, run, record = Store(config.store), RunPaths(config.name), ingest.read_catalogue_record(Store(config.store))
    gather = GatherPrior(store, run, Context(config).key("train"), train_below=2.0, validation_below=2.0)
    gathered = [gather(partition) for partition in record.partitions]
    stars = [PriorStars.join([getattr(g, part) for g in gathered], 10**6) for part in ("train", "validation")]
    given = (SkyCounts.merge([g.counts for g in gathered]), *stars)
    statistics = Statistics.from_json(store.read_json(run.statistics)).train
    key = _enter(Context(config), "prior")
    make_prior(store, run, config.prior, key, gather.model_key, statistics, given, lambda share: None)


def _enter(context: Context, stage: str) -> str:
    inputs = stage_named(stage).inputs(context)
    context.manifest.write(stage, inputs, {}, 0.0)
    return context.key(stage)


def copied(config: Config, folder: Path) -> Config:
    """The same store at another place, to be changed."""
    shutil.copytree(config.store, folder)
    return config.model_copy(update={"store": str(folder)})
