"""A small run of mock stars, made by the stages in this process, without a cluster: what the tests of readers read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from gaiadask.archive.base import Archive, open_archive
from gaiadask.catalogue import Partition
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.ingest import CatalogueRecord
from gaiadask.ingest_plan import IngestPlan, adopt_store, load_or_make_plan, selection_of
from gaiadask.product import PRODUCT_KEY
from gaiadask.stages import ingest as stage
from gaiadask.stages.context import Context
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store


def small_config(store: str | Path, **changes: Any) -> Config:
    """A run that takes seconds; each of `changes` updates a section, or replaces a top-level option."""
    values: dict[str, Any] = {
        "name": "small",
        "store": str(store),
        "archive": {"kind": "mock", "mock_stars": 12_000, "chunk_rows": 4_000},
        "selection": {"not_null": ()},
        "catalogue": {"partition_mb": 1},
        "model": {"latents": 6, "hidden": (32,), "noise_scale": 0.05},
        "training": {
            "rows_seen": 60_000,
            "validate_every_rows": 20_000,
            "batch_rows": 500,
            "validation_rows": 500,
            "threads": 1,
            "ranks": 1,
        },
        "prior": {"rows_seen": 8_000, "batch_rows": 250, "hidden": (24,), "transforms": 2, "bins": 6},
        "quality": {"rows": 1_000, "two_sample_rows": 150, "two_sample_seeds": 1},
        "cluster": {"workers": 2, "dashboard": False},
    }
    for name, change in changes.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return parse_config(values)


def fetched(config: Config) -> pa.Table:
    """Every row of the configuration's archive and selection, by source_id."""
    archive = open_archive(config.archive, config.selection)
    tables = [table for chunk in archive.plan().chunks for table in archive.fetch(chunk, lambda _: None)]
    return pa.concat_tables([archive.schema.empty_table(), *tables]).sort_by("source_id")


def context_of(config: Config) -> Context:
    """A context whose work is done in this process."""
    return Context(config, given_workers=Here())


def fill_parts(config: Config, archive: Archive | None = None) -> IngestPlan:
    """Claim the store and fetch every chunk, as an ingest that is killed before it merges leaves it."""
    context = context_of(config)
    archive = archive or context.archive
    adopt_store(context.store, selection_of(config, archive))
    return stage.fetch_chunks(context, archive)


def merge_parts(config: Config, archive: Archive | None = None) -> list[Partition]:
    """Merge every tile that has parts."""
    context = context_of(config)
    archive = archive or context.archive
    return stage.merge_tiles(context, archive, load_or_make_plan(context.store, config, archive))


def make_catalogue(config: Config, archive: Archive | None = None) -> CatalogueRecord:
    """Fetch, merge, publish."""
    context = context_of(config)
    stage.ingest_from(context, archive or context.archive)
    return context.catalogue


def make_run(config: Config, *stages: str) -> None:
    """A run up to its prior, or these stages of it, by the stages themselves, in this process."""
    run_stages(config, stages or ("ingest", "statistics", "train", "encode", "prior"), workers=Here())


def read_key(store: Store, name: str) -> str | None:
    """Key in the footer of a product's file; None where there is no such file."""
    if not store.exists(name):
        return None
    with store.open_parquet(name) as file:
        return file.schema_arrow.metadata[PRODUCT_KEY.encode()].decode()


def copied(config: Config, folder: Path) -> Config:
    """The same store at another place, to be changed."""
    shutil.copytree(config.store, folder)
    return config.model_copy(update={"store": str(folder)})
