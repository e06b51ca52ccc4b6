"""An encoding of columns in which many stars share a value: counts, flags, categories, templates, and what is 0 for many.

Such a value has an interval of scores to itself, its cell: as much of a normal distribution as stars have it. Any score in the cell comes
back as that very value, so that an integer comes back as an integer and a zero as a zero wherever in the cell a network puts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from gaiadask.inputs.scaling import OneValue, QuantileMap
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.records import JsonObject
from gaiadask.release.column import Column

Floats = NDArray[np.float64]

ValueKind = Literal["continuous", "integer", "count", "flag", "levels", "point mass"]
"""What the values of a column are: real numbers; whole numbers too many to tell apart; whole numbers with a cell each; one of two values; one
of a few real numbers; real numbers of which some are shared, as a 0 is."""

POINT_MASS_SHARE = 0.01
"""A value that so large a share of a column's train stars have is a point mass: a rarer one is lost among its neighbours."""
FEWEST_SHARING = 10
"""Train stars that have a point mass at least."""
MOST_LATTICE_VALUES = 512
"""Every value of a column is a point mass where it has at most so many different ones, and FEWEST_SHARING train stars have each on average:
counts, flags and templates have, and measured numbers have not."""

_GAP = 1.5e-3
"""Scores between two cells: room for values that no train star has."""
_NARROWEST = 1e-3
"""Least width of a cell: well above what float32 and the codes of training tell apart."""
_BEYOND = 1e-3
"""Share of an outermost cell that is cut off, so that it ends somewhere."""


def shared_values(sketch: QuantileSketch) -> NDArray[np.bool_]:
    """Which of a sketch's values are point masses, shape (k,)."""
    few = len(sketch.values) <= min(MOST_LATTICE_VALUES, sketch.count / FEWEST_SHARING)
    return np.full(len(sketch.values), few) | (sketch.weights >= max(POINT_MASS_SHARE * sketch.count, FEWEST_SHARING))


class Cells(NamedTuple):
    """Intervals of scores, ascending and apart, shape (k,) each: their ends, and the score by which each is known."""

    low: Floats
    high: Floats
    centre: Floats


