"""Measurements of mock stars: errors, noisy values, the columns of the pipelines Priam and FLAME, and which values are missing.

The knots and scatters below were read off real rows of the release (medians by magnitude, residual scatters and their
correlations); the limits within which the pipeline gives a column at all stand where they are used. Errors have the units of their columns; magnitudes in mag, distances in kpc.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gaiadask.archive.mock.star import Motion, Nature
from gaiadask.release.dr2 import BP_ZERO_POINT, DR2, G_ZERO_POINT, RP_ZERO_POINT
from gaiadask.sky import mean_ecliptic

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Row = dict[str, NDArray]

_PARALLAX_ZERO_MAS = -0.029

# Medians of the errors by magnitude of their own band: parallax (mas), relative flux errors.
_ERROR_MAG = np.array([3.5, 4.5, 5.5, 6.5, 8, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21])
_PARALLAX_ERROR = np.array([0.3, 0.2, 0.095, 0.047, 0.044, 0.041, 0.038, 0.030, 0.034, 0.048, 0.073, 0.115, 0.19, 0.34, 0.66, 1.3])
_G_ERROR = np.array(
    [4e-3, 3e-3, 1.1e-3, 3.2e-4, 3.0e-4, 3.6e-4, 3.9e-4, 3.4e-4, 5e-4, 7e-4, 9e-4, 1.2e-3, 1.7e-3, 2.9e-3, 6e-3, 1e-2]
)
_BP_ERROR = np.array(
    [1.7e-3, 1.6e-3, 1.6e-3, 1.4e-3, 1.2e-3, 1.2e-3, 1.3e-3, 1.7e-3, 2.6e-3, 3.8e-3, 6e-3, 1.1e-2, 2.1e-2, 4.5e-2, 8e-2, 0.15]
)
_RP_ERROR = np.array([3.6e-3, 2.6e-3, 1.9e-3, 1.5e-3, 1.15e-3, 1.05e-3, 1.2e-3, 1.7e-3, 2.1e-3, 2.7e-3, 3.6e-3, 6.5e-3, 1.3e-2, 3e-2, 7e-2, 0.1])  # fmt: skip
# How much errors of one magnitude scatter, relative to the scatters below: of fluxes (most about G = 13, where the windows of the
# detector change; noise of photons alone for the faint) and of the astrometry.
_SPREAD_MAG = np.array([6, 9, 11, 12.5, 14, 16, 18, 20])
_FLUX_SPREAD = np.array([0.5, 0.65, 0.95, 1.22, 1.0, 0.65, 0.42, 0.42])
_ASTROMETRY_SPREAD = np.array([1, 1, 1.05, 1.1, 1.4, 0.9, 0.55, 0.5])
_VELOCITY_ERROR_MAG = np.array([4, 7, 8, 9, 10, 11, 12, 13, 14])
_VELOCITY_ERROR = np.array([0.15, 0.16, 0.2, 0.32, 0.48, 0.7, 1.2, 2.3, 3.6])

# BP - G on BP - RP for real stars, dwarfs and giants, reddened or not: one locus (fit on 4412 of them, lowest power first).
_LOCUS = (0.017536021842945802, 0.30519948683045733, 0.129353346835589, -0.024535233188122323, 0.004518634363439532,
          -0.0003359753516472186)  # fmt: skip
# Priam's Teff follows the observed colour (Priam takes no account of reddening).
_TEFF = np.array(
    [(-0.5, 9950), (-0.2, 9700), (0, 9100), (0.2, 8150), (0.4, 7330), (0.6, 6560), (0.8, 5800), (1.0, 5280), (1.2, 4915), (1.4, 4610),
     (1.6, 4320), (1.8, 4065), (2.0, 3900), (2.3, 3770), (2.7, 3600), (3.2, 3420), (4, 3300), (6, 3270)]
)  # fmt: skip


def measure(
    nature: Nature,
    motion: Motion,
    g_mag: Floats,
    distance_kpc: Floats,
    a_g: Floats,
    ra: Floats,
    dec: Floats,
    rng: np.random.Generator,
) -> Row:
    """The archive's columns of stars (all but the identifiers), shape (n,) each, NaN where the archive has none.

    g_mag, a_g: true apparent magnitude behind the dust, and its extinction.
    """
    n = len(g_mag)
    scan = _scan_law(ra, dec)
    colour = nature.bp_rp + a_g * _reddening(nature.bp_rp)
    row: Row = {"ra": ra, "dec": dec}
    # Binaries and variable stars fit no model well: all their errors are larger.
    restless = rng.exponential(1.0, n) - 1.0
    row |= _photometry(g_mag, colour, nature, a_g, scan, restless, rng)
    row |= _astrometry(motion, distance_kpc, g_mag, scan, restless, rng)
    row |= DR2.derive(row, ("bp_rp", "bp_g", "g_rp"))
    row["teff_val"] = _teff(row["bp_rp"].astype(np.float64), nature, rng)
    row["a_g_val"] = _extinction_estimate(row, g_mag, distance_kpc, a_g, rng)
    row |= _radial_velocity(motion, row, g_mag, restless, rng)
    row |= DR2.derive(row, ("radius_val", "lum_val"))
    for missing, names in _blocks(row, g_mag, rng.random((7, n))):
        for name in names:
            row[name] = np.where(missing, np.nan, row[name]).astype(row[name].dtype)
    return row


# Errors -----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ScanLaw:
    """How often and from which side the survey saw each star: logarithms by which errors differ over the sky, (n,) each."""

    common: Floats
    along_ra: Floats
    along_dec: Floats
    photometric: Floats


def _scan_law(ra: Floats, dec: Floats) -> ScanLaw:
    """Few transits near the ecliptic, most at 45 degrees from it, and great-circle stripes as of a short mission."""
    lam, latitude = mean_ecliptic(ra, dec)
    beta = np.degrees(latitude)
    ridge = np.exp(-(((np.abs(beta) - 47) / 13) ** 2))
    stripes = np.sin(9 * lam + 0.11 * beta) * np.sin(5 * lam - 0.17 * beta + 1) + 0.6 * np.sin(31 * lam + 0.4 * beta)
    common = 0.13 - 0.42 * ridge + 0.13 * stripes * (np.abs(beta) < 60)
    side = np.sin(2 * lam + np.radians(beta)) * np.cos(np.radians(beta)) + 0.5 * np.sin(7 * lam - 0.08 * beta)
    return ScanLaw(common, 0.15 * side, -0.13 * side + 0.05 * np.cos(3 * lam), 0.6 * common + 0.12 * stripes)


def _log_median(magnitude: Floats, errors: Floats) -> Floats:
    return np.interp(magnitude, _ERROR_MAG, np.log(errors))


def _disturbed(share: float, scale: float, n: int, rng: np.random.Generator) -> Floats:
    """A logarithm to add to the errors of the few stars that fit their model badly (binaries, crowding), 0 for the others."""
    return np.where(rng.random(n) < share, rng.exponential(scale, n), 0.0)


def _astrometry(
    motion: Motion, distance_kpc: Floats, g_mag: Floats, scan: ScanLaw, restless: Floats, rng: np.random.Generator
) -> Row:
    """Positions' errors, parallax and proper motion with theirs; strongly correlated errors, as of one solution."""
    n = len(g_mag)
    noise = rng.standard_normal((11, n))
    spread = np.interp(g_mag, _SPREAD_MAG, _ASTROMETRY_SPREAD)
    disturbed = 0.25 * noise[0] + 0.06 * restless + _disturbed(0.07, 0.65, n, rng)
    common = _log_median(g_mag, _PARALLAX_ERROR) + scan.common + spread * disturbed
    side_ra, side_dec = scan.along_ra + 0.10 * noise[1], scan.along_dec + 0.20 * noise[2]
    # The parallax comes mostly from positions in right ascension; the time baseline sets the errors of both proper motions alike.
    years = 0.07 * noise[8] + _disturbed(0.12, 0.12, n, rng)
    logs = {
        "parallax": common + 0.4 * side_ra + 0.09 * noise[3] + _disturbed(0.08, 0.25, n, rng),
        "ra": common + np.log(0.82) + side_ra + 0.05 * noise[4],
        "dec": common + np.log(0.67) + side_dec + 0.05 * noise[5],
        "pmra": common + np.log(1.68) + side_ra + years + 0.06 * noise[6],
        "pmdec": common + np.log(1.42) + 0.8 * side_dec + years + 0.12 * noise[7],
    }
    row: Row = {f"{name}_error": np.exp(log) for name, log in logs.items()}
    row["parallax"] = 1 / distance_kpc + _PARALLAX_ZERO_MAS + row["parallax_error"] * rng.standard_normal(n)
    row["pmra"] = motion.pmra + row["pmra_error"] * noise[9]
    row["pmdec"] = motion.pmdec + row["pmdec_error"] * noise[10]
    return row


