"""Least squares on tables: what each of several features adds to a number, as a line and a piecewise linear function of it.

The functions of a feature are given at its knots; a value between two knots is linear between them. Closed form: the normal
equations of some hundred unknowns, and the pixels of the sky in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaiadask.codec.bounds import Floats
from gaiadask.codec.card import CELLS, SKY_PIXELS, STEPS
from gaiadask.codec.loops import Coordinates
from gaiadask.compiled import compiled, fixed

ENTRIES = CELLS + 2
"""Of a table: at each knot, and at null."""
_BENDING, FIRST_BENDING, _MOST_BENDING = 0.6, 10.0, 1e5
"""Weight of the tables' second differences, in stars: keeps cells that few stars are in from following each of them. The least, which
choosing takes; what estimating it from the stars begins with; the largest."""
_SIZE = 1e-4
"""Weight of the tables' entries, as a share of the stars: what a line can say is left to the line."""
_PIXEL_STARS = 30.0
"""Stars that a pixel of the sky must have for half of its mean to be believed."""
_ROUNDS = 2
FEW_STARS = 30_000
"""A sample of fewer does not fill the piles of a chunk, and what features seem to save in it by chance alone is worth counting."""

_SECOND_DIFFERENCES = np.diff(np.eye(CELLS + 1, ENTRIES), 2, axis=0)
"""Of a table's entries at the knots, shape (CELLS - 1, ENTRIES)."""

