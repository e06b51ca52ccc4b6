"""What mock stars are held to: facts of the catalogue that do not depend on which stars one looks at.

A sample of real stars is never a fair one, so marginal distributions need not match; what one column is given others must.
`CONDITIONALS` holds each such fact once: its value among real stars, and the interval in which the made-up ones must lie.
The real values were measured by the very functions below on 6,874 rows of `gaiadr2.gaia_source` with a G flux (ESA/Gaia/DPAC;
clusters, near stars, bright and random ones, of 14 published tables); `stars` says how many of them each rests on. Values
that a publisher rounded are left out where that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import spearmanr

from gaiadask.release.dr2 import g_magnitude, luminosity
from gaiadask.release.formulas import absolute_magnitude

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FEWEST = 30
"""Of this many stars at least a value is worth something."""
FULL_ROWS = "solution_id"
"""Where a table has this column, rows without it are of published excerpts: they lack columns for reasons not the archive's."""


class Measured(NamedTuple):
    """A value, and how many stars it rests on."""

    value: float
    stars: int


@dataclass(frozen=True)
class Conditional:
    """real, stars: as measured on the real rows. low, high: in which the mock stars' value must lie."""

    name: str
    real: float
    stars: int
    low: float
    high: float
    of: Callable[[Stars], Measured]


class Stars:
    """Columns of a table as float64 with NaN for null, and what is often asked of them, shape (n,) each."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._read: dict[str, Floats] = {}
        self.g = g_magnitude(self["phot_g_mean_flux"]).astype(np.float64)
        self.colour = self["bp_rp"]

    def __getitem__(self, name: str) -> Floats:
        if name not in self._read:
            self._read[name] = self.table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        return self._read[name]

    @property
    def full(self) -> Bools:
        """Rows in which a null is the archive's own."""
        if FULL_ROWS not in self.table.column_names:
            return np.ones(len(self.table), dtype=bool)
        return np.asarray(self.table[FULL_ROWS].is_valid())

    def has(self, *names: str) -> Bools:
        """Stars with a value in all of these."""
        return np.logical_and.reduce([~np.isnan(self[name]) for name in names])

    def between(self, low: float, high: float) -> Bools:
        """By G."""
        return (self.g > low) & (self.g < high)

    def relative(self, band: str) -> Floats:
        """Relative error of a band's flux."""
        return self[f"phot_{band}_mean_flux_error"] / self[f"phot_{band}_mean_flux"]

    @property
    def snr(self) -> Floats:
        return self["parallax"] / self["parallax_error"]

    @property
    def rvs(self) -> Floats:
        """Magnitude in the spectrometer's band, about."""
        return self.g - self["g_rp"] - 0.26 * self.colour

    @property
    def absolute_g(self) -> Floats:
        return absolute_magnitude(self.g, self["parallax"])


def unique_stars(table: pa.Table) -> pa.Table:
    """The rows with a G flux, each star once."""
    table = table.filter(table["phot_g_mean_flux"].is_valid())
    _, first = np.unique(table["source_id"].to_numpy(), return_index=True)
    return table.take(np.sort(first))


# Ways to look ---------------------------------------------------------------------------------------------------------------
def _trend(x: Floats, y: Floats, degree: int) -> Floats:
    """What a polynomial leaves of y, outliers kept but not fitted."""
    kept = np.ones(len(x), dtype=bool)
    residual = y
    for _ in range(6):
        residual = y - np.polynomial.Polynomial.fit(x[kept], y[kept], degree)(x)
        kept = np.abs(residual) < 4 * 1.4826 * np.median(np.abs(residual))
    return residual


def _scatter(values: Callable[[Stars], Floats], low: float, high: float) -> Callable[[Stars], Measured]:
    """Standard deviation of the logarithm about its course with G."""

    def of(stars: Stars) -> Measured:
        logs = np.log(values(stars))
        rows = np.isfinite(logs) & stars.between(low, high)
        return Measured(float(_trend(stars.g[rows], logs[rows], 2).std()), int(rows.sum()))

    return of


