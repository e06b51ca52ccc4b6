"""Elementary functions that give the same bits on every machine.

numpy's exp, log, sin and power differ in the last bits from one instruction set to the next. These are made of single operations
that IEEE 754 defines to the last bit (+, -, ×, ÷, square root, rounding to an integer, operations on integers), each in a numpy
call of its own so that no compiler joins two of them, and of tables that are shipped with the package (elementary.json, which
docs/make_tables.py writes), so that what is decided by their results is decided alike everywhere. A NaN among the results is
always the same NaN. They are accurate to one or two units in the last place and take some 10 ns a value.

Each takes numbers or arrays of any shape, as float64, and returns float64 of the same shape.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Values that are computed at a time: temporary arrays of 128 KiB stay in the cache.
_BLOCK = 16_384

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

# Beyond, 2**y is infinite or 0.
_LARGEST_POWER = 1100.0

# Arctangents have so many knots from 0 to 1.
_ARCTAN_KNOTS = 256

# Up to here a multiple of 90 degrees is subtracted exactly.
_LARGEST_ANGLE = 2.0**40


def log2(x: ArrayLike) -> Floats:
    """Logarithm to base 2; NaN where x is not above 0. 0 at 1, and accurate beside it."""
    return _in_blocks(lambda part: _logarithm(part, np.add), x)


def log10(x: ArrayLike) -> Floats:
    """Logarithm to base 10; NaN where x is not above 0."""
    of_2, first, rest = _table("log10_of_2").tolist()

    def decimal(whole: Floats, fraction: Floats) -> Floats:
        fraction *= of_2
        fraction += whole * rest
        fraction += whole * first  # exact
        return fraction

    return _in_blocks(lambda part: _logarithm(part, decimal), x)


def exp2(y: ArrayLike) -> Floats:
    """2 to the power of y."""
    return _in_blocks(lambda part: _power(part, (_KNOTS, 1 / _KNOTS, 0.0), 1.0, "exp2_series"), y)


def exp10(y: ArrayLike) -> Floats:
    """10 to the power of y."""
    return _in_blocks(lambda part: _power(part, _table("exp10_steps").tolist(), _table("log10_of_2")[0], "exp10_series"), y)


def cbrt(x: ArrayLike) -> Floats:
    """Cube root, which has the sign of x."""
    return _in_blocks(_cube_root, x)


def sin_degrees(x: ArrayLike) -> Floats:
    """Sine of an angle in degrees; NaN of infinity."""
    return _in_blocks(lambda part: _sines(part, 0)[0], x)


def cos_degrees(x: ArrayLike) -> Floats:
    """Cosine of an angle in degrees, accurate beside 90 degrees too; NaN of infinity."""
    return _in_blocks(lambda part: _sines(part, 1)[0], x)


def sin_cos_degrees(x: ArrayLike) -> tuple[Floats, Floats]:
    """Sine and cosine of an angle in degrees, at little more than the price of one."""
    sine, cosine = _in_blocks(lambda part: _sines(part, 0, 1), x, rows=(2,))
    return np.asarray(sine), np.asarray(cosine)


def arctan2_degrees(y: ArrayLike, x: ArrayLike) -> Floats:
    """Angle in degrees, from -180 to 180, of the point (x, y); signs of zeros count as in numpy's arctan2."""
    return _in_blocks(_arctan2, y, x)


def arcsin_degrees(z: ArrayLike) -> Floats:
    """Angle in degrees, from -90 to 90, whose sine is z; NaN beyond -1 and 1."""
    return _in_blocks(_arcsine, z)


# Logarithms ----------------------------------------------------------------------------------------------------------
def _logarithm(x: Floats, combine: Callable[[Floats, Floats], Floats]) -> Floats:
    """What `combine` makes of the whole part and the fraction of log2(x), for any x."""
    if x.min() >= _LEAST_NORMAL and x.max() < np.inf:
        return combine(*_log2_in_parts(x))
    positive = x > 0
    usable = np.where(positive & (x < np.inf), x, 1.0)
    denormal = usable < _LEAST_NORMAL
    usable[denormal] *= 2.0**_FRACTION_BITS
    whole, fraction = _log2_in_parts(usable)
    whole[denormal] -= _FRACTION_BITS
    value = np.where(positive, combine(whole, fraction), np.nan)
    value[x == np.inf] = np.inf
    return value


