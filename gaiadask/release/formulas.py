"""Columns that follow from other columns: magnitudes and colours from fluxes, values over their errors, the position in
other systems, the goodness of fit, luminosity and radius as FLAME made them.

Pure functions of numpy arrays. Where an input is missing (NaN), has no logarithm (flux or parallax not above 0) or would
be divided by (an error not above 0) the result is NaN. Magnitudes, colours and ratios are the archive's to the last bit;
the rest agrees with it to the tolerances told in the column table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaiadask.release.dr2 import COLUMNS
from gaiadask.sky import ICRS_TO_GALACTIC, position, unit_vector

Floats = NDArray[np.floating[Any]]

# Gaia DR2 zero points of the Vega system, with the digits the release was made with (Evans et al. 2018, A&A 616, A4, give four).
G_ZERO_POINT = 25.6883657251
BP_ZERO_POINT = 25.3513881707
RP_ZERO_POINT = 24.7619199882

SUN_TEFF_K = 5772.0
SUN_BOLOMETRIC_MAG = 4.74
# BC_G as polynomials in (Teff - 5772 K), Andrae et al. 2018, A&A 616, A8, table 4: from 4000 K on, and below.
_BC_HOT = (6.000e-02, 6.731e-05, -6.647e-08, 2.859e-11, -7.197e-15)
_BC_COOL = (1.749e00, 1.977e-03, 3.737e-07, -8.966e-11, -4.183e-14)
_BC_BREAK_K = 4000.0

# ICRS to ecliptic as the Gaia archive has it: the ICRS origin seen from the equinox, then the obliquity, both of J2000.
_EQUINOX_OFFSET_DEG = 0.05542 / 3600
_OBLIQUITY = np.radians(84381.411 / 3600)
_TO_ECLIPTIC = np.array(
    [
        [1.0, 0.0, 0.0],
        [0.0, np.cos(_OBLIQUITY), np.sin(_OBLIQUITY)],
        [0.0, -np.sin(_OBLIQUITY), np.cos(_OBLIQUITY)],
    ]
)

# Parameters of the five-parameter solution; the archive subtracts as many where it solved for the position alone.
_FITTED_PARAMETERS = 5


def g_magnitude(flux: ArrayLike) -> NDArray[np.float32]:
    """G magnitude of a mean flux in electrons/s, rounded to float32 as the archive does; NaN where flux is not above 0."""
    return _magnitude(flux, G_ZERO_POINT)


def bp_magnitude(flux: ArrayLike) -> NDArray[np.float32]:
    """BP magnitude of a mean flux in electrons/s, rounded to float32; NaN where flux is not above 0."""
    return _magnitude(flux, BP_ZERO_POINT)


def rp_magnitude(flux: ArrayLike) -> NDArray[np.float32]:
    """RP magnitude of a mean flux in electrons/s, rounded to float32; NaN where flux is not above 0."""
    return _magnitude(flux, RP_ZERO_POINT)


def absolute_g_magnitude(g_mag: ArrayLike, parallax_mas: ArrayLike) -> NDArray[np.float64]:
    """M_G = G + 5 log10(parallax / 100 mas), no extinction taken off; NaN where the parallax is not above 0."""
    return np.asarray(g_mag, np.float64) + 5.0 * _log10(parallax_mas, 0.01)


def bolometric_correction(teff: ArrayLike) -> NDArray[np.float64]:
    """BC_G of effective temperatures in K (Andrae et al. 2018): M_bol = M_G + BC_G."""
    t = np.asarray(teff, np.float64)
    offset = t - SUN_TEFF_K
    hot, cool = (np.polynomial.polynomial.polyval(offset, np.array(c)) for c in (_BC_HOT, _BC_COOL))
    return np.where(t < _BC_BREAK_K, cool, hot)


def luminosity(g_flux: ArrayLike, parallax_mas: ArrayLike, teff: ArrayLike) -> NDArray[np.float64]:
    """Luminosity in solar units as FLAME computes it, with A_G = 0; not rounded."""
    bolometric = absolute_g_magnitude(g_magnitude(g_flux), parallax_mas) + bolometric_correction(teff)
    return 10.0 ** (-0.4 * (bolometric - SUN_BOLOMETRIC_MAG))


def radius(luminosity_sun: ArrayLike, teff: ArrayLike) -> NDArray[np.float64]:
    """Radius in solar units from L = R^2 (T / 5772 K)^4; not rounded."""
    return np.sqrt(np.asarray(luminosity_sun, np.float64)) * (SUN_TEFF_K / np.asarray(teff, np.float64)) ** 2


def galactic(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Galactic longitude in [0, 360) and latitude, degrees, of ICRS positions in degrees (ESA 1997)."""
    return position(unit_vector(ra, dec) @ ICRS_TO_GALACTIC.T)