def _median(values: Callable[[Stars], Floats], low: float, high: float) -> Callable[[Stars], Measured]:
    return _percentile(values, 50, lambda s: s.between(low, high))


def _percentile(values: Callable[[Stars], Floats], percent: float, where: Callable[[Stars], Bools]) -> Callable[[Stars], Measured]:
    def of(stars: Stars) -> Measured:
        found = values(stars)
        found = found[~np.isnan(found) & where(stars)]
        return Measured(float(np.percentile(found, percent)) if found.size else np.nan, found.size)

    return of


def _about_locus(
    values: Callable[[Stars], Floats], degree: int, percent: tuple[float, ...], low: float, high: float
) -> Callable[[Stars], Measured]:
    """A percentile of what a course with BP - RP leaves, or half the difference of two: a width.

    Of stars with luminosity: the others are often blends, and how many those are is the sample's, not the survey's.
    """

    def of(stars: Stars) -> Measured:
        found = values(stars)
        usual = stars.has("lum_val") & (stars.colour > 0.3) & (stars.colour < 2)
        rows = ~np.isnan(found) & stars.between(low, high) & usual
        at = np.percentile(_trend(stars.colour[rows], found[rows], degree), percent)
        return Measured(float(at[0] if len(at) == 1 else (at[1] - at[0]) / 2), int(rows.sum()))

    return of


def _rank(first: str, second: str) -> Callable[[Stars], Measured]:
    """Rank correlation of two errors about their courses with G, over the whole sky and from G = 6 to 13."""

    def of(stars: Stars) -> Measured:
        rows = stars.has(first, second, "radial_velocity") & stars.between(6, 13)
        a, b = (_trend(stars.g[rows], np.log(stars[name][rows]), 4) for name in (first, second))
        return Measured(float(spearmanr(a, b)[0]), int(rows.sum()))

    return of


def _extinction(what: str, colour: float) -> Callable[[Stars], Measured]:
    """Priam's A_G of near dwarfs of a colour, where there is hardly any dust: its median, or its rank correlation with M_G."""

    def of(stars: Stars) -> Measured:
        near = stars.has("a_g_val") & (stars["parallax"] > 4) & (stars.snr > 10) & (np.abs(stars.colour - colour) < 0.1)
        rows = near & (stars.absolute_g > 3)
        a_g = stars["a_g_val"][rows]
        value = np.median(a_g) if what == "median" else spearmanr(stars.absolute_g[rows], a_g)[0]
        return Measured(float(value), int(rows.sum()))

    return of


def _repeats(stars: Stars) -> Measured:
    """Pairs of stars of the very same Teff among the pairs within 1 %."""
    teff = np.sort(stars["teff_val"][stars.has("teff_val") & (stars.colour > 0.3) & (stars.colour < 2)])
    counts = np.unique(teff, return_counts=True)[1].astype(np.float64)
    near = np.searchsorted(teff, teff * 1.01) - np.searchsorted(teff, teff / 1.01) - 1
    return Measured(float((counts * (counts - 1)).sum() / near.sum()), teff.size)


def _grid(step: float) -> Callable[[Stars], Measured]:
    """Share of the A_G that are multiples of `step`, to the digits of float32."""

    def of(stars: Stars) -> Measured:
        a_g = stars["a_g_val"][stars.has("a_g_val")]
        return Measured(float((np.abs(a_g / step - np.rint(a_g / step)) < 2e-7 / step * np.maximum(a_g, 1)).mean()), a_g.size)

    return of


def _formula(stars: Stars) -> Measured:
    """Median deviation of ln L from what G, parallax and Teff say; not of values rounded to a thousandth."""
    value = stars["lum_val"]
    rows = ~np.isnan(value) & (np.abs(value - np.round(value, 3)) > 1e-6 * np.maximum(value, 1))
    told = luminosity(g_magnitude(stars["phot_g_mean_flux"]), stars["parallax"], stars["teff_val"])[rows]
    return Measured(float(np.median(np.abs(np.log(value[rows] / told)))), int(rows.sum()))