def _log2_in_parts(x: Floats) -> tuple[Floats, Floats]:
    """log2 of positive normal numbers as the sum of a whole number and a fraction within a half of 0.

    x = 2**whole m, where m is next to the knot c: log2(m) = log2(c) + log2(1 + r), r = (m - c) / c, where the difference is exact.
    """
    bits = x.view(np.int64) - _FIRST
    whole = (bits >> _FRACTION_BITS).astype(np.float64)
    bits &= _FRACTION
    place = bits >> _KNOT_SHIFT
    knot = bits & _KNOT_PLACE
    knot += _FIRST_KNOT
    bits += _FIRST
    r = bits.view(np.float64) - knot.view(np.float64)
    r /= knot.view(np.float64)
    fraction = _sum_of_powers(r, _table("log2_series"))
    fraction *= r
    fraction += _table("log2").take(place, mode="clip")
    return whole, fraction


# Powers --------------------------------------------------------------------------------------------------------------
def _power(y: Floats, steps: Sequence[float], log_of_2: float, series: str) -> Floats:
    """b**y for any y.

    With n the whole number next to y log2(b) 4096, b**y = 2**(n / 4096) b**r, where r = y - n log_b(2) / 4096.

    Args:
        y: the exponents.
        steps: 4096 log2(b); its inverse in two parts, of which n times the first is exact.
        log_of_2: log_b(2).
        series: the table of b**r - 1 as a sum of powers.
    """
    lowest, highest = y.min(), y.max()
    if lowest > -1021 * log_of_2 and highest < 1022 * log_of_2:
        mantissa, exponent = _power_in_parts(y, steps, series)
        mantissa *= _two_to_the(exponent)
        return mantissa
    undefined = np.isnan(y)
    limit = _LARGEST_POWER * log_of_2
    mantissa, exponent = _power_in_parts(np.clip(np.where(undefined, 0.0, y), -limit, limit), steps, series)
    # In two steps, of which the first is exact: the second overflows, or rounds to a denormal number, once.
    half = exponent >> 1
    with np.errstate(over="ignore", under="ignore"):
        mantissa *= _two_to_the(half)
        mantissa *= _two_to_the(exponent - half)
    mantissa[undefined] = np.nan
    return mantissa


def _power_in_parts(y: Floats, steps: Sequence[float], series: str) -> tuple[Floats, Integers]:
    """b**y as a number from about 1 to 2 and the power of 2 it is to be multiplied with."""
    per_unit, first, rest = steps
    n = y * per_unit
    np.rint(n, out=n)
    exponent = n.astype(np.int64)
    r = y - n * first
    n *= rest
    r -= n
    value = _sum_of_powers(r, _table(series))
    value *= r
    knot = _table("exp2").take(exponent & (_KNOTS - 1), mode="clip")
    value *= knot
    value += knot
    exponent >>= _KNOT_BITS
    return value, exponent


def _two_to_the(exponent: Integers) -> Floats:
    """2**exponent, for normal numbers."""
    bits = exponent + _EXPONENT_BIAS
    bits <<= _FRACTION_BITS
    return bits.view(np.float64)


def _cube_root(x: Floats) -> Floats:
    """Cube root, by logarithm and a step of Newton's."""
    usable = np.isfinite(x) & (x != 0)
    mantissa, exponent = np.frexp(np.where(usable, np.abs(x), 1.0))
    third = exponent // 3
    value = np.ldexp(mantissa, exponent - 3 * third)  # from 1/2 to 4
    root = exp2(log2(value) / 3)
    cube = root * root
    cube *= root
    cube -= value
    cube /= root * root * 3.0
    root -= cube
    return np.where(usable, np.copysign(np.ldexp(root, third), x), np.where(np.isnan(x), np.nan, x))


# Angles --------------------------------------------------------------------------------------------------------------
def _sines(x: Floats, *quarters: int) -> Floats:
    """Sines of x degrees and so many right angles, a row for each, for any x."""
    if x.min() > -_LARGEST_ANGLE and x.max() < _LARGEST_ANGLE:
        return _sines_of(x, quarters)
    finite = np.isfinite(x)
    values = _sines_of(np.fmod(np.where(finite, x, 0.0), 360.0), quarters)  # fmod is exact
    return np.where(finite, values, np.nan)


