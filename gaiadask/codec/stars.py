"""The stars of one chunk as far as they are coded, and the features that the next columns are predicted from.

An encoder and a decoder hold the same numbers here, to the bit: an encoder puts in what a decoder will get out. All of it is made by
whole numbers, single floating-point operations and `gaiadask.elementary`.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaiadask.codec.bounds import Floats
from gaiadask.codec.card import CELLS, LEVELS, NULL_COORDINATE, SKY_ORDER, STEPS, Anchor, Feature
from gaiadask.codec.pixels import centre_of
from gaiadask.elementary import log2
from gaiadask.release.column import DEC, RA
from gaiadask.sky import SOURCE_ID_ORDER, SOURCE_ID_SHIFT
from gaiadask.store.paths import Tile

_PIXELS = 12 * 4**SOURCE_ID_ORDER
_EXPONENT_BIAS = 1023.0
_BLOCK = 16_384


class Coordinates(NamedTuple):
    """A feature of each star, shape (stars,) each.

    Attributes:
        steps: from the first knot, CELLS * STEPS at the last one; NULL_COORDINATE where the feature is null.
        above: the feature's number less the lower end of its range, in [0, high - low]; 0 where it is null.
    """

    steps: NDArray[np.intp]
    above: Floats


class Stars:
    """The stars of a chunk as far as they are coded.

    Attributes:
        features: of the card, by number.
        anchor: of the card: whose centre positions are counted from.
        tile: of the partition.
        rows: number of stars.
        ids: their source_ids, once those are coded.
        values: columns as float64, NaN where null, shape (rows,).
        logs: log2 of the values of columns that are coded in logarithms; of others it is made when a feature asks for it.
        means: the predicted means of columns whose residual is a feature, in the column's space.
        nulls: for each leader, whether it is null.
    """

    def __init__(self, features: Sequence[Feature], anchor: Anchor, tile: Tile, rows: int, residuals: Container[str]) -> None:
        """residuals: the columns whose residual is a feature."""
        self.features, self.anchor, self.tile, self.rows = features, anchor, tile, rows
        self._residuals = residuals
        self.ids = np.zeros(0, np.int64)
        self.values: dict[str, Floats] = {}
        self.logs: dict[str, Floats] = {}
        self.means: dict[str, Floats] = {}
        self.nulls: dict[str, NDArray[np.bool_]] = {}
        self._features: dict[int, Coordinates] = {}
        self._centres: dict[str, Floats] = {}
        self._sky: NDArray[np.int64] | None = None

    def put(self, name: str, values: Floats, mean: Floats | None) -> None:
        """Take a column as a decoder gets it, and its predicted mean; in place of what was there of it."""
        self.values[name] = values
        self.logs.pop(name, None)
        if mean is not None and name in self._residuals:
            self.means[name] = mean
        self._features = {n: c for n, c in self._features.items() if name not in (self.features[n].column, self.features[n].other)}

    def feature(self, number: int) -> Coordinates:
        """A feature of the card, by its number."""
        if number not in self._features:
            feature = self.features[number]
            self._features[number] = coordinates(feature, self.number(feature))
        return self._features[number]

    def number(self, feature: Feature) -> Floats:
        """A feature's number, NaN where it is null; not yet cut to its range."""
        if feature.kind == "ratio":
            return self.log(feature.column) - self.log(feature.other)
        number = self.values[feature.column] if feature.width else self.log(feature.column)
        if feature.kind == "residual":
            number = number - self.means[feature.column]
        return number if not feature.width else symmetric_log(number, feature.centre, feature.width)

    def log(self, name: str) -> Floats:
        """log2 of a column's values, NaN where they are not above 0."""
        if name not in self.logs:
            self.logs[name] = log2(self.values[name])
        return self.logs[name]

    @property
    def sky(self) -> NDArray[np.int64]:
        """Pixel of each star in the tables over the sky."""
        if self._sky is None:
            self._sky = self._pixels >> (2 * (SOURCE_ID_ORDER - SKY_ORDER))
        return self._sky

    def centre(self, name: str) -> Floats:
        """Right ascension or declination, degrees, of the centre of the pixel that each star's position is counted from."""
        if not self._centres:
            if self.anchor == "tile":
                ra, dec = centre_of(self.tile.order, np.full(1, self.tile.pixel))
                ra, dec = np.full(self.rows, ra[0]), np.full(self.rows, dec[0])
            else:
                ra, dec = centre_of(SOURCE_ID_ORDER, self._pixels)
            self._centres = {RA: ra, DEC: dec}
        return self._centres[name]

    @property
    def _pixels(self) -> NDArray[np.int64]:
        """Pixels of order 12 in the source_ids; those of no pixel, which another catalogue may have, count as the nearest."""
        return np.clip(self.ids >> SOURCE_ID_SHIFT, 0, _PIXELS - 1)


def coordinates(feature: Feature, number: Floats) -> Coordinates:
    """Where each number of a feature lies among its knots."""
    width = feature.high - feature.low
    scale, places = LEVELS / width, _steps(feature.knots)
    steps, above = np.empty(len(number), np.intp), np.empty(len(number))
    for start in range(0, len(number), _BLOCK):
        part = slice(start, start + _BLOCK)
        inside = above[part]
        np.clip(number[part], feature.low, feature.high, out=inside)
        inside -= feature.low
        null = np.isnan(inside)
        inside[null] = 0.0
        np.take(places, (inside * scale).astype(np.intp), out=steps[part], mode="clip")
        steps[part][null] = NULL_COORDINATE
    return Coordinates(steps, above)


def symmetric_log(x: Floats, centre: float, width: float) -> Floats:
    """sign(d) plog2(1 + |d| / width) of d = x - centre: linear near the centre, logarithmic far away. plog2 is log2 at powers of
    two and linear between them: the exponent and mantissa of the number as they are stored."""
    logarithm = np.empty(len(x))
    for start in range(0, len(x), _BLOCK):
        part = slice(start, start + _BLOCK)
        d, size = x[part] - centre, logarithm[part]
        np.abs(d, out=size)
        size /= width
        size += 1.0
        bits = size.view(np.int64)
        null = np.isnan(d)
        bits >>= 20
        np.multiply(bits, 2.0**-32, out=size)
        size -= _EXPONENT_BIAS
        np.copysign(size, d, out=size)
        size[null] = np.nan
    return logarithm


@lru_cache(maxsize=1024)
def _steps(knots: tuple[int, ...]) -> NDArray[np.intp]:
    """The coordinate of each of LEVELS + 1 levels of a feature's range."""
    edges, levels = np.array(knots, np.int64), np.arange(LEVELS + 1)
    cell = np.clip(np.searchsorted(edges, levels, side="right") - 1, 0, CELLS - 1)
    return (cell * STEPS + STEPS * (levels - edges[cell]) // (edges[cell + 1] - edges[cell])).astype(np.intp)