def _edge(values: Callable[[Stars], Floats], column: str, percent: float) -> Callable[[Stars], Measured]:
    """A percentile (0: the smallest, 100: the largest) of something over the stars that have `column`."""
    return _percentile(values, percent, lambda s: s.has(column))


def _broken(inner: tuple[str, ...], outer: tuple[str, ...] = ()) -> Callable[[Stars], Measured]:
    """Share of the stars where some but not all of `inner` are there, or where `inner` is and one of `outer` is not."""

    def of(stars: Stars) -> Measured:
        there = [stars.has(name) for name in inner]
        every, some = np.logical_and.reduce(there), np.logical_or.reduce(there)
        wrong = some & ~(every & stars.has(*outer) if outer else every)
        return Measured(float(wrong[stars.full].mean()), int(stars.full.sum()))

    return of


def _both_ways(first: str, second: str) -> Callable[[Stars], Measured]:
    """Share of stars with the first column that lack the second: above 0 where they are not nested."""

    def of(stars: Stars) -> Measured:
        has = stars.has(first) & stars.full
        return Measured(float((has & ~stars.has(second)).sum() / has.sum()), int(has.sum()))

    return of


def _column(name: str) -> Callable[[Stars], Floats]:
    return lambda stars: stars[name]


def _relative(band: str) -> Callable[[Stars], Floats]:
    return lambda stars: stars.relative(band)


def _excess(stars: Stars) -> Floats:
    return (stars["phot_bp_mean_flux"] + stars["phot_rp_mean_flux"]) / stars["phot_g_mean_flux"]


def _over_parallax_error(error: str, percent: float) -> Callable[[Stars], Measured]:
    return _percentile(lambda s: s[error] / s["parallax_error"], percent, lambda s: s.between(6, 13))


def _teff(colour: float) -> Callable[[Stars], Measured]:
    return _percentile(_column("teff_val"), 50, lambda s: np.abs(s.colour - colour) < 0.05)


def _velocity_error(low: float, high: float, cool: float, hot: float) -> Callable[[Stars], Measured]:
    def where(stars: Stars) -> Bools:
        teff = stars["teff_val"]
        return (stars.rvs > low) & (stars.rvs < high) & (teff > cool) & (teff < hot)

    return _percentile(_column("radial_velocity_error"), 50, where)


_PARALLAX_ERROR, _VELOCITY_ERROR, _TEFF = (_column(name) for name in ("parallax_error", "radial_velocity_error", "teff_val"))
_ASTROMETRY = ("parallax", "parallax_error", "pmra", "pmra_error", "pmdec", "pmdec_error")
_COLOURS = (*(f"phot_{b}_mean_flux{e}" for b in ("bp", "rp") for e in ("", "_error")), "bp_rp", "bp_g", "g_rp")

