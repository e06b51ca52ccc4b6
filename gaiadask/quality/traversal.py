"""Latent traversals: typical stars rebuilt while one latent changes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.decode import decode
from gaiadask.encode import latent_names
from gaiadask.model.star_model import StarModel
from gaiadask.quality import Rated
from gaiadask.quality.physics import absolute_magnitude
from gaiadask.quality.tables import values
from gaiadask.release.column import DEC, RA

# Walks: along at most so many latents, from so many groups of stars by magnitude and by colour, in so many steps.
WALKED_LATENTS = 8


WALK_FROM = (4, 3)


WALK_STEPS = 25


AS_IT_IS = -1


_HR = ("bp_rp", "phot_g_mean_flux", "parallax")


def walks(model: StarModel, rated: Rated) -> pa.Table | None:
    """Typical stars rebuilt while one latent after the other goes from its 2 % to its 98 % quantile, all else kept.

    Columns: star, latent, step (numbers; latent AS_IT_IS: the star with its own latents), then what the HR diagram needs. The
    stars are those in the middle of groups of absolute magnitude and colour. None where the model lacks a column for it, or fewer than a hundred stars have all.
    """
    transform, real = model.transform, rated.real
    if not set(_HR) <= set(transform.columns):
        return None
    colour, magnitude = values(real, "bp_rp"), absolute_magnitude(real)
    known = np.flatnonzero(np.isfinite(colour) & np.isfinite(magnitude))
    if len(known) < 100:
        return None
    starts = np.array(_typical(known, magnitude, colour))
    chosen = np.sort(np.argsort(rated.latents.var(axis=0))[::-1][:WALKED_LATENTS])
    star, latent, step = (a.ravel() for a in np.meshgrid(range(len(starts)), chosen, range(WALK_STEPS), indexing="ij"))
    low, high = np.quantile(rated.latents, [0.02, 0.98], axis=0)
    z = rated.latents[starts[star]].astype(np.float32)
    z[np.arange(len(z)), latent] = low[latent] + (high - low)[latent] * step / (WALK_STEPS - 1)
    # First the stars as they are.
    z = np.concatenate([rated.latents[starts].astype(np.float32), z])
    star = np.concatenate([np.arange(len(starts)), star])
    latent, step = (np.concatenate([np.full(len(starts), AS_IT_IS), a]) for a in (latent, step))
    there = real.take(pa.array(starts[star]))
    masks = transform.null_bits(there)
    told = {RA: there[RA], DEC: there[DEC]} | dict(zip(transform.mask_names, masks.T.copy(), strict=True))
    told |= dict(zip(latent_names(model.latents), z.T.copy(), strict=True))
    rebuilt = decode(pa.table(told), model, "catalogue" if transform.position == "condition" else "model")
    return pa.table({"star": star, "latent": latent, "step": step} | {name: rebuilt[name] for name in _HR})


def _typical(known: NDArray[np.int64], magnitude: NDArray[np.float64], colour: NDArray[np.float64]) -> list[int]:
    """The star in the middle of each group: equal numbers by magnitude, each cut into equal numbers by colour."""
    rows = []
    for by_magnitude in np.array_split(known[np.argsort(magnitude[known])], WALK_FROM[0]):
        for group in np.array_split(by_magnitude[np.argsort(colour[by_magnitude])], WALK_FROM[1]):
            points = np.stack([magnitude[group], colour[group]])
            away = (points - np.median(points, axis=1, keepdims=True)) / np.maximum(points.std(axis=1, keepdims=True), 1e-9)
            rows.append(int(group[np.argmin((away**2).sum(axis=0))]))
    return rows
