"""Positions and null masks of sampled stars: p(position, null mask), from counts of train stars on the sky.

The sky is cut into HEALPix pixels, each as small as its train stars allow, and a position is uniform in its pixel: the density of
stars follows the catalogue's, and no star's own position is repeated. Of a pixel that is mostly empty, as where the catalogue is a
small field, only what is near its train stars is drawn from. A null mask is drawn as often as it occurs among the train stars of a
larger pixel around the position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import cdshealpix
import numpy as np
from astropy import units
from astropy.coordinates import Latitude, Longitude
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from gaiadask.errors import ConfigurationError, DataError
from gaiadask.sky import centre, healpix, separation_deg, unit_vector
from gaiadask.store.paths import Tile

FINEST_ORDER = 9
"""HEALPix order at which train stars are counted, pixels 7 arcmin wide: finer ones would fill memory over the whole sky."""
MASK_ORDER = 7
"""HEALPix order at which null masks are counted, pixels 27 arcmin wide: over the whole sky there are tens of masks in each."""
STARS_A_PIXEL = 24
"""A pixel is cut into four where that leaves about so many train stars in each: fewer would draw the noise of counting (20 %)."""
STARS_A_MASK_PIXEL = 500
"""The same for the pixels in which null masks are counted: a mask of one star in fifty is then known to a third."""
NEIGHBOURS = 4
"""The distance to the 4th nearest train star is the scale on which a star's surroundings are known: to half of the density."""
NEAR = 3.0
"""Nowhere among evenly spread stars is further from one than 3 of their scales (chance 1e-15): what is further is empty."""
APART = 2.0
"""A star whose scale is more than twice that of its neighbours stands apart from them."""
FULL_SHARE = 0.75
"""A pixel is drawn from as a whole where so much of it is near its stars: of the pixels of a large catalogue, all."""
CONE_PIXELS_DEEPER = 3
"""Orders beyond pixels as wide as a cone, by which a cone is covered: about a hundred pixels, so few draws fall outside it."""
ORDER_0_WIDTH_DEG = 58.6
"""Width of a HEALPix pixel of order 0: the square root of a twelfth of the sky."""
Integers = TypeVar("Integers", bound=np.integer)
Counts = TypeVar("Counts", bound=np.integer)
_DEEPEST = 29
_ROWS_AT_ONCE = 65_536


