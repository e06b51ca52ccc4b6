"""Continuous piecewise-linear functions, evaluated by way of a table instead of a search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.uint32]

# Equal intervals between the first and the last knot. Of 512 knots evenly spaced in normal score few share one of so many; the table
# takes 16 kB, which a processor's nearest cache holds.
_INTERVALS = 4_096


@dataclass(frozen=True, eq=False)
class Pieces:
    """A continuous piecewise-linear function of all numbers, by its knots; a piece is numbered by the knots at or below it.

    The piece of a number is found from the interval it lies in, of `_INTERVALS` equal ones: `starts` has the number of knots in the
    intervals below, and what knots share an interval are told apart in `steps` halvings. Nearly always that is one comparison, where
    a search among 512 knots takes nine, none of which a processor can foresee.

    Attributes:
        at, to: the knots, ascending in both, shape (k,).
        slopes: of the piece below the first knot, of those between, of the one above the last; shape (k + 1,).
        first, per_unit: interval of x: (x - first) * per_unit, cut to whole numbers from 0 to the last interval.
        starts: shape (intervals,).
        steps: halvings that tell apart the knots of any one interval.
    """

    at: Floats
    to: Floats
    slopes: Floats
    first: float
    per_unit: float
    starts: Numbers
    steps: int

    @classmethod
    def through(cls, at: Floats, to: Floats, low: float, high: float) -> Pieces:
        """Through knots, two at least, with the slopes `low` below the first and `high` above the last."""
        slopes = np.concatenate([[low], np.diff(to) / np.diff(at), [high]])
        per_unit = _INTERVALS / (at[-1] - at[0])
        counts = np.bincount(_interval(at, at[0], per_unit), minlength=_INTERVALS)
        starts = (np.cumsum(counts) - counts).astype(np.uint32)
        return cls(at, to, slopes, float(at[0]), float(per_unit), starts, int(counts.max()).bit_length())

    @property
    def padded(self) -> Floats:
        """The knots and, beyond the last, infinity for every one that a halving may look at."""
        return np.concatenate([self.at, np.full(1 << self.steps, np.inf)])

    @property
    def anchors(self) -> tuple[Floats, Floats]:
        """A knot of each piece, x and value, shape (k + 1,): the one that it begins at, of the lowest piece the one that it ends at."""
        return np.concatenate([self.at[:1], self.at]), np.concatenate([self.to[:1], self.to])

    def value(self, x: Floats) -> Floats:
        """The function's values, shape (n,), at numbers of that shape; NaN of NaN."""
        from gaiadask.inputs import loops  # here: numba takes half a second to import

        out = np.empty(len(x))
        loops.interpolate(x, self.piece(x), *self.anchors, self.slopes, out)
        return out

    def slope(self, x: Floats) -> Floats:
        """The slope of the piece that each number lies on, shape (n,); at a knot, of the one above."""
        return self.slopes.take(self.piece(x), mode="clip")

    def piece(self, x: Floats) -> Numbers:
        """Number of knots at or below each number, shape (n,)."""
        from gaiadask.inputs import loops

        piece = np.empty(len(x), np.uint32)
        loops.find(x, self.starts, self.padded, self.first, self.per_unit, self.steps, piece)
        return piece


def _interval(x: Floats, first: float, per_unit: float) -> NDArray[np.intp]:
    """Number of each number's interval, shape (n,), as `loops.find` has it."""
    return np.clip((x - first) * per_unit, 0, _INTERVALS - 1).astype(np.intp)
