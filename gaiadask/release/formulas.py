"""Formulas that data releases share: magnitudes, luminosity and radius, ratios, the goodness of fit.

Pure functions of numpy arrays. Where an input is missing (NaN), has no logarithm (flux or parallax not above 0) or would be
divided by (an error not above 0) the result is NaN. Only single operations and gaiadask.elementary: the results have the same bits on
every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaiadask.elementary import cbrt, exp10, log10

SUN_TEFF_K = 5772.0
SUN_BOLOMETRIC_MAG = 4.74
# Parameters of the five-parameter solution; the archive subtracts as many where it solved for the position alone.
_FITTED_PARAMETERS = 5


def magnitude(flux: ArrayLike, zero_point: float) -> NDArray[np.float32]:
    """Magnitude of a mean flux in electrons/s, rounded to float32 as the archive does; NaN where flux is not above 0."""
    return np.asarray(zero_point - 2.5 * log10(flux)).astype(np.float32)


def absolute_magnitude(apparent_mag: ArrayLike, parallax_mas: ArrayLike) -> NDArray[np.float64]:
    """M = m + 5 log10(parallax / 100 mas), not corrected for extinction; NaN where the parallax is not above 0."""
    return np.asarray(apparent_mag, np.float64) + 5.0 * log10(np.asarray(parallax_mas, np.float64) * 0.01)


def luminosity_of(bolometric_mag: ArrayLike) -> NDArray[np.float64]:
    """Luminosity in solar units of an absolute bolometric magnitude; not rounded."""
    return exp10(-0.4 * (np.asarray(bolometric_mag, np.float64) - SUN_BOLOMETRIC_MAG))


def radius(luminosity_sun: ArrayLike, teff: ArrayLike) -> NDArray[np.float64]:
    """Radius in solar units from L = R^2 (T / 5772 K)^4; not rounded."""
    coolness = SUN_TEFF_K / np.asarray(teff, np.float64)
    return np.sqrt(np.asarray(luminosity_sun, np.float64)) * (coolness * coolness)


def goodness_of_fit(chi2: ArrayLike, n_good: ArrayLike) -> NDArray[np.float64]:
    """The chi-square of n_good observations as a standard normal variable (Wilson and Hilferty 1931); NaN without a degree of
    freedom."""
    freedom = np.asarray(n_good, np.float64) - _FITTED_PARAMETERS
    freedom = np.where(freedom > 0, freedom, np.nan)
    spread = 2 / (9 * freedom)
    return (cbrt(np.asarray(chi2, np.float64) / freedom) + spread - 1) / np.sqrt(spread)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Numerator over denominator; NaN where the denominator is not above 0."""
    below = np.asarray(denominator, np.float64)
    return np.asarray(numerator, np.float64) / np.where(below > 0, below, np.nan)
