"""Test stars, as published and as rebuilt: gathered partition by partition, to be rated by `gaiadask.quality`.

The latents are read from the latent catalogue in the store, not encoded again: what users get is what is rated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.checks import check_same_stars
from gaiadask.decode import Positions, decode
from gaiadask.errors import DataError
from gaiadask.inputs.nulls import mask_words
from gaiadask.model.card import latent_names
from gaiadask.model.source import ModelSource
from gaiadask.model.star_model import StarModel
from gaiadask.product import latent_footer
from gaiadask.quality.baseline import fit_pca, pca_rebuilt
from gaiadask.quality.rating import Rated, bytes_a_star
from gaiadask.quality.records import Storage
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.split import Part, chosen, hash64, smallest
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

BASELINE_STARS = 1_000_000
"""Train stars (of smallest hash) that the baseline is fitted on, at most: more would hardly change its components."""
COMPARED_STARS = 20_000
"""Train stars that new ones may turn out to be copies of: as many as `nearer_to_train` looks at, with a margin."""


class TestStars(NamedTuple):
    """Test stars: real (the model's columns and their errors), rebuilt (the model's columns), latents, shape (stars, latents)."""

    real: pa.Table
    rebuilt: pa.Table
    latents: NDArray[np.float32]


@dataclass(frozen=True)
class Gather:
    """Functions of one partition, for workers. `below`: stars with a hash below it, a share of the hash's range, are taken."""

    model: ModelSource

    def test_stars(self, below: float, partition: Partition) -> TestStars:
        """The partition's test stars with a hash below `below`. Raises DataError where its latents are of other stars."""
        store, model = self.model.store, self.model.load()
        real = catalogue.read_partition(store, paths.CATALOGUE, partition.tile, _rated_columns(store, model, partition))
        latents = catalogue.read_partition(
            store, self.model.run.latent, partition.tile, footer=latent_footer(self.model, partition)
        )
        check_same_stars(real[SOURCE_ID].to_numpy(), latents[SOURCE_ID].to_numpy(), f"partition {partition.tile}")
        rows = pa.array(chosen(real[SOURCE_ID].to_numpy(), Part.TEST, below))
        real, latents = real.filter(rows), latents.filter(rows)
        z = np.stack([latents[name].to_numpy() for name in latent_names(model.latents)], axis=1)
        # A model that encodes the position is rated on the position it rebuilds.
        positions: Positions = "catalogue" if model.transform.position == "condition" else "model"
        return TestStars(real, decode(latents, model, positions), z)

    def train_values(self, below: float, partition: Partition) -> NDArray[np.float32]:
        """Inputs of the network, shape (n, n_values), of the partition's train stars with a hash below `below`."""
        transform = self.model.load().transform
        pieces = catalogue.iterate_chosen(self.model.store, paths.CATALOGUE, partition.tile, Part.TRAIN, below)
        return np.concatenate([transform.forward(table).values for table in pieces])

    def train_stars(self, below: float, partition: Partition) -> pa.Table:
        """The model's columns of the partition's train stars with a hash below `below`."""
        columns = list(self.model.load().transform.columns)
        pieces = catalogue.iterate_chosen(
            self.model.store, paths.CATALOGUE, partition.tile, Part.TRAIN, below, [SOURCE_ID, *columns]
        )
        return pa.concat_tables(pieces).select(columns)


def _rated_columns(store: Store, model: StarModel, partition: Partition) -> list[str]:
    with store.open_parquet(f"{paths.CATALOGUE}/{partition.tile.file}") as file:
        available = set(file.schema_arrow.names)
    release = model.transform.release
    errors = [e for name in model.transform.columns if (e := release.columns[name].error_column) in available and e is not None]
    return list(dict.fromkeys((SOURCE_ID, RA, DEC, *model.transform.columns, *errors)))


def join(pieces: Sequence[TestStars], most: int) -> TestStars:
    """The pieces as one, and of these the `most` stars of smallest hash, in the pieces' order.

    Raises DataError where there is no star.
    """
    real, rebuilt = pa.concat_tables(p.real for p in pieces), pa.concat_tables(p.rebuilt for p in pieces)
    latents = np.concatenate([p.latents for p in pieces])
    hashes = hash64(real[SOURCE_ID].to_numpy())
    if not len(hashes):
        raise DataError("no star of the catalogue is a test star (1 in 10 is): the catalogue is too small to rate a model on")
    if len(hashes) > most:
        keep = np.sort(smallest(hashes, most))
        real, rebuilt, latents = real.take(keep), rebuilt.take(keep), latents[keep]
    return TestStars(real, rebuilt, latents)


def with_baseline(stars: TestStars, model: StarModel, train_values: NDArray[np.float32], sampled: pa.Table | None = None) -> Rated:
    """The stars, the same stars rebuilt by PCA of the model's width, and new stars.

    train_values: inputs of the network that the PCA is fitted on, shape (m, n_values).
    """
    pca = fit_pca(train_values, model.latents)
    own_positions = model.transform.position != "condition"
    rebuilt = pca_rebuilt(pca, model.transform, stars.real, own_positions=own_positions)
    transform = model.transform
    return Rated(stars.real, stars.rebuilt, stars.latents, transform.release, rebuilt, sampled, transform.derived)


def storage(store: Store, run: RunPaths, model: StarModel, rows: int) -> Storage:
    """Bytes a star of a catalogue of `rows` stars, everything counted."""
    words = mask_words(len(model.transform.columns))
    sizes = (store.size(f"{run.latent}/dataset"), store.size(f"{paths.CATALOGUE}/dataset"))
    return bytes_a_star(rows, model.latents, words, store.size(run.model), *sizes)
