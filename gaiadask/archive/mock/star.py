"""True properties of mock stars, without errors: classes of the Hertzsprung-Russell diagram, populations, motions.

Numbers are round values of the solar neighbourhood (luminosity function, scale heights, velocity ellipsoids: Bland-Hawthorn
and Gerhard 2016, ARA&A 54, 529; solar motion: Schoenrich, Binney and Dehnen 2010; Gaia colours and magnitudes: Gaia
Collaboration, Babusiaux et al. 2018). Distances in kpc, velocities in km/s, magnitudes in mag.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gaiadask.sky import AU_PER_YEAR_KM_S, ICRS_TO_GALACTIC

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SUN_RADIUS_KPC = 8.2
SUN_VELOCITY = np.array([11.1, 233.0 + 12.24, 7.25])
_CIRCULAR_KM_S = 233.0

# Bins of apparent magnitude in which the sky is drawn: narrow beside the scale on which counts change, few enough for a map of the whole sky.
G_EDGES = np.arange(3.5, 20.51, 0.25)


def survey_depth(g_mag: Floats) -> Floats:
    """Share of the stars of a magnitude that the mock sky has: all bright ones, ever fewer of the faint.

    The real sky has eight times as many stars at G = 17 as at 14; so many that lack most columns would teach little.
    """
    first, second = (0.25 * np.logaddexp(0, (g_mag - bend) / 0.25) for bend in (12.55, 13.8))
    return 10 ** (1.15 * second - 1.5 * first)


@dataclass(frozen=True)
class Population:
    """height_kpc: scale height, None where it depends on the class; sigma: velocity dispersions (outwards, along the
    rotation, up) in km/s; lag_km_s: of its rotation; metallicity_mag: shift and scatter in BP - RP at a given M_G."""

    name: str
    height_kpc: float | None
    length_kpc: float
    sigma: tuple[float, float, float]
    lag_km_s: float
    metallicity_mag: tuple[float, float]


POPULATIONS = (
    Population("thin", None, 2.6, (36.0, 24.0, 18.0), 15.0, (0.0, 0.025)),
    Population("thick", 0.9, 2.2, (64.0, 44.0, 40.0), 46.0, (-0.05, 0.03)),
    Population("halo", 4.0, 5.0, (141.0, 85.0, 90.0), 215.0, (-0.14, 0.05)),
)


@dataclass(frozen=True)
class Classes:
    """Star classes, one row each: a stretch of a sequence. absolute_g, width: middle and width (or sigma of the clump) of M_G.

    per_population: (populations, classes) local density; thin_height_kpc: scale height in the thin disc; kind: 0 main
    sequence, 1 subgiants, 2 red giants, 3 red clump.
    """

    absolute_g: Floats
    width: Floats
    kind: Ints
    per_population: Floats
    thin_height_kpc: Floats


# Knots (M_G, value): intrinsic BP - RP of the three sequences, and local thin-disc density per mag (1e-3 / pc^3).
_MAIN = np.array(
    [(-2, -0.35), (-1, -0.24), (0, -0.1), (1, 0.08), (2, 0.30), (3, 0.51), (4, 0.69), (4.68, 0.82), (5.5, 0.96), (6, 1.06),
     (6.5, 1.2), (7, 1.37), (7.5, 1.57), (8, 1.77), (8.5, 1.94), (9, 2.07), (10, 2.36), (11, 2.67), (13, 3.4)]
)  # fmt: skip
_SUBGIANT = np.array([(2.4, 1.06), (3.0, 0.95), (3.4, 0.8), (4.0, 0.74)])
_GIANT = np.array([(-3.5, 3.0), (-2.5, 2.25), (-2, 1.95), (-1, 1.60), (0, 1.36), (0.5, 1.28), (1, 1.21), (2, 1.12), (3.2, 1.05)])
_CLUMP_BP_RP, _CLUMP_G = 1.20, 0.48
_MAIN_DENSITY = np.array(
    [(-2, 0.002), (-1, 0.012), (0, 0.07), (1, 0.22), (2, 0.75), (3, 2.1), (4, 3.0), (5, 3.4), (7, 3.2), (9, 5.0), (11, 9)]
)
_GIANT_DENSITY = np.array([(-3, 0.0008), (-2, 0.003), (-1, 0.013), (0, 0.035), (1, 0.07), (2, 0.13), (3, 0.25)])
_TURN_OFF = np.array([-9.0, 3.7, 3.8])  # no main-sequence star of the old populations is brighter
_SHARE = np.array([1.0, 0.11, 0.006])


def _classes() -> Classes:
    main, giant, sub = np.arange(-1.75, 10.9, 0.5), np.arange(-2.75, 2.9, 0.5), np.array([2.75, 3.25, 3.75])
    absolute_g = np.concatenate([main, sub, giant, [_CLUMP_G]])
    kind = np.repeat([0, 1, 2, 3], [len(main), len(sub), len(giant), 1])
    width = np.where(kind == 3, 0.11, 0.5)
    density = np.concatenate(
        [np.exp(np.interp(main, _MAIN_DENSITY[:, 0], np.log(_MAIN_DENSITY[:, 1]))) * 0.5, [0.2, 0.3, 0.3],
         np.exp(np.interp(giant, _GIANT_DENSITY[:, 0], np.log(_GIANT_DENSITY[:, 1]))) * 0.5, [0.14]]
    )  # fmt: skip
    gone = (kind == 0) & (absolute_g < _TURN_OFF[:, None])
    young_height = np.interp(absolute_g, [0, 4], [0.08, 0.28])
    return Classes(absolute_g, width, kind, np.where(gone, 0.0, density * _SHARE[:, None]), np.where(kind == 0, young_height, 0.26))


CLASSES = _classes()


@dataclass(frozen=True)
class Nature:
    """True properties of stars, shape (n,) each: population, kind of class, absolute G and colour without dust."""

    population: Ints
    kind: Ints
    absolute_g: Floats
    bp_rp: Floats


def draw_nature(counts: NDArray[np.float32], rng: np.random.Generator) -> Nature:
    """Population, class and place in the HR diagram. counts: (n, populations * classes) relative numbers."""
    n = len(counts)
    cumulative = np.cumsum(counts, axis=1)
    drawn = rng.random(n).astype(np.float32)[:, None] * cumulative[:, -1:]
    column = np.minimum((cumulative <= drawn).sum(axis=1), counts.shape[1] - 1)
    population, star_class = np.divmod(column, len(CLASSES.absolute_g))
    kind = CLASSES.kind[star_class]
    spread = np.where(kind == 3, rng.standard_normal(n), rng.uniform(-0.5, 0.5, n))
    single = CLASSES.absolute_g[star_class] + CLASSES.width[star_class] * spread
    shift, scatter = np.array([p.metallicity_mag for p in POPULATIONS])[population].T
    metallicity = shift + scatter * rng.standard_normal(n)
    colour = _colour(single, kind) + metallicity + np.where(kind >= 2, 0.05, 0.015) * rng.standard_normal(n)
    # Unresolved pairs: brighter by up to 0.75 mag, and a little redder where the second star is the fainter.
    ratio = np.where((kind == 0) & (rng.random(n) < 0.3), rng.random(n), 0.0)
    absolute_g = single - 2.5 * np.log10(1 + ratio**4)
    return Nature(population, kind, absolute_g, colour + 0.12 * ratio**3 * (1 - ratio))


def _colour(absolute_g: Floats, kind: Ints) -> Floats:
    sequences = [np.interp(absolute_g, track[:, 0], track[:, 1]) for track in (_MAIN, _SUBGIANT, _GIANT)]
    return np.select([kind == k for k in range(3)], sequences, _CLUMP_BP_RP + 0.25 * (_CLUMP_G - absolute_g))


@dataclass(frozen=True)
class Motion:
    """Proper motion in mas/yr (pmra with cos dec), radial velocity in km/s, shape (n,) each."""

    pmra: Floats
    pmdec: Floats
    radial_velocity: Floats


# Streams of the solar neighbourhood: heliocentric (U, V, W), dispersion and share among near thin-disc stars.
_STREAMS = ((-40.0, -18.0, -3.0, 0.05), (9.0, 4.0, -6.0, 0.05), (-12.0, -22.0, -5.0, 0.05), (-30.0, -48.0, -8.0, 0.03))
_STREAM_SIGMA, _STREAM_REACH_KPC = 5.0, 0.4


def draw_motion(nature: Nature, direction: Floats, distance_kpc: Floats, rng: np.random.Generator) -> Motion:
    """Motions seen from the Sun: flat rotation curve, each population's lag and ellipsoid, young stars cooler, streams near by.

    direction: (n, 3) galactic unit vectors.
    """
    n = len(distance_kpc)
    sigma = np.array([p.sigma for p in POPULATIONS])[nature.population]
    lag = np.array([p.lag_km_s for p in POPULATIONS])[nature.population]
    thin = nature.population == 0
    age = np.where(nature.kind == 0, np.clip((nature.bp_rp + 0.25) / 1.1, 0.3, 1.05), rng.uniform(0.55, 1.15, n))
    heat = np.where(thin, age, 1.0)
    place = direction * distance_kpc[:, None] - np.array([SUN_RADIUS_KPC, 0, 0])
    radius = np.maximum(np.hypot(place[:, 0], place[:, 1]), 1e-3)
    sine, cosine = place[:, 1] / radius, -place[:, 0] / radius  # of the galactocentric azimuth, 0 at the Sun
    wide = heat * np.where(thin, np.exp((SUN_RADIUS_KPC - np.clip(radius, 3, 20)) / 9.0), 1.0)
    outwards, along, up = (sigma * wide[:, None] * rng.standard_normal((n, 3))).T
    along += _CIRCULAR_KM_S - lag * heat**2
    velocity = np.stack([along * sine - outwards * cosine, along * cosine + outwards * sine, up], axis=1) - SUN_VELOCITY
    velocity = _with_streams(velocity, thin & (distance_kpc < _STREAM_REACH_KPC), rng)
    return _seen(velocity, direction, distance_kpc)


def _with_streams(velocity: Floats, may: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    drawn = np.where(may, rng.random(len(may)), 1.0)
    noise = _STREAM_SIGMA * rng.standard_normal(velocity.shape)
    first = 0.0
    for u, v, w, share in _STREAMS:
        member = (drawn >= first) & (drawn < first + share)
        velocity = np.where(member[:, None], np.array([u, v, w]) + noise, velocity)
        first += share
    return velocity


def _seen(velocity: Floats, direction: Floats, distance_kpc: Floats) -> Motion:
    """Project heliocentric galactic velocities, (n, 3) km/s, on the directions to the east, to the north and outwards."""
    x, y, z = (direction @ ICRS_TO_GALACTIC).T
    vx, vy, vz = (velocity @ ICRS_TO_GALACTIC).T
    across = np.maximum(np.hypot(x, y), 1e-12)
    radial = vx * x + vy * y + vz * z
    east = (vy * x - vx * y) / across
    north = vz * across - z * (vx * x + vy * y) / across
    scale = AU_PER_YEAR_KM_S * distance_kpc
    return Motion(east / scale, north / scale, radial)
