"""A fitted prior as two files, prior/weights.safetensors and prior/card.json, and the object that draws new stars with it.

The card is written last and names the weights' sha256, so two files that were not written together are refused, not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from gaiadask.config.sections import PriorConfig
from gaiadask.errors import KeyMismatchError, StoreError
from gaiadask.inputs.masses import MassMap, shared_values
from gaiadask.inputs.statistics import TableStatistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.flow import Flow
from gaiadask.model.source import ModelSource
from gaiadask.model.splines import LOG_ROOT_2_PI
from gaiadask.model.star_model import StarModel
from gaiadask.prior.card import DensityResult, PriorCard, PriorResult, StarsUsed
from gaiadask.prior.fitting import FLOW, FREE, LATENT, RESIDUAL, Fitted, fit_prior, load_gathered, present_of_masks
from gaiadask.prior.flow_fit import FlowDensity
from gaiadask.prior.flows import Density, one_thread
from gaiadask.prior.sky_density import SkyDensity
from gaiadask.store.artifact import Artifact
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.checkpoint import CheckpointFile

FORMAT_VERSION = 2
_SKY, _POINT_MASSES = "places", "masses"
"""Of the arrays in weights.safetensors: the first part of their names."""


@dataclass(frozen=True, eq=False)
class Prior:
    """The distribution that new stars are drawn from.

    sky: p(position, null mask). densities: by name (`LATENT`, `RESIDUAL`, `FREE`). flow: of a model that is a flow, in their
    place. masses: the point masses of free columns, by the
    column's name, as `point_masses` gives them: a new star nearer to one than to any other value of a train star gets that very value.
    """

    sky: SkyDensity
    densities: dict[str, Density]
    masses: dict[str, NDArray[np.float64]]
    card: PriorCard
    flow: FlowDensity | None = None

    @classmethod
    def of(cls, fitted: Fitted, masses: dict[str, NDArray[np.float64]], card: PriorCard) -> Prior:
        """A prior of the parts that were fitted."""
        densities = {name: fit.density for name, fit in fitted.densities.items()}
        return cls(fitted.sky, densities, masses, card, fitted.flow.density if fitted.flow else None)

    @property
    def key(self) -> str:
        """Hash of what the prior was made from."""
        return self.card.key

    @property
    def model_key(self) -> str:
        """Key of the model whose latents it draws."""
        return self.card.model_key

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of each column among train stars, derived columns too: no new star lies outside."""
        return self.card.limits

    def values(
        self, model: StarModel, condition: NDArray[np.float32], masks: NDArray[np.int64], random: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw transformed values of new stars, shape (n, n_values), on the model's device.

        Args:
            condition: shape (n, n_conditions), what the transform makes of position and nulls.
            masks: null masks, shape (n, words).
        """
        if self.flow is not None:
            return self.flow.draw(model, condition, random)
        for density in self.densities.values():
            density.to(next(model.network.parameters()).device)
        given = self._context(model, condition, masks)
        if FREE in self.densities:
            return self.densities[FREE].draw(given, random)
        if LATENT in self.densities:
            z = model.latents_from(self.densities[LATENT].draw(given, random))
        else:
            z = model.latents_without_star(len(given), random)
        with one_thread():
            values = model.decode(z, condition).astype(np.float64)
        if RESIDUAL in self.densities:
            values += self.densities[RESIDUAL].draw(np.hstack([z, given]), random)
        return values

    def log_likelihood(
        self, model: StarModel, z: NDArray[np.float32], condition: NDArray[np.float32], masks: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Logarithm of the probability of each star's latents given its position and nulls, shape (n,), nats; of latents that are not
        rounded, of their density. NaN where the prior has no density of latents.

        Args:
            z: latents, shape (n, latents).
            condition, masks: as of `values`.
        """
        if self.flow is not None:
            return self._log_likelihood_of_flow(self.flow, model, z, condition)
        if LATENT not in self.densities:
            return np.full(len(z), np.nan)
        density = self.densities[LATENT]
        density.to(model.device)
        continuous, log_steps = model.as_continuous(z)
        return density.log_density(continuous, self._context(model, condition, masks)) + log_steps.sum(axis=1)

    def _log_likelihood_of_flow(
        self, flow: FlowDensity, model: StarModel, z: NDArray[np.float32], condition: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """In the model the score of each latent follows a unit normal: what is denser here than there is as much likelier."""
        assert isinstance(model.network, Flow)
        scores, log_steps = model.as_continuous(z)
        lacking = model.network.lacking(torch.from_numpy(condition).to(model.device)).cpu().numpy()
        values = np.where(lacking, np.float32(0), model.decode(z, condition))
        of_each = log_steps - 0.5 * scores.astype(np.float64) ** 2 - LOG_ROOT_2_PI + flow.log_ratio(model, values, condition)
        # What is null has a latent that says nothing.
        return np.where(lacking, 0.0, of_each).sum(axis=1)

    def _context(self, model: StarModel, condition: NDArray[np.float32], masks: NDArray[np.int64]) -> NDArray[np.floating]:
        return np.hstack([condition, present_of_masks(model.transform, masks, self.card.varying)])

    def point_mass_values(self, model: StarModel, values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """For each column with point masses, the one that each transformed value falls on, shape (n,), NaN where it falls on none.

        Args:
            values: transformed values, shape (n, n_values).
        """
        at = {}
        for name, (low, high, value) in self.masses.items():
            score = values[:, model.transform.slots[name].start]
            nearest = np.maximum(np.searchsorted(low, score, side="right") - 1, 0)
            at[name] = np.where((score >= low[nearest]) & (score < high[nearest]), value[nearest], np.nan)
        return at


def limits_of(train: TableStatistics) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each column that has values."""
    return {n: (c.minimum, c.maximum) for n, c in train.columns.items() if c.minimum is not None and c.maximum is not None}


def point_masses(train: TableStatistics, transform: Transform) -> dict[str, NDArray[np.float64]]:
    """The values of each free column that many train stars share, by the column's name; of a column whose encoding has cells for them, none.

    Counts, flags and templates have only such values; what is left over by an exact solution (astrometric_excess_noise) has one, 0.

    Returns:
        Arrays of shape (3, k), rows low, high and value. value: in the column's unit, ascending. low, high: transformed, half-way to
        the neighbouring values of train stars (where there are more than some thousand, to those that the statistics keep).
    """
    masses = {}
    for name in (slot.column for slot in transform.slots.values() if slot.width == 1):  # several values have no order
        sketch = train.columns[name].sketch
        is_mass = shared_values(sketch)
        if is_mass.any() and not isinstance(transform.encodings[name], MassMap):
            scores = transform.encodings[name].forward(sketch.values)[:, 0]
            edges = np.concatenate([[-np.inf], (scores[1:] + scores[:-1]) / 2, [np.inf]])
            masses[name] = np.stack([edges[:-1], edges[1:], sketch.values])[:, is_mass]
    return masses


def _artifact(run: RunPaths) -> Artifact:
    remedy = "make it again with `gaiadask prior CONFIG --replace prior`, or restore both files of prior/ from one backup"
    return Artifact(run.prior_weights, run.prior_card, FORMAT_VERSION, remedy)


def save_prior(store: Store, run: RunPaths, prior: Prior) -> Prior:
    """Write a prior's two files.

    Returns:
        The prior with the card as it was written.

    Raises:
        StoreError: the store cannot be written; the card is then absent.
    """
    parts = {_SKY: prior.sky.to_arrays(), _POINT_MASSES: prior.masses}
    if prior.flow is not None:
        parts[FLOW] = prior.flow.to_arrays()
    parts |= {name: density.to_arrays() for name, density in prior.densities.items()}
    arrays = {f"{part}.{name}": np.ascontiguousarray(array) for part, named in parts.items() for name, array in named.items()}
    card = _artifact(run).save(store, safetensors.numpy.save(arrays), prior.card.to_json())
    return replace(prior, card=PriorCard.model_validate(card))


def load_prior(store: Store, run: RunPaths) -> Prior:
    """Read a prior.

    Raises:
        StoreError: a file is missing, damaged, of another format version, or not of the other's making; the message names the file
            and the remedy.
    """
    artifact = _artifact(run)
    content, written = artifact.load(store)
    try:
        parts: dict[str, dict[str, NDArray]] = {}
        for name, array in safetensors.numpy.load(content).items():
            part, rest = name.split(".", 1)
            parts.setdefault(part, {})[rest] = array
        card = PriorCard.model_validate(written)
        sky = SkyDensity.from_arrays(parts.pop(_SKY))
        masses = parts.pop(_POINT_MASSES, {})
        flow = FlowDensity(parts.pop(FLOW)) if FLOW in parts else None
        densities = {name: Density.from_arrays(arrays, card.prior) for name, arrays in parts.items()}
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        where = store.uri_of(artifact.card)
        raise StoreError(f"{where} and its weights do not describe one prior ({error}): {artifact.remedy}") from error
    return Prior(sky, densities, masses, card, flow)


def prior_identity(store: Store, run: RunPaths) -> str:
    """What distinguishes this prior from any other, also from one of the same key: a fit within max_seconds depends on the machine."""
    return _artifact(run).identity(store)


def prior_is_whole(store: Store, run: RunPaths, key: str) -> bool:
    """Whether both files of the prior of this key are there and belong together. Raises StoreError where the store cannot tell."""
    return _artifact(run).is_whole(store, key)


@lru_cache(maxsize=2)
def _read_once(store: Store, run: RunPaths, identity: str) -> Prior:
    return load_prior(store, run)


def load_prior_cached(store: Store, run: RunPaths, key: str) -> Prior:
    """The prior of this key; its arrays are read once in a process.

    Raises:
        KeyMismatchError: the store has another prior.
    """
    prior = _read_once(store, run, prior_identity(store, run))
    if prior.key != key:
        raise KeyMismatchError(
            f"{store.uri_of(run.prior_card)} is the prior of key {prior.key}, expected {key}: it was made anew meanwhile. "
            "Run the stages from `prior` on again"
        )
    return prior


@dataclass(frozen=True, eq=False)
class MakePrior:
    """Fits a prior and writes it, on a worker. statistics: of train stars. stars_sha256: of the file of gathered stars.

    It can be killed at any time: the same call resumes from the last validation of the density that was being fitted.
    """

    model: ModelSource
    config: PriorConfig
    key: str
    statistics: TableStatistics
    stars_sha256: str

    def __call__(self, report: Callable[[float], None]) -> PriorResult:
        """Fit it to the stars of all partitions. report: is called with the share of the work that is done."""
        store, run, config = self.model.store, self.model.run, self.config
        model, gathered = self.model.load(), load_gathered(store, run, self.stars_sha256)
        fitted = fit_prior(
            model, gathered, config, report, lambda name: CheckpointFile(store, run.prior_checkpoint(name), self.key)
        )
        used = StarsUsed(
            counted=int(gathered.counts.stars.sum()), train=len(gathered.train.values), validation=len(gathered.validation.values)
        )
        card = PriorCard(
            format_version=FORMAT_VERSION,
            key=self.key,
            model_key=self.model.key,
            prior=config,
            stars=used,
            pixels=len(fitted.sky.pixel),
            varying=fitted.varying,
            densities=fitted.cards,
            limits=limits_of(self.statistics),
        )
        save_prior(store, run, Prior.of(fitted, point_masses(self.statistics, model.transform), card))
        for name in (LATENT, RESIDUAL, FREE, FLOW):  # also of another kind, whose fit was begun before
            store.remove(run.prior_checkpoint(name))
        return _result_of(card)


def _result_of(card: PriorCard) -> PriorResult:
    fits = {
        name: DensityResult(validation_loss=fit.validation_loss, rows_seen=fit.rows_seen, seconds=fit.seconds)
        for name, fit in card.densities.items()
    }
    return PriorResult(kind=card.prior.kind, pixels=card.pixels, **card.stars.model_dump(), **fits)
