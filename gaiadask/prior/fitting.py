"""Fitting a prior: what is gathered of each partition, and the densities that are fitted to it.

Train stars tell the densities, validation stars when to stop; test stars are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.config.sections import PriorConfig
from gaiadask.encode import latent_names
from gaiadask.errors import DataError
from gaiadask.inputs.nulls import is_null
from gaiadask.inputs.transform import Transform
from gaiadask.model.files import load_model_cached
from gaiadask.model.star_model import StarModel
from gaiadask.prior.flows import Density, Kept, fit_density
from gaiadask.prior.places import Places, SkyCounts
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.split import Part, chosen, hash64, part_of
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.batches import read_columns

LATENT, RESIDUAL, FREE = "latent", "residual", "free"


class PriorStars(NamedTuple):
    """n stars of one part, as the prior sees them: hashes (n,), values and present (n, n_values), condition
    (n, n_conditions), masks (n, words), latents (n, latents)."""

    hashes: NDArray[np.uint64]
    values: NDArray[np.float32]
    present: NDArray[np.bool_]
    condition: NDArray[np.float32]
    masks: NDArray[np.int64]
    latents: NDArray[np.float32]

    @classmethod
    def join(cls, parts: Sequence[PriorStars], most: int) -> PriorStars:
        """The parts as one, and of these the `most` stars of smallest hash, in the order of their hashes.

        Not in the partitions' order: the same stars give the same prior however the catalogue is cut.
        """
        whole = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        order = np.argsort(whole[0])[:most]
        return cls(*(array[order] for array in whole))


class Gathered(NamedTuple):
    """Of a partition: all its train stars' counts on the sky, and some train and validation stars."""

    counts: SkyCounts
    train: PriorStars
    validation: PriorStars


@dataclass(frozen=True)
class GatherPrior:
    """A function of one partition, for workers. train_below, validation_below: stars of smaller hash are taken."""

    store: Store
    run: RunPaths
    model_key: str
    train_below: float
    validation_below: float

    def __call__(self, partition: Partition) -> Gathered:
        """Raises DataError where the latents are not of the partition's stars."""
        model = load_model_cached(self.store, self.run, self.model_key)
        z_names, masks = latent_names(model.latents), model.transform.mask_names
        latents = catalogue.read_partition(self.store, self.run.latent, partition.tile, [SOURCE_ID, RA, DEC, *masks, *z_names])
        table = catalogue.read_partition(self.store, paths.CATALOGUE, partition.tile, read_columns(model.transform))
        ids = table[SOURCE_ID].to_numpy()
        if not np.array_equal(ids, latents[SOURCE_ID].to_numpy()):
            raise DataError(
                f"partition {partition.tile}: its latents are not of the same stars; encode again with --replace encode"
            )
        train = latents.filter(pa.array(part_of(ids) == Part.TRAIN))
        counts = SkyCounts.of(train[RA].to_numpy(), train[DEC].to_numpy(), _stacked(train, masks))

        def stars(rows: NDArray[np.bool_]) -> PriorStars:
            their = latents.filter(pa.array(rows))
            inputs = model.transform.forward(table.filter(pa.array(rows)))
            condition = model.transform.condition(their)
            return PriorStars(
                hash64(ids[rows]), inputs.values, inputs.present, condition, _stacked(their, masks), _stacked(their, z_names)
            )

        return Gathered(
            counts,
            stars(chosen(ids, Part.TRAIN, self.train_below)),
            stars(chosen(ids, Part.VALIDATION, self.validation_below)),
        )


def _stacked(table: pa.Table, names: Sequence[str]) -> NDArray[Any]:
    return np.stack([table[name].to_numpy() for name in names], axis=1)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit makes. varying: free values (by number) that some train stars lack; densities by name; found: what came of each."""

    places: Places
    varying: tuple[int, ...]
    densities: dict[str, Density]
    found: dict[str, dict[str, Any]]


def fit_prior(
    model: StarModel,
    counts: SkyCounts,
    train: PriorStars,
    validation: PriorStars,
    config: PriorConfig,
    report: Callable[[float], None] = lambda share: None,
    kept: Callable[[str], Kept | None] = lambda name: None,
) -> Fitted:
    """All parts of a prior, of stars gathered by `GatherPrior`. kept: where the checkpoint of each density is kept, by name.
    Raises DataError for too few stars, TrainingError for a loss that is not finite."""
    if len(train.values) < 2 or not len(validation.values):
        raise DataError(
            f"a prior needs train and validation stars, found {len(train.values)} and {len(validation.values)}: select more stars"
        )
    varying = tuple(int(i) for i in np.flatnonzero(~train.present.all(axis=0)))
    given = [np.hstack([stars.condition, stars.present[:, varying]]).astype(np.float32) for stars in (train, validation)]
    random = np.random.default_rng(config.seed)
    tasks: dict[str, list[tuple[NDArray, NDArray]]] = {}
    if config.kind == "latent":
        tasks[LATENT] = [(stars.latents, c) for stars, c in zip((train, validation), given, strict=True)]
    if config.kind == "latent" and config.residuals:
        tasks[RESIDUAL] = [
            (_residuals(model, stars, random), np.hstack([stars.latents, c]))
            for stars, c in zip((train, validation), given, strict=True)
        ]
    if config.kind == "free":
        filled = [_without_nulls(stars.values, stars.present, random) for stars in (train, validation)]
        tasks[FREE] = list(zip(filled, given, strict=True))
    densities, found = {}, {}
    for number, (name, (fitted_on, stopped_by)) in enumerate(tasks.items()):

        def tell(share: float, number: int = number) -> None:
            report((number + share) / len(tasks))

        densities[name], found[name] = fit_density(fitted_on, stopped_by, config, config.seed + number, tell, kept(name))
    return Fitted(Places.fit(counts), varying, densities, found)


def _residuals(model: StarModel, stars: PriorStars, random: np.random.Generator) -> NDArray[np.float32]:
    left_out = stars.values - model.decode(stars.latents, stars.condition)
    spread = np.array([left_out[p, i].std() if p.any() else 1.0 for i, p in enumerate(stars.present.T)], np.float32)
    return _without_nulls(left_out, stars.present, random, spread)


def _without_nulls(
    x: NDArray[np.float32], present: NDArray[np.bool_], random: np.random.Generator, spread: NDArray[np.float32] | float = 1.0
) -> NDArray[np.float32]:
    """Noise of the column's spread in the place of what is null: a density would have no bound where a value never varies."""
    return np.where(present, x, spread * random.standard_normal(x.shape, dtype=np.float32))


def present_of_masks(transform: Transform, masks: NDArray[np.int64], numbers: Sequence[int]) -> NDArray[np.bool_]:
    """Whether free values `numbers` are present, shape (n, len(numbers)), as null masks, shape (n, words), tell."""
    columns = transform.value_columns
    bits = [transform.columns.index(columns[i]) for i in numbers]
    return np.stack([~is_null(masks, bit) for bit in bits], axis=1) if bits else np.empty((len(masks), 0), bool)
