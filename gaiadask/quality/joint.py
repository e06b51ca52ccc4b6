"""How the columns hang together: the HR diagram, the sky, velocities, and where stars lie among each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from gaiadask.errors import DataError
from gaiadask.quality.physics import absolute_magnitude, tangential_velocities
from gaiadask.quality.tables import number_columns, sampled, values
from gaiadask.release.column import DEC, RA
from gaiadask.release.dr2 import DR2
from gaiadask.sky import healpix, unit_vector

Floats = NDArray[np.float64]

HR_BINS = 50
SKY_STARS_A_PIXEL = 20
COLOUR_BINS = 8
NEIGHBOURS = 5
NEIGHBOUR_ROWS = 10_000
_CHUNK_ROWS = 250


@dataclass(frozen=True)
class HistogramDistance:
    """Total-variation distance (0 to 1) of two 2-D histograms, beside that of real stars from other real stars.

    in_units_of_real: their ratio, 1 where made stars are as like real ones as these are like each other. stars: a side.
    """

    distance: float
    real_against_real: float
    in_units_of_real: float
    stars: int
    bins: int


def hr_distance(real: pa.Table, other_real: pa.Table, made: pa.Table) -> HistogramDistance:
    """Distance of `made` from `other_real` stars in the HR diagram (bp_rp, M_G), in units of `real` from `other_real`.

    50 x 50 bins between the 0.5 and 99.5 % quantiles of the real stars, what lies outside in the outermost ones, what has
    no colour or no parallax in a bin of its own. No star may be on two sides.
    """
    return _distance(real, other_real, made, _hr_cells(real, other_real), HR_BINS**2 + 1)


def sky_distance(real: pa.Table, other_real: pa.Table, made: pa.Table) -> HistogramDistance:
    """The same over HEALPix pixels, of the order that leaves about 20 real stars a pixel (order 6 at most)."""
    stars = min(real.num_rows, other_real.num_rows, made.num_rows)
    order = int(np.clip(np.log(max(stars, 1) / (12 * SKY_STARS_A_PIXEL)) / np.log(4), 0, 6))
    pixels = 12 * 4**order

    def cells(table: pa.Table) -> NDArray[np.int64]:
        ra, dec = values(table, RA), values(table, DEC)
        known = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
        cell = np.full(table.num_rows, pixels, np.int64)
        cell[known] = healpix(ra[known] % 360.0, dec[known], order)
        return cell

    return _distance(real, other_real, made, cells, pixels + 1)


def _distance(
    real: pa.Table, other_real: pa.Table, made: pa.Table, cells: Callable[[pa.Table], NDArray[np.int64]], bins: int
) -> HistogramDistance:
    # Equal numbers on every side: the noise of counting is most of the distance between like samples.
    stars = min(real.num_rows, other_real.num_rows, made.num_rows)
    if not stars:
        raise DataError("histogram distances need at least one star on each side, found none")
    ours, others, theirs = (np.bincount(cells(t.slice(0, stars)), minlength=bins) for t in (real, other_real, made))
    distance, noise = (float(np.abs(h - others).sum() / (2 * stars)) for h in (theirs, ours))
    return HistogramDistance(distance, noise, distance / noise if noise > 0 else float("nan"), stars, bins)


def _hr_cells(real: pa.Table, other_real: pa.Table) -> Callable[[pa.Table], NDArray[np.int64]]:
    pooled = np.concatenate([_hr_axes(real), _hr_axes(other_real)], axis=1)
    edges = [_inner_edges(axis[np.isfinite(axis)]) for axis in pooled]

    def cells(table: pa.Table) -> NDArray[np.int64]:
        axes = _hr_axes(table)
        colour, magnitude = (np.searchsorted(inner, axis) for inner, axis in zip(edges, axes, strict=True))
        return np.where(np.isfinite(axes).all(axis=0), colour * HR_BINS + magnitude, HR_BINS**2)

    return cells


def _hr_axes(table: pa.Table) -> Floats:
    """Colour and absolute magnitude, shape (2, rows)."""
    return np.stack([values(table, "bp_rp"), absolute_magnitude(table)])


def _inner_edges(known: Floats) -> Floats:
    low, high = np.quantile(known, [0.005, 0.995]) if len(known) else (0.0, 0.0)
    return np.linspace(float(low), float(high), HR_BINS + 1)[1:-1]


@dataclass(frozen=True)
class Dispersion:
    """Velocity dispersions of the stars of one bin of colour (mag): half the range from 16 to 84 %, km/s, along ra and dec."""

    bp_rp_from: float
    bp_rp_to: float
    stars: int
    real_ra_km_s: float
    made_ra_km_s: float
    real_dec_km_s: float
    made_dec_km_s: float


def velocity_dispersions(real: pa.Table, made: pa.Table) -> list[Dispersion]:
    """Dispersions of tangential velocities in bins of colour that hold equal numbers of real stars, real and made.

    Stars with a colour and a parallax above 0; a star falls in the bin of its own table's colour. `stars`: real ones.
    """
    ours, theirs = _colour_and_velocities(real), _colour_and_velocities(made)
    if not len(ours):
        return []
    edges = np.unique(np.quantile(ours[:, 0], np.linspace(0, 1, COLOUR_BINS + 1)))
    bins = []
    for low, high in itertools.pairwise(edges):
        here, there = ((t[:, 0] >= low) & (t[:, 0] <= high) for t in (ours, theirs))
        real_s, made_s = _half_width(ours[here]), _half_width(theirs[there])
        bins.append(Dispersion(float(low), float(high), int(here.sum()), real_s[0], made_s[0], real_s[1], made_s[1]))
    return bins


def _colour_and_velocities(table: pa.Table) -> Floats:
    rows = np.stack([values(table, "bp_rp"), *tangential_velocities(table)], axis=1)
    return rows[np.isfinite(rows).all(axis=1)]


def _half_width(rows: Floats) -> tuple[float, float]:
    if not len(rows):
        return float("nan"), float("nan")
    low, high = np.quantile(rows[:, 1:], [0.16, 0.84], axis=0)
    return float(high[0] - low[0]) / 2, float(high[1] - low[1]) / 2


@dataclass(frozen=True)
class DensityCoverage:
    """Density and coverage (Naeem et al. 2020, ICML, PMLR 119): 1 and 1 - 2^-k where two samples are alike.

    density: how many real stars' neighbourhoods a made star falls in, over k; above 1 where stars crowd on the likely.
    coverage: share of real stars with a made star in their neighbourhood. stars: on each side.
    """

    density: float
    coverage: float
    neighbours: int
    stars: int


def density_coverage(real: pa.Table, made: pa.Table, rows: int = NEIGHBOUR_ROWS, k: int = NEIGHBOURS) -> DensityCoverage:
    """Density and coverage of `made` among `real` stars in standardised free columns (`Standardised`).

    The tables must be of different stars: a star's rebuilt self lies in its own neighbourhood by construction.
    Raises DataError where a side has not more than k stars.
    """
    n = min(rows, real.num_rows, made.num_rows)
    if n <= k:
        raise DataError(f"density and coverage with {k} neighbours need more than {k} stars on each side, found {n}")
    random = np.random.default_rng(0)
    real, made = sampled(real, n, random), sampled(made, n, random)
    standardised = Standardised(real, made)
    x, y = standardised(real), standardised(made)
    with threadpool_limits(limits=1):
        # The nearest real star of a real star is itself: k + 1.
        radius = np.sort(_squared_distances_k(x, x, k + 1), axis=1)[:, k]
        inside, covered = 0, 0
        for start in range(0, n, _CHUNK_ROWS):
            rows_here = slice(start, start + _CHUNK_ROWS)
            near = _squared_distances(x[rows_here], y) <= radius[rows_here, None]
            inside += int(near.sum())
            covered += int(near.any(axis=1).sum())
    return DensityCoverage(inside / (k * n), covered / n, k, n)


def nearer_to_train(samples: pa.Table, train: pa.Table, test: pa.Table, rows: int = NEIGHBOUR_ROWS) -> float:
    """Share of samples whose nearest star among train stars is nearer than among as many test stars: 0.5 where nothing is copied.

    Distances in standardised free columns, the standard taken from train and test stars alike; a tie counts half. At most
    `rows` of each. Raises DataError where a table is empty.
    """
    n = min(rows, train.num_rows, test.num_rows)
    if not n or not samples.num_rows:
        raise DataError("nearer_to_train needs samples, train and test stars; one of the three tables is empty")
    random = np.random.default_rng(0)
    train, test, samples = sampled(train, n, random), sampled(test, n, random), sampled(samples, rows, random)
    standardised = Standardised(pa.concat_tables([t.select(_common(train, test)) for t in (train, test)]), samples)
    to_train, to_test = (_nearest(standardised(t), standardised(samples)) for t in (train, test))
    return float(np.mean(to_train < to_test) + np.mean(to_train == to_test) / 2)


def _common(one: pa.Table, other: pa.Table) -> list[str]:
    return [n for n in one.column_names if n in other.column_names]


class Standardised:
    """Maps tables to points in which distances mean something: free columns, each standardised on reference stars.

    A column's values become normal scores of the reference stars' (mean 0, standard deviation 1 whatever the tails; a
    plain z-score would leave fluxes and parallaxes as one lump and a few outliers); a null becomes 0. Position becomes
    its unit vector, each axis divided by its standard deviation. Derived columns follow from the others and are left out.
    """

    def __init__(self, reference: pa.Table, other: pa.Table) -> None:
        names = number_columns(reference, other)
        left_out = {*DR2.derivable(names), *((RA, DEC) if {RA, DEC} <= set(names) else ())}
        self._has_position = {RA, DEC} <= set(names)
        self._sorted = {n: _known_sorted(values(reference, n)) for n in names if n not in left_out}
        self._axis_sd = _sd(_vectors(reference)) if self._has_position else None

    def __call__(self, table: pa.Table) -> Floats:
        """Points, shape (rows, dimensions)."""
        scores = [_normal_score(values(table, n), known) for n, known in self._sorted.items()]
        if self._axis_sd is not None:
            scores += list((_vectors(table) / self._axis_sd).T)
        return np.stack(scores, axis=1)


def _vectors(table: pa.Table) -> Floats:
    return np.nan_to_num(unit_vector(values(table, RA), values(table, DEC)))


def _sd(vectors: Floats) -> Floats:
    sd = vectors.std(axis=0)
    return np.where(sd > 0, sd, 1.0)


def _known_sorted(column: Floats) -> Floats:
    return np.sort(column[np.isfinite(column)])


def _normal_score(column: Floats, known: Floats) -> Floats:
    if not len(known):
        return np.zeros(len(column))
    # Mid-rank between ties, and between neighbours by interpolation: repeated values share a score, others differ.
    distinct, counts = np.unique(known, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / len(known)
    return np.nan_to_num(norm.ppf(np.interp(column, distinct, middle)))


def _squared_distances(x: Floats, y: Floats) -> Floats:
    """Shape (len(x), len(y))."""
    distances = x @ y.T
    distances *= -2
    distances += (x**2).sum(axis=1)[:, None]
    distances += (y**2).sum(axis=1)
    return np.maximum(distances, 0.0, out=distances)


def _squared_distances_k(x: Floats, y: Floats, k: int) -> Floats:
    """The k smallest squared distances of each x to the y, not in order, shape (len(x), k)."""
    chunks = range(0, len(x), _CHUNK_ROWS)
    return np.concatenate([np.partition(_squared_distances(x[i : i + _CHUNK_ROWS], y), k - 1, axis=1)[:, :k] for i in chunks])


def _nearest(stars: Floats, samples: Floats) -> Floats:
    """Distance of each sample to the nearest star; exactly 0 for a copy."""
    with threadpool_limits(limits=1):
        return NearestNeighbors(n_neighbors=1, algorithm="kd_tree").fit(stars).kneighbors(samples)[0][:, 0]
