"""Fitting a prior: stars are gathered from each partition, then densities are fitted to them.

Between the two, the stars lie in the run's folder: each worker that tries to fit reads them there.

Densities are fitted to train stars, and validation stars say when to stop; test stars are not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import safetensors.numpy
import torch
from numpy.typing import NDArray

from gaiadask.catalogue import Partition
from gaiadask.config.sections import PriorConfig
from gaiadask.errors import DataError, StoreError
from gaiadask.inputs.nulls import is_null, read_masks
from gaiadask.inputs.transform import Transform
from gaiadask.model.cells import Cells
from gaiadask.model.flow import Flow
from gaiadask.model.source import ModelSource
from gaiadask.model.star_model import StarModel
from gaiadask.prior.card import DensityCard
from gaiadask.prior.density_fit import FittedDensity, Pairs, fit_density
from gaiadask.prior.flow_fit import FittedFlow, Numbers, fit_flow
from gaiadask.prior.sky_density import SkyCounts, SkyDensity
from gaiadask.product import with_latents
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.split import Part, chosen, hash64, part_of, smallest
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.batches import read_columns
from gaiadask.training.checkpoint import CheckpointFile

LATENT, RESIDUAL, FREE, FLOW = "latent", "residual", "free", "flow"
"""Names of the densities, in the card and in the file of weights."""


class PriorStars(NamedTuple):
    """n stars of one part of the split: hashes (n,), values and present (n, n_values), condition (n, n_conditions), masks (n, words),
    latents (n, latents)."""

    hashes: NDArray[np.uint64]
    values: NDArray[np.float32]
    present: NDArray[np.bool_]
    condition: NDArray[np.float32]
    masks: NDArray[np.int64]
    latents: NDArray[np.float32]

    @classmethod
    def join(cls, parts: Sequence[PriorStars], most: int) -> PriorStars:
        """At most `most` stars of several groups, those of smallest hash, in the order of their hashes.

        Not in the partitions' order: the same stars give the same prior however the catalogue is cut.
        """
        whole = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        order = smallest(whole[0], most)
        return cls(*(array[order] for array in whole))

    @property
    def numbers(self) -> Numbers:
        """What a flow is fitted to."""
        return Numbers(self.values, self.present, self.condition)

    def anywhere(self, model: StarModel, random: np.random.Generator) -> PriorStars:
        """The same, values in a cell drawn from it: a value that many stars share would have a density without bound."""
        if not (cells := Cells.of(model.transform.cells)):
            return self
        values, uniform = torch.from_numpy(self.values), torch.from_numpy(random.random(self.values.shape))
        return self._replace(values=cells.anywhere(values, uniform).numpy())


class Gathered(NamedTuple):
    """What a prior is fitted to, of one partition or of all: counts of all train stars, and some train and validation stars."""

    counts: SkyCounts
    train: PriorStars
    validation: PriorStars

    @classmethod
    def join(cls, parts: Sequence[Gathered], config: PriorConfig) -> Gathered:
        """All partitions together, with as many stars as [prior] asks for."""
        return cls(
            SkyCounts.merge([part.counts for part in parts]),
            PriorStars.join([part.train for part in parts], config.stars),
            PriorStars.join([part.validation for part in parts], config.validation_stars),
        )


def save_gathered(store: Store, run: RunPaths, gathered: Gathered) -> str:
    """Write the file of gathered stars, for the worker that fits the prior.

    Returns:
        The sha256 of its content, hex.

    Raises:
        StoreError: the store cannot be written.
    """
    arrays = {
        f"{part}.{name}": np.ascontiguousarray(array)
        for part, stars in gathered._asdict().items()
        for name, array in stars._asdict().items()
    }
    content = safetensors.numpy.save(arrays)
    store.write_bytes(run.prior_stars, content)
    return hashlib.sha256(content).hexdigest()


def load_gathered(store: Store, run: RunPaths, sha256: str) -> Gathered:
    """Read the file of gathered stars.

    Raises:
        StoreError: it is missing, or not the file of this sha256.
    """
    content = store.read_bytes(run.prior_stars)
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise StoreError(
            f"{store.uri_of(run.prior_stars)} has other stars than were gathered for this prior (sha256 {found[:12]}…, expected "
            f"{sha256[:12]}…): does another process fit one in the same run? Run the same command again"
        )
    parts: dict[str, dict[str, NDArray]] = {}
    for name, array in safetensors.numpy.load(content).items():
        part, rest = name.split(".", 1)
        parts.setdefault(part, {})[rest] = array
    return Gathered(SkyCounts(**parts["counts"]), PriorStars(**parts["train"]), PriorStars(**parts["validation"]))


@dataclass(frozen=True)
class GatherPrior:
    """Gathers some partitions, on a worker. train_below, validation_below: stars of smaller hash are taken (`split.hash_bound`)."""

    model: ModelSource
    config: PriorConfig
    train_below: float
    validation_below: float

    def __call__(self, partitions: Sequence[Partition]) -> Gathered:
        """Gather the partitions' stars and their latents; in memory are one row group, and the stars that are taken.

        Raises:
            DataError: the latents are not of the partitions' stars.
        """
        model = self.model.load()
        names = [SOURCE_ID, RA, DEC, *model.transform.mask_names, *model.latent_columns]
        pairs = with_latents(self.model, partitions, read_columns(model.transform), names)
        return self.joined([self._of(model, *pair) for pair in pairs])

    def joined(self, parts: Sequence[Gathered]) -> Gathered:
        """Several as one, of no more stars than [prior] asks for."""
        return Gathered.join(parts, self.config)

    def _of(self, model: StarModel, table: pa.Table, latents: pa.Table) -> Gathered:
        """Of some stars and their latents."""
        columns, ids = len(model.transform.columns), table[SOURCE_ID].to_numpy()
        train = latents.filter(pa.array(part_of(ids) == Part.TRAIN))
        counts = SkyCounts.of(train[RA].to_numpy(), train[DEC].to_numpy(), read_masks(train, columns))

        def stars(rows: NDArray[np.bool_]) -> PriorStars:
            encoded = latents.filter(pa.array(rows))
            inputs = model.transform.forward(table.filter(pa.array(rows)))
            masks = read_masks(encoded, columns)
            condition = model.transform.condition(encoded, masks)
            z = model.latents_of(encoded, "cannot fit a prior")
            return PriorStars(hash64(ids[rows]), inputs.values, inputs.present, condition, masks, z)

        return Gathered(
            counts,
            stars(chosen(ids, Part.TRAIN, self.train_below)),
            stars(chosen(ids, Part.VALIDATION, self.validation_below)),
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """The parts of a prior. varying: numbers of the network values that some train stars lack. densities: by name. flow: in their place."""

    sky: SkyDensity
    varying: tuple[int, ...]
    densities: dict[str, FittedDensity]
    flow: FittedFlow | None = None

    @property
    def cards(self) -> dict[str, DensityCard]:
        """The records of all fits, by name."""
        cards = {name: fit.card for name, fit in self.densities.items()}
        return cards | ({FLOW: self.flow.card} if self.flow else {})


def fit_prior(
    model: StarModel,
    gathered: Gathered,
    config: PriorConfig,
    report: Callable[[float], None] = lambda share: None,
    checkpoint_of: Callable[[str], CheckpointFile | None] = lambda name: None,
) -> Fitted:
    """Fit all parts of a prior.

    Args:
        model: whose latents the stars have; densities are fitted on its device.
        gathered: the stars, as `GatherPrior` gathers them.
        config: the section [prior].
        report: is called with the share of the work that is done.
        checkpoint_of: the checkpoint file of each density, by its name.

    Raises:
        DataError: there are too few stars.
        TrainingError: a loss is not finite.
    """
    train, validation = gathered.train, gathered.validation
    if len(train.values) < 2 or not len(validation.values):
        raise DataError(
            f"a prior needs train and validation stars, found {len(train.values)} and {len(validation.values)}: select more stars"
        )
    varying = tuple(int(i) for i in np.flatnonzero(~train.present.all(axis=0)))
    sky = SkyDensity.fit(gathered.counts)  # first, while there is no other density beside what it needs
    if config.kind == "latent" and isinstance(model.network, Flow):
        numbers = train.numbers, validation.numbers
        fitted = fit_flow(model, numbers, config, report, checkpoint_of(FLOW))
        return Fitted(sky, varying, {}, fitted)
    tasks = _tasks(model, (train, validation), varying, config)
    densities = {}
    for number, (name, (fitted_on, stopped_by)) in enumerate(tasks.items()):

        def report_part(share: float, number: int = number) -> None:
            report((number + share) / len(tasks))

        densities[name] = fit_density(
            fitted_on, stopped_by, config, config.seed + number, report_part, checkpoint_of(name), model.device
        )
    return Fitted(sky, varying, densities)


def _tasks(
    model: StarModel, parts: tuple[PriorStars, PriorStars], varying: tuple[int, ...], config: PriorConfig
) -> dict[str, list[Pairs]]:
    """For each density, by name, x and context of train and of validation stars."""
    given = [np.hstack([stars.condition, stars.present[:, varying]]).astype(np.float32) for stars in parts]
    random = np.random.default_rng(config.seed)
    parts = parts[0].anywhere(model, random), parts[1].anywhere(model, random)
    tasks: dict[str, list[Pairs]] = {}
    if config.kind == "latent":
        tasks[LATENT] = [(model.continuous(stars.latents, random), c) for stars, c in zip(parts, given, strict=True)]
    if config.kind == "latent" and config.residuals:
        tasks[RESIDUAL] = [
            (_residuals(model, stars, random), np.hstack([stars.latents, c])) for stars, c in zip(parts, given, strict=True)
        ]
    if config.kind == "free":
        filled = [_without_nulls(stars.values, stars.present, random) for stars in parts]
        tasks[FREE] = list(zip(filled, given, strict=True))
    return tasks


def _residuals(model: StarModel, stars: PriorStars, random: np.random.Generator) -> NDArray[np.float32]:
    """Transformed values minus decoded ones, shape (n, n_values)."""
    residuals = stars.values - model.decode(stars.latents, stars.condition)
    spread = np.array([residuals[p, i].std() if p.any() else 1.0 for i, p in enumerate(stars.present.T)], np.float32)
    return _without_nulls(residuals, stars.present, random, spread)


def _without_nulls(
    x: NDArray[np.float32], present: NDArray[np.bool_], random: np.random.Generator, spread: NDArray[np.float32] | float = 1.0
) -> NDArray[np.float32]:
    """Nulls replaced by noise of the column's spread: a value that never varied would have a density without bound."""
    return np.where(present, x, spread * random.standard_normal(x.shape, dtype=np.float32))


def present_of_masks(transform: Transform, masks: NDArray[np.int64], numbers: Sequence[int]) -> NDArray[np.bool_]:
    """Whether the free values of these numbers are present, shape (n, len(numbers)), by null masks, shape (n, words)."""
    columns = transform.value_columns
    bits = [transform.columns.index(columns[i]) for i in numbers]
    return np.stack([~is_null(masks, bit) for bit in bits], axis=1) if bits else np.empty((len(masks), 0), bool)
