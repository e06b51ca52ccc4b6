"""Grids: a measured value as a whole number of steps from its prediction, each star with a step of its own.

A step is twice the bound, so that the nearest one is within it. Steps and predictions are made from what is decoded already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaiadask.codec import loops
from gaiadask.codec.bounds import Floats, Tolerance
from gaiadask.codec.card import ColumnCode
from gaiadask.codec.nulls import Mask, masked
from gaiadask.codec.prediction import predict
from gaiadask.codec.stars import Stars
from gaiadask.compiled import fixed
from gaiadask.elementary import exp2, log2
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import Release

MARGIN = 1 - 2.0**-10
"""By which steps are smaller than the bound asks for: degrees in float64, and float32, are not fine enough for all of it."""
MOST_STEPS = 2.0**40
"""Of a value that is coded in steps; one further away is an exception."""
_ENDS = {RA: loops.TURN, DEC: loops.POLES}
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
        null: which have no value; None: all have one.
        mean: predicted value in the column's space; where it is a logarithm, of the value.
        origin: the value at step 0, in the column's unit; of a relative bound, its logarithm.
        errors: of each star: the step is `code.step` times its error, or times 1 where there are none.
        levels: predicted size of the residual, for the piles; None: one pile.
    """

    code: ColumnCode
    null: Mask
    mean: Floats
    origin: Floats
    errors: Floats | None
    levels: NDArray[np.int32] | None

    @classmethod
    def of(cls, code: ColumnCode, stars: Stars, null: Mask, release: Release) -> Grid:
        """The grid of the stars' values, once the columns that it depends on are coded."""
        if code.prediction is None:
            mean, levels = np.zeros(stars.rows), None
        else:
            mean, levels = predict(code.prediction, stars)
        is_log = code.space == "log"
        if code.offset != "none":
            offset = stars.centre(code.name) if code.offset == "centre" else stars.formula(code.name, release)
            mean += log2(offset) if is_log else offset
        origin = exp2(mean) if is_log and code.tolerance.kind != "relative" else mean
        return cls(code, null, mean, origin, _errors(code, stars), levels)

    @property
    def step(self) -> Floats:
        """Of each star."""
        return np.full(len(self.mean), self._unit) if self.errors is None else self._unit * self.errors

    def steps(self, values: Floats) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The nearest step to each value, and whether there is none."""
        if self.code.tolerance.kind == "relative":
            values = log2(values)
        steps, wrong = np.empty(len(values), np.int64), np.empty(len(values), np.bool_)
        loops.nearest(fixed(values), self._ruler, MOST_STEPS, masked(self.null), steps, wrong)
        return steps, wrong

    def values(self, steps: NDArray[np.int64]) -> Floats:
        """The value at each step; NaN where null."""
        values, tolerance = np.empty(len(steps)), self.code.tolerance
        loops.placed(fixed(steps), self._ruler, masked(self.null), values)
        if tolerance.kind == "relative":
            values = exp2(values)
            values *= np.sqrt(1 - tolerance.amount * tolerance.amount)
        return values

    @property
    def _ruler(self) -> loops.Ruler:
        ends = loops.WHOLE if self.code.tolerance.kind == "exact" else _ENDS.get(self.code.name, loops.NO_END)
        return loops.Ruler(fixed(self.origin), self._unit, fixed(loops.NONE if self.errors is None else self.errors), ends)

    @property
    def _unit(self) -> float:
        """One step, in units of the errors."""
        return 1.0 if self.code.name == RA and self.errors is not None else self.code.step


def _errors(code: ColumnCode, stars: Stars) -> Floats | None:
    if code.tolerance.kind != "sigma":
        return None
    errors = stars.values[code.tolerance.error]
    if code.name != RA:
        return errors
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.minimum(code.step * errors / stars.cos_dec, _WIDEST_RA_STEP)
