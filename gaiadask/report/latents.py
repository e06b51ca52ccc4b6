"""The section on the latents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gaiadask.model.card import latent_names
from gaiadask.quality.tables import Floats, finite_values, largest_variance
from gaiadask.release.column import DEC, RA
from gaiadask.report import diagrams, ink
from gaiadask.report.ink import Picture
from gaiadask.report.inputs import SCATTER_STARS, ReportInputs
from gaiadask.report.markup import fill
from gaiadask.sky import galactic

CORNER_LATENTS = 6
"""Latents of a corner plot, at most: more would leave each panel too small to read."""
FEWEST_STARS = 20
"""Stars without which no corner is drawn."""


class Tint(NamedTuple):
    """A colour scale for latents: values, shape (stars,), NaN where unknown (None: density alone), its label, and whether
    small values are the hot, blue ones."""

    values: Floats | None
    label: str
    reverse: bool


class Corner(NamedTuple):
    """A corner plot in one colour scale, and whether some stars have no value on it."""

    corner: Picture
    label: str
    has_unknown: bool


def latents(inputs: ReportInputs) -> str:
    """Corner plots of the latents that vary most, coloured by temperature, by magnitude and by position."""
    z = np.asarray(inputs.rated.latents, np.float64)[inputs.scatter_rows]
    if not np.isfinite(z).all() or len(z) < FEWEST_STARS:
        return fill("latents", corners=[])
    chosen = largest_variance(z, CORNER_LATENTS)
    names = [latent_names(inputs.latents)[i] for i in chosen]
    return fill(
        "latents",
        corners=[_corner(inputs, tint, z[:, chosen], names) for tint in _tints(inputs)],
        shown=len(chosen),
        latents=inputs.latents,
        even=bool(inputs.card.codes),
        is_sample=inputs.stars > SCATTER_STARS,
        sample=SCATTER_STARS,
    )


def _corner(inputs: ReportInputs, tint: Tint, z: Floats, names: list[str]) -> Corner:
    colour = None if tint.values is None else tint.values[inputs.scatter_rows]
    figure = diagrams.latent_corner(z, names, colour, tint.label, tint.reverse, even=bool(inputs.card.codes))
    picture = ink.webp(figure, f"Corner plot of {', '.join(names)}, coloured by {tint.label}", 130)
    return Corner(picture, tint.label, colour is not None and bool(np.isnan(colour).any()))


def _tints(inputs: ReportInputs) -> list[Tint]:
    """Temperature, magnitude and galactic latitude, where enough stars have them."""
    real, tints = inputs.rated.real, []
    if "teff_val" in real.column_names:
        tints.append(Tint(finite_values(real, "teff_val"), "effective temperature  [K]", False))
    if inputs.g_mag is not None:
        tints.append(Tint(inputs.g_mag, "G  [mag]", True))
    if {RA, DEC} <= set(real.column_names):
        tints.append(Tint(galactic(finite_values(real, RA), finite_values(real, DEC))[1], "galactic latitude  [°]", False))
    known = [tint for tint in tints if tint.values is not None and np.isfinite(tint.values).sum() >= FEWEST_STARS]
    return known or [Tint(None, "number", False)]
