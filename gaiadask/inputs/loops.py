"""Loops of the transform, compiled: numbers of any size brought near to each other, sign(d) ln(1 + |d| / s), and back; the pieces of
piecewise linear functions.

The logarithm and the exponential are made of single operations that processors do several of at a time, so that they take two
nanoseconds, and give the same bits everywhere. They are right to one or two units in the last place. Imported when a function is
first called: numba takes half a second to import.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gaiadask.compiled import compiled

Floats = NDArray[np.float64]
Numbers = NDArray[np.uint32]

# exp() of more than this exceeds float64 (at 709.8).
MAX_LOGARITHM = 700.0
_HALF_MAX = float(np.finfo(np.float64).max) / 2
# Numbers whose pieces are halved together: they fit into a processor's nearest cache.
_BLOCK = 1_024

_FRACTION_BITS = 52
_FRACTION = (1 << _FRACTION_BITS) - 1
_ONE = 1023 << _FRACTION_BITS
# The bits of the root of a half: what a logarithm is taken of is brought between it and twice as much.
_ROOT = 0x3FE6A09E << 32
# A whole number below 2**52 added to this float is in its last bits.
_WHOLE = 2.0**_FRACTION_BITS
_WHOLE_BITS = 1075 << _FRACTION_BITS
_ROUNDS = 1.5 * _WHOLE
# ln 2 in two parts, of which multiples up to 2**20 times the first are exact.
_LN2 = math.log(2.0)
_LN2_FIRST = math.ldexp(math.floor(math.ldexp(_LN2, 32)), -32)
_LN2_REST = 1.9082149292705877e-10
# 2 artanh(s) = 2 s + 2/3 s**3 + 2/5 s**5 …, for s up to 0.172.
_A3, _A5, _A7, _A9, _A11, _A13, _A15, _A17, _A19, _A21 = (2 / n for n in range(3, 23, 2))
# exp(r) - 1 = r + r**2 / 2! + r**3 / 3! …, for r up to 0.347.
_E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12, _E13 = (1 / math.factorial(n) for n in range(2, 14))


@compiled
def _log1p(x: float) -> float:
    """ln(1 + x) of numbers from 0 on."""
    y = 1.0 + x
    lost = (x - (y - 1.0)) / y  # by rounding y
    bits = np.float64(y).view(np.int64) + (_ONE - _ROOT)
    power = np.int64(bits >> _FRACTION_BITS | _WHOLE_BITS).view(np.float64) - (_WHOLE + 1023.0)
    f = np.int64((bits & _FRACTION) + _ROOT).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    series = z * (
        _A3 + z * (_A5 + z * (_A7 + z * (_A9 + z * (_A11 + z * (_A13 + z * (_A15 + z * (_A17 + z * (_A19 + z * _A21))))))))
    )
    half_square = 0.5 * f * f
    # 2 s = f - s f, and s f = f**2 / 2 - s f**2 / 2: the leading term f is exact.
    return power * _LN2_FIRST + (f - (half_square - (s * (half_square + series) + (power * _LN2_REST + lost))))


@compiled
def _expm1(x: float) -> float:
    """exp(x) - 1 of numbers from 0 to MAX_LOGARITHM."""
    rounded = x * (1.0 / _LN2) + _ROUNDS
    power = rounded - _ROUNDS
    r = (x - power * _LN2_FIRST) - power * _LN2_REST
    series = _E8 + r * (_E9 + r * (_E10 + r * (_E11 + r * (_E12 + r * _E13))))
    series = _E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * (_E6 + r * (_E7 + r * series)))))
    grown = r + r * r * series
    doubled = np.int64((np.float64(rounded).view(np.int64) + 1023) << _FRACTION_BITS).view(np.float64)
    return doubled * grown + (doubled - 1.0)


@compiled
def warp(x: Floats, location: float, exponent: int, out: Floats) -> None:
    """sign(d) ln(1 + |d| / s) of finite x, where d = x - location and s = 2**exponent; NaN of NaN. All arrays: shape (n,)."""
    per_scale, is_far = math.ldexp(1.0, -exponent), False
    for i in range(len(x)):
        difference = x[i] - location
        ratio = abs(difference) * per_scale
        is_far |= ratio == np.inf
        out[i] = math.copysign(_log1p(ratio), difference)
    if is_far:
        # The distance, or its ratio to s, exceeds float64: halve the one, take the logarithm of the other.
        for i in range(len(x)):
            if abs(x[i] - location) * per_scale == np.inf:
                half = abs(x[i] * 0.5 - location * 0.5)
                ratio = math.ldexp(half, 1 - exponent)
                logarithm = math.log(half) + (1 - exponent) * _LN2 if ratio == np.inf else _log1p(ratio)
                out[i] = math.copysign(logarithm, x[i] - location)


@compiled
def unwarp(u: Floats, location: float, exponent: int, out: Floats) -> None:
    """The x of warped values, finite for any but NaN. All arrays: shape (n,)."""
    first = min(max(exponent, -1000), 1000)
    scale, rest = math.ldexp(1.0, first), math.ldexp(1.0, exponent - first)
    is_far = False
    for i in range(len(u)):
        size = abs(u[i])
        x = location + math.copysign(_expm1(min(size, MAX_LOGARITHM)) * scale * rest, u[i])
        is_far |= (abs(x) == np.inf) | (size > MAX_LOGARITHM)
        out[i] = x
    if is_far:
        for i in range(len(u)):
            size = abs(u[i])
            if abs(out[i]) == np.inf or size > MAX_LOGARITHM:
                half = math.exp(size + (exponent - 1) * _LN2) if size > MAX_LOGARITHM else math.ldexp(_expm1(size), exponent - 1)
                half = location * 0.5 + math.copysign(half, u[i])
                out[i] = 2.0 * min(max(half, -_HALF_MAX), _HALF_MAX)


@compiled
def find(x: Floats, starts: Numbers, padded: Floats, first: float, per_unit: float, steps: int, piece: Numbers) -> None:
    """Write the number of each number's piece. Arguments as in `Pieces`; x, piece: shape (n,)."""
    last = float(len(starts) - 1)
    for begin in range(0, len(x), _BLOCK):
        end = min(begin + _BLOCK, len(x))
        for i in range(begin, end):
            place = (x[i] - first) * per_unit
            place = place if place > 0.0 else 0.0  # of NaN too
            piece[i] = starts[np.uint32(place if place < last else last)]
        for halving in range(steps):
            step = np.uint32(1 << (steps - 1 - halving))
            for i in range(begin, end):
                reached = padded[np.uint32(piece[i] + step - np.uint32(1))] <= x[i]
                piece[i] = piece[i] + step if reached else piece[i]


@compiled
def interpolate(x: Floats, piece: Numbers, at: Floats, to: Floats, slopes: Floats, out: Floats) -> None:
    """Write the values at numbers of these pieces. at, to, slopes: of each piece. All others: shape (n,)."""
    for i in range(len(x)):
        number = piece[i]
        out[i] = (x[i] - at[number]) * slopes[number] + to[number]
