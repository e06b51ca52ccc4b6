"""A fitted prior as two files, prior/weights.safetensors and prior/card.json, and the object that draws with it.

The card is written last and names the weights' sha256, so a pair that was not written together is refused, not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError

from gaiadask.config.sections import PriorConfig
from gaiadask.errors import KeyMismatchError, StoreError
from gaiadask.inputs.statistics import TableStatistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.files import load_model_cached
from gaiadask.model.star_model import StarModel
from gaiadask.prior.fitting import FREE, LATENT, RESIDUAL, Fitted, PriorStars, fit_prior, present_of_masks
from gaiadask.prior.flows import Density, Kept, one_thread
from gaiadask.prior.places import Places, SkyCounts
from gaiadask.store.artifact import Artifact
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

FORMAT_VERSION = 2
_PLACES, _MASSES = "places", "masses"
# A value that so large a share of a column's train stars hold is a point mass, and each value of a column is one that has at
# most so many different ones, each held by so many train stars on average.
POINT_MASS_SHARE = 0.01
MOST_LATTICE_VALUES = 512
STARS_A_LATTICE_VALUE = 10


@dataclass(frozen=True, eq=False)
class Prior:
    """Where stars are, and what they are given that.

    limits: column -> smallest and largest value among train stars, derived columns too: no made-up star lies outside.
    masses: name of a free column -> its point masses, as `point_masses` has them: a made-up star nearer to one than to any
    other value of a train star has that very value.
    """

    places: Places
    varying: tuple[int, ...]
    densities: dict[str, Density]
    limits: dict[str, tuple[float, float]]
    masses: dict[str, NDArray[np.float64]]
    card: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.card["key"])

    @property
    def model_key(self) -> str:
        """Of the model whose latents it draws."""
        return str(self.card["model_key"])

    def values(
        self, model: StarModel, condition: NDArray[np.float32], masks: NDArray[np.int64], random: np.random.Generator
    ) -> NDArray[np.float64]:
        """Transformed values, shape (n, n_values), of new stars: one for each condition (n, n_conditions) and null mask."""
        given = np.hstack([condition, present_of_masks(model.transform, masks, self.varying)])
        if FREE in self.densities:
            return self.densities[FREE].draw(given, random)
        if LATENT in self.densities:
            z = self.densities[LATENT].draw(given, random)
        else:
            z = random.standard_normal((len(given), model.latents))
        with one_thread():  # last bits depend on how many there are
            values = model.decode(z.astype(np.float32), condition).astype(np.float64)
        if RESIDUAL in self.densities:
            values += self.densities[RESIDUAL].draw(np.hstack([z, given]), random)
        return values

    def shared(self, model: StarModel, values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Of transformed values, shape (n, n_values): column -> the point mass that each is, NaN where it is none, shape (n,)."""
        found = {}
        for name, (low, high, value) in self.masses.items():
            score = values[:, model.transform.slots[name].start]
            nearest = np.maximum(np.searchsorted(low, score, side="right") - 1, 0)
            found[name] = np.where((score >= low[nearest]) & (score < high[nearest]), value[nearest], np.nan)
        return found