def _photometry(
    g_mag: Floats, colour: Floats, nature: Nature, a_g: Floats, scan: ScanLaw, restless: Floats, rng: np.random.Generator
) -> Row:
    """Mean fluxes and errors. BP and RP are integrated over a window: they gather their neighbours' light and the sky's."""
    n = len(g_mag)
    noise = rng.standard_normal((9, n))
    # A giant's and a reddened star's spectra leave the common locus a little.
    locus = np.polynomial.polynomial.polyval(np.clip(colour, -0.6, 5.5), np.array(_LOCUS))
    bp_g = locus + 0.003 * noise[0] + 0.003 * (nature.kind >= 2) - 0.004 * a_g * (1 - 0.3 * a_g)
    magnitudes = {"g": g_mag, "bp": g_mag + bp_g, "rp": g_mag + bp_g - colour}
    # Variable stars have large errors in all bands.
    spread = np.interp(g_mag, _SPREAD_MAG, _FLUX_SPREAD)
    common = scan.photometric + spread * (0.42 * noise[1] + 0.27 * restless + _disturbed(0.05, 0.5, n, rng))
    own = np.interp(g_mag, [12, 17], [0.2, 0.32])
    bands = (
        ("g", G_ZERO_POINT, _G_ERROR, 0.38 * spread),
        ("bp", BP_ZERO_POINT, _BP_ERROR, own),
        ("rp", RP_ZERO_POINT, _RP_ERROR, own),
    )
    row: Row = {}
    # The brightest are saturated in G, each in its own way.
    calibration = 0.0015 - 0.0015 * rng.exponential(1.0, n) - 0.03 * rng.exponential(1.0, n) * np.clip(6.2 - g_mag, 0, 1)
    crowded = rng.random(n) < np.interp(g_mag, [10, 14], [0.022, 0.045])
    neighbours = np.where(crowded, np.exp(-4.2 + 1.1 * noise[2]), 0.0) + np.exp(-7.5 + 1.2 * noise[3])
    background = np.exp(3.3 + 0.9 * noise[4])
    for i, (band, zero_point, errors, own) in enumerate(bands):
        flux = 10 ** (0.4 * (zero_point - magnitudes[band]))
        log = _log_median(magnitudes[band], errors) + common + own * noise[5 + i]
        if band != "g":
            flux = flux * (1 + calibration + 0.002 * rng.standard_normal(n) + neighbours) + background
            log += 0.25 * np.log1p(20 * neighbours)
        relative = np.minimum(np.exp(log), 0.5)
        error = flux * relative
        # A flux is reported only where it is well above zero.
        row[f"phot_{band}_mean_flux"] = np.maximum(flux + error * np.clip(rng.standard_normal(n), -4, 4), 0.1 * flux)
        row[f"phot_{band}_mean_flux_error"] = error
    return row


