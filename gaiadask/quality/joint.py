"""Joint distribution of the columns: the HR diagram, the sky, velocities, and where stars lie among each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from gaiadask.errors import DataError
from gaiadask.quality.physics import hr_position, tangential_velocities
from gaiadask.quality.records import NAN, DensityCoverage, Dispersion, HistogramDistance
from gaiadask.quality.tables import Floats, number_columns, sampled, values
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import Release
from gaiadask.sky import healpix, unit_vector

HR_BINS = 50
"""Bins of colour and of magnitude: finer ones show finer structure, and more of the noise of counting."""
SKY_STARS_A_PIXEL = 20
"""Stars a pixel on average: fewer show finer structure, and more of the noise of counting."""
MAX_SKY_ORDER = 6
"""Finest HEALPix order, pixels of about a degree."""
COLOUR_BINS = 8
"""Bins of colour for dispersions: some 12 % of the stars in each."""
NEIGHBOURS = 5
"""Rank of the neighbour that bounds a neighbourhood (Naeem et al. 2020 use 5): smaller ones are noisier, larger ones coarser."""
NEIGHBOUR_ROWS = 10_000
"""Stars a side: time grows with the square of it."""
_CHUNK_ROWS = 250  # rows of a distance matrix at a time: 20 MB beside NEIGHBOUR_ROWS columns


def hr_distance(real: pa.Table, other_real: pa.Table, made: pa.Table, release: Release) -> HistogramDistance:
    """Distance of `made` from `other_real` stars in the HR diagram (bp_rp, M_G), in units of `real` from `other_real`.

    HR_BINS bins an axis between the 0.5 and 99.5 % quantiles of the real stars; stars beyond are in the outermost bins, stars
    without a colour or a parallax in a bin of their own. No star may be in two of the tables. Raises DataError where a table
    is empty.
    """
    return _distance(real, other_real, made, _hr_cells(real, other_real, release), HR_BINS**2 + 1)


def sky_distance(real: pa.Table, other_real: pa.Table, made: pa.Table) -> HistogramDistance:
    """The same over HEALPix pixels, of the order that leaves about SKY_STARS_A_PIXEL real stars a pixel."""
    stars = min(real.num_rows, other_real.num_rows, made.num_rows)
    order = int(np.clip(np.log(max(stars, 1) / (12 * SKY_STARS_A_PIXEL)) / np.log(4), 0, MAX_SKY_ORDER))
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
    of_real, of_other, of_made = (np.bincount(cells(t.slice(0, stars)), minlength=bins) for t in (real, other_real, made))
    distance, noise = (float(np.abs(counts - of_other).sum() / (2 * stars)) for counts in (of_made, of_real))
    ratio = distance / noise if noise > 0 else NAN
    return HistogramDistance(distance=distance, real_against_real=noise, in_units_of_real=ratio, stars=stars, bins=bins)


def _hr_cells(real: pa.Table, other_real: pa.Table, release: Release) -> Callable[[pa.Table], NDArray[np.int64]]:
    pooled = np.concatenate([hr_position(real, release), hr_position(other_real, release)], axis=1)
    edges = [_inner_edges(axis[np.isfinite(axis)]) for axis in pooled]

    def cells(table: pa.Table) -> NDArray[np.int64]:
        axes = hr_position(table, release)
        colour, magnitude = (np.searchsorted(inner, axis) for inner, axis in zip(edges, axes, strict=True))
        return np.where(np.isfinite(axes).all(axis=0), colour * HR_BINS + magnitude, HR_BINS**2)

    return cells


def _inner_edges(known: Floats) -> Floats:
    low, high = np.quantile(known, [0.005, 0.995]) if len(known) else (0.0, 0.0)
    return np.linspace(float(low), float(high), HR_BINS + 1)[1:-1]


def velocity_dispersions(real: pa.Table, made: pa.Table) -> tuple[Dispersion, ...]:
    """Dispersions of tangential velocities, real and made, in bins of colour that have equal numbers of real stars.

    Of the stars with a colour and a parallax above 0; each star is in the bin of its own table's colour.
    """
    of_real, of_made = _colour_and_velocities(real), _colour_and_velocities(made)
    if not len(of_real):
        return ()
    edges = np.unique(np.quantile(of_real[:, 0], np.linspace(0, 1, COLOUR_BINS + 1)))
    return tuple(_dispersion(of_real, of_made, float(low), float(high)) for low, high in itertools.pairwise(edges))


def _dispersion(of_real: Floats, of_made: Floats, low: float, high: float) -> Dispersion:
    """Dispersions of rows of colour and velocities with a colour from `low` to `high`, edges included."""
    real, made = (rows[(rows[:, 0] >= low) & (rows[:, 0] <= high)] for rows in (of_real, of_made))
    (real_ra, real_dec), (made_ra, made_dec) = _half_width(real), _half_width(made)
    return Dispersion(
        bp_rp_from=low, bp_rp_to=high, stars=len(real),
        real_ra_km_s=real_ra, made_ra_km_s=made_ra, real_dec_km_s=real_dec, made_dec_km_s=made_dec,
    )  # fmt: skip


def _colour_and_velocities(table: pa.Table) -> Floats:
    rows = np.stack([values(table, "bp_rp"), *tangential_velocities(table)], axis=1)
    return rows[np.isfinite(rows).all(axis=1)]


def _half_width(rows: Floats) -> tuple[float, float]:
    if not len(rows):
        return NAN, NAN
    low, high = np.quantile(rows[:, 1:], [0.16, 0.84], axis=0)
    return float(high[0] - low[0]) / 2, float(high[1] - low[1]) / 2


def density_coverage(
    real: pa.Table, made: pa.Table, release: Release, rows: int = NEIGHBOUR_ROWS, k: int = NEIGHBOURS
) -> DensityCoverage:
    """Density and coverage of `made` among `real` stars, distances between `Standardised` stars.

    The tables must be of different stars: a star's rebuilt self lies in its own neighbourhood by construction. Takes at most
    `rows` stars of each. Raises DataError where a side has not more than k stars.
    """
    n = min(rows, real.num_rows, made.num_rows)
    if n <= k:
        raise DataError(f"density and coverage with {k} neighbours need more than {k} stars on each side, found {n}")
    random = np.random.default_rng(0)
    real, made = sampled(real, n, random), sampled(made, n, random)
    standardised = Standardised(real, made, release)
    x, y = standardised(real), standardised(made)
    with threadpool_limits(limits=1):
        # The nearest real star of a real star is itself: k + 1.
        radius = np.sort(_squared_distances_k(x, x, k + 1), axis=1)[:, k]
        inside, covered = 0, 0
        for start in range(0, n, _CHUNK_ROWS):
            chunk = slice(start, start + _CHUNK_ROWS)
            is_near = _squared_distances(x[chunk], y) <= radius[chunk, None]
            inside += int(is_near.sum())
            covered += int(is_near.any(axis=1).sum())
    return DensityCoverage(density=inside / (k * n), coverage=covered / n, neighbours=k, stars=n)


def nearer_to_train(samples: pa.Table, train: pa.Table, test: pa.Table, release: Release, rows: int = NEIGHBOUR_ROWS) -> float:
    """Share of samples whose nearest train star is nearer than the nearest of as many test stars: 0.5 where nothing is copied.

    Distances between `Standardised` stars, the standard taken from train and test stars together; a tie counts half. Takes at
    most `rows` of each. Raises DataError where a table is empty.
    """
    n = min(rows, train.num_rows, test.num_rows)
    if not n or not samples.num_rows:
        raise DataError("nearer_to_train needs samples, train and test stars; one of the three tables is empty")
    random = np.random.default_rng(0)
    train, test, samples = sampled(train, n, random), sampled(test, n, random), sampled(samples, rows, random)
    reference = pa.concat_tables([t.select(_common(train, test)) for t in (train, test)])
    standardised = Standardised(reference, samples, release)
    to_train, to_test = (_nearest(standardised(t), standardised(samples)) for t in (train, test))
    return float(np.mean(to_train < to_test) + np.mean(to_train == to_test) / 2)


def _common(one: pa.Table, other: pa.Table) -> list[str]:
    return [n for n in one.column_names if n in other.column_names]


class Standardised:
    """Stars as points between which distances mean something: free columns, each standardised on reference stars.

    A column's values become normal scores of the reference stars' (mean 0, standard deviation 1 whatever the tails; a
    plain z-score would leave fluxes and parallaxes as one lump and a few outliers); a null becomes 0. Position becomes
    its unit vector, each axis divided by its standard deviation. Derived columns follow from the others and are left out.
    """

    def __init__(self, reference: pa.Table, other: pa.Table, release: Release) -> None:
        names = number_columns(reference, other, release)
        has_position = {RA, DEC} <= set(names)
        left_out = {*release.derivable(names), *((RA, DEC) if has_position else ())}
        self._sorted = {n: _known_sorted(values(reference, n)) for n in names if n not in left_out}
        self._axis_sd = _sd(_vectors(reference)) if has_position else None

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


# By hand, not scikit-learn's: neighbourhoods and the distances compared with them must be of one formula, ties alike.
def _squared_distances(x: Floats, y: Floats) -> Floats:
    """Squared distances, shape (len(x), len(y))."""
    distances = x @ y.T
    distances *= -2
    distances += (x**2).sum(axis=1)[:, None]
    distances += (y**2).sum(axis=1)
    return np.maximum(distances, 0.0, out=distances)


def _squared_distances_k(x: Floats, y: Floats, k: int) -> Floats:
    """The k smallest squared distances of each x to the y, in no order, shape (len(x), k)."""
    chunks = range(0, len(x), _CHUNK_ROWS)
    return np.concatenate([np.partition(_squared_distances(x[i : i + _CHUNK_ROWS], y), k - 1, axis=1)[:, :k] for i in chunks])


def _nearest(stars: Floats, samples: Floats) -> Floats:
    """Distance of each sample to the nearest star; exactly 0 for a copy."""
    with threadpool_limits(limits=1):
        return NearestNeighbors(n_neighbors=1, algorithm="kd_tree").fit(stars).kneighbors(samples)[0][:, 0]
