"""The loops of `gaiadask.elementary`: each of its functions for one number, and for an array of them.

Tables are arguments, for a compiled function's cache does not see them change. Imported when a function is first called: numba
takes half a second to import.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gaiadask.compiled import compiled

Floats = NDArray[np.float64]

_LEAST_NORMAL = 2.0**-1022
_FRACTION_BITS = 52
_EXPONENT_BIAS = 1023
_FRACTION = (1 << _FRACTION_BITS) - 1

# The tables have 4096 knots a binade (docs/make_tables.py has the numbers too): a knot's place is in the highest 12 bits of the
# fraction.
_KNOT_BITS = 12
_KNOTS = 1 << _KNOT_BITS
_KNOT_SHIFT = _FRACTION_BITS - _KNOT_BITS
_KNOT_PLACE = (_KNOTS - 1) << _KNOT_SHIFT
# As bits: the first knot of the logarithms, next to the root of a half, and the least number that is nearer to it than to the
# knot before.
_FIRST_KNOT = ((_EXPONENT_BIAS - 1) << _FRACTION_BITS) + (1697 << _KNOT_SHIFT)
_FIRST = _FIRST_KNOT - (1 << (_KNOT_SHIFT - 1))

# Up to here 2**y is a normal number, whichever its sign.
_LARGEST_USUAL_POWER = 1020.0
# Beyond, 2**y is infinite or 0.
_LARGEST_POWER = 1100.0

# Arctangents have so many knots from 0 to 1.
_ARCTAN_KNOTS = 256

# Up to here a multiple of 90 degrees is subtracted exactly.
_LARGEST_ANGLE = 2.0**40


# Arrays --------------------------------------------------------------------------------------------------------------
# First all numbers as if they were usual ones, in a loop without branches, of which a processor takes several at once; then those
# that are not.
@compiled
def log2(x: Floats, knots: Floats, series: Floats, out: Floats) -> None:
    """Logarithms to base 2."""
    for i in range(len(x)):
        whole, fraction = _log2_in_parts(x[i], knots, series)
        out[i] = whole + fraction
    for i in range(len(x)):
        if not _LEAST_NORMAL <= x[i] < np.inf:
            out[i] = _unusual_logarithm(x[i], 1.0, 0.0, 1.0, knots, series)


@compiled
def log10(x: Floats, knots: Floats, series: Floats, of_2: Floats, out: Floats) -> None:
    """Logarithms to base 10; of_2: log10(2), and its first digits and the rest."""
    for i in range(len(x)):
        whole, fraction = _log2_in_parts(x[i], knots, series)
        # Whole times the first digits is exact.
        out[i] = (fraction * of_2[0] + whole * of_2[2]) + whole * of_2[1]
    for i in range(len(x)):
        if not _LEAST_NORMAL <= x[i] < np.inf:
            out[i] = _unusual_logarithm(x[i], of_2[0], of_2[2], of_2[1], knots, series)


@compiled
def power(y: Floats, steps: Floats, log_of_2: float, series: Floats, knots: Floats, out: Floats) -> None:
    """Powers of a base; see `_power`."""
    usual = _LARGEST_USUAL_POWER * log_of_2
    for i in range(len(y)):
        value, exponent = _power_in_parts(y[i] if abs(y[i]) < usual else 0.0, steps, series, knots)
        out[i] = value * _two_to_the(exponent)
    for i in range(len(y)):
        if not abs(y[i]) < usual:
            out[i] = _power(y[i], steps, log_of_2, series, knots)


@compiled
def cube_roots(
    x: Floats, log2_knots: Floats, log2_series: Floats, exp2_knots: Floats, exp2_series: Floats, exp2_steps: Floats, out: Floats
) -> None:
    """Cube roots, by logarithm and a step of Newton's."""
    for i in range(len(x)):
        if x[i] == 0 or not math.isfinite(x[i]):
            out[i] = np.nan if math.isnan(x[i]) else x[i]
            continue
        mantissa, exponent = math.frexp(abs(x[i]))
        third = exponent // 3
        value = math.ldexp(mantissa, exponent - 3 * third)  # from 1/2 to 4
        whole, fraction = _log2_in_parts(value, log2_knots, log2_series)
        root = _power((whole + fraction) / 3, exp2_steps, 1.0, exp2_series, exp2_knots)
        root -= ((root * root) * root - value) / ((root * root) * 3.0)
        out[i] = math.copysign(math.ldexp(root, third), x[i])


@compiled
def sines(x: Floats, quarters: int, sine_first: Floats, sine_series: Floats, cosine_series: Floats, out: Floats) -> None:
    """Sines of x degrees and so many right angles."""
    for i in range(len(x)):
        near = x[i] if abs(x[i]) < _LARGEST_ANGLE else 0.0
        out[i] = _sine(near, quarters, sine_first, sine_series, cosine_series)
    for i in range(len(x)):
        if not abs(x[i]) < _LARGEST_ANGLE:
            rest = np.fmod(x[i], 360.0)  # exact; NaN of infinity
            out[i] = np.nan if math.isnan(rest) else _sine(rest, quarters, sine_first, sine_series, cosine_series)


@compiled
def arctangents(y: Floats, x: Floats, knots: Floats, series: Floats, out: Floats) -> None:
    """Angles in degrees of the points (x, y)."""
    for i in range(len(y)):
        out[i] = _angle(y[i], x[i], knots, series)


@compiled
def arcsines(z: Floats, knots: Floats, series: Floats, out: Floats) -> None:
    """Angles in degrees whose sine is z."""
    for i in range(len(z)):
        height = z[i] if abs(z[i]) <= 1 else np.nan
        out[i] = _angle(height, math.sqrt((1 - height) * (1 + height)), knots, series)


