"""Least squares on tables: what each of several features adds to a number, as a line and a piecewise linear function of it.

The functions of a feature are given at its knots; a value between two knots is linear between them. Closed form: the normal
equations of some hundred unknowns, and the pixels of the sky in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from gaiadask.codec.bounds import Floats
from gaiadask.codec.card import CELLS, NULL_COORDINATE, SKY_PIXELS, STEPS
from gaiadask.codec.loops import Coordinates

ENTRIES = CELLS + 2
"""Of a table: at each knot, and at null."""
_BENDING = 0.6
"""Weight of the tables' second differences, in stars: keeps cells that few stars are in from following each of them."""
_SIZE = 1e-4
"""Weight of the tables' entries, as a share of the stars: what a line can say is left to the line."""
_PIXEL_STARS = 30.0
"""Stars that a pixel of the sky must have for half of its mean to be believed."""
_ROUNDS = 2


class Sums(NamedTuple):
    """A fitted sum.

    Attributes:
        constant: of all stars.
        tables: shape (features, ENTRIES).
        slopes: of each feature's number above the lower end of its range.
        sky: shape (SKY_PIXELS,).
    """

    constant: float
    tables: Floats
    slopes: Floats
    sky: Floats


class Design:
    """The stars' features as a sparse matrix, for several fits with different targets and weights."""

    def __init__(self, features: Sequence[Coordinates], sky: NDArray[np.int64]) -> None:
        self._sky, self._count = sky, len(features)
        rows = len(sky)
        places, weights = [], []
        self._widths = np.array([max(f.above.max(initial=0.0), 1e-300) for f in features])
        for number, feature in enumerate(features):
            null = feature.steps == NULL_COORDINATE
            cell = np.minimum(feature.steps // STEPS, CELLS - 1).astype(np.int64)
            within = np.where(null, 0.0, (feature.steps - cell * STEPS) / STEPS)
            cell = np.where(null, ENTRIES - 1, cell)
            base = number * ENTRIES
            places += [base + cell, base + np.minimum(cell + 1, ENTRIES - 1)]
            weights += [1 - within, within]
        lines = self._count * ENTRIES
        for number, feature in enumerate(features):
            places.append(np.full(rows, lines + number))
            weights.append(feature.above / self._widths[number])
        self._unknowns = lines + self._count
        if places:
            starts = np.arange(0, rows * len(places) + 1, len(places))
            data, indices = np.stack(weights, axis=1).ravel(), np.stack(places, axis=1).ravel()
            self._matrix = sparse.csr_matrix((data, indices, starts), shape=(rows, self._unknowns))

    def fit(self, target: Floats, weights: Floats | None = None) -> tuple[Sums, Floats]:
        """The weighted least-squares sum for a target, and its value for each star.

        Args:
            target: shape (stars,).
            weights: of each star, shape (stars,); their mean is taken as 1. None: all the same.
        """
        system = self._unweighted if weights is None else self._system(weights / weights.mean())
        weights = np.ones(len(target)) if weights is None else weights / weights.mean()
        constant = float(np.average(target, weights=weights))
        left = target - constant
        unknowns, sky, linear = np.zeros(self._unknowns), np.zeros(SKY_PIXELS), np.zeros(len(target))
        stars_of_pixel = np.bincount(self._sky, weights, SKY_PIXELS)
        for _ in range(_ROUNDS):
            if self._count:
                weighted, normal = system
                unknowns = np.linalg.solve(normal, weighted.T @ (left - sky[self._sky]))
                linear = self._matrix @ unknowns
            sky = np.bincount(self._sky, weights * (left - linear), SKY_PIXELS) / (stars_of_pixel + _PIXEL_STARS)
        tables, slopes = np.split(unknowns, [self._count * ENTRIES])
        sums = Sums(constant, tables.reshape(self._count, ENTRIES), slopes / self._widths, sky)
        return sums, constant + linear + sky[self._sky]

    @cached_property
    def _unweighted(self) -> tuple[Any, Floats]:
        return self._system(None)

    def _system(self, weights: Floats | None) -> tuple[Any, Floats]:
        """The weighted matrix, and that of the normal equations."""
        if not self._count:
            return None, np.zeros((0, 0))
        weighted = self._matrix if weights is None else self._matrix.multiply(weights[:, None]).tocsr()
        return weighted, np.asarray((self._matrix.T @ weighted).todense()) + self._penalty(self._matrix.shape[0])

    def _penalty(self, rows: int) -> Floats:
        bend = np.zeros((CELLS - 1, ENTRIES))
        for knot in range(CELLS - 1):
            bend[knot, knot : knot + 3] = (1, -2, 1)
        table = _BENDING * bend.T @ bend + _SIZE * rows * np.eye(ENTRIES)
        penalty = np.zeros((self._unknowns, self._unknowns))
        for number in range(self._count):
            part = slice(number * ENTRIES, (number + 1) * ENTRIES)
            penalty[part, part] = table
        lines = np.arange(self._count * ENTRIES, self._unknowns)
        penalty[lines, lines] = 1e-9 * rows
        return penalty


def gain(cells: NDArray[np.int64], left: Floats, sizes: Floats, weights: Floats) -> float:
    """Bits a star that a feature may save, estimated: by the share of the variance that its cells explain, and by how much the size
    of the residual differs between them.

    Args:
        cells: of the feature, below ENTRIES, shape (stars,).
        left: residuals of the mean.
        sizes: log2 of the residuals' size, less the predicted.
        weights: of the stars in the mean.
    """
    weight = np.bincount(cells, weights, ENTRIES)
    mean = np.bincount(cells, weights * left, ENTRIES) / (weight + 1e-9)
    explained = np.sum(weight * mean * mean) / max(float(np.sum(weights * left * left)), 1e-300)
    count = np.bincount(cells, minlength=ENTRIES)
    size = np.bincount(cells, sizes, ENTRIES) / (count + 1e-9)
    scatter = np.sum(count * (size - sizes.mean()) ** 2) / len(cells)
    # Of normal residuals whose log2 size scatters by s, the mean code is shorter by 0.35 s^2 bits (ln 2 / 2).
    return float(-0.5 * np.log2(max(1e-9, 1 - explained)) + 0.5 * np.log(2) * scatter)
