"""What an astronomer would compute from a row: features in which broken physics shows, each where its columns are there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from gaiadask.quality.tables import values
from gaiadask.release import formulas
from gaiadask.release.dr2 import g_magnitude
from gaiadask.sky import AU_PER_YEAR_KM_S, ICRS_TO_GALACTIC, unit_vector

Floats = NDArray[np.float64]

LOCUS_DEGREE = 5


def absolute_magnitude(table: pa.Table) -> Floats:
    """M_G in mag, no extinction taken off, shape (rows,); NaN where flux or parallax are null or not above 0."""
    return formulas.absolute_magnitude(g_magnitude(values(table, "phot_g_mean_flux")), values(table, "parallax"))


def tangential_velocities(table: pa.Table) -> tuple[Floats, Floats]:
    """Velocities in km/s along right ascension and declination, each of shape (rows,); NaN where the parallax is not above 0."""
    parallax = values(table, "parallax")
    per_mas_yr = AU_PER_YEAR_KM_S / np.where(parallax > 0, parallax, np.nan)
    return per_mas_yr * values(table, "pmra"), per_mas_yr * values(table, "pmdec")


def galactic_unit_vector(table: pa.Table) -> Floats:
    """Unit vectors in galactic axes, shape (rows, 3)."""
    return unit_vector(values(table, "ra"), values(table, "dec")) @ ICRS_TO_GALACTIC.T


def galactic_velocity(table: pa.Table) -> Floats:
    """U (to the galactic centre), V (along the rotation), W (to the pole) beside the Sun in km/s, shape (rows, 3)."""
    ra, dec = np.radians(values(table, "ra")), np.radians(values(table, "dec"))
    zero = np.zeros_like(ra)
    along_ra = np.stack([-np.sin(ra), np.cos(ra), zero], axis=-1)
    along_dec = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
    radial = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)
    v_ra, v_dec = tangential_velocities(table)
    velocity = v_ra[:, None] * along_ra + v_dec[:, None] * along_dec + values(table, "radial_velocity")[:, None] * radial
    return velocity @ ICRS_TO_GALACTIC.T


def colour_locus(real: pa.Table) -> Polynomial | None:
    """BP - G as a polynomial of G - RP along the stellar locus, fitted to real stars; None without enough of them.

    The reddest and bluest hundredth are left out, where single stars would bend it.
    """
    x, y = values(real, "g_rp"), values(real, "bp_g")
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 20 * LOCUS_DEGREE:
        return None
    low, high = np.quantile(x[known], [0.01, 0.99])
    if high <= low:
        return None
    inside = known & (x >= low) & (x <= high)
    return Polynomial.fit(x[inside], y[inside], LOCUS_DEGREE)


_MAGNITUDE = ("phot_g_mean_flux", "parallax")
_MOTION = ("parallax", "pmra", "pmdec")
_POSITION = ("ra", "dec")
_COLOURS = ("bp_g", "g_rp")


def physics_features(table: pa.Table, locus: Polynomial | None) -> dict[str, Floats]:
    """Features computed from one table's own columns, name -> shape (rows,), NaN where undefined.

    locus: of `colour_locus`, one and the same for the tables to be compared. Only features whose columns are there:
    abs_g_mag (M_G), bolometric (M_G + 2.5 log10 L, which is BC_G and a constant, hence a function of Teff), u, v, w and
    v_tangential in km/s, x, y, z (galactic unit vector), locus_residual (mag), parallax_snr.
    """
    has = frozenset(table.column_names).issuperset
    features: dict[str, Floats] = {}
    if has(_MAGNITUDE):
        features["abs_g_mag"] = absolute_magnitude(table)
        if has(("lum_val",)):
            luminosity = values(table, "lum_val")
            features["bolometric"] = features["abs_g_mag"] + 2.5 * np.log10(np.where(luminosity > 0, luminosity, np.nan))
    if has(_MOTION):
        features["v_tangential"] = np.hypot(*tangential_velocities(table))
    if has((*_MOTION, *_POSITION, "radial_velocity")):
        features |= _components("uvw", galactic_velocity(table))
    if has(_POSITION):
        features |= _components("xyz", galactic_unit_vector(table))
    if has(_COLOURS) and locus is not None:
        # Beyond the fit's range a polynomial runs away: there the locus goes on level.
        features["locus_residual"] = values(table, "bp_g") - locus(np.clip(values(table, "g_rp"), *locus.domain))
    if has(("parallax", "parallax_error")):
        error = values(table, "parallax_error")
        features["parallax_snr"] = values(table, "parallax") / np.where(error > 0, error, np.nan)
    return features


def comparable_features(real: pa.Table, fake: pa.Table) -> tuple[Mapping[str, Floats], Mapping[str, Floats]]:
    """`physics_features` of both tables, the same names for both; the colour locus is the real stars'."""
    locus = colour_locus(real) if set(_COLOURS) <= set(real.column_names) else None
    ours, theirs = physics_features(real, locus), physics_features(fake, locus)
    common = [name for name in ours if name in theirs]
    return {n: ours[n] for n in common}, {n: theirs[n] for n in common}


def _components(names: str, vectors: Floats) -> dict[str, Floats]:
    return {name: vectors[:, i] for i, name in enumerate(names)}