# One number ----------------------------------------------------------------------------------------------------------
@compiled
def _log2_in_parts(x: float, knots: Floats, series: Floats) -> tuple[float, float]:
    """log2 of a positive normal number as the sum of a whole number and a fraction within a half of 0; of another one anything.

    x = 2**whole m, where m is next to the knot c: log2(m) = log2(c) + log2(1 + r), r = (m - c) / c, where the difference is exact.
    """
    bits = np.float64(x).view(np.int64) - _FIRST
    whole = float(bits >> _FRACTION_BITS)
    bits &= _FRACTION
    knot = np.int64((bits & _KNOT_PLACE) + _FIRST_KNOT).view(np.float64)
    r = (np.int64(bits + _FIRST).view(np.float64) - knot) / knot
    return whole, _cubic(r, series) * r + knots[np.uint64(bits >> _KNOT_SHIFT)]


@compiled
def _unusual_logarithm(x: float, of_2: float, rest: float, first: float, knots: Floats, series: Floats) -> float:
    """Logarithm of a number that is not a positive normal one; of_2: of 2, the rest of which and its first digits."""
    if not x > 0:
        return np.nan
    if x == np.inf:
        return np.inf
    whole, fraction = _log2_in_parts(x * 2.0**_FRACTION_BITS, knots, series)
    whole -= _FRACTION_BITS
    return (fraction * of_2 + whole * rest) + whole * first


@compiled
def _power(y: float, steps: Floats, log_of_2: float, series: Floats, knots: Floats) -> float:
    """b**y for any y.

    Args:
        y: the exponent.
        steps: 4096 log2(b); its inverse in two parts, of which n times the first is exact.
        log_of_2: log_b(2).
        series: b**r - 1 as a sum of powers.
        knots: 2**(n / 4096).
    """
    if math.isnan(y):
        return np.nan
    limit = _LARGEST_POWER * log_of_2
    value, exponent = _power_in_parts(min(max(y, -limit), limit), steps, series, knots)
    # In two steps, of which the first is exact: the second overflows, or rounds to a denormal number, once.
    half = exponent >> 1
    return value * _two_to_the(half) * _two_to_the(exponent - half)


@compiled
def _power_in_parts(y: float, steps: Floats, series: Floats, knots: Floats) -> tuple[float, np.int64]:
    """b**y as a number from about 1 to 2 and the power of 2 it is to be multiplied with.

    With n the whole number next to y log2(b) 4096, b**y = 2**(n / 4096) b**r, where r = y - n log_b(2) / 4096.
    """
    n = np.rint(y * steps[0])
    r = (y - n * steps[1]) - n * steps[2]
    exponent = np.int64(n)
    knot = knots[np.uint64(exponent & (_KNOTS - 1))]
    return _cubic(r, series) * r * knot + knot, exponent >> _KNOT_BITS


@compiled
def _two_to_the(exponent: np.int64) -> float:
    """2**exponent, for normal numbers."""
    return np.int64((exponent + _EXPONENT_BIAS) << _FRACTION_BITS).view(np.float64)


@compiled
def _sine(x: float, quarters: int, sine_first: Floats, sine_series: Floats, cosine_series: Floats) -> float:
    """Sine of x degrees, below _LARGEST_ANGLE, and so many right angles."""
    turns = np.rint(x * (1 / 90))
    rest = x - turns * 90.0  # exact, from -45 to 45
    quadrant = np.int64(turns) + quarters
    square = rest * rest
    sine = (_septic(square, sine_series) * square + sine_first[1]) * rest + rest * sine_first[0]
    cosine = _septic(square, cosine_series) * square + 1.0
    value = cosine if quadrant & 1 else sine
    return (-value if quadrant & 2 else value) + 0.0  # no -0


@compiled
def _angle(y: float, x: float, knots: Floats, series: Floats) -> float:
    """Angle of any point, from the arctangent of the smaller over the larger coordinate: with the knot c next to their ratio t,
    that of c and of (t - c) / (1 + t c)."""
    undefined = math.isnan(x) or math.isnan(y)
    height, width = abs(y), abs(x)
    steep = height > width
    larger, smaller = (height, width) if steep else (width, height)
    usable = 0 < larger < np.inf and not undefined
    smaller = smaller if usable else (1.0 if smaller == np.inf else 0.0)
    t = smaller / (larger if usable else 1.0)
    place = np.rint(t * _ARCTAN_KNOTS)
    knot = place * (1 / _ARCTAN_KNOTS)
    r = (t - knot) / (knot * t + 1.0)
    angle = _cubic(r * r, series) * r + knots[np.uint64(place)]
    angle = 90.0 - angle if steep else angle
    angle = 180.0 - angle if np.signbit(x) else angle
    return np.nan if undefined else math.copysign(angle, y)


@compiled
def _cubic(x: float, coefficients: Floats) -> float:
    """The sum of coefficients[i] x**i, of four, by Horner's rule."""
    return ((coefficients[3] * x + coefficients[2]) * x + coefficients[1]) * x + coefficients[0]


@compiled
def _septic(x: float, coefficients: Floats) -> float:
    """The sum of coefficients[i] x**i, of eight, by Horner's rule."""
    value = ((coefficients[7] * x + coefficients[6]) * x + coefficients[5]) * x + coefficients[4]
    return (((value * x + coefficients[3]) * x + coefficients[2]) * x + coefficients[1]) * x + coefficients[0]
