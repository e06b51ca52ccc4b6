"""Latent traversals: typical stars rebuilt while one latent changes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.decode import decode
from gaiadask.inputs.nulls import mask_names
from gaiadask.model.card import latent_names
from gaiadask.model.star_model import StarModel
from gaiadask.quality.physics import HR_COLUMNS, hr_position
from gaiadask.quality.rating import Rated
from gaiadask.quality.tables import Floats, largest_variance
from gaiadask.release.column import DEC, RA

TRAVERSED_LATENTS = 8
"""Latents traversed at most, those that vary most: two rows of four panels on the page."""
STAR_GROUPS = (4, 3)
"""Groups of stars by magnitude, and by colour within each: one typical star a group, few enough to tell their tracks apart."""
STEPS = 25
"""Points of a track: enough for a smooth line."""
AS_ENCODED = -1
"""In the column `latent`: the star with its own latents."""
FEWEST_STARS = 100
"""Stars with a colour and a magnitude from which typical ones are chosen, at least: eight a group."""


def latent_traversal(model: StarModel, rated: Rated) -> pa.Table | None:
    """Typical stars rebuilt while one latent after the other goes from its 2 % to its 98 % quantile, all else unchanged.

    Args:
        model: the model.
        rated: its rated stars; the one in the middle of each group of absolute magnitude and colour is taken.

    Returns:
        Columns star, latent, step (numbers; latent AS_ENCODED: the star with its own latents), then those of the HR diagram.
        None where the model lacks a column for it, or fewer than FEWEST_STARS stars have all.
    """
    transform, real = model.transform, rated.real
    if not set(HR_COLUMNS) <= set(transform.columns):
        return None
    places = hr_position(real, rated.release)
    known = np.flatnonzero(np.isfinite(places).all(axis=0))
    if len(known) < FEWEST_STARS:
        return None
    starts = _typical(known, places)
    chosen = largest_variance(rated.latents, TRAVERSED_LATENTS)
    star, latent, step = (a.ravel() for a in np.meshgrid(range(len(starts)), chosen, range(STEPS), indexing="ij"))
    low, high = np.quantile(rated.latents, [0.02, 0.98], axis=0)
    z = rated.latents[starts[star]].astype(np.float32)
    z[np.arange(len(z)), latent] = low[latent] + (high - low)[latent] * step / (STEPS - 1)
    # First the stars with their own latents.
    z = np.concatenate([rated.latents[starts].astype(np.float32), z])
    star = np.concatenate([np.arange(len(starts)), star])
    latent, step = (np.concatenate([np.full(len(starts), AS_ENCODED), a]) for a in (latent, step))
    rebuilt = _decoded(model, real.take(pa.array(starts[star])), z)
    return pa.table({"star": star, "latent": latent, "step": step} | {name: rebuilt[name] for name in HR_COLUMNS})


def _decoded(model: StarModel, stars: pa.Table, z: NDArray[np.float32]) -> pa.Table:
    """Stars rebuilt from latents z, shape (n, latents), with the positions and nulls of `stars`, shape (n,)."""
    transform = model.transform
    columns = {RA: stars[RA], DEC: stars[DEC]}
    columns |= dict(zip(mask_names(len(transform.columns)), transform.null_bits(stars).T.copy(), strict=True))
    columns |= dict(zip(latent_names(model.latents), z.T.copy(), strict=True))
    return decode(pa.table(columns), model, "catalogue" if transform.position == "condition" else "model")


def _typical(known: NDArray[np.int64], places: Floats) -> NDArray[np.int64]:
    """The star in the middle of each group: equal numbers by magnitude, each cut into equal numbers by colour.

    places: colour and magnitude, shape (2, stars).
    """
    colour, magnitude = places
    rows = []
    for by_magnitude in np.array_split(known[np.argsort(magnitude[known])], STAR_GROUPS[0]):
        for group in np.array_split(by_magnitude[np.argsort(colour[by_magnitude])], STAR_GROUPS[1]):
            points = np.stack([magnitude[group], colour[group]])
            offset = (points - np.median(points, axis=1, keepdims=True)) / np.maximum(points.std(axis=1, keepdims=True), 1e-9)
            rows.append(int(group[np.argmin((offset**2).sum(axis=0))]))
    return np.array(rows)