def _sines_of(x: Floats, quarters: Sequence[int]) -> Floats:
    turns = x * (1 / 90)
    np.rint(turns, out=turns)
    rest = x - turns * 90.0  # exact, from -45 to 45
    quadrant = turns.astype(np.int64)
    square = rest * rest
    sine, cosine = _sine_series(rest, square), _cosine_series(square)
    values = np.empty((len(quarters), x.size))
    for value, more in zip(values, quarters, strict=True):
        turned = quadrant + more
        value[:] = np.where((turned & 1).astype(bool), cosine, sine)
        turned &= 2
        value *= 1 - turned
        value += 0.0  # no -0
    return values


def _sine_series(x: Floats, square: Floats) -> Floats:
    """Sine of angles from -45 to 45 degrees."""
    first, rest = _table("sin_first").tolist()
    value = _sum_of_powers(square, _table("sin_series"))
    value *= square
    value += rest
    value *= x
    value += x * first
    return value


def _cosine_series(square: Floats) -> Floats:
    """Cosine of angles from -45 to 45 degrees, from their squares."""
    value = _sum_of_powers(square, _table("cos_series"))
    value *= square
    value += 1.0
    return value


def _arctan2(y: Floats, x: Floats) -> Floats:
    """Angle of any points, from the arctangent of the smaller over the larger coordinate."""
    height, width = np.abs(y), np.abs(x)
    larger, smaller = np.maximum(height, width), np.minimum(height, width)
    if not (larger.min() > 0 and larger.max() < np.inf):
        usable = (larger > 0) & (larger < np.inf)
        smaller = np.where(usable, smaller, np.isinf(smaller))  # 1 where both are infinite
        larger = np.where(usable, larger, 1.0)
    with np.errstate(under="ignore"):
        angle = _arctangent(smaller / larger)
    angle = np.where(height > width, 90.0 - angle, angle)
    angle = np.where(np.signbit(x), 180.0 - angle, angle)
    return np.where(np.isnan(x) | np.isnan(y), np.nan, np.copysign(angle, y))


def _arcsine(z: Floats) -> Floats:
    within = np.abs(z) <= 1
    z = np.where(within, z, 0.0)
    return np.where(within, _arctan2(z, np.sqrt((1 - z) * (1 + z))), np.nan)


def _arctangent(t: Floats) -> Floats:
    """Arctangent in degrees of numbers from 0 to 1: with the knot c next to t, that of c and of (t - c) / (1 + t c)."""
    place = np.rint(t * _ARCTAN_KNOTS)
    knot = place * (1 / _ARCTAN_KNOTS)
    r = t - knot  # exact
    knot *= t
    knot += 1.0
    r /= knot
    angle = _sum_of_powers(r * r, _table("arctan_series"))
    angle *= r
    angle += _table("arctan").take(place.astype(np.int64), mode="clip")
    return angle


# Tables and blocks ---------------------------------------------------------------------------------------------------
def _sum_of_powers(x: Floats, coefficients: Floats) -> Floats:
    """The sum of coefficients[i] x**i, by Horner's rule."""
    *lower, last = coefficients.tolist()
    value = x * last
    value += lower.pop()
    for coefficient in reversed(lower):
        value *= x
        value += coefficient
    return value


def _in_blocks(function: Callable[..., Floats], *arguments: ArrayLike, rows: tuple[int, ...] = ()) -> Floats:
    """A function of one-dimensional arrays, on arrays of any shape, a block at a time; rows: the first axis of its results, if they
    have one more than its arguments."""
    arrays = np.broadcast_arrays(*(np.asarray(argument, np.float64) for argument in arguments))
    flat = [array.ravel() for array in arrays]
    value = np.empty((*rows, flat[0].size))
    for start in range(0, flat[0].size, _BLOCK):
        part = slice(start, start + _BLOCK)
        value[..., part] = function(*(array[part] for array in flat))
    return value.reshape((*rows, *arrays[0].shape))


def tables_text() -> str:
    """The tables as they are shipped: JSON, each table's numbers as hexadecimal floats."""
    return (resources.files("gaiadask") / "elementary.json").read_text(encoding="utf-8")


def _table(name: str) -> Floats:
    return _tables()[name]


@functools.cache
def _tables() -> dict[str, Floats]:
    """The tables by name, read once."""
    tables = {name: np.array([float.fromhex(number) for number in numbers]) for name, numbers in json.loads(tables_text()).items()}
    for table in tables.values():
        table.setflags(write=False)
    return tables