# Priam and the spectrometer ---------------------------------------------------------------------------------------------
def _reddening(bp_rp: Floats) -> Floats:
    """E(BP - RP) / A_G: the redder the star, the less of G is lost for the same colour excess."""
    return np.clip(0.48 + 0.035 * bp_rp, 0.45, 0.6)


def _teff(bp_rp: Floats, nature: Nature, rng: np.random.Generator) -> Floats:
    """Priam's temperature: of the observed colour, from a regression forest, which repeats its training stars' values."""
    n = len(bp_rp)
    scatter = 0.012 * rng.standard_normal(n) + 0.013 * (rng.exponential(1.0, n) - 1.0) + 0.012 * (nature.kind >= 2)
    smooth = np.exp(np.interp(bp_rp, _TEFF[:, 0], np.log(_TEFF[:, 1])) + scatter)
    return _nearest(smooth, _FOREST_TEFF).astype(np.float32)


def _forest_teff() -> Floats:
    """Some 60 000 temperatures as means of a few training stars' whole Kelvins leave them: whole, halves, thirds, …"""
    rng = np.random.default_rng(5772)
    kelvin = rng.integers(3270, 10000, 60_000) + rng.choice(
        [0, 0, 0, 0, 0, 1 / 2, 1 / 3, 2 / 3, 1 / 4, 3 / 4, 0.2, 0.4, 0.1, 0.85, 0.07], 60_000
    )
    return np.unique(np.round(kelvin, 4))


_FOREST_TEFF = _forest_teff()
# Where dwarfs without dust lie: M_G by BP - RP.
_SEQUENCE = np.array(
    [(-0.3, 0.2), (0.3, 2.1), (0.6, 3.65), (0.7, 4.05), (0.9, 5.05), (1.1, 6.0), (1.3, 6.75), (1.6, 7.65), (2, 8.85), (3, 11.6)]
)


def _nearest(values: Floats, grid: Floats) -> Floats:
    return grid[np.searchsorted((grid[1:] + grid[:-1]) / 2, values)]


