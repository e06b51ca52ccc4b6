"""Predictions: the mean and the size of the residual of each value, as sums of table entries over the column's parents."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaiadask.codec.bounds import Floats
from gaiadask.codec.card import CELLS, STEPS, Prediction
from gaiadask.codec.stars import Stars

# A mean and a scale are added in one whole number: the scale in the low bits, never negative.
_SCALE_BITS = 20
_SCALE_MASK = (1 << _SCALE_BITS) - 1
_BLOCK = 16_384
MOST_MEAN = 1 << 38
"""Largest entry of a table of means, so that a sum of some tens of them fits."""

Rows = NDArray[np.int64] | None
"""Numbers of stars; None: all."""


class Predicted(NamedTuple):
    """What is predicted of each star's value, shape (stars,) each.

    Attributes:
        mean: in the column's space.
        scale: log2 of the residual's size in steps, in octaves / SCALE_UNIT, from an arbitrary zero.
    """

    mean: Floats
    scale: NDArray[np.int64]


def predict(prediction: Prediction, stars: Stars, rows: Rows) -> Predicted:
    """The prediction of a column for some stars, whose features must have been coded."""
    tables, sky_table = _tables(prediction)
    parents = [(stars.feature(p.feature), table, p.slope) for p, table in zip(prediction.parents, tables, strict=True)]
    mean, scale, entry = np.empty(stars.rows), np.empty(stars.rows, np.int64), np.empty(_BLOCK, np.int64)
    line = np.empty(_BLOCK)
    # A block at a time, in the processor's cache; one addition after the other, so that a block's size decides no bit.
    for start in range(0, stars.rows, _BLOCK):
        part = slice(start, min(start + _BLOCK, stars.rows))
        total, entry, line = scale[part], entry[: part.stop - start], line[: part.stop - start]
        total[:] = prediction.mean << _SCALE_BITS
        for feature, table, _ in parents:
            total += np.take(table, feature.steps[part], out=entry, mode="clip")
        if sky_table is not None:
            total += np.take(sky_table, stars.sky[part], out=entry, mode="clip")
        np.right_shift(total, _SCALE_BITS, out=entry)
        np.multiply(entry, prediction.unit, out=mean[part])
        for feature, _, slope in parents:
            if slope:
                mean[part] += np.multiply(feature.above[part], slope, out=line)
        total &= _SCALE_MASK
    # Of all stars and then some: cheaper than to look up each parent of some.
    return Predicted(mean, scale) if rows is None else Predicted(mean[rows], scale[rows])


def expanded(knots: NDArray[np.int64]) -> NDArray[np.int64]:
    """A table's entry at each coordinate, from its entries at the knots and, last, at null."""
    steps = np.arange(CELLS * STEPS + 1)
    cell = np.minimum(steps // STEPS, CELLS - 1)
    within = steps - cell * STEPS
    between = (knots[cell] * (STEPS - within) + knots[cell + 1] * within + STEPS // 2) // STEPS
    return np.append(between, knots[-1])


@lru_cache(maxsize=256)
def _tables(prediction: Prediction) -> tuple[list[NDArray[np.int64]], NDArray[np.int64] | None]:
    """Each parent's table and the sky's, mean and scale in one number."""
    tables = [_joined(expanded(np.array(p.mean, np.int64)), expanded(np.array(p.scale, np.int64))) for p in prediction.parents]
    if not prediction.sky_mean:
        return tables, None
    return tables, _joined(np.array(prediction.sky_mean, np.int64), np.array(prediction.sky_scale, np.int64))


def _joined(mean: NDArray[np.int64], scale: NDArray[np.int64]) -> NDArray[np.int64]:
    return (mean << _SCALE_BITS) + scale
