"""Positions on the sky: HEALPix indices, unit vectors, separations. Angles in degrees."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

SOURCE_ID_ORDER = 12
SOURCE_ID_SHIFT = 35
SOURCE_ID_STOP = 12 * 4**SOURCE_ID_ORDER << SOURCE_ID_SHIFT
"""One more than the largest source_id there can be."""

# One astronomical unit (IAU 2012) a Julian year, in km/s: v = 4.74 mu / parallax.
AU_PER_YEAR_KM_S = 4.740470463

# ICRS to galactic unit vectors (ESA 1997, The Hipparcos and Tycho Catalogues, vol. 1, section 1.5.3): rows point to the
# galactic centre, along the rotation, and to the north galactic pole.
ICRS_TO_GALACTIC = np.array(
    [
        [-0.0548755604162154, -0.8734370902348850, -0.4838350155487132],
        [+0.4941094278755837, -0.4448296299600112, +0.7469822444972189],
        [-0.8676661490190047, -0.1980763734312015, +0.4559837761750669],
    ]
)

# Mean obliquity of the ecliptic at J2000, radians, as the Gaia archive has it.
OBLIQUITY = np.radians(84381.411 / 3600)
# ICRS to ecliptic as the Gaia archive has it: the ICRS origin seen from the equinox, then the obliquity, both of J2000.
_EQUINOX_OFFSET_DEG = 0.05542 / 3600
_TO_ECLIPTIC = np.array(
    [
        [1.0, 0.0, 0.0],
        [0.0, np.cos(OBLIQUITY), np.sin(OBLIQUITY)],
        [0.0, -np.sin(OBLIQUITY), np.cos(OBLIQUITY)],
    ]
)


def healpix(ra: ArrayLike, dec: ArrayLike, order: int = 29) -> NDArray[np.int64]:
    """Nested HEALPix index of positions (degrees), as HATS computes `_healpix_29`."""
    import cdshealpix  # here: with astropy it takes half a second, which ranks, that need no index, do without
    from astropy.coordinates import Latitude, Longitude

    lon = Longitude(np.asarray(ra, dtype=np.float64), unit="deg")
    lat = Latitude(np.asarray(dec, dtype=np.float64), unit="deg")
    # One thread, as of the rest of a worker's work: starting others takes longer than the stars of a small partition.
    return cdshealpix.lonlat_to_healpix(lon, lat, order, num_threads=1).astype(np.int64)


def centre(healpix_29: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right ascension and declination, degrees, of the centres of nested HEALPix pixels of order 29, each 0.4 mas wide."""
    import cdshealpix

    lon, lat = cdshealpix.healpix_to_lonlat(np.asarray(healpix_29, np.uint64), 29, num_threads=1)
    return np.asarray(lon.deg, np.float64) % 360.0, np.asarray(lat.deg, np.float64)


def healpix_of_source_id(source_id: ArrayLike, order: int = SOURCE_ID_ORDER) -> NDArray[np.int64]:
    """Nested HEALPix index that source_ids begin with (their 35 low bits are a running number); order at most 12."""
    return np.asarray(source_id, dtype=np.int64) >> (SOURCE_ID_SHIFT + 2 * (SOURCE_ID_ORDER - order))


def unit_vector(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.float64]:
    """Unit vectors, shape (n, 3), of positions in degrees."""
    lon, lat = np.radians(np.asarray(ra, np.float64)), np.radians(np.asarray(dec, np.float64))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def position(vectors: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right ascension in [0, 360) and declination, degrees, of vectors of any length, shape (n, 3)."""
    x, y, z = np.moveaxis(np.asarray(vectors, np.float64), -1, 0)
    ra = np.degrees(np.arctan2(y, x)) % 360.0
    # A tiny negative angle rounds to 360.0 itself.
    return np.where(ra >= 360.0, 0.0, ra), np.degrees(np.arctan2(z, np.hypot(x, y)))


def separation_deg(ra_1: ArrayLike, dec_1: ArrayLike, ra_2: ArrayLike, dec_2: ArrayLike) -> NDArray[np.float64]:
    """Great-circle distance in degrees, accurate at every separation (half the chord's arcsine)."""
    chord = np.linalg.norm(unit_vector(ra_1, dec_1) - unit_vector(ra_2, dec_2), axis=-1)
    return np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))


def delta_ra_cos_dec(ra_1: ArrayLike, ra_2: ArrayLike, dec: ArrayLike) -> NDArray[np.float64]:
    """(ra_1 - ra_2) cos(dec) in degrees, the short way round."""
    difference = np.asarray(ra_1, np.float64) - np.asarray(ra_2, np.float64)
    return ((difference + 180.0) % 360.0 - 180.0) * np.cos(np.radians(np.asarray(dec, np.float64)))


def galactic(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Galactic longitude in [0, 360) and latitude, degrees, of ICRS positions in degrees (ESA 1997)."""
    return position(unit_vector(ra, dec) @ ICRS_TO_GALACTIC.T)


def ecliptic(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ecliptic longitude in [0, 360) and latitude, degrees, of ICRS positions in degrees, as the Gaia archive computes them."""
    return position(unit_vector(np.asarray(ra, np.float64) + _EQUINOX_OFFSET_DEG, dec) @ _TO_ECLIPTIC.T)


def mean_ecliptic(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ecliptic longitude in [-pi, pi] and latitude, both in radians, of positions in degrees: by the textbook's formulas, without
    the archive's offset of the equinox. The mock archive's stars follow from it to the last bit, so its arithmetic is fixed."""
    alpha, delta = np.radians(ra), np.radians(dec)
    sine = np.sin(delta) * np.cos(OBLIQUITY) - np.cos(delta) * np.sin(OBLIQUITY) * np.sin(alpha)
    longitude = np.arctan2(np.sin(alpha) * np.cos(OBLIQUITY) + np.tan(delta) * np.sin(OBLIQUITY), np.cos(alpha))
    return longitude, np.arcsin(np.clip(sine, -1, 1))