def limits_of(train: TableStatistics) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each column that has values."""
    return {n: (c.minimum, c.maximum) for n, c in train.columns.items() if c.minimum is not None and c.maximum is not None}


def point_masses(train: TableStatistics, transform: Transform) -> dict[str, NDArray[np.float64]]:
    """The values of each free column that many train stars share, by the column's name: shape (3, k), rows low, high and
    value. value: as the column has it, ascending; low, high: transformed, half-way to its neighbours among the train stars'
    values (of more than some thousand different ones, those that the statistics keep).

    Counts, flags and templates have such values only; the noise that an exact solution leaves over (astrometric_excess_noise)
    has one, 0.
    """
    found = {}
    for name in (slot.column for slot in transform.slots.values() if slot.width == 1):  # else the values have no order
        sketch = train.columns[name].sketch
        few = len(sketch.values) <= min(MOST_LATTICE_VALUES, train.columns[name].count / STARS_A_LATTICE_VALUE)
        shared = np.full(len(sketch.values), few) | (sketch.weights >= POINT_MASS_SHARE * sketch.count)
        if shared.any():
            scores = transform.encodings[name].forward(sketch.values)[:, 0]
            edges = np.concatenate([[-np.inf], (scores[1:] + scores[:-1]) / 2, [np.inf]])
            found[name] = np.stack([edges[:-1], edges[1:], sketch.values])[:, shared]
    return found


def _artifact(run: RunPaths) -> Artifact:
    remedy = "make it again with `gaiadask prior --replace prior`, or restore both files of prior/ from one backup"
    return Artifact(run.prior_weights, run.prior_card, FORMAT_VERSION, remedy)


def save_prior(
    store: Store, run: RunPaths, fitted: Fitted, config: PriorConfig, limits: dict[str, tuple[float, float]],
    masses: dict[str, NDArray[np.float64]], *, key: str, model_key: str, stars: dict[str, int],
) -> Prior:  # fmt: skip
    """Write the prior's two files and return it. stars: how many were used, by part. Raises StoreError where the store cannot
    be written; then the card is absent."""
    parts = {_PLACES: fitted.places.to_arrays(), _MASSES: masses}
    parts |= {name: d.to_arrays() for name, d in fitted.densities.items()}
    arrays = {f"{part}.{name}": np.ascontiguousarray(array) for part, named in parts.items() for name, array in named.items()}
    content = safetensors.numpy.save(arrays)
    card: dict[str, Any] = {
        "key": key,
        "model_key": model_key,
        "prior": config.model_dump(mode="json"),
        "stars": stars,
        "pixels": len(fitted.places.pixel),
        "varying": list(fitted.varying),
        "densities": {
            name: {"features": d.features, "context": d.context, **fitted.found[name]} for name, d in fitted.densities.items()
        },
        "limits": {name: list(pair) for name, pair in limits.items()},
    }
    return Prior(fitted.places, fitted.varying, fitted.densities, limits, masses, _artifact(run).save(store, content, card))


def load_prior(store: Store, run: RunPaths) -> Prior:
    """Read a prior. Raises StoreError, naming the file and the remedy, where either file is missing, damaged, of another
    format version, or not of the other's making."""
    artifact = _artifact(run)
    content, loaded = artifact.load(store)
    card: dict[str, Any] = dict(loaded)
    try:
        parts: dict[str, dict[str, NDArray]] = {}
        for name, array in safetensors.numpy.load(content).items():
            part, rest = name.split(".", 1)
            parts.setdefault(part, {})[rest] = array
        config = PriorConfig.model_validate(card["prior"])
        places = Places.from_arrays(parts.pop(_PLACES))
        masses = parts.pop(_MASSES, {})
        densities = {name: Density.from_arrays(arrays, config) for name, arrays in parts.items()}
        limits = {name: (float(low), float(high)) for name, (low, high) in card["limits"].items()}
        return Prior(places, tuple(card["varying"]), densities, limits, masses, card)
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError, SafetensorError) as error:
        where = store.uri_of(artifact.card)
        raise StoreError(f"{where} and its weights do not describe one prior ({error}): {artifact.remedy}") from error


def prior_identity(store: Store, run: RunPaths) -> str:
    """What tells this prior from any other, also from one of the same key: a fit within max_seconds depends on the machine."""
    return _artifact(run).identity(store)


@lru_cache(maxsize=2)
def _read_once(store: Store, run: RunPaths, identity: str) -> Prior:
    return load_prior(store, run)


def load_prior_cached(store: Store, run: RunPaths, key: str) -> Prior:
    """The prior of this key, its arrays read once a process. Raises KeyMismatchError where the store holds another."""
    prior = _read_once(store, run, prior_identity(store, run))
    if prior.key != key:
        raise KeyMismatchError(
            f"{store.uri_of(run.prior_card)} is the prior of key {prior.key}, expected {key}: it was made anew meanwhile. "
            "Run the stages from `prior` on again"
        )
    return prior


def make_prior(
    store: Store, run: RunPaths, config: PriorConfig, key: str, model_key: str, statistics: TableStatistics,
    given: tuple[SkyCounts, PriorStars, PriorStars], report: Callable[[float], None],
) -> dict[str, Any]:  # fmt: skip
    """Fit a prior to the stars given and write it; on a worker. statistics: of train stars.

    It can be killed at any time: the same call goes on from the last validation of the density that it was at.
    """
    model = load_model_cached(store, run, model_key)
    counts, train, validation = given
    fitted = fit_prior(model, counts, train, validation, config, report, lambda name: Kept(store, run.prior_checkpoint(name), key))
    used = {"counted": int(counts.stars.sum()), "train": len(train.values), "validation": len(validation.values)}
    limits, masses = limits_of(statistics), point_masses(statistics, model.transform)
    save_prior(store, run, fitted, config, limits, masses, key=key, model_key=model_key, stars=used)
    for name in (LATENT, RESIDUAL, FREE):  # of another kind, too, that was begun before
        store.remove(run.prior_checkpoint(name))
    return {"kind": config.kind, "pixels": len(fitted.places.pixel), **used} | {
        name: {k: found[k] for k in ("validation_loss", "rows_seen", "seconds")} for name, found in fitted.found.items()
    }
