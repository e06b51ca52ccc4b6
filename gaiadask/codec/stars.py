"""The stars of one chunk as far as they are coded, and the features that the next columns are predicted from.

An encoder and a decoder hold the same numbers here, to the bit: an encoder puts in what a decoder will get out. All of it is made by
whole numbers, single floating-point operations and `gaiadask.elementary`.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gaiadask.codec import loops
from gaiadask.codec.bounds import Floats
from gaiadask.codec.card import CELLS, LEVELS, NULL_COORDINATE, SKY_ORDER, STEPS, Anchor, Feature
from gaiadask.codec.loops import Coordinates, Scale
from gaiadask.codec.pixels import centre_of
from gaiadask.compiled import fixed
from gaiadask.elementary import cos_degrees, log2
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import Release, Sources
from gaiadask.sky import SOURCE_ID_ORDER, SOURCE_ID_SHIFT
from gaiadask.store.paths import Tile

_PIXELS = 12 * 4**SOURCE_ID_ORDER
_LEFT: list[Coordinates] = []
"""Memory of chunks that are done, flat: coordinates are some tens of MB a chunk, which an allocator gives back, and to touch new pages
takes longer than to fill them."""
_MOST_LEFT = 2


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
        # Coordinates of all features, a row each, and the numbers of those that are made.
        self._coordinates = Coordinates(np.empty((0, rows), np.uint16), np.empty((0, rows)))
        self._memory = self._coordinates
        self._made: set[int] = set()
        self._centres: dict[str, Floats] = {}
        self._sky: NDArray[np.int64] | None = None
        self._sources = Sources(self.values)
        self._cos_dec: Floats | None = None

    def put(self, name: str, values: Floats, mean: Floats | None) -> None:
        """Take a column as a decoder gets it, and its predicted mean; in place of what was there of it."""
        if name in self.values:
            # What was made of the former values.
            self._sources = Sources(self.values)
            self._cos_dec = None
        self.values[name] = values
        self.logs.pop(name, None)
        if mean is not None and name in self._residuals:
            self.means[name] = mean
        self._made = {n for n in self._made if name not in (self.features[n].column, self.features[n].other)}

    def coordinates(self, numbers: Sequence[int]) -> Coordinates:
        """Of all features, a row each; those of the card that have these numbers are made."""
        if len(self._coordinates.steps) < len(self.features):
            # Of an encoder or decoder once; while a card is fitted, now and then.
            rows = max(2 * len(self._coordinates.steps), len(self.features))
            shape, count = (rows, self.rows), rows * self.rows
            self._memory = steps, above = _room(count)
            grown = Coordinates(steps[:count].reshape(shape), above[:count].reshape(shape))
            made = len(self._coordinates.steps)
            grown.steps[:made], grown.above[:made] = self._coordinates
            self._coordinates = grown
        steps, above = self._coordinates
        for number in set(numbers) - self._made:
            feature = self.features[number]
            places = _places(feature.knots)
            loops.coordinates(*self._number_of(feature), places, steps[number], above[number])
            self._made.add(number)
        return self._coordinates

    def leave(self) -> None:
        """Leave the memory of the coordinates to the next chunk: this one's are not asked for any more."""
        if self._made and len(_LEFT) < _MOST_LEFT:
            _LEFT.append(self._memory)
        self._coordinates = self._memory = Coordinates(self._coordinates.steps[:0], self._coordinates.above[:0])
        self._made = set()

    def number(self, feature: Feature) -> Floats:
        """A feature's number, NaN where it is null; not yet cut to its range."""
        number = np.empty(self.rows)
        loops.numbers(*self._number_of(feature), number)
        return number

    def _number_of(self, feature: Feature) -> tuple[Floats, Floats, Scale]:
        """What a feature's number is made of."""
        first = self.values[feature.column] if feature.width else self.log(feature.column)
        second = loops.NONE
        if feature.kind == "ratio":
            second = self.log(feature.other)
        elif feature.kind == "residual":
            second = self.means[feature.column]
        return fixed(first), fixed(second), Scale(feature.centre, feature.width, feature.low, feature.high)

    def log(self, name: str) -> Floats:
        """log2 of a column's values, NaN where they are not above 0."""
        if name not in self.logs:
            self.logs[name] = log2(self.values[name])
        return self.logs[name]

    def formula(self, name: str, release: Release) -> Floats:
        """A derived column from the columns that it follows from, of its own type as float64; NaN where it is undefined."""
        return release.derive(self._sources, [name])[name].astype(np.float64)

    @property
    def cos_dec(self) -> Floats:
        """Cosine of the declination, once that is coded."""
        if self._cos_dec is None:
            self._cos_dec = cos_degrees(self.values[DEC])
        return self._cos_dec

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


def _room(count: int) -> Coordinates:
    """Flat memory for so many coordinates: what an earlier chunk left, where that is enough."""
    with suppress(IndexError):  # nothing is left, or another thread took it
        if len((left := _LEFT.pop()).steps) >= count:
            return left
    return Coordinates(np.empty(count, np.uint16), np.empty(count))


@lru_cache(maxsize=1024)
def _places(knots: tuple[int, ...]) -> NDArray[np.uint16]:
    """The coordinate of each of LEVELS + 1 levels of a feature's range, and of null."""
    edges, levels = np.array(knots, np.int64), np.arange(LEVELS + 1)
    cell = np.clip(np.searchsorted(edges, levels, side="right") - 1, 0, CELLS - 1)
    places = cell * STEPS + STEPS * (levels - edges[cell]) // (edges[cell + 1] - edges[cell])
    return fixed(np.append(places, NULL_COORDINATE).astype(np.uint16))
