"""Features that an astronomer would compute from a row: those show whether the physics between columns is broken."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.polynomial import Polynomial

from gaiadask.quality.tables import Floats, values
from gaiadask.release import formulas
from gaiadask.release.release import Release
from gaiadask.sky import AU_PER_YEAR_KM_S, ICRS_TO_GALACTIC, unit_vector

LOCUS_DEGREE = 5
"""Degree of the stellar locus: enough for its bend at the coolest stars, few enough not to follow single stars."""
LOCUS_STARS = 20 * LOCUS_DEGREE
"""Fewest stars that the locus is fitted to: 20 for each coefficient."""

HR_COLUMNS = ("bp_rp", "phot_g_mean_flux", "parallax")
"""Columns that a place in the Hertzsprung-Russell diagram is computed from."""
VELOCITY_COLUMNS = ("parallax", "pmra", "pmdec")
"""Columns that a tangential velocity is computed from."""
_MAGNITUDE = ("phot_g_mean_flux", "parallax")
_POSITION = ("ra", "dec")
_COLOURS = ("bp_g", "g_rp")


def absolute_magnitude(table: pa.Table, release: Release) -> Floats:
    """M_G in mag, no extinction taken off, shape (rows,); NaN where flux or parallax are null or not above 0."""
    return formulas.absolute_magnitude(release.g_magnitude(values(table, "phot_g_mean_flux")), values(table, "parallax"))


def hr_position(table: pa.Table, release: Release) -> Floats:
    """Colour BP - RP and M_G in mag, shape (2, rows), NaN where undefined: places in the Hertzsprung-Russell diagram."""
    return np.stack([values(table, "bp_rp"), absolute_magnitude(table, release)])


def tangential_velocities(table: pa.Table) -> tuple[Floats, Floats]:
    """Velocities in km/s along right ascension and declination, each of shape (rows,); NaN where the parallax is not above 0."""
    parallax = values(table, "parallax")
    per_mas_yr = AU_PER_YEAR_KM_S / np.where(parallax > 0, parallax, np.nan)
    return per_mas_yr * values(table, "pmra"), per_mas_yr * values(table, "pmdec")


def galactic_unit_vector(table: pa.Table) -> Floats:
    """Unit vectors in galactic axes, shape (rows, 3)."""
    return unit_vector(values(table, "ra"), values(table, "dec")) @ ICRS_TO_GALACTIC.T


def galactic_velocity(table: pa.Table) -> Floats:
    """Velocity relative to the Sun in km/s, shape (rows, 3): U (to the galactic centre), V (along the rotation), W (to the pole)."""
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
    if known.sum() < LOCUS_STARS:
        return None
    low, high = np.quantile(x[known], [0.01, 0.99])
    if high <= low:
        return None
    inside = known & (x >= low) & (x <= high)
    return Polynomial.fit(x[inside], y[inside], LOCUS_DEGREE)


def physics_features(table: pa.Table, locus: Polynomial | None, release: Release) -> dict[str, Floats]:
    """Features computed from one table's own columns, those whose columns are there, by name.

    Args:
        table: stars.
        locus: of `colour_locus`, one and the same for all tables to be compared; None: no `locus_residual`.
        release: the data release that the columns are of.

    Returns:
        Arrays of shape (rows,), NaN where undefined: abs_g_mag (M_G), bolometric (M_G + 2.5 log10 L, which is BC_G and a
        constant, hence a function of Teff), u, v, w and v_tangential in km/s, x, y, z (galactic unit vector),
        locus_residual (mag), parallax_snr.
    """
    has = frozenset(table.column_names).issuperset
    features: dict[str, Floats] = {}
    if has(_MAGNITUDE):
        features["abs_g_mag"] = absolute_magnitude(table, release)
        if has(("lum_val",)):
            luminosity = values(table, "lum_val")
            features["bolometric"] = features["abs_g_mag"] + 2.5 * np.log10(np.where(luminosity > 0, luminosity, np.nan))
    if has(VELOCITY_COLUMNS):
        features["v_tangential"] = np.hypot(*tangential_velocities(table))
    if has((*VELOCITY_COLUMNS, *_POSITION, "radial_velocity")):
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


def comparable_features(real: pa.Table, fake: pa.Table, release: Release) -> tuple[Mapping[str, Floats], Mapping[str, Floats]]:
    """`physics_features` of both tables, the same names for both; the colour locus is the real stars'."""
    locus = colour_locus(real) if set(_COLOURS) <= set(real.column_names) else None
    of_real, of_fake = (physics_features(table, locus, release) for table in (real, fake))
    common = [name for name in of_real if name in of_fake]
    return {name: of_real[name] for name in common}, {name: of_fake[name] for name in common}


def _components(names: str, vectors: Floats) -> dict[str, Floats]:
    return {name: vectors[:, i] for i, name in enumerate(names)}