_STEPS = np.arange(CELLS * STEPS + 1)
_CELLS = np.append(np.minimum(_STEPS // STEPS, CELLS - 1), ENTRIES - 1)
"""Cell of each coordinate, and last of null."""
_NEIGHBOURS = np.stack([_CELLS, np.minimum(_CELLS + 1, ENTRIES - 1)], axis=1)
_SHARES = np.append(_STEPS / STEPS - _CELLS[:-1], 0.0)

Cells = NDArray[np.uint8]


class Sums(NamedTuple):
    """A fitted sum.

    Attributes:
        constant: of all stars.
        tables: shape (features, ENTRIES).
        slopes: of each feature's number above the lower end of its range.
        sky: shape (SKY_PIXELS,).
        bending: penalty of each table that the target asks for, shape (features,), for the next fit; None: it is not estimated.
    """

    constant: float
    tables: Floats
    slopes: Floats
    sky: Floats
    bending: Floats | None


class _Terms(NamedTuple):
    """What the stars' sums are made of: of each feature two neighbouring entries of its table and its line.

    Attributes:
        steps, above: coordinates of all features there are, shape (features, stars).
        features: numbers of those in the sum.
        rows: numbers of the stars.
        widths: largest number above the lower end, of each feature in the sum: lines go from 0 to 1.
        entries: the two entries that are between each coordinate, shape (coordinates, 2).
        shares: of the upper one.
    """

    steps: NDArray[np.uint16]
    above: Floats
    features: NDArray[np.int64]
    rows: NDArray[np.int64]
    widths: Floats
    entries: NDArray[np.int64]
    shares: Floats


class Design:
    """Stars and their features, for several fits with different targets and weights."""

    def __init__(self, coordinates: Coordinates, features: Sequence[int], rows: NDArray[np.int64], sky: NDArray[np.int64]) -> None:
        """coordinates: of all features; features, rows: numbers of those that are added up, and of the stars; sky: pixel of each."""
        self._sky, self._count = sky, len(features)
        self._unknowns = self._count * (ENTRIES + 1)
        widths = np.array([max(coordinates.above[number, rows].max(initial=0.0), 1e-300) for number in features])
        numbers = np.array(features, np.int64)
        steps, above = coordinates
        self._terms = _Terms(
            fixed(steps), fixed(above), fixed(numbers), fixed(rows), fixed(widths), fixed(_NEIGHBOURS), fixed(_SHARES)
        )

    def fit(self, target: Floats, weights: Floats | None = None, bending: Floats | None = None) -> tuple[Sums, Floats]:
        """The weighted least-squares sum for a target, and its value for each star.

        Args:
            target: shape (stars,).
            weights: of each star, shape (stars,); their mean is taken as 1. None: all the same.
            bending: penalty of each table's bending, shape (features,), of which a better one is estimated; None: the least of all.
        """
        normal = self._unweighted if weights is None else self._normal(weights / weights.mean())
        penalised = normal + self._penalty(np.full(self._count, _BENDING) if bending is None else bending)
        weights = np.ones(len(target)) if weights is None else weights / weights.mean()
        constant = float(np.average(target, weights=weights))
        left = target - constant
        unknowns, sky, linear = np.zeros(self._unknowns), np.zeros(SKY_PIXELS), np.zeros(len(target))
        stars_of_pixel = np.bincount(self._sky, weights, SKY_PIXELS)
        for _ in range(_ROUNDS):
            if self._count:
                right = np.zeros(self._unknowns)
                _projected(self._terms, fixed(weights * (left - sky[self._sky])), right)
                unknowns[:] = np.linalg.solve(penalised, right)
                _added_up(self._terms, fixed(unknowns), linear)
            sky = np.bincount(self._sky, weights * (left - linear), SKY_PIXELS) / (stars_of_pixel + _PIXEL_STARS)
        tables, slopes = np.split(unknowns, [self._count * ENTRIES])
        tables = tables.reshape(self._count, ENTRIES)
        if bending is not None:
            bending = self._asked_for(
                bending, tables, normal, penalised, float(np.sum(weights * (left - linear - sky[self._sky]) ** 2))
            )
        sums = Sums(constant, tables, slopes / self._terms.widths, sky, bending)
        return sums, constant + linear + sky[self._sky]

    def _asked_for(self, bending: Floats, tables: Floats, normal: Floats, penalised: Floats, squares: float) -> Floats:
        """A better penalty of each table: the residuals' variance over that of the second differences, as far as the stars say them
        (one step of Fellner and Schall's, towards the largest restricted likelihood)."""
        if not self._count:
            return bending
        inverse = np.linalg.inv(penalised)
        variance = squares / max(len(self._sky) - float(np.sum(inverse * normal)), 1.0)
        blocks = [slice(number * ENTRIES, (number + 1) * ENTRIES) for number in range(self._count)]
        unsure = np.array([np.sum((_SECOND_DIFFERENCES @ inverse[block, block]) * _SECOND_DIFFERENCES) for block in blocks])
        bent = np.sum((tables @ _SECOND_DIFFERENCES.T) ** 2, axis=1)
        asked: Floats = variance * ((CELLS - 1) / bending - unsure) / np.maximum(bent, 1e-300)
        return np.clip(asked, _BENDING, _MOST_BENDING)

    @cached_property
    def _unweighted(self) -> Floats:
        return self._normal(np.ones(len(self._sky)))

    def _normal(self, weights: Floats) -> Floats:
        """The matrix of the normal equations, without the penalty."""
        upper = np.zeros((self._unknowns, self._unknowns))
        _normal_equations(self._terms, fixed(weights), upper)
        return upper + np.triu(upper, 1).T

    def _penalty(self, bending: Floats) -> Floats:
        rows = len(self._sky)
        penalty = np.zeros((self._unknowns, self._unknowns))
        for number in range(self._count):
            part = slice(number * ENTRIES, (number + 1) * ENTRIES)
            penalty[part, part] = bending[number] * _SECOND_DIFFERENCES.T @ _SECOND_DIFFERENCES + _SIZE * rows * np.eye(ENTRIES)
        lines = np.arange(self._count * ENTRIES, self._unknowns)
        penalty[lines, lines] = 1e-9 * rows
        return penalty


def cells_of(steps: NDArray[np.uint16]) -> Cells:
    """The cell of each coordinate, and that of null, below ENTRIES."""
    return _CELLS.astype(np.uint8)[steps]


def gains(cells: Cells, left: Floats, sizes: Floats, weights: Floats, by_chance: float) -> Floats:
    """Bits a star that each of several features may save, estimated: by the share of the variance that its cells explain, and by how
    much the size of the residual differs between them.

    Args:
        cells: of each feature, below ENTRIES, shape (features, stars).
        left: residuals of the mean.
        sizes: log2 of the residuals' size, less the predicted.
        weights: of the stars in the mean.
        by_chance: how often what cells that say nothing seem to explain is taken off: once, and what is left is expected of the cells;
            twice, and it is expected among other stars, to which what was learned by chance does as much harm.
    """
    sums = np.zeros((len(cells), ENTRIES, 4))
    _sums_by_cell(fixed(cells), fixed(np.stack([weights, weights * left, sizes], axis=1)), sums)
    weight, mean, size, count = np.moveaxis(sums, 2, 0)
    mean, size = mean / (weight + 1e-9), size / (count + 1e-9)
    explained = np.sum(weight * mean * mean, axis=1) / max(float(np.sum(weights * left * left)), 1e-300)
    scatter = np.sum(count * (size - sizes.mean()) ** 2, axis=1) / cells.shape[1]
    chance = by_chance * (np.count_nonzero(count, axis=1) - 1) / max(cells.shape[1], 1)
    explained, scatter = explained - chance, scatter - chance * sizes.var()
    # Of normal residuals whose log2 size scatters by s, the mean code is shorter by 0.35 s^2 bits (ln 2 / 2).
    gained: Floats = -0.5 * np.log2(np.maximum(1e-9, 1 - explained)) + 0.5 * np.log(2) * scatter
    return gained


# Loops over stars, compiled -------------------------------------------------------------------------------------------
@compiled
def _row(terms: _Terms, star: int, places: NDArray[np.int64], values: Floats) -> None:
    """What a star's sum takes: the unknowns' numbers, rising, and their factors."""
    count = len(terms.features)
    entries = terms.entries[-1, 0] + 1
    for k in range(count):
        feature, row = terms.features[k], terms.rows[star]
        step = terms.steps[feature, row]
        share = terms.shares[step]
        places[2 * k], values[2 * k] = k * entries + terms.entries[step, 0], 1.0 - share
        places[2 * k + 1], values[2 * k + 1] = k * entries + terms.entries[step, 1], share
        places[2 * count + k], values[2 * count + k] = count * entries + k, terms.above[feature, row] / terms.widths[k]


@compiled
def _normal_equations(terms: _Terms, weights: Floats, out: Floats) -> None:
    """Add up the products of each star's factors, above the diagonal and on it."""
    places, values = np.empty(3 * len(terms.features), np.int64), np.empty(3 * len(terms.features))
    for i in range(len(weights)):
        _row(terms, i, places, values)
        for a in range(len(places)):
            weighted = weights[i] * values[a]
            if weighted != 0:
                for b in range(a, len(places)):
                    out[places[a], places[b]] += weighted * values[b]


@compiled
def _projected(terms: _Terms, numbers: Floats, out: Floats) -> None:
    """Add up each star's factors times its number."""
    places, values = np.empty(3 * len(terms.features), np.int64), np.empty(3 * len(terms.features))
    for i in range(len(numbers)):
        _row(terms, i, places, values)
        for a in range(len(places)):
            out[places[a]] += values[a] * numbers[i]


@compiled
def _added_up(terms: _Terms, unknowns: Floats, out: Floats) -> None:
    """Each star's sum."""
    places, values = np.empty(3 * len(terms.features), np.int64), np.empty(3 * len(terms.features))
    for i in range(len(out)):
        _row(terms, i, places, values)
        total = 0.0
        for a in range(len(places)):
            total += values[a] * unknowns[places[a]]
        out[i] = total


@compiled
def _sums_by_cell(cells: Cells, numbers: Floats, out: Floats) -> None:
    """Sums of the stars' three numbers, and the stars, in each cell of each feature."""
    for feature in range(len(cells)):
        for i in range(len(numbers)):
            cell = cells[feature, i]
            for k in range(3):
                out[feature, cell, k] += numbers[i, k]
            out[feature, cell, 3] += 1
