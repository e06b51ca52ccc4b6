"""Predictions: the mean and the size of the residual of each value, as sums of table entries over the column's parents."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaiadask.codec import loops
from gaiadask.codec.bounds import Floats
from gaiadask.codec.card import CELLS, NULL_COORDINATE, STEPS, Prediction
from gaiadask.codec.loops import Coordinates, Tables
from gaiadask.codec.stars import Stars
from gaiadask.compiled import fixed

MOST_MEAN = 1 << 38
"""Largest entry of a table of means, so that a sum of some tens of them fits."""

_NONE = fixed(np.zeros(0, np.int64))


class Predicted(NamedTuple):
    """What is predicted of each star's value, shape (stars,) each.

    Attributes:
        mean: in the column's space.
        levels: log2 of the residual's size in steps, in half octaves, from an arbitrary zero; 0 or more.
    """

    mean: Floats
    levels: NDArray[np.int32]


def predict(prediction: Prediction, stars: Stars) -> Predicted:
    """The prediction of a column for all stars, whose features must have been coded."""
    tables = _tables(prediction)
    steps, above = stars.coordinates(tables.features.tolist())
    made = Predicted(np.empty(stars.rows), np.empty(stars.rows, np.int32))
    loops.summed(tables, Coordinates(fixed(steps), fixed(above)), fixed(stars.sky) if len(tables.sky) else _NONE, *made)
    return made


def expanded(knots: NDArray[np.int64]) -> NDArray[np.int64]:
    """A table's entry at each coordinate, from its entries at the knots and, last, at null."""
    steps = np.arange(CELLS * STEPS + 1)
    cell = np.minimum(steps // STEPS, CELLS - 1)
    within = steps - cell * STEPS
    between = (knots[cell] * (STEPS - within) + knots[cell + 1] * within + STEPS // 2) // STEPS
    return np.append(between, knots[-1])


@lru_cache(maxsize=256)
def _tables(prediction: Prediction) -> Tables:
    parents = [_joined(expanded(np.array(p.mean, np.int64)), expanded(np.array(p.scale, np.int64))) for p in prediction.parents]
    return Tables(
        prediction.mean,
        prediction.unit,
        fixed(np.array(parents, np.int64).reshape(len(parents), NULL_COORDINATE + 1)),
        fixed(np.array([parent.feature for parent in prediction.parents], np.int64)),
        fixed(np.array([parent.slope for parent in prediction.parents], np.float64)),
        fixed(_joined(np.array(prediction.sky_mean, np.int64), np.array(prediction.sky_scale, np.int64))),
    )


def _joined(mean: NDArray[np.int64], scale: NDArray[np.int64]) -> NDArray[np.int64]:
    return (mean << loops.SCALE_BITS) + scale
