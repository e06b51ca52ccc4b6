"""Latent traversals: real stars to begin with, and one latent at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import copied, fetched

from gaiadask import catalogue
from gaiadask.config.sections import Config, PriorConfig
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.errors import DataError
from gaiadask.ingest import read_catalogue_record
from gaiadask.model import StarModel
from gaiadask.model.card import latent_names
from gaiadask.model.source import ModelSource
from gaiadask.prior.fitting import GatherPrior
from gaiadask.quality import Rated
from gaiadask.quality.files import read_latent_traversal, save_latent_traversal
from gaiadask.quality.gather import Gather, Gathered
from gaiadask.quality.traversal import AS_ENCODED, STAR_GROUPS, STEPS, latent_traversal
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import DR2
from gaiadask.split import Part, hash64, part_of, smallest
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import CATALOGUE, RunPaths

STARS = STAR_GROUPS[0] * STAR_GROUPS[1]


@pytest.fixture(scope="module")
def rated(small_run: Config, star_model: StarModel) -> Rated:
    real = fetched(small_run).slice(0, 2_000)
    latents = encode(real, star_model)
    z = np.stack([latents[name].to_numpy() for name in latent_names(star_model.latents)], axis=1)
    return Rated(real, decode(latents, star_model), z, DR2)


def test_each_traversal_begins_at_a_star_and_changes_one_latent(star_model: StarModel, rated: Rated) -> None:
    table = latent_traversal(star_model, rated)
    assert table is not None
    latent, step, colour = (table[name].to_numpy() for name in ("latent", "step", "bp_rp"))
    assert table.num_rows == STARS * (1 + star_model.latents * STEPS)
    rebuilt = rated.rebuilt["bp_rp"].drop_null().to_numpy()
    apart = np.abs(colour[latent == AS_ENCODED][:, None] - rebuilt).min(axis=1)
    assert apart.max() < 1e-3  # sums over a batch of another size are rounded otherwise
    assert set(np.unique(latent)) == {AS_ENCODED, *range(star_model.latents)}
    moved = [np.ptp(colour[latent == i].reshape(STARS, STEPS), axis=1).max() for i in range(star_model.latents)]
    assert max(moved) > 0.1, "some latent holds colour"
    assert (step[latent == 0].reshape(STARS, STEPS) == np.arange(STEPS)).all()


def test_too_few_stars_make_no_traversal(star_model: StarModel, rated: Rated) -> None:
    few = Rated(rated.real.slice(0, 50), rated.rebuilt.slice(0, 50), rated.latents[:50], DR2)
    assert latent_traversal(star_model, few) is None


def test_a_traversal_is_stored_and_that_of_an_earlier_rating_removed(tmp_path: Path) -> None:
    store, run = Store(str(tmp_path)), RunPaths("a")
    table = pa.table({SOURCE_ID: [1]})
    save_latent_traversal(store, run, table)
    assert read_latent_traversal(store, run) == table
    save_latent_traversal(store, run, None)
    assert read_latent_traversal(store, run) is None


def test_the_stars_to_rate_do_not_depend_on_how_partitions_are_grouped(small_run: Config) -> None:
    store, run = Store(small_run.store), RunPaths(small_run.name)
    partitions = read_catalogue_record(store).partitions
    gather = Gather(ModelSource(store, run, Manifest(store, run).require("train").key), 200, 2.0, 2.0, 0.02)
    whole = Gathered.merged([gather(partitions)], 200)
    parts = Gathered.merged([gather(partitions[first : first + 5]) for first in range(0, len(partitions), 5)], 200)
    assert parts.test.real.equals(whole.test.real) and parts.compared.equals(whole.compared)
    assert np.allclose(parts.test.latents, whole.test.latents, atol=1e-6)
    names = [name for name in whole.test.rebuilt.column_names if pa.types.is_floating(whole.test.rebuilt.schema.field(name).type)]
    for name in names:
        assert np.allclose(*(g.test.rebuilt[name].to_numpy() for g in (parts, whole)), rtol=1e-4, equal_nan=True), name
    assert np.allclose(parts.train.scatter, whole.train.scatter, rtol=1e-9, atol=1e-9 * whole.train.scatter.max())

    ids = np.concatenate(
        [catalogue.read_partition(store, CATALOGUE, p.tile, [SOURCE_ID])[SOURCE_ID].to_numpy() for p in partitions]
    )
    assert whole.train.stars == np.count_nonzero(part_of(ids) == Part.TRAIN)
    tests = ids[part_of(ids) == Part.TEST]
    assert whole.test.real[SOURCE_ID].to_pylist() == tests[np.sort(smallest(hash64(tests), 200))].tolist()


def test_latents_of_other_stars_are_neither_rated_nor_fitted_to(small_run: Config, tmp_path: Path) -> None:
    config = copied(small_run, tmp_path / "store")
    store, run = Store(config.store), RunPaths(config.name)
    partition = read_catalogue_record(store).partitions[0]
    path = store.path(f"{run.latent}/{partition.tile.file}")
    latents = pq.read_table(path)
    pq.write_table(latents.take(np.arange(len(latents))[::-1]), path)
    source = ModelSource(store, run, Manifest(store, run).require("train").key)
    for gather in (
        lambda: Gather(source, 9, 2.0, 2.0, 2.0)([partition]),
        lambda: GatherPrior(source, PriorConfig(), 2.0, 2.0)([partition]),
    ):
        with pytest.raises(DataError, match=rf"partition {partition.tile}: its latents are of other stars .*--replace encode"):
            gather()