@dataclass(frozen=True, eq=False)
class MassMap(OneValue):
    """A `QuantileMap` of all finite float64 whose range of scores is cut open at some values, the masses, for a cell of each.

    base: the map without cells, in whose scores a mass is a point. masses: ascending. widths: of their cells. complete: whether train stars
    have no other values. whole: whether the column has whole numbers.

    What is no mass has a score outside all cells, in its order, and comes back as from the base: of whole numbers any, for between two that
    are known there may be others; of a column that has a few real numbers, as templates have, only what lies beyond the outermost cells.
    """

    base: QuantileMap
    masses: Floats
    widths: Floats
    complete: bool
    whole: bool

    kind: ClassVar[str] = "masses"

    @classmethod
    def fit(cls, sketch: QuantileSketch, is_mass: NDArray[np.bool_], *, whole: bool) -> MassMap:
        """The map of a column with two different values at least, some of them masses, shape (k,)."""
        ranks = np.concatenate([[0], np.cumsum(sketch.weights)]) / sketch.count
        ranks[0], ranks[-1] = _BEYOND * ranks[1], 1 - _BEYOND * (1 - ranks[-2])
        edges = np.array([NormalDist().inv_cdf(float(rank)) for rank in ranks])
        middles = np.array([NormalDist().inv_cdf(float(rank)) for rank in sketch.mid_ranks])
        widths = np.where(is_mass, np.maximum(np.diff(edges) - _GAP, _NARROWEST), 0.0)
        before = np.cumsum(widths) - widths
        wanted = np.where(is_mass, edges[:-1] + _GAP / 2, middles) - before
        # Ascending, a gap at least from a mass to the next value.
        steps = _GAP * np.cumsum(is_mass | np.append(False, is_mass[:-1]))
        closed_up = np.maximum.accumulate(wanted - steps) + steps
        base = QuantileMap.fit(sketch, closed_up)
        return cls(base, sketch.values[is_mass], widths[is_mass], bool(is_mass.all()), whole)

    @cached_property
    def cells(self) -> Cells:
        """The masses' cells; each is known by the score that halves what a normal distribution has of it."""
        low = self.base.score_of(self.masses) + self.before[:-1]
        high = low + self.widths
        return Cells(low, high, np.array([_halving(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True)]))

    @cached_property
    def before(self) -> Floats:
        """Width of all cells before each, and of all together, shape (k + 1,)."""
        return np.concatenate([[0.0], np.cumsum(self.widths)])

    @property
    def closed(self) -> bool:
        """Whether what lies between two cells is of the nearer."""
        return self.complete and not self.whole

    def score_of(self, x: ArrayLike) -> Floats:
        """Scores of finite numbers, any shape: of a mass the one that its cell is known by."""
        x = np.asarray(x, np.float64)
        number = np.searchsorted(self.masses, x)
        nearest = np.minimum(number, len(self.masses) - 1)
        scores = self.base.score_of(x) + self.before[number]
        return np.where(self.masses[nearest] == x, self.cells.centre[nearest], scores)

    def value_of(self, scores: ArrayLike) -> Floats:
        """Values of scores, any shape: of all scores of a cell its mass; finite for any score but NaN."""
        s = np.asarray(scores, np.float64)
        number, nearest, is_mass = self._place(s)
        return np.where(is_mass, self.masses[nearest], self.base.value_of(s - self.before[number]))

    def smooth_value_of(self, scores: ArrayLike) -> Floats:
        """As `value_of`, but where there are masses alone it rises evenly from one centre to the next: for slopes."""
        s, centre = np.asarray(scores, np.float64), self.cells.centre
        between = self.complete & (s >= centre[0]) & (s <= centre[-1])
        return np.where(between, np.interp(s, centre, self.masses), self.value_of(s))

    def _place(self, s: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Of scores: number of cells that begin below, number of the nearest cell, and whether its mass is the score's value."""
        low, high, _ = self.cells
        number = np.searchsorted(low, s, side="right")
        last = np.maximum(number - 1, 0)
        inside = (number > 0) & (s <= high[last])
        if not self.closed:
            return number, last, inside
        following = np.minimum(number, len(low) - 1)
        nearest = np.where(~inside & (low[following] - s < s - high[last]), following, last)
        return number, nearest, inside | ((number > 0) & (number < len(low)))

    def slope_of(self, x: ArrayLike) -> Floats:
        """d score / d x at finite numbers, any shape, of the base."""
        return self.base.slope_of(x)

    @property
    def spread(self) -> tuple[float]:
        """Interquartile range of train stars' scores, about: that of a standard normal."""
        return self.base.spread

    def to_json(self) -> JsonObject:
        return {
            "kind": self.kind, "base": self.base.to_json(), "masses": self.masses.tolist(), "widths": self.widths.tolist(),
            "complete": self.complete, "whole": self.whole,
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> MassMap:
        masses, widths = (np.array(record[name], np.float64) for name in ("masses", "widths"))
        return cls(QuantileMap.from_json(record["base"]), masses, widths, record["complete"], record["whole"])


def _halving(low: float, high: float) -> float:
    """The score that halves what a normal distribution has between two."""
    # In the lower half, where ranks have all their digits.
    sign = -1.0 if low + high > 0 else 1.0
    rank = sum(0.5 * math.erfc(-sign * end / math.sqrt(2)) for end in (low, high)) / 2
    score = sign * NormalDist().inv_cdf(rank) if 0 < rank < 1 else (low + high) / 2
    return min(max(score, low + (high - low) / 4), high - (high - low) / 4)


def fit_quantiles(column: Column, sketch: QuantileSketch) -> QuantileMap | MassMap:
    """The quantile map of a column with two different values at least, with a cell for each of its point masses."""
    is_mass = shared_values(sketch)
    return MassMap.fit(sketch, is_mass, whole=_is_whole(column)) if is_mass.any() else QuantileMap.fit(sketch)


def kind_of(column: Column, encoding: object) -> ValueKind:
    """What the values of an encoded column are."""
    if not isinstance(encoding, MassMap):
        return "integer" if _is_whole(column) else "continuous"
    if not encoding.complete:
        return "integer" if encoding.whole else "point mass"
    if len(encoding.masses) == 2:
        return "flag"
    return "count" if encoding.whole else "levels"


def _is_whole(column: Column) -> bool:
    return pa.types.is_integer(column.dtype) or pa.types.is_boolean(column.dtype)
