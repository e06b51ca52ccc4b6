"""Where the mock stars are: a Galaxy seen from the Sun, cut into tiles that are made one by one, each from its own seed.

The Galaxy is a thin disc (young and old), a thick disc and a halo of the star classes of `star.CLASSES`, behind a thin
layer of patchy dust. In a direction, the number of stars of apparent magnitude G of each class is its luminosity function
times the density at the distance where it has that magnitude, times that distance cubed: so what is seen near and far,
in the plane and at the poles, bright and faint, differs as it does in a magnitude-limited survey.

Distances in kpc, magnitudes in mag; directions are galactic unit vectors (x to the centre, z to the north galactic pole).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cdshealpix
import numpy as np
from numpy.typing import NDArray

from gaiadask.archive.mock.star import CLASSES, G_EDGES, POPULATIONS, SUN_RADIUS_KPC, survey_depth
from gaiadask.sky import ICRS_TO_GALACTIC, SOURCE_ID_ORDER, SOURCE_ID_SHIFT, unit_vector

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Orders of the map of counts (pixels of 1.8 degrees resolve the dust) and of the finest tiles.
MAP_ORDER, _MAX_ORDER = 5, 8
# Enough that numpy's calls cost little a star, few enough for a worker's memory.
_STARS_A_TILE = 8_000
# Of the release: stars whose position lies in another order-12 pixel than their source_id says.
_NEIGHBOUR_SHARE = 0.007
# Of a source_id below its pixel, without the seven low bits that are zero.
_RUNNING_BITS = 28
# Scale height of the dust, radius of the bubble without dust about the Sun, extinction in the plane: of the solar neighbourhood.
_DUST_KPC, _LOCAL_BUBBLE_KPC, _DUST_MAG_PER_KPC = 0.11, 0.06, 0.75


# Dust and stars along a line of sight -----------------------------------------------------------------------------------
def dust_patches(direction: NDArray) -> NDArray:
    """Relative thickness of the dust in directions, shape (..., 3): mean about 1, from about 0.2 to 4; more to the centre."""
    waves = np.random.default_rng(1932)
    frequency = 3.0 * 1.35 ** np.arange(10)
    vectors = waves.standard_normal((10, 3)) * frequency[:, None]
    phases = waves.uniform(0, 2 * np.pi, 10)
    pattern = sum(np.sin(direction @ k.astype(direction.dtype) + p) for k, p in zip(vectors, phases, strict=True))
    return np.exp(0.22 * pattern - 0.12) * (1 + 0.4 * direction[..., 0] * (1 - np.abs(direction[..., 2])))


@dataclass(frozen=True)
class Dust:
    """An exponential layer of dust about the plane, none in the bubble about the Sun. per_kpc: A_G a kpc in the plane,
    height_kpc: path length over which it fades, both by line of sight."""

    per_kpc: NDArray
    height_kpc: NDArray

    @classmethod
    def along(cls, sin_b: NDArray, patches: NDArray) -> Dust:
        """The dust in directions of galactic latitude b, `dust_patches` thick."""
        return cls(_DUST_MAG_PER_KPC * patches, _DUST_KPC / np.maximum(np.abs(sin_b), 0.01))

    def extinction(self, distance_kpc: NDArray) -> NDArray:
        """A_G in front of stars at these distances."""
        return -self.per_kpc * self.height_kpc * np.expm1(-np.maximum(distance_kpc - _LOCAL_BUBBLE_KPC, 0) / self.height_kpc)

    def distance(self, modulus: NDArray, steps: int) -> NDArray:
        """Distance in kpc of stars that look `modulus` magnitudes fainter than they are: Newton steps from no dust at all."""
        clear = modulus
        for _ in range(steps):
            far = 10 ** (0.2 * clear - 2.0)
            through = np.maximum(far - _LOCAL_BUBBLE_KPC, 0) / self.height_kpc
            fade = np.exp(-through)
            slope = 1 + 0.46 * self.per_kpc * fade * far * (through > 0)
            clear = clear - (clear + self.per_kpc * self.height_kpc * (1 - fade) - modulus) / slope
        return 10 ** (0.2 * clear - 2.0)


def class_counts(direction: NDArray, patches: NDArray, g_mag: NDArray) -> NDArray[np.float32]:
    """Relative number of stars a magnitude by population and class, shape (n, populations * classes).

    direction: (n, 3), patches and g_mag: (n,).
    """
    x, y, sin_b = (direction[:, i, None].astype(np.float32) for i in range(3))
    dust = Dust.along(sin_b, patches[:, None].astype(np.float32))
    d = dust.distance((g_mag[:, None] - CLASSES.absolute_g).astype(np.float32), steps=2)
    radius = np.sqrt((SUN_RADIUS_KPC - x * d) ** 2 + (y * d) ** 2)
    height = np.abs(sin_b * d)
    volume = d**3
    counts = np.empty((len(g_mag), len(POPULATIONS), len(CLASSES.kind)), np.float32)
    for i, population in enumerate(POPULATIONS):
        scale_height = CLASSES.thin_height_kpc if population.height_kpc is None else population.height_kpc
        inverse = (1 / np.asarray(scale_height)).astype(np.float32)
        density = np.exp((SUN_RADIUS_KPC - radius) * np.float32(1 / population.length_kpc) - height * inverse)
        counts[:, i] = CLASSES.per_population[i].astype(np.float32) * density * volume
    return counts.reshape(len(g_mag), -1)


@dataclass(frozen=True)
class SkyMap:
    """counts: (pixels,) relative number of stars by nested pixel of order MAP_ORDER; cumulative: (pixels, G bins) shares."""

    counts: Floats
    cumulative: NDArray[np.float32]


@functools.lru_cache(maxsize=1)
def sky_map() -> SkyMap:
    """How the stars lie on the sky and in magnitude; the same for every seed."""
    pixels = np.arange(12 * 4**MAP_ORDER, dtype=np.uint64)
    lon, lat = cdshealpix.healpix_to_lonlat(pixels, MAP_ORDER, num_threads=1)
    direction = unit_vector(lon.deg, lat.deg) @ ICRS_TO_GALACTIC.T
    patches = dust_patches(direction)
    nodes = np.linspace(G_EDGES[0], G_EDGES[-1], 12)
    per_mag = [class_counts(direction, patches, np.full(len(pixels), g)).sum(axis=1, dtype=np.float64) for g in nodes]
    logs = np.log(np.stack(per_mag, axis=1))
    middles = (G_EDGES[:-1] + G_EDGES[1:]) / 2
    place = (middles - nodes[0]) / (nodes[1] - nodes[0])
    low = place.astype(int)
    per_bin = np.exp(logs[:, low] * (low + 1 - place) + logs[:, low + 1] * (place - low)) * survey_depth(middles)
    counts = per_bin.sum(axis=1)
    return SkyMap(counts, (np.cumsum(per_bin, axis=1) / counts[:, None]).astype(np.float32))


# Tiles ------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sightlines:
    """Where the stars of one tile are: source_id ascending and unique; ra, dec in degrees; G as the map draws it."""

    source_id: Ints
    ra: Floats
    dec: Floats
    direction: Floats
    patches: Floats
    g_mag: Floats


@dataclass(frozen=True)
class MockSky:
    """`stars` stars from `seed`. Tiles are nested pixels of `order`; counts are the same for every seed."""

    stars: int
    seed: int

    @property
    def order(self) -> int:
        """Of the tiles: such that each has some thousand stars, in a sky that has enough."""
        order = 0
        while order < _MAX_ORDER and self.stars > _STARS_A_TILE * 12 * 4**order:
            order += 1
        return order

    @property
    def pixel_order(self) -> int:
        """Of the pixels whose stars are counted beforehand: no coarser than the map and than the tiles."""
        return max(MAP_ORDER, self.order)

    @property
    def pixel_counts(self) -> Ints:
        """Stars in each pixel of `pixel_order`; their sum is `stars`."""
        return _pixel_counts(self.stars, self.pixel_order)

    @property
    def tile_counts(self) -> Ints:
        """Stars in each tile."""
        return self.pixel_counts.reshape(12 * 4**self.order, -1).sum(axis=1)

    def generator(self, tile: int) -> np.random.Generator:
        """The one source of a tile's randomness."""
        return np.random.default_rng([self.seed, self.order, tile])

    def sightlines(self, tile: int, rng: np.random.Generator) -> Sightlines:
        """Identifiers, positions and magnitudes of a tile's stars."""
        width = 4 ** (self.pixel_order - self.order)
        counts = self.pixel_counts[tile * width : (tile + 1) * width]
        pixel = np.repeat(np.arange(tile * width, (tile + 1) * width), counts)
        inside = 4 ** (SOURCE_ID_ORDER - self.pixel_order)
        source_id = _source_ids(pixel * inside + rng.integers(0, inside, len(pixel)), rng)
        healpix_12 = source_id >> SOURCE_ID_SHIFT
        ra, dec = _positions(_strayed(healpix_12, rng), rng)
        direction = unit_vector(ra, dec) @ ICRS_TO_GALACTIC.T
        g_mag = _magnitudes(healpix_12 >> 2 * (SOURCE_ID_ORDER - MAP_ORDER), rng)
        return Sightlines(source_id, ra, dec, direction, dust_patches(direction), g_mag)

    def random_index(self, tile: int) -> Ints:
        """Numbers of a tile's stars in a fixed shuffle of 0 .. stars - 1: unique over the sky, in no order."""
        width = 4 ** (self.pixel_order - self.order)
        first = int(self.pixel_counts[: tile * width].sum())
        count = int(self.pixel_counts[tile * width : (tile + 1) * width].sum())
        return shuffled(np.arange(first, first + count), self.stars, self.seed)


