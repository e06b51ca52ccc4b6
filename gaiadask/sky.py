"""Positions on the sky: HEALPix indices, unit vectors, separations. Angles in degrees."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaiadask.elementary import arcsin_degrees, arctan2_degrees, cos_degrees, sin_cos_degrees

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

# Mean obliquity of the ecliptic at J2000 as the Gaia archive has it, 84381.411 arcseconds: in radians, its cosine and its sine.
OBLIQUITY = 0.4090926248412669
_COS_OBLIQUITY, _SIN_OBLIQUITY = 0.9174821334228558, 0.39777699135300065
# ICRS to ecliptic as the Gaia archive has it: the ICRS origin seen from the equinox, then the obliquity, both of J2000.
_EQUINOX_OFFSET_DEG = 0.05542 / 3600
_TO_ECLIPTIC = np.array(
    [
        [1.0, 0.0, 0.0],
        [0.0, _COS_OBLIQUITY, _SIN_OBLIQUITY],
        [0.0, -_SIN_OBLIQUITY, _COS_OBLIQUITY],
    ]
)


def healpix(ra: ArrayLike, dec: ArrayLike, order: int = 29) -> NDArray[np.int64]:
    """Nested HEALPix index of positions (degrees), as HATS computes `_healpix_29`."""
    import cdshealpix  # here: with astropy it takes half a second, which ranks, that need no index, do without
    from astropy.coordinates import Latitude, Longitude

    # + 0.0 for a right ascension of -0, whose pixel would depend on the other positions.
    lon = Longitude(np.asarray(ra, dtype=np.float64) + 0.0, unit="deg")
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
    return np.stack(_components(ra, dec), axis=-1)


def position(vectors: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right ascension in [0, 360) and declination, degrees, of vectors of any length (1e-150 to 1e150), shape (n, 3)."""
    return _position_of(*np.moveaxis(np.asarray(vectors, np.float64), -1, 0))


def separation_deg(ra_1: ArrayLike, dec_1: ArrayLike, ra_2: ArrayLike, dec_2: ArrayLike) -> NDArray[np.float64]:
    """Great-circle distance in degrees, accurate at every separation (half the chord's arcsine)."""
    x, y, z = (first - second for first, second in zip(_components(ra_1, dec_1), _components(ra_2, dec_2), strict=True))
    return np.asarray(2 * arcsin_degrees(np.clip(np.sqrt(x * x + y * y + z * z) / 2, 0, 1)))


def delta_ra_cos_dec(ra_1: ArrayLike, ra_2: ArrayLike, dec: ArrayLike) -> NDArray[np.float64]:
    """(ra_1 - ra_2) cos(dec) in degrees, the short way round."""
    difference = np.asarray(ra_1, np.float64) - np.asarray(ra_2, np.float64)
    return ((difference + 180.0) % 360.0 - 180.0) * cos_degrees(dec)


def galactic(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Galactic longitude in [0, 360) and latitude, degrees, of ICRS positions in degrees (ESA 1997)."""
    return _turned(ICRS_TO_GALACTIC, ra, dec)


def ecliptic(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ecliptic longitude in [0, 360) and latitude, degrees, of ICRS positions in degrees, as the Gaia archive computes them."""
    return _turned(_TO_ECLIPTIC, np.asarray(ra, np.float64) + _EQUINOX_OFFSET_DEG, dec)


def mean_ecliptic(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ecliptic longitude in [-pi, pi] and latitude, both in radians, of positions in degrees: by the textbook's formulas, without
    the archive's offset of the equinox. The mock archive's stars follow from it to the last bit, so its arithmetic is fixed."""
    alpha, delta = np.radians(ra), np.radians(dec)
    sine = np.sin(delta) * np.cos(OBLIQUITY) - np.cos(delta) * np.sin(OBLIQUITY) * np.sin(alpha)
    longitude = np.arctan2(np.sin(alpha) * np.cos(OBLIQUITY) + np.tan(delta) * np.sin(OBLIQUITY), np.cos(alpha))
    return longitude, np.arcsin(np.clip(sine, -1, 1))


# The same bits on every machine: sums of products are written out, and their functions are those of gaiadask.elementary.
def _turned(rotation: NDArray[np.float64], ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude in [0, 360) and latitude of positions, all in degrees, in the system that the rotation leads to."""
    x, y, z = _components(ra, dec)
    return _position_of(*(to_x * x + to_y * y + to_z * z for to_x, to_y, to_z in rotation.tolist()))


def _components(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """x, y and z of unit vectors of positions in degrees."""
    sin_ra, cos_ra = sin_cos_degrees(ra)
    sin_dec, cos_dec = sin_cos_degrees(dec)
    x, y, z = np.broadcast_arrays(cos_dec * cos_ra, cos_dec * sin_ra, sin_dec)
    return x, y, z


def _position_of(
    x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude in [0, 360) and latitude, degrees, of vectors' components."""
    longitude = np.asarray(arctan2_degrees(y, x) % 360.0)
    # A tiny negative angle rounds to 360.0 itself.
    return np.where(longitude >= 360.0, 0.0, longitude), arctan2_degrees(z, np.sqrt(x * x + y * y))
