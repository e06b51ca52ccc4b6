"""Grids: a measured value as a whole number of steps from its prediction, each star with a step of its own.

A step is twice the bound, so that the nearest one is within it. Steps and predictions are made from what is decoded already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaiadask.codec.bounds import Floats, Tolerance
from gaiadask.codec.card import SCALE_UNIT, ColumnCode
from gaiadask.codec.prediction import Rows, predict
from gaiadask.codec.stars import Stars
from gaiadask.elementary import cos_degrees, exp2, log2
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import Release

MARGIN = 1 - 2.0**-10
"""By which steps are smaller than the bound asks for: degrees in float64, and float32, are not fine enough for all of it."""
MOST_STEPS = 2.0**40
"""Of a value that is coded in steps; one further away is an exception."""
_PILES_AN_OCTAVE = 2
_WIDEST_RA_STEP = 1.0
"""Degrees: near a pole every right ascension is within the bound."""


def step_of(tolerance: Tolerance, bounds: Mapping[str, Tolerance]) -> float:
    """A column's step, in the unit of `ColumnCode.step`.

    Args:
        tolerance: of the column.
        bounds: of every column: the decoded value of an error column may be too large by its own relative bound.
    """
    if tolerance.kind == "sigma":
        return 2 * tolerance.amount / (1 + bounds[tolerance.error].amount) * MARGIN
    if tolerance.kind == "relative":
        # From a to b = a (1 + t) / (1 - t) one value is within t of both: a (1 + t), which is b (1 - t).
        return float(np.log2((1 + tolerance.amount) / (1 - tolerance.amount))) * MARGIN
    return 2 * tolerance.amount * MARGIN if tolerance.kind == "absolute" else 1.0


class Grid(NamedTuple):
    """The grid of each star's value, shape (stars,) each.

    Attributes:
        code: of the column.
        mean: predicted value in the column's space; where it is a logarithm, of the value.
        origin: the value at step 0, in the column's unit; of a relative bound, its logarithm.
        step: of each star, or of all.
        levels: predicted size of the residual, for the piles; None: one pile.
    """

    code: ColumnCode
    mean: Floats
    origin: Floats
    step: Floats | float
    levels: NDArray[np.int64] | None

    @classmethod
    def of(cls, code: ColumnCode, stars: Stars, rows: Rows, release: Release) -> Grid:
        """The grid of some stars, once the columns that it depends on are coded."""
        count = stars.rows if rows is None else len(rows)
        mean, levels = np.zeros(count), None
        if code.prediction is not None:
            mean, scale = predict(code.prediction, stars, rows)
            levels = scale // (SCALE_UNIT // _PILES_AN_OCTAVE)
        is_log, relative = code.space == "log", code.tolerance.kind == "relative"
        if code.offset != "none":
            offset = _chosen(stars.centre(code.name), rows) if code.offset == "centre" else formula(code, stars, rows, release)
            mean = mean + (log2(offset) if is_log else offset)
        origin = exp2(mean) if is_log and not relative else mean
        return cls(code, mean, origin, _step(code, stars, rows), levels)

    def steps(self, value: Floats) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The nearest step to each value, and whether there is one."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            off = (np.log2(value) if self.code.tolerance.kind == "relative" else value) - self.origin
            if self.code.name == RA:
                off -= 360.0 * np.rint(off / 360.0)
            off = np.rint(off / self.step)
            near = np.abs(off) < MOST_STEPS
        off[~near] = 0.0
        return off.astype(np.int64), near

    def value(self, steps: NDArray[np.int64]) -> Floats:
        """The value at each step."""
        code, tolerance = self.code, self.code.tolerance
        with np.errstate(invalid="ignore", over="ignore"):
            if tolerance.kind == "exact":
                return np.asarray(np.rint(self.origin) + steps, np.float64)
            value = np.asarray(steps * np.asarray(self.step, np.float64), np.float64)
            value += self.origin
        if tolerance.kind == "relative":
            return exp2(value) * np.sqrt(1 - tolerance.amount * tolerance.amount)
        if code.name == DEC:
            return np.clip(value, -90.0, 90.0)
        if code.name == RA:
            value = np.where(value < 0, value + 360.0, value)
            return np.where(value >= 360.0, value - 360.0, value)
        return value


def formula(code: ColumnCode, stars: Stars, rows: Rows, release: Release) -> Floats:
    """A derived column from the columns that it follows from, of its own type as float64; NaN where it is undefined."""
    sources = release.columns[code.name].derived_from
    return release.derive({name: _chosen(stars.values[name], rows) for name in sources}, [code.name])[code.name].astype(np.float64)


def _step(code: ColumnCode, stars: Stars, rows: Rows) -> Floats | float:
    if code.tolerance.kind != "sigma":
        return code.step
    step = code.step * _chosen(stars.values[code.tolerance.error], rows)
    if code.name == RA:
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.minimum(step / cos_degrees(_chosen(stars.values[DEC], rows)), _WIDEST_RA_STEP)
    return step


def _chosen(values: Floats, rows: Rows) -> Floats:
    return values if rows is None else values[rows]