def _extinction_estimate(row: Row, g_mag: Floats, distance_kpc: Floats, a_g: Floats, rng: np.random.Generator) -> Floats:
    """Priam's A_G: a noisy estimate. Priam cannot tell a reddened star from one above the main sequence: at a given colour
    bright stars get a larger A_G. Positive, on a grid of 1e-4, most of it on one of 5e-4."""
    n = len(g_mag)
    apparent = row["bp_rp"].astype(np.float64)
    seen = g_mag - 5 * np.log10(distance_kpc) - 10
    above = np.interp(apparent, _SEQUENCE[:, 0], _SEQUENCE[:, 1]) - seen
    dwarf = np.clip((seen - 2.5) / 1.0, 0, 1)
    steep = np.interp(apparent, [0.7, 1.0, 1.3, 2.0], [0.65, 0.42, 1.2, 1.4])
    mean = (
        np.interp(apparent, [0.7, 1.2], [0.03, 0.08])
        + 0.6 * a_g
        + steep * dwarf * np.clip(above, -0.6, 2.5)
        + 0.27 * np.clip(apparent - 0.95, 0, 1.2)
    )
    soft = 0.06 * np.logaddexp(0, mean / 0.06)
    log = np.log(soft) + 0.3 * rng.standard_normal(n) - 0.5 * (rng.exponential(1.0, n) - 1)
    grid = np.where(rng.random(n) < 0.61, 5e-4, 1e-4)
    return (np.rint(np.maximum(np.rint(np.clip(np.exp(log), 1e-3, 3.3) / grid) * grid, 5e-4) * 1e4) / 1e4).astype(np.float32)


def _radial_velocity(motion: Motion, row: Row, g_mag: Floats, restless: Floats, rng: np.random.Generator) -> Row:
    """From spectra: worse for the hot, whose lines are few, and for the faint; much worse where a companion moves the lines."""
    n = len(g_mag)
    noise = rng.standard_normal((2, n))
    teff = row["teff_val"].astype(np.float64)
    log = np.interp(_rvs_magnitude(g_mag, row) + 0.55, _VELOCITY_ERROR_MAG, np.log(_VELOCITY_ERROR))
    log += np.interp(teff, [3500, 4000, 4400, 5200, 6000, 6500, 7000], [0.7, 0.05, -0.25, -0.05, 0.2, 0.5, 0.8])
    log += 0.33 * noise[0] + 0.3 * restless + _disturbed(0.2, 1.3, n, rng)
    error = np.hypot(np.exp(log), 0.11)
    return {"radial_velocity": motion.radial_velocity + error * noise[1], "radial_velocity_error": error}


def _rvs_magnitude(g_mag: Floats, row: Row) -> Floats:
    """In the spectrometer's band about 860 nm, a little redder than RP."""
    return g_mag - row["g_rp"] - 0.26 * row["bp_rp"]


# Missing values ----------------------------------------------------------------------------------------------------------
_ASTROMETRY = ("parallax", "parallax_error", "pmra", "pmra_error", "pmdec", "pmdec_error")
_BANDS = tuple(f"phot_{b}_mean_flux{e}" for b in ("bp", "rp") for e in ("", "_error"))
_BP_RP = (*_BANDS, "bp_rp", "bp_g", "g_rp")
_FLAME = ("radius_val", "lum_val")


def _blocks(row: Row, g_mag: Floats, drawn: Floats) -> list[tuple[Bools, tuple[str, ...]]]:
    """Columns that are missing together, and for which stars. drawn: uniform numbers, (7, n)."""
    teff, colour = row["teff_val"], row["bp_rp"]
    two_parameters = drawn[0] < np.interp(g_mag, [13, 17, 18.5, 20.5], [0.002, 0.006, 0.02, 0.25])
    no_colour = drawn[1] < np.interp(g_mag, [12, 16, 18, 20.5], [0.002, 0.006, 0.03, 0.15])
    # Priam works to G = 17 on colours of ordinary stars; its A_G is kept where its posterior was narrow.
    no_teff = no_colour | (g_mag > 17.0 + 0.1 * drawn[2]) | (drawn[2] > 0.994) | (colour < -0.1) | (colour > 4.0)
    no_a_g = no_teff | (drawn[3] > np.interp(g_mag, [6, 13, 17], [0.93, 0.89, 0.6]))
    # FLAME requires a parallax of five sigma and gives no radius below half the Sun's.
    poor = row["parallax"] < 5 * row["parallax_error"]
    small = ~(row["radius_val"] >= 0.5)
    no_flame = no_teff | two_parameters | poor | small | (teff < 3300) | (teff > 8000) | (drawn[4] > 0.985)
    # Velocities are given where the spectrum's template, not Priam's temperature, is neither cool nor hot.
    template = teff * (0.97 + 0.06 * drawn[6])
    cool_or_hot = ~((template > 3550) & (template < 6900))
    too_faint = (_rvs_magnitude(g_mag, row) > 12.2 + 0.3 * drawn[5]) | (g_mag > 14.1)
    no_velocity = too_faint | (row["radial_velocity_error"] > 20) | ((drawn[5] * 1e3) % 1 > 0.965) | cool_or_hot
    return [
        (two_parameters, _ASTROMETRY),
        (no_colour, _BP_RP),
        (no_teff, ("teff_val",)),
        (no_a_g, ("a_g_val",)),
        (no_flame, _FLAME),
        (no_velocity, ("radial_velocity", "radial_velocity_error")),
    ]