C = Conditional
CONDITIONALS: tuple[Conditional, ...] = (
    C("ln L about G, parallax, Teff: median deviation", 1.297e-05, 636, 0.0, 0.0001, _formula),
    C("sd of ln parallax_error about G, G 6-9", 0.4224, 429, 0.359, 0.486, _scatter(_PARALLAX_ERROR, 6, 9)),
    C("sd of ln parallax_error about G, G 9-11", 0.4295, 710, 0.365, 0.494, _scatter(_PARALLAX_ERROR, 9, 11)),
    C("sd of ln parallax_error about G, G 11-13", 0.4421, 1188, 0.376, 0.508, _scatter(_PARALLAX_ERROR, 11, 13)),
    C("sd of ln parallax_error about G, G 13-15", 0.5944, 702, 0.446, 0.743, _scatter(_PARALLAX_ERROR, 13, 15)),
    C("sd of ln parallax_error about G, G 15-17", 0.3974, 1510, 0.338, 0.457, _scatter(_PARALLAX_ERROR, 15, 17)),
    C("sd of ln parallax_error about G, G 17-19", 0.289, 1519, 0.246, 0.332, _scatter(_PARALLAX_ERROR, 17, 19)),
    C("sd of ln parallax_error about G, G 19-21", 0.2827, 654, 0.24, 0.325, _scatter(_PARALLAX_ERROR, 19, 21)),
    C("sd of ln relative G flux error about G, G 6-9", 0.4261, 429, 0.362, 0.49, _scatter(_relative("g"), 6, 9)),
    C("sd of ln relative G flux error about G, G 9-11", 0.5573, 710, 0.474, 0.641, _scatter(_relative("g"), 9, 11)),
    C("sd of ln relative G flux error about G, G 11-13", 0.7473, 1189, 0.635, 0.859, _scatter(_relative("g"), 11, 13)),
    C("sd of ln relative G flux error about G, G 13-15", 0.6674, 705, 0.567, 0.768, _scatter(_relative("g"), 13, 15)),
    C("sd of ln relative G flux error about G, G 15-17", 0.4507, 1516, 0.383, 0.518, _scatter(_relative("g"), 15, 17)),
    C("sd of ln relative G flux error about G, G 17-19", 0.3171, 1527, 0.27, 0.365, _scatter(_relative("g"), 17, 19)),
    C("sd of ln relative G flux error about G, G 19-21", 0.3181, 679, 0.27, 0.366, _scatter(_relative("g"), 19, 21)),
    C("relative G flux error, median, G 12-13", 0.0003546, 629, 0.000301, 0.000408, _median(_relative("g"), 12, 13)),
    C("relative BP flux error, median, G 12-13", 0.001827, 625, 0.00155, 0.0021, _median(_relative("bp"), 12, 13)),
    C("relative RP flux error, median, G 12-13", 0.001183, 625, 0.00101, 0.00136, _median(_relative("rp"), 12, 13)),
    C("parallax_error in mas, median, G 8-9", 0.04715, 190, 0.0377, 0.0566, _median(_PARALLAX_ERROR, 8, 9)),
    C("parallax_error in mas, median, G 12-13", 0.0412, 628, 0.033, 0.0494, _median(_PARALLAX_ERROR, 12, 13)),
    C("parallax_error in mas, median, G 16-17", 0.09914, 862, 0.0793, 0.119, _median(_PARALLAX_ERROR, 16, 17)),
    C("parallax_error in mas, median, G 18-19", 0.2507, 653, 0.201, 0.301, _median(_PARALLAX_ERROR, 18, 19)),
    C("pmra_error / parallax_error, 1 %", 0.9713, 2327, 0.826, 1.12, _over_parallax_error("pmra_error", 1)),
    C("pmra_error / parallax_error, 99 %", 2.648, 2327, 2.25, 3.04, _over_parallax_error("pmra_error", 99)),
    C("pmdec_error / parallax_error, 1 %", 0.8035, 2327, 0.683, 0.924, _over_parallax_error("pmdec_error", 1)),
    C("pmdec_error / parallax_error, 99 %", 2.435, 2327, 2.07, 2.8, _over_parallax_error("pmdec_error", 99)),
    C("ra_error / parallax_error, 1 %", 0.4746, 2327, 0.403, 0.546, _over_parallax_error("ra_error", 1)),
    C("ra_error / parallax_error, 99 %", 1.105, 2327, 0.939, 1.27, _over_parallax_error("ra_error", 99)),
    C("dec_error / parallax_error, 1 %", 0.3661, 2327, 0.311, 0.421, _over_parallax_error("dec_error", 1)),
    C("dec_error / parallax_error, 99 %", 1.142, 2327, 0.971, 1.31, _over_parallax_error("dec_error", 99)),
    C("rank correlation of ra_error and parallax_error, about G", 0.9231, 2054, 0.793, 1.0, _rank("ra_error", "parallax_error")),
    C(
        "rank correlation of dec_error and parallax_error, about G",
        0.6525,
        2054,
        0.522,
        0.782,
        _rank("dec_error", "parallax_error"),
    ),
    C("rank correlation of ra_error and dec_error, about G", 0.6192, 2055, 0.489, 0.749, _rank("ra_error", "dec_error")),
    C("rank correlation of ra_error and pmra_error, about G", 0.9384, 2054, 0.808, 1.0, _rank("ra_error", "pmra_error")),
    C("rank correlation of dec_error and pmdec_error, about G", 0.8295, 2054, 0.699, 0.959, _rank("dec_error", "pmdec_error")),
    C("rank correlation of pmra_error and pmdec_error, about G", 0.7327, 2054, 0.603, 0.863, _rank("pmra_error", "pmdec_error")),
    C("BP/RP excess about BP - RP, 1 %, G 6-12", -0.01445, 1464, -0.022, -0.007, _about_locus(_excess, 4, (1,), 6, 12)),
    C("BP/RP excess about BP - RP, 99 %, G 6-12", 0.02629, 1464, 0.016, 0.04, _about_locus(_excess, 4, (99,), 6, 12)),
    C(
        "BP - G about BP - RP, half width (16-84 %), G 6-12",
        0.004706,
        1464,
        0.00329,
        0.00612,
        _about_locus(_column("bp_g"), 5, (16, 84), 6, 12),
    ),
    C("BP/RP excess about BP - RP, 1 %, G 12-14", -0.009473, 734, -0.02, -0.005, _about_locus(_excess, 4, (1,), 12, 14)),
    C("BP/RP excess about BP - RP, 99 %, G 12-14", 0.08696, 734, 0.03, 0.1, _about_locus(_excess, 4, (99,), 12, 14)),
    C(
        "BP - G about BP - RP, half width (16-84 %), G 12-14",
        0.003969,
        734,
        0.00278,
        0.00516,
        _about_locus(_column("bp_g"), 5, (16, 84), 12, 14),
    ),
    C(
        "ln Teff about BP - RP, half width (16-84 %), G 6-17",
        0.01717,
        2404,
        0.0129,
        0.0215,
        _about_locus(lambda s: np.log(s["teff_val"]), 6, (16, 84), 6, 17),
    ),
    C("Teff in K at BP - RP = 0.4, median", 7290.0, 37, 7070.0, 7510.0, _teff(0.4)),
    C("Teff in K at BP - RP = 0.6, median", 6526.0, 113, 6330.0, 6720.0, _teff(0.6)),
    C("Teff in K at BP - RP = 0.8, median", 5805.0, 290, 5630.0, 5980.0, _teff(0.8)),
    C("Teff in K at BP - RP = 1.0, median", 5295.0, 256, 5140.0, 5450.0, _teff(1.0)),
    C("Teff in K at BP - RP = 1.5, median", 4440.0, 119, 4310.0, 4570.0, _teff(1.5)),
    C("Teff in K at BP - RP = 2.0, median", 3962.0, 102, 3840.0, 4080.0, _teff(2.0)),
    C("equal Teff among pairs within 1 %", 0.001494, 2615, 0.000598, 0.00239, _repeats),
    C("A_G on a grid of 1e-4", 1.0, 3554, 1.0, 1.0, _grid(1e-4)),
    C("A_G on a grid of 5e-4", 0.6857, 3554, 0.586, 0.786, _grid(5e-4)),
    C("A_G of near dwarfs at BP - RP = 0.7, median", 0.1375, 268, 0.0825, 0.193, _extinction("median", 0.7)),
    C("A_G of near dwarfs at BP - RP = 0.9, median", 0.1038, 386, 0.0623, 0.145, _extinction("median", 0.9)),
    C("A_G of near dwarfs at BP - RP = 1.1, median", 0.1433, 331, 0.086, 0.201, _extinction("median", 1.1)),
    C("A_G of near dwarfs at BP - RP = 1.3, median", 0.2055, 260, 0.123, 0.288, _extinction("median", 1.3)),
    C("rank correlation of A_G with M_G, near dwarfs at BP - RP = 0.7", -0.7337, 268, -0.934, -0.534, _extinction("rank", 0.7)),
    C("rank correlation of A_G with M_G, near dwarfs at BP - RP = 0.9", -0.6326, 386, -0.833, -0.433, _extinction("rank", 0.9)),
    C("rank correlation of A_G with M_G, near dwarfs at BP - RP = 1.1", -0.4442, 331, -0.644, -0.244, _extinction("rank", 1.1)),
    C("rank correlation of A_G with M_G, near dwarfs at BP - RP = 1.3", -0.4987, 260, -0.699, -0.299, _extinction("rank", 1.3)),
    C("radial_velocity_error in km/s, median, RVS 8-9, 4700-5300 K", 0.29, 42, 0.203, 0.377, _velocity_error(8, 9, 4700, 5300)),
    C("radial_velocity_error in km/s, median, RVS 8-9, 5300-6000 K", 0.39, 66, 0.273, 0.507, _velocity_error(8, 9, 5300, 6000)),
    C("radial_velocity_error in km/s, median, RVS 10-11, 4700-5300 K", 0.915, 202, 0.64, 1.19, _velocity_error(10, 11, 4700, 5300)),
    C(
        "radial_velocity_error in km/s, median, RVS 10-11, 5300-6000 K",
        0.7551,
        180,
        0.529,
        0.982,
        _velocity_error(10, 11, 5300, 6000),
    ),
    C("radial_velocity_error in km/s, median, RVS 11-12, 4700-5300 K", 1.455, 278, 1.02, 1.89, _velocity_error(11, 12, 4700, 5300)),
    C(
        "radial_velocity_error in km/s, median, RVS 11-12, 5300-6000 K",
        1.405,
        118,
        0.983,
        1.83,
        _velocity_error(11, 12, 5300, 6000),
    ),
    C("radial_velocity_error in km/s, smallest", 0.11, 2260, 0.1, 0.13, _edge(_VELOCITY_ERROR, "radial_velocity", 0)),
    C("radial_velocity_error in km/s, largest", 19.36, 2260, 18.0, 20.0, _edge(_VELOCITY_ERROR, "radial_velocity", 100)),
    C("G with a radial velocity, 99 %", 13.48, 2260, 13.0, 13.8, _edge(lambda s: s.g, "radial_velocity", 99)),
    C("G with a radial velocity, largest", 13.98, 2260, 13.7, 14.2, _edge(lambda s: s.g, "radial_velocity", 100)),
    C("G with Teff, largest", 17.07, 4661, 16.9, 17.1, _edge(lambda s: s.g, "teff_val", 100)),
    C("parallax / error with luminosity, smallest", 5.673, 2750, 5.0, 6.0, _edge(lambda s: s.snr, "lum_val", 0)),
    C("radius, smallest", 0.5, 2750, 0.5, 0.51, _edge(lambda s: s["radius_val"], "radius_val", 0)),
    C("Teff in K with luminosity, smallest", 3304.0, 2750, 3300.0, 3400.0, _edge(_TEFF, "lum_val", 0)),
    C("Teff in K with luminosity, largest", 7998.0, 2750, 7900.0, 8000.0, _edge(_TEFF, "lum_val", 100)),
    C("null blocks broken: astrometry", 0.0, 3024, 0.0, 0.0, _broken(_ASTROMETRY)),
    C("null blocks broken: BP and RP", 0.0, 3024, 0.0, 0.0, _broken(_COLOURS)),
    C("null blocks broken: radial velocity", 0.0, 3024, 0.0, 0.0, _broken(("radial_velocity", "radial_velocity_error"))),
    C(
        "null blocks broken: luminosity, within Teff and astrometry",
        0.0,
        3024,
        0.0,
        0.0,
        _broken(("radius_val", "lum_val"), ("teff_val", "parallax")),
    ),
    C("null blocks broken: A_G, within Teff", 0.0, 3024, 0.0, 0.0, _broken(("a_g_val",), ("teff_val",))),
    C("null blocks broken: Teff, within BP and RP", 0.0, 3024, 0.0, 0.0, _broken(("teff_val",), ("bp_rp",))),
    C("stars with A_G that lack luminosity", 0.2051, 1794, 0.001, 1.0, _both_ways("a_g_val", "lum_val")),
    C("stars with luminosity that lack A_G", 0.1342, 1647, 0.001, 1.0, _both_ways("lum_val", "a_g_val")),
)
