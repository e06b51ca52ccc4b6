"""Centres of HEALPix pixels, the same bits on every machine: whole numbers, a square root and an arcsine of our own.

A position is coded as its offset from such a centre, so encoder and decoder must agree on it to the last bit; which library's
centre it is nearest to does not matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gaiadask.codec import loops
from gaiadask.codec.bounds import Floats
from gaiadask.compiled import fixed
from gaiadask.elementary import arcsin_degrees

# Of each of the twelve base pixels: the ring of its southern corner, in sides from the north pole, and its longitude in eighths.
_RINGS = fixed(np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4], np.int64))
_LONGITUDES = fixed(np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7], np.int64))


def centre_of(order: int, pixel: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Right ascension in [0, 360) and declination, degrees, of the centres of nested pixels (Gorski et al. 2005, section 5.2).

    >>> [float(x[0]) for x in centre_of(0, np.array([4]))]
    [0.0, 0.0]
    """
    ra, sine = np.empty(len(pixel)), np.empty(len(pixel))
    loops.centres(fixed(pixel), order, _RINGS, _LONGITUDES, ra, sine)
    return ra, arcsin_degrees(sine)
