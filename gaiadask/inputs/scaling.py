"""Encodings of width 1: strictly increasing maps of one column to one network value, fitted from train stars alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from gaiadask.errors import DataError
from gaiadask.inputs.pieces import Pieces
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.records import JsonObject
from gaiadask.release.column import Column

# More knots follow a column's distribution more closely and make the card longer: 8 kB of text a column at this many.
MAX_KNOTS = 512
NORMAL_IQR = 2 * NormalDist().inv_cdf(0.75)

# Knots nearer to each other than this, in score or in warped value, would make a piece of the map too steep to invert in
# float64 (ROUND_TRIP).
_MIN_SCORE_STEP = 1e-3
_MIN_WARP_STEP = 1e-13
# Limits of d score / d u beyond the outermost knots: below, far outliers would all have nearly one score; above, one outlier
# would have a score that float32 networks cannot learn from.
_TAIL_SLOPES = (0.5, 4.0)
# A scale that float64 can be divided by: the smallest distance over it is still a normal number.
_MIN_EXPONENT = -1000
HALF_MAX = np.finfo(np.float64).max / 2
FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_STEP = float(np.finfo(np.float32).eps)


class OneValue(ABC):
    """An encoding of width 1 (`encoding.Encoding`): an increasing map of column values to scores, the network values."""

    width: ClassVar[int] = 1

    @abstractmethod
    def score_of(self, x: ArrayLike) -> NDArray[np.float64]:
        """Scores of finite numbers, any shape."""

    @abstractmethod
    def value_of(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Column values of scores, any shape; finite for any score but NaN."""

    @abstractmethod
    def slope_of(self, x: ArrayLike) -> NDArray[np.float64]:
        """d score / d x at finite numbers, any shape."""

    def forward(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        return self.score_of(x)[:, None]

    def inverse(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        return self.value_of(values[:, 0])

    def slope(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        return self.slope_of(x)[:, None]


@dataclass(frozen=True, eq=False)
class QuantileMap(OneValue):
    """A strictly increasing map of all finite float64 to normal scores, piecewise linear in a warped value.

    With d = x - location and s = 2**exponent, x is first warped to u = sign(d) ln(1 + |d| / s): linear within s of the
    location, logarithmic far away, so that neither a far outlier nor a wide gap costs the rest its digits. Then u is
    interpolated between knots: `values`, at most MAX_KNOTS observed ones, at `scores`, the normal quantiles of their
    mid-ranks (repeated values are one knot). Beyond the outermost knots the score goes on
    linearly in u, that is with the logarithm of the distance: 1e30 has a score of some hundreds at most.

    In float64, `value_of(score_of(x))` differs from x by at most ROUND_TRIP * (|x| + |x - location| + s) for any finite x and
    any column, about 1e-14 of that for the columns of Gaia; and two inputs that differ by more than that have different
    scores, in their order. The network's float32 holds a score to 6e-8 of itself, so through `Transform.forward` that is
    what limits the round trip.
    """

    location: float
    exponent: int
    values: NDArray[np.float64]
    scores: NDArray[np.float64]

    kind: ClassVar[str] = "quantile"
    ROUND_TRIP: ClassVar[float] = 1e-9

    @classmethod
    def fit(cls, sketch: QuantileSketch, scores: NDArray[np.float64] | None = None) -> QuantileMap:
        """The map of a column with two different values at least. scores: of the sketch's values, ascending, where not their mid-ranks'."""
        location = float(sketch.quantile(0.5))
        others = sketch.values != location
        half_scale = _weighted_median(np.abs(sketch.values / 2 - location / 2)[others], sketch.weights[others])
        # Values that differ by less than 2**_MIN_EXPONENT have it for a scale.
        exponent = max(math.frexp(half_scale)[1], _MIN_EXPONENT) if half_scale else _MIN_EXPONENT
        unfinished = cls(location, exponent, sketch.values, sketch.values)
        scores = np.array([NormalDist().inv_cdf(rank) for rank in sketch.mid_ranks]) if scores is None else scores
        knots = _choose_knots(unfinished._warp(sketch.values), scores)
        return cls(location, exponent, sketch.values[knots], scores[knots])

    def score_of(self, x: ArrayLike) -> NDArray[np.float64]:
        """Normal scores of finite numbers, any shape."""
        x = np.asarray(x, np.float64)
        return self.line.value(self._warp(x.reshape(-1))).reshape(x.shape)

    def value_of(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Values of normal scores, any shape; finite for any score but NaN."""
        s = np.asarray(scores, np.float64)
        return self._unwarp(self.inverse_line.value(s.reshape(-1))).reshape(s.shape)

    def slope_of(self, x: ArrayLike) -> NDArray[np.float64]:
        """d score / d x at finite numbers, any shape: of the piece of the map that each lies on."""
        x = np.asarray(x, np.float64)
        flat = x.reshape(-1)
        # u = sign(d) ln(1 + |d| / s): du/dx = 1 / (s + |d|); halves, since a difference may exceed float64.
        with np.errstate(over="ignore"):  # a slope beyond float64 is infinite
            half = np.abs(flat / 2 - self.location / 2) + math.ldexp(1.0, self.exponent - 1)
            return (self.line.slope(self._warp(flat)) / half / 2).reshape(x.shape)

    @cached_property
    def line(self) -> Pieces:
        """Scores as a function of the warped value."""
        u, z = self._warp(self.values), self.scores
        low, high = np.clip([(z[1] - z[0]) / (u[1] - u[0]), (z[-1] - z[-2]) / (u[-1] - u[-2])], *_TAIL_SLOPES)
        return Pieces.through(u, z, float(low), float(high))

    @cached_property
    def inverse_line(self) -> Pieces:
        """The warped value as a function of scores."""
        line = self.line
        return Pieces.through(line.to, line.at, 1 / line.slopes[0], 1 / line.slopes[-1])

    def _warp(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        from gaiadask.inputs import loops  # here: numba takes half a second to import

        warped = np.empty(len(x))
        loops.warp(x, self.location, self.exponent, warped)
        return warped

    def _unwarp(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        from gaiadask.inputs import loops

        x = np.empty(len(u))
        loops.unwarp(u, self.location, self.exponent, x)
        return x

    @property
    def spread(self) -> tuple[float]:
        """Interquartile range of train stars' scores: that of a standard normal."""
        return (NORMAL_IQR,)

    def to_json(self) -> JsonObject:
        return {
            "kind": self.kind,
            "location": self.location,
            "exponent": self.exponent,
            "values": self.values.tolist(),
            "scores": self.scores.tolist(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> QuantileMap:
        return cls(record["location"], record["exponent"], np.array(record["values"]), np.array(record["scores"]))


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _choose_knots(warped: NDArray[np.float64], scores: NDArray[np.float64]) -> list[int]:
    """Indices of at most MAX_KNOTS knots: first and last, and between them evenly spaced in score, so that tails have some.

    A value of any weight is half its weight away from its neighbours in rank, so point masses are never passed over.
    """
    step = _MIN_SCORE_STEP if scores.size <= MAX_KNOTS else (scores[-1] - scores[0]) / (MAX_KNOTS - 1)

    def apart(i: int, j: int) -> bool:
        return bool(scores[j] - scores[i] >= step and warped[j] - warped[i] >= _MIN_WARP_STEP)

    knots, last = [0], scores.size - 1
    for i in range(1, last):
        if apart(knots[-1], i) and apart(i, last):
            knots.append(i)
    return [*knots, last]


@dataclass(frozen=True)
class LinearMap(OneValue):
    """(x - location) / scale, as the scalers of 2020 had it: from 0 at the minimum to 1 at the maximum ("min-max"), or the
    distance from the median in interquartile ranges ("iqr").

    iqr: interquartile range of train stars' scores. A far outlier takes the digits of all the others ("min-max") or dominates
    any squared error ("iqr"), which `QuantileMap` avoids.
    """

    location: float
    scale: float
    iqr: float

    kind: ClassVar[str] = "linear"

    @classmethod
    def fit(cls, sketch: QuantileSketch, scaling: str) -> LinearMap:
        """The map of a column with two different values at least, by the scaling "min-max" or "iqr".

        Raises OverflowError where its width exceeds float64, ZeroDivisionError where `scaling` is "iqr" and the quartiles are
        equal.
        """
        first, lower, median, upper, last = (float(q) for q in sketch.quantile([0.0, 0.25, 0.5, 0.75, 1.0]))
        location, scale = (first, last - first) if scaling == "min-max" else (median, upper - lower)
        if not math.isfinite(scale):
            raise OverflowError
        if not scale:
            raise ZeroDivisionError
        return cls(location, scale, (upper - lower) / scale)

    def outlier_problem(self, sketch: QuantileSketch) -> str | None:
        """Why a far outlier among the values leaves nothing to learn from the others, in words; None where it does not."""
        first, last = sketch.values[0], sketch.values[-1]
        if 0 < self.iqr < _FLOAT32_STEP:
            return f"its values reach from {first:g} to {last:g}, so that float32 cannot tell its quartiles apart"
        furthest = float(np.abs(self.score_of(sketch.values[[0, -1]])).max())
        if furthest**2 > FLOAT32_MAX:
            return f"its values reach from {first:g} to {last:g}, {furthest:.0e} times its {self.scale:g} wide middle: squared, too far"
        return None

    def score_of(self, x: ArrayLike) -> NDArray[np.float64]:
        """Scores of finite numbers, any shape; finite: what exceeds float32 is float32's largest number."""
        with np.errstate(over="ignore"):
            scores = (np.asarray(x, np.float64) - self.location) / self.scale
        return np.clip(scores, -FLOAT32_MAX, FLOAT32_MAX)

    def value_of(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Values of scores, any shape; finite for any score but NaN."""
        z = np.asarray(scores, np.float64)
        with np.errstate(over="ignore"):
            x = z * self.scale + self.location
            if not np.isfinite(x).all():  # the product may be too large where the sum is not
                x = np.where(np.isfinite(x), x, 2 * (z * (self.scale / 2) + self.location / 2))
        return np.clip(x, -2 * HALF_MAX, 2 * HALF_MAX)

    def slope_of(self, x: ArrayLike) -> NDArray[np.float64]:
        """d score / d x, the same everywhere; shape of x."""
        return np.full(np.shape(x), 1 / self.scale)

    @property
    def spread(self) -> tuple[float]:
        """Interquartile range of train stars' scores."""
        return (self.iqr,)

    def to_json(self) -> JsonObject:
        return {"kind": self.kind, "location": self.location, "scale": self.scale, "iqr": self.iqr}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LinearMap:
        return cls(record["location"], record["scale"], record["iqr"])


def fit_linear(scaling: str, column: Column, sketch: QuantileSketch) -> LinearMap:
    """The linear map of a column by the scaling "min-max" or "iqr".

    Raises DataError where the values allow no such map, or none that leaves the network anything to learn from in float32.
    """
    try:
        fitted = LinearMap.fit(sketch, scaling)
        problem = fitted.outlier_problem(sketch)
    except ArithmeticError as error:
        problem = "its quartiles are equal" if isinstance(error, ZeroDivisionError) else "its range exceeds float64"
    if problem:
        raise DataError(
            f"column {column.name} cannot be scaled by {scaling}: {problem}. Leave such stars out with selection.where, leave the "
            "column out of model.columns, or use model.scaling = 'quantile'"
        )
    return fitted


def rounded_to(archive_type: pa.DataType, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values rounded to what the column's type can hold, as float64."""
    dtype = np.dtype(archive_type.to_pandas_dtype())
    if dtype.kind == "f":
        if dtype == values.dtype:
            return values
        largest = np.finfo(dtype).max
        return np.clip(values, -largest, largest).astype(dtype).astype(np.float64)
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.clip(np.rint(values), *limits)