@functools.lru_cache(maxsize=4)
def _pixel_counts(stars: int, order: int) -> Ints:
    """Stars in each pixel of an order (not below MAP_ORDER), in proportion to the map; their sum is `stars`."""
    edges = np.cumsum(np.repeat(sky_map().counts, 4 ** (order - MAP_ORDER)))
    counts = np.diff(np.rint(edges * (stars / edges[-1])).astype(np.int64), prepend=0)
    counts[-1] += stars - counts.sum()  # the last edge is `stars` but for rounding
    counts.setflags(write=False)
    return counts


def shuffled(numbers: Ints, size: int, seed: int) -> Ints:
    """Where a keyed permutation of range(size) puts these numbers: a four-round Feistel network, applied again while out of range."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.default_rng([seed, size]).integers(0, 2**63, 4).astype(np.uint64)
    result = numbers.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half), result[outside] & mask
        for key in keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        result[outside] = (left << np.uint64(half)) | right
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


def _source_ids(healpix_12: Ints, rng: np.random.Generator) -> Ints:
    """Sorted unique source_ids: the pixel, then 28 bits (a processing centre and a running number), then seven zeros.

    The running numbers have about 14 bits, and 99 % of them at most 19, as in the release.
    """
    n = len(healpix_12)

    def numbers(count: int) -> Ints:
        second = rng.random(count) < 0.73
        log2 = np.where(second, rng.normal(14.2, 1.7, count), rng.normal(12.0, 2.6, count))
        return (np.exp2(np.clip(log2, 1, 25)).astype(np.int64) - 1) | (second.astype(np.int64) << 25)

    ids = np.sort((healpix_12 << _RUNNING_BITS) | numbers(n))
    while (again := np.flatnonzero(ids[1:] == ids[:-1])).size:
        ids[again] = (ids[again] >> _RUNNING_BITS << _RUNNING_BITS) | numbers(again.size)
        ids.sort()
    return ids << (SOURCE_ID_SHIFT - _RUNNING_BITS)


def _strayed(healpix_12: Ints, rng: np.random.Generator) -> Ints:
    """The pixels of the positions: those of the source_ids, but for some a neighbour (a source_id keeps the pixel of an older
    epoch)."""
    stray = np.flatnonzero(rng.random(len(healpix_12)) < _NEIGHBOUR_SHARE)
    if not stray.size:
        return healpix_12
    pixels = healpix_12.copy()
    around = cdshealpix.neighbours(pixels[stray].astype(np.uint64), SOURCE_ID_ORDER, num_threads=1)
    # Of the three rows of three with the pixel itself in the middle, these share an edge: they always exist.
    edges = np.asarray(around)[:, [1, 3, 5, 7]]
    pixels[stray] = edges[np.arange(stray.size), rng.integers(0, 4, stray.size)]
    return pixels


def _positions(healpix_12: Ints, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Right ascension and declination, degrees, anywhere in these pixels (at the middle of a pixel of order 29, 0.4 mas)."""
    bits = 2 * (29 - SOURCE_ID_ORDER)
    healpix_29 = (healpix_12 << bits) | rng.integers(0, 1 << bits, len(healpix_12))
    lon, lat = cdshealpix.healpix_to_lonlat(healpix_29.astype(np.uint64), 29, num_threads=1)
    return np.asarray(lon.deg, np.float64), np.asarray(lat.deg, np.float64)


def _magnitudes(pixel: Ints, rng: np.random.Generator) -> Floats:
    """Apparent G of stars in pixels of order MAP_ORDER, ascending."""
    first = pixel[0] if len(pixel) else 0
    rows = pixel - first
    cumulative = sky_map().cumulative[first : first + 1 + (rows[-1] if len(rows) else 0)].astype(np.float64)
    # One ascending table for all pixels: row r covers r to r + 1.
    table = (cumulative + np.arange(len(cumulative))[:, None]).ravel()
    bins = np.searchsorted(table, rows + rng.random(len(pixel))) - rows * (len(G_EDGES) - 1)
    bins = np.minimum(bins, len(G_EDGES) - 2)
    return G_EDGES[bins] + rng.random(len(pixel)) * np.diff(G_EDGES)[bins]