class Cone(NamedTuple):
    """A circle on the sky, degrees."""

    ra: float
    dec: float
    radius: float

    def checked(self) -> Cone:
        """The same with ra in 0 to 360. Raises ConfigurationError where it is not a circle on the sky."""
        if not (np.isfinite(self).all() and -90 <= self.dec <= 90 and 0 < self.radius <= 180):
            raise ConfigurationError(f"cone {tuple(self)}: expected ra, dec in -90 to 90 and a radius above 0 and to 180, degrees")
        return Cone(self.ra % 360.0, self.dec, self.radius)

    def contains(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which positions lie in the cone."""
        return separation_deg(ra, dec, self.ra, self.dec) <= self.radius


class SkyCounts(NamedTuple):
    """How many train stars there are in pixels of the sky, and with which null masks.

    pixel, stars: shape (p,), nested pixels of FINEST_ORDER that have stars, and how many. mask_pixel: shape (k,), nested pixels of
    MASK_ORDER; mask: shape (k, words); mask_stars: shape (k,): each combination of pixel and mask that stars have once, and how many.
    In 32 bits, for the whole sky has millions: there are 3 million pixels, and no catalogue has 2 billion stars in one.
    """

    pixel: NDArray[np.int32]
    stars: NDArray[np.int32]
    mask_pixel: NDArray[np.int32]
    mask: NDArray[np.int64]
    mask_stars: NDArray[np.int32]

    @classmethod
    def of(cls, ra: NDArray[np.float64], dec: NDArray[np.float64], mask: NDArray[np.int64]) -> SkyCounts:
        """Count stars. ra, dec: shape (n,), degrees. mask: shape (n, words)."""
        pixel, one = healpix(ra, dec, FINEST_ORDER).astype(np.int32), np.ones(len(ra), np.int32)
        return cls._summed(pixel, one, pixel >> 2 * (FINEST_ORDER - MASK_ORDER), mask, one)

    @classmethod
    def merge(cls, parts: Iterable[SkyCounts]) -> SkyCounts:
        """The sum of several counts; quick, and in little memory, where each is of a part of the sky of its own."""
        along_curve = sorted(parts, key=lambda part: part.pixel[0] if len(part.pixel) else 0)
        return cls._summed(*(np.concatenate(arrays) for arrays in zip(*along_curve, strict=True)))

    @classmethod
    def _summed(
        cls,
        pixel: NDArray[np.int32],
        stars: NDArray[np.int32],
        mask_pixel: NDArray[np.int32],
        mask: NDArray[np.int64],
        mask_stars: NDArray[np.int32],
    ) -> SkyCounts:
        pixels, stars = _sums(pixel[:, None], stars)
        pairs, mask_stars = _sums(np.column_stack([mask_pixel, mask]), mask_stars)
        return cls(pixels[:, 0], stars, pairs[:, 0].astype(np.int32), pairs[:, 1:].copy(), mask_stars)


def _sums(rows: NDArray[Integers], counts: NDArray[Counts]) -> tuple[NDArray[Integers], NDArray[Counts]]:
    """Different rows, shape (k, columns), in ascending order, and the sum of the counts of each."""
    differs, ascends = _steps(rows)
    if not (ascends | ~differs).all():
        order = np.lexsort(rows.T[::-1])
        rows, counts = rows[order], counts[order]
        differs = _steps(rows)[0]
    if differs.all():
        return rows, counts
    first = np.flatnonzero(np.append(True, differs))
    return rows[first], np.add.reduceat(counts, first, dtype=counts.dtype)  # numpy would widen it


def _steps(rows: NDArray[np.integer]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each row but the first, whether it differs from the one before, and whether it comes after it; rows of shape (n, columns)."""
    differs = np.zeros(max(len(rows) - 1, 0), np.bool_)
    ascends = differs.copy()
    for column in rows.T:
        ascends |= ~differs & (column[1:] > column[:-1])
        differs |= column[1:] != column[:-1]
    return differs, ascends


@dataclass(frozen=True, eq=False)
class SkyDensity:
    """p(position, null mask).

    order, pixel, weight: shape (leaves,), disjoint pixels (the leaves of a tree), sorted along HEALPix's nested curve, and how often
    each is drawn. cell: shape (leaves,), the larger pixel of each leaf, in which null masks are counted. masks: shape (rows, words),
    mask_cell and mask_count: shape (rows,): the null masks of each cell, cells in ascending order, and how many train stars have them.
    """

    order: NDArray[np.int64]
    pixel: NDArray[np.int64]
    weight: NDArray[np.float64]
    cell: NDArray[np.int64]
    masks: NDArray[np.int64]
    mask_cell: NDArray[np.int64]
    mask_count: NDArray[np.int64]

    @classmethod
    def fit(cls, counts: SkyCounts) -> SkyDensity:
        """The density of counted train stars. Raises DataError where there are none."""
        if not counts.stars.sum():
            raise DataError("no train star to learn positions from: eight tenths of all stars are; select more stars")
        order, pixel, weight = _near_stars(
            *_leaves(FINEST_ORDER, counts.pixel, counts.stars, STARS_A_PIXEL), counts.pixel, counts.stars
        )
        cell_order, cell_pixel, _ = _leaves(MASK_ORDER, counts.mask_pixel, counts.mask_stars, STARS_A_MASK_PIXEL)
        cell_starts = _start(cell_order, cell_pixel)

        def cell_of(starts: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.searchsorted(cell_starts, starts, side="right") - 1

        of_row = cell_of(_start(np.full(len(counts.mask_pixel), MASK_ORDER), counts.mask_pixel))
        grouped, total = _sums(np.column_stack([of_row, counts.mask]), counts.mask_stars.astype(np.int64))
        return cls(order, pixel, weight, cell_of(_start(order, pixel)), grouped[:, 1:], grouped[:, 0], total)

    def draw(self, rows: int, random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Draw ra and dec, shape (rows,), degrees, and null masks, shape (rows, words)."""
        leaf = _pick(np.cumsum(self.weight), random.random(rows))
        # A pixel of the deepest order is 0.4 mas wide: its centre is as good as any place in it.
        inside = random.integers(0, 1 << (2 * (_DEEPEST - self.order[leaf])))
        ra, dec = centre(_start(self.order[leaf], self.pixel[leaf]) + inside)
        first = np.searchsorted(self.mask_cell, self.cell[leaf], side="left")
        last = np.searchsorted(self.mask_cell, self.cell[leaf], side="right")
        total = np.concatenate([[0], np.cumsum(self.mask_count)])
        at = total[first] + random.random(rows) * (total[last] - total[first])
        return ra, dec, self.masks[np.clip(np.searchsorted(total, at, side="right") - 1, first, last - 1)]

    def within_cone(self, cone: Cone) -> SkyDensity:
        """The part that a cone touches, in pixels small beside the cone. Raises DataError where no train star is near."""
        by_size = round(np.log2(ORDER_0_WIDTH_DEG / cone.radius)) + CONE_PIXELS_DEEPER
        depth = int(np.clip(max(by_size, self.order.max()), 0, _DEEPEST))
        covering = cdshealpix.cone_search(
            Longitude(cone.ra * units.deg), Latitude(cone.dec * units.deg), cone.radius * units.deg, depth, flat=True
        )[0]
        return self._cut(np.asarray(covering).astype(np.int64), depth, f"the cone {tuple(cone)} (degrees)")

    def within_tile(self, tile: Tile) -> SkyDensity:
        """The part within a HEALPix tile. Raises DataError where no train star is near."""
        first, stop = tile.healpix_29
        starts = _start(self.order, self.pixel)
        whole = (starts >= first) & (starts < stop) & (self.order >= tile.order)
        if whole.any():
            return self._only(whole, f"tile {tile}")
        return self._cut(np.array([tile.pixel], np.int64), tile.order, f"tile {tile}")

    def _cut(self, pixel: NDArray[np.int64], depth: int, where: str) -> SkyDensity:
        """The part within pixels of one order, none of them larger than the leaf that it is in."""
        starts = _start(np.full(len(pixel), depth), pixel)
        leaf = np.searchsorted(_start(self.order, self.pixel), starts, side="right") - 1
        up = depth - self.order[leaf]  # below 0: a leaf finer than the pixel, which is in none
        inside = (leaf >= 0) & (up >= 0) & (self.pixel[leaf] == pixel >> (2 * np.maximum(up, 0)))
        leaf, pixel = leaf[inside], pixel[inside]
        weight = self.weight[leaf] / 4.0 ** (depth - self.order[leaf])
        along_curve = np.argsort(pixel)
        pieces = SkyDensity(
            np.full(len(pixel), depth), pixel[along_curve], weight[along_curve], self.cell[leaf][along_curve], self.masks, self.mask_cell,
            self.mask_count,
        )  # fmt: skip
        return pieces._only(np.ones(len(pixel), np.bool_), where)

    def _only(self, leaves: NDArray[np.bool_], where: str) -> SkyDensity:
        if not leaves.any():
            raise DataError(f"no star can be drawn in {where}: the catalogue has no train star near it. Name another region")
        return replace(self, order=self.order[leaves], pixel=self.pixel[leaves], weight=self.weight[leaves], cell=self.cell[leaves])

    def to_arrays(self) -> dict[str, NDArray]:
        """Arrays by name, as the file of weights has them."""
        return {name: np.asarray(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> SkyDensity:
        """The inverse of `to_arrays`. Raises KeyError where an array is missing."""
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


def _start(order: NDArray[np.int64], pixel: NDArray[np.integer]) -> NDArray[np.int64]:
    """The first of the deepest pixels within each pixel."""
    return pixel << (2 * (_DEEPEST - order))


def _pick(total: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of entries drawn by weight: total has the weights' running sums, `uniform` numbers in 0 to 1."""
    return np.minimum(np.searchsorted(total, uniform * total[-1], side="right"), len(total) - 1)


def _leaves(
    finest: int, pixel: NDArray[np.integer], stars: NDArray[np.integer], least: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Order, pixel and stars of disjoint pixels that have stars, each cut into four while its quarters have `least` on average.

    pixel, stars: pixels of order `finest`, ascending, some perhaps several times, and how many stars each has."""
    pixels, counts = _sums(pixel[:, None], stars.astype(np.int64))
    levels = {finest: (pixels, counts)}
    for order in range(finest - 1, -1, -1):
        pixels, counts = levels[order] = _sums(pixels >> 2, counts)
    leaves = []
    candidates = levels[0][0][:, 0]
    for order in range(finest + 1):
        level, count = levels[order][0][:, 0], levels[order][1]
        inside = np.isin(level, candidates)
        cut = inside & (count >= 4 * least) & (order < finest)
        leaf = inside & ~cut
        leaves.append((np.full(int(leaf.sum()), order), level[leaf].astype(np.int64), count[leaf]))
        candidates = (level[cut][:, None] * 4 + np.arange(4, dtype=level.dtype)).ravel()
    order_of, of_leaf, weight = (np.concatenate(part) for part in zip(*leaves, strict=True))
    along_curve = np.argsort(_start(order_of, of_leaf))
    return order_of[along_curve], of_leaf[along_curve], weight[along_curve].astype(np.float64)


def _near_stars(
    order: NDArray[np.int64],
    pixel: NDArray[np.int64],
    weight: NDArray[np.float64],
    counted: NDArray[np.integer],
    stars: NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The same leaves, but of each that is mostly empty only the surroundings of its stars: disjoint pixels along the curve.

    Each star is spread evenly over a circle whose radius is its distance to the 4th nearest one (Loftsgaarden and Quesenberry 1965),
    at least the width of a counted pixel, and for stars apart at most what nine tenths of the leaf's stars have.

    Args:
        order, pixel, weight: the leaves, as `_leaves` gives them.
        counted, stars: the pixels (FINEST_ORDER) that have stars, ascending, and how many.
    """
    coarse = np.flatnonzero(order < FINEST_ORDER)
    if not len(coarse):
        return order, pixel, weight
    finest = np.full(len(counted), FINEST_ORDER)
    places = _vectors(finest, counted)
    tree, width = cKDTree(places), ORDER_0_WIDTH_DEG / 2.0**FINEST_ORDER
    scale = np.maximum(_scales(tree, places, stars), width)
    leaf = np.searchsorted(_start(order, pixel), _start(finest, counted), side="right") - 1
    # Counted pixels come along the curve, so those of a leaf stand together.
    first, stop = (np.searchsorted(leaf, coarse, side=side) for side in ("left", "right"))
    typical = scale[np.lexsort([scale, leaf])][first + 9 * (stop - 1 - first) // 10]
    near = [_near_share(tree, order[coarse[rows]], pixel[coarse[rows]], NEAR * typical[rows]) for rows in _blocks(len(coarse))]
    empty = np.concatenate(near) < FULL_SHARE
    whole = np.setdiff1d(np.arange(len(order)), coarse[empty])
    pieces = [(order[whole], pixel[whole], weight[whole])]
    for number, a, b, most in zip(coarse[empty], first[empty], stop[empty], typical[empty], strict=True):
        pieces.append(_circles(int(order[number]), int(pixel[number]), counted[a:b], stars[a:b], np.minimum(scale[a:b], most)))
    order, pixel, weight = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    along_curve = np.argsort(_start(order, pixel))
    return order[along_curve], pixel[along_curve], weight[along_curve]


def _scales(tree: cKDTree, places: NDArray[np.float64], stars: NDArray[np.integer]) -> NDArray[np.float64]:
    """Scale of each counted pixel's stars in degrees: how far NEIGHBOURS others are, or the last of fewer in all.

    At most APART times what is usual among these: a star far from all others says nothing of what is between."""
    nearest = min(NEIGHBOURS + 1, len(places))
    scale, neighbours = np.empty(len(places)), np.empty((len(places), nearest), np.int32)
    for rows in _blocks(len(places)):
        distance, index = (found.reshape(-1, nearest) for found in tree.query(places[rows], nearest))
        reached = np.cumsum(stars[index], axis=1) > NEIGHBOURS
        at = np.where(reached.any(axis=1), reached.argmax(axis=1), nearest - 1)
        scale[rows], neighbours[rows] = _degrees(distance[np.arange(len(at)), at]), index
    usual = np.concatenate([np.median(scale[neighbours[rows]], axis=1) for rows in _blocks(len(places))])
    return np.minimum(scale, APART * usual)


def _near_share(
    tree: cKDTree, order: NDArray[np.int64], pixel: NDArray[np.int64], near_deg: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of each pixel that is near a star, by the centres of its sixteen parts; all of shape (n,)."""
    parts = (pixel[:, None] * 16 + np.arange(16)).ravel()
    to_star = _degrees(tree.query(_vectors(np.repeat(order + 2, 16), parts))[0]).reshape(-1, 16)
    return (to_star <= near_deg[:, None]).mean(axis=1)


def _blocks(rows: int) -> Iterator[slice]:
    """So many rows in pieces, which bound the memory of what is computed of them."""
    return (slice(first, first + _ROWS_AT_ONCE) for first in range(0, rows, _ROWS_AT_ONCE))


def _circles(
    order: int, pixel: int, counted: NDArray[np.integer], stars: NDArray[np.integer], radius: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pixels of one order in a leaf, and the stars in each, where stars are spread over circles, radius in degrees, within the leaf."""
    # Four pixels a radius: a circle takes about fifty, and reaches little further for having their edges.
    depth = int(np.clip(np.rint(np.log2(4 * ORDER_0_WIDTH_DEG / radius.max())), order, _DEEPEST))
    covered, share = [], []
    middle = _centres(np.full(len(counted), FINEST_ORDER), counted)
    for (ra, dec), count, reach in zip(np.transpose(middle), stars, radius, strict=True):
        found = cdshealpix.cone_search(Longitude(ra * units.deg), Latitude(dec * units.deg), reach * units.deg, depth, flat=True)[0]
        inside = np.asarray(found).astype(np.int64)
        inside = inside[inside >> (2 * (depth - order)) == pixel]
        covered.append(inside)
        share.append(np.full(len(inside), count / len(inside)))
    pixels, inverse = np.unique(np.concatenate(covered), return_inverse=True)
    return np.full(len(pixels), depth), pixels, np.bincount(inverse, weights=np.concatenate(share)).astype(np.float64)


def _centres(order: NDArray[np.int64], pixel: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ra and dec, degrees, of the middle of pixels."""
    # The deepest pixel that begins at the middle of one: three quarters along the curve.
    return centre(_start(order, pixel) + 3 * 4 ** (_DEEPEST - order) // 4)


def _vectors(order: NDArray[np.int64], pixel: NDArray[np.integer]) -> NDArray[np.float64]:
    return unit_vector(*_centres(order, pixel))


def _degrees(chord: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles of the chords between unit vectors."""
    return np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