def ecliptic(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ecliptic longitude in [0, 360) and latitude, degrees, of ICRS positions in degrees."""
    return position(unit_vector(np.asarray(ra, np.float64) + _EQUINOX_OFFSET_DEG, dec) @ _TO_ECLIPTIC.T)


def goodness_of_fit(chi2: ArrayLike, n_good: ArrayLike) -> NDArray[np.float64]:
    """The chi-square of n_good observations as a standard normal (Wilson and Hilferty 1931); NaN without a degree of freedom."""
    freedom = np.asarray(n_good, np.float64) - _FITTED_PARAMETERS
    freedom = np.where(freedom > 0, freedom, np.nan)
    spread = 2 / (9 * freedom)
    return (np.cbrt(np.asarray(chi2, np.float64) / freedom) + spread - 1) / np.sqrt(spread)


def derive(values: Mapping[str, ArrayLike], names: Sequence[str]) -> dict[str, Floats]:
    """The derived columns `names`, each of its archive type and of the shape of the inputs, NaN where undefined.

    An integer column comes as float64, which has a NaN and holds it exactly.

    values: at least the columns that each name derives from (`Column.derived_from`), in archive units, NaN where null.
    Raises KeyError for a name that is not a derived column or an input that is not among `values`.
    """
    with np.errstate(over="ignore"):  # a made-up parallax near 0 gives an infinite luminosity
        return {name: np.asarray(_FORMULAS[name](values)).astype(_float_type(name)) for name in names}


def _float_type(name: str) -> np.dtype[np.floating[Any]]:
    dtype = np.dtype(COLUMNS[name].dtype.to_pandas_dtype())
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def _log10(values: ArrayLike, factor: float = 1.0) -> NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    return np.log10(np.where(x > 0, x, np.nan) * factor)


def _magnitude(flux: ArrayLike, zero_point: float) -> NDArray[np.float32]:
    return (zero_point - 2.5 * _log10(flux)).astype(np.float32)


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    below = np.asarray(denominator, np.float64)
    return np.asarray(numerator, np.float64) / np.where(below > 0, below, np.nan)


def _over_error(name: str) -> Callable[[Mapping[str, ArrayLike]], Floats]:
    return lambda v: _ratio(v[name], v[f"{name}_error"])


def _both_over_g(v: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    both = np.asarray(v["phot_bp_mean_flux"], np.float64) + np.asarray(v["phot_rp_mean_flux"], np.float64)
    return _ratio(both, v["phot_g_mean_flux"])


def _bad_observations(v: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    return np.asarray(v["astrometric_n_obs_al"], np.float64) - np.asarray(v["astrometric_n_good_obs_al"], np.float64)


def _luminosity_of(v: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    return luminosity(v["phot_g_mean_flux"], v["parallax"], v["teff_val"])


def _radius_of(v: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    return radius(_luminosity_of(v), v["teff_val"])


_FLUXES = ("phot_g_mean_flux", "phot_bp_mean_flux", "phot_rp_mean_flux")

_FORMULAS: dict[str, Callable[[Mapping[str, ArrayLike]], Floats]] = {
    "phot_g_mean_mag": lambda v: g_magnitude(v["phot_g_mean_flux"]),
    "phot_bp_mean_mag": lambda v: bp_magnitude(v["phot_bp_mean_flux"]),
    "phot_rp_mean_mag": lambda v: rp_magnitude(v["phot_rp_mean_flux"]),
    # Subtracted in float32, as the archive does.
    "bp_rp": lambda v: bp_magnitude(v["phot_bp_mean_flux"]) - rp_magnitude(v["phot_rp_mean_flux"]),
    "bp_g": lambda v: bp_magnitude(v["phot_bp_mean_flux"]) - g_magnitude(v["phot_g_mean_flux"]),
    "g_rp": lambda v: g_magnitude(v["phot_g_mean_flux"]) - rp_magnitude(v["phot_rp_mean_flux"]),
    **{f"{name}_over_error": _over_error(name) for name in ("parallax", *_FLUXES)},
    "phot_bp_rp_excess_factor": _both_over_g,
    "l": lambda v: galactic(v["ra"], v["dec"])[0],
    "b": lambda v: galactic(v["ra"], v["dec"])[1],
    "ecl_lon": lambda v: ecliptic(v["ra"], v["dec"])[0],
    "ecl_lat": lambda v: ecliptic(v["ra"], v["dec"])[1],
    "astrometric_n_bad_obs_al": _bad_observations,
    "astrometric_gof_al": lambda v: goodness_of_fit(v["astrometric_chi2_al"], v["astrometric_n_good_obs_al"]),
    "lum_val": _luminosity_of,
    "radius_val": _radius_of,
}
