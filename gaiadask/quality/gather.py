"""Test stars, as published and as rebuilt: gathered by workers and merged as a tree, to be rated by `gaiadask.quality`.

The latents are read from the latent catalogue in the store, not encoded again: what users get is what is rated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.catalogue import Partition
from gaiadask.decode import Positions, decode
from gaiadask.inputs.nulls import mask_words
from gaiadask.model.source import ModelSource
from gaiadask.model.star_model import StarModel
from gaiadask.product import with_latents
from gaiadask.quality.baseline import Moments, fit_pca, pca_rebuilt
from gaiadask.quality.rating import Rated, bytes_a_star
from gaiadask.quality.records import Storage
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.split import Part, chosen, hash64, smallest
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.batches import read_columns

BASELINE_STARS = 1_000_000
"""Train stars (of smallest hash) that the baseline is fitted on, at most: more would hardly change its components."""
COMPARED_STARS = 20_000
"""Train stars that new ones may turn out to be copies of: as many as `nearer_to_train` looks at, with a margin."""


class TestStars(NamedTuple):
    """Test stars: real (the model's columns and their errors), rebuilt (the model's columns), latents, shape (stars, latents)."""

    real: pa.Table
    rebuilt: pa.Table
    latents: NDArray[np.float32]


class Gathered(NamedTuple):
    """What a rating is made from, of some partitions or of all.

    Attributes:
        test: test stars to rate, those of smallest hash.
        compared: train stars that new ones may turn out to be copies of, the model's columns.
        train: moments of the network's inputs over train stars, which the baseline is fitted on.
    """

    test: TestStars
    compared: pa.Table
    train: Moments

    @classmethod
    def merged(cls, parts: Sequence[Gathered], most: int) -> Gathered:
        """All parts together, with at most `most` test stars, in the parts' order."""
        test = smallest_of(
            pa.concat_tables(p.test.real for p in parts),
            pa.concat_tables(p.test.rebuilt for p in parts),
            np.concatenate([p.test.latents for p in parts]),
            most,
        )
        return cls(test, pa.concat_tables(p.compared for p in parts), Moments.merged([p.train for p in parts]))


@dataclass(frozen=True)
class Gather:
    """Gathers some partitions, on a worker: each is read once, a row group at a time, and only the stars that are asked for are kept.

    Attributes:
        model: whose latents are rated.
        test_stars: how many test stars are kept at most.
        test_below, train_below, compared_below: stars with a hash below it, a share of the hash's range, are taken: test stars,
            train stars for the baseline, and train stars for `compared`, the fewest.
    """

    model: ModelSource
    test_stars: int
    test_below: float
    train_below: float
    compared_below: float

    def __call__(self, partitions: Sequence[Partition]) -> Gathered:
        """Gather the partitions' stars. Raises DataError where latents are of other stars."""
        model = self.model.load()
        real, latents, train = self._read(model, partitions)
        transform = model.transform
        z = model.latents_of(latents, "cannot rate")
        kept = _smallest(real, self.test_stars)
        real, latents, z = real.take(kept), latents.take(kept), z[kept]
        # A model that encodes the position is rated on the position it rebuilds.
        positions: Positions = "catalogue" if transform.position == "condition" else "model"
        compared = train.filter(pa.array(chosen(train[SOURCE_ID].to_numpy(), Part.TRAIN, self.compared_below)))
        return Gathered(
            TestStars(real, decode(latents, model, positions), z),
            compared.select(list(transform.columns)),
            Moments.of(transform.forward(train).values),
        )

    def _read(self, model: StarModel, partitions: Sequence[Partition]) -> tuple[pa.Table, pa.Table, pa.Table]:
        """The partitions' test stars, their latents, and their train stars."""
        rated = rated_columns(self.model.store, model, partitions[0])
        columns = list(dict.fromkeys((*rated, *read_columns(model.transform))))
        real, latents, train = [], [], []
        for table, encoded in with_latents(self.model, partitions, columns):
            ids = table[SOURCE_ID].to_numpy()
            test = pa.array(chosen(ids, Part.TEST, self.test_below))
            real.append(table.filter(test).select(rated))
            latents.append(encoded.filter(test))
            train.append(table.filter(pa.array(chosen(ids, Part.TRAIN, self.train_below))))
        return pa.concat_tables(real), pa.concat_tables(latents), pa.concat_tables(train)


def rated_columns(store: Store, model: StarModel, partition: Partition) -> list[str]:
    """Columns of the catalogue that a rating reads: keys, the model's, and their errors where the catalogue has them."""
    with store.open_parquet(f"{paths.CATALOGUE}/{partition.tile.file}") as file:
        available = set(file.schema_arrow.names)
    release = model.transform.release
    errors = [e for name in model.transform.columns if (e := release.columns[name].error_column) in available and e is not None]
    return list(dict.fromkeys((SOURCE_ID, RA, DEC, *model.transform.columns, *errors)))


def smallest_of(real: pa.Table, rebuilt: pa.Table, latents: NDArray[np.float32], most: int) -> TestStars:
    """Of test stars the `most` of smallest hash, in their order."""
    kept = _smallest(real, most)
    return TestStars(real.take(kept), rebuilt.take(kept), latents[kept])


def _smallest(stars: pa.Table, most: int) -> NDArray[np.int64]:
    """Numbers of the `most` stars of smallest hash, ascending."""
    return np.sort(smallest(hash64(stars[SOURCE_ID].to_numpy()), most))


def with_baseline(gathered: Gathered, model: StarModel, sampled: pa.Table | None = None) -> Rated:
    """The test stars, the same stars rebuilt by PCA of the model's width and bits, and new stars."""
    stars, transform = gathered.test, model.transform
    pca = fit_pca(gathered.train, model.latents)
    own_positions = transform.position != "condition"
    rebuilt = pca_rebuilt(pca, transform, stars.real, own_positions=own_positions, bits=model.bits)
    return Rated(stars.real, stars.rebuilt, stars.latents, transform.release, rebuilt, sampled, transform.derived)


def storage(store: Store, run: RunPaths, model: StarModel, rows: int) -> Storage:
    """Bytes a star of a catalogue of `rows` stars, everything counted."""
    words = mask_words(len(model.transform.columns))
    sizes = (store.size(f"{run.latent}/dataset"), store.size(f"{paths.CATALOGUE}/dataset"))
    return bytes_a_star(rows, model.latent_bytes, words, store.size(run.model), *sizes)
