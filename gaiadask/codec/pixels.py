"""Centres of HEALPix pixels, the same bits on every machine: whole numbers, a square root and an arcsine of our own.

A position is coded as its offset from such a centre, so encoder and decoder must agree on it to the last bit; which library's
centre it is nearest to does not matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gaiadask.codec.bounds import Floats
from gaiadask.elementary import arcsin_degrees

# Of each of the twelve base pixels: the ring of its southern corner, in sides from the north pole, and its longitude in eighths.
_RING = np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4], np.int64)
_LONGITUDE = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7], np.int64)
_EVEN_BITS = (
    (1, 0x3333333333333333),
    (2, 0x0F0F0F0F0F0F0F0F),
    (4, 0x00FF00FF00FF00FF),
    (8, 0x0000FFFF0000FFFF),
    (16, 0x00000000FFFFFFFF),
)


def centre_of(order: int, pixel: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Right ascension in [0, 360) and declination, degrees, of the centres of nested pixels (Gorski et al. 2005, section 5.2).

    >>> [float(x[0]) for x in centre_of(0, np.array([4]))]
    [0.0, 0.0]
    """
    side = 1 << order
    base, within = pixel >> (2 * order), pixel & ((1 << (2 * order)) - 1)
    x, y = _even_bits(within), _even_bits(within >> 1)
    ring = _RING[base] * side - x - y - 1
    # Pixels of a quarter of the ring: as many as the ring's number near a pole, `side` between.
    quarter = np.minimum(np.minimum(ring, 4 * side - ring), side)
    near_pole = quarter < side
    shift = np.where(near_pole, 0, (ring - side) & 1)
    number = (_LONGITUDE[base] * quarter + x - y + 1 + shift) >> 1
    number = np.where(number > 4 * quarter, number - 4 * quarter, np.where(number < 1, number + 4 * quarter, number))
    ra = (number - (shift + 1) * 0.5) * 90.0 / quarter
    cap = 1.0 - (quarter * quarter) / (3.0 * side * side)
    sine = np.where(near_pole, np.where(ring < side, cap, -cap), (2 * side - ring) * 2.0 / (3.0 * side))
    return np.where(ra < 0, ra + 360.0, ra), arcsin_degrees(sine)


def _even_bits(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every other bit of numbers, from the lowest on."""
    bits = numbers & 0x5555555555555555
    for shift, mask in _EVEN_BITS:
        bits = (bits | (bits >> shift)) & mask
    return bits
