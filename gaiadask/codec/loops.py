"""The codec's loops over stars, compiled: what numpy would do in ten passes over memory is done in one.

Masks of nulls and further optional arrays are empty where there is none. What is null is passed over: its result is NaN or 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaiadask.compiled import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Small = NDArray[np.uint16]
Levels = NDArray[np.int32]
Mask = NDArray[np.bool_]

NONE, NO_NULL = np.zeros(0), np.zeros(0, np.bool_)
"""Stand for arrays that there are not."""

_EXPONENT_BIAS = 1023.0
SCALE_BITS = 20
"""A mean and a scale are added in one whole number: the scale in the low bits, never negative."""
LEVEL_BITS = 7
"""Of a scale, below its levels: half octaves."""
_BLOCK = 2048
_SCALE_MASK = (1 << SCALE_BITS) - 1
NO_END, POLES, TURN, WHOLE = 0, 1, 2, 3
"""Of the values of a grid: they have no end; they end at -90 and 90; they turn round at 360; they are whole numbers."""
ANY_SIGN, POSITIVE, NOT_FAR_BELOW = 0, 1, 2
"""What must stay of a value above 0: nothing; that it is above 0; and that it is no further below, as a factor, than its bound lets it
be above."""
WRONG, EXACT = 1, 2
"""Of a value that would come back: it is not within its bound; its bound is 0. Of others 0."""


class Scale(NamedTuple):
    """How a feature's numbers are made of one or two others; its range."""

    centre: float
    width: float
    low: float
    high: float


class Coordinates(NamedTuple):
    """A feature of each star, shape (stars,) each, or several, shape (features, stars).

    Attributes:
        steps: from the first knot, CELLS * STEPS at the last one; NULL_COORDINATE where the feature is null.
        above: the feature's number less the lower end of its range, in [0, high - low]; 0 where it is null.
    """

    steps: Small
    above: Floats


class Tables(NamedTuple):
    """A prediction as arrays.

    Attributes:
        constant, unit: of the mean.
        parents: each parent's entries, mean and scale in one number, by coordinate, shape (parents, coordinates).
        features: of each parent.
        slopes: of each parent's line.
        sky: entry of each pixel, or empty.
    """

    constant: int
    unit: float
    parents: Integers
    features: Integers
    slopes: Floats
    sky: Integers


class Ruler(NamedTuple):
    """Where the steps of a grid lie.

    Attributes:
        origin: of each star, the value at step 0.
        step: one step, in units of the errors, if there are any.
        errors: of each star, or empty.
        ends: NO_END, POLES, TURN or WHOLE.
    """

    origin: Floats
    step: float
    errors: Floats
    ends: int


# Features ------------------------------------------------------------------------------------------------------------
@compiled
def numbers(first: Floats, second: Floats, scale: Scale, out: Floats) -> None:
    """A feature's numbers; see `_number`."""
    for i in range(len(first)):
        out[i] = _number(first[i], second[i] if len(second) else 0.0, scale)


@compiled
def coordinates(first: Floats, second: Floats, scale: Scale, places: Small, steps: Small, above: Floats) -> None:
    """Where each of a feature's numbers lies among its knots.

    Args:
        first, second, scale: see `_number`.
        places: the coordinate of each level of the range from end to end, and last that of null.
        steps, above: made, see `Coordinates`.
    """
    levels = len(places) - 2
    per_level = levels / (scale.high - scale.low)
    for i in range(len(first)):
        number = _number(first[i], second[i] if len(second) else 0.0, scale)
        null = math.isnan(number)
        inside = number if number > scale.low else scale.low
        inside = (inside if inside < scale.high else scale.high) - scale.low
        level = np.int64(inside * per_level)
        level = level if level < levels else np.int64(levels)
        steps[i] = places[np.uint64(levels + 1 if null else level)]
        above[i] = 0.0 if null else inside


@compiled
def _number(first: float, second: float, scale: Scale) -> float:
    """The difference of two numbers. Where the feature has a width, of that its symmetric logarithm: sign(d) plog2(1 + |d| / width) of
    d = x - centre: linear near the centre, logarithmic far away. plog2 is log2 at powers of two and linear between them: the exponent
    and mantissa of the number as they are stored."""
    number = first - second
    if scale.width == 0:
        return number
    number -= scale.centre
    bits = np.float64(abs(number) / scale.width + 1.0).view(np.int64) >> 20
    logarithm = math.copysign(float(bits) * 2.0**-32 - _EXPONENT_BIAS, number)
    return number if math.isnan(number) else logarithm


@compiled
def summed(tables: Tables, coordinates: Coordinates, sky: Integers, mean: Floats, levels: Levels) -> None:
    """Means and levels of the scale, as sums over parents; coordinates: of all features; sky: each star's pixel."""
    total = np.empty(_BLOCK, np.int64)
    # A block at a time, in the processor's nearest memory; one addition after the other, so that a block's size decides no bit.
    for start in range(0, len(mean), _BLOCK):
        count = min(_BLOCK, len(mean) - start)
        total[:] = tables.constant << SCALE_BITS
        for p in range(len(tables.features)):
            table, places = tables.parents[p], coordinates.steps[tables.features[p], start : start + count]
            for i in range(count):
                total[i] += table[places[i]]
        if len(tables.sky):
            for i in range(count):
                total[i] += tables.sky[np.uint64(sky[start + i])]
        for i in range(count):
            mean[start + i] = float(total[i] >> SCALE_BITS) * tables.unit
            levels[start + i] = (total[i] & _SCALE_MASK) >> LEVEL_BITS
        for p in range(len(tables.features)):
            slope = tables.slopes[p]
            if slope != 0:
                distances = coordinates.above[tables.features[p], start : start + count]
                for i in range(count):
                    mean[start + i] += distances[i] * slope


# Piles ---------------------------------------------------------------------------------------------------------------
@compiled
def counted(levels: Levels, null: Mask, counts: Integers) -> None:
    """How many stars are of each level."""
    for i in range(len(levels)):
        if not (len(null) and null[i]):
            counts[levels[i]] += 1


@compiled
def piled(values: Integers, levels: Levels, null: Mask, pile_of_level: Integers, places: Integers, out: Integers) -> None:
    """Numbers sorted by their pile, within a pile in the stars' order; places: where each pile begins, moved to its end."""
    for i in range(len(levels)):
        if not (len(null) and null[i]):
            pile = pile_of_level[levels[i]]
            out[places[pile]] = values[i]
            places[pile] += 1


@compiled
def unpiled(ordered: Integers, levels: Levels, null: Mask, pile_of_level: Integers, places: Integers, out: Integers) -> None:
    """What `piled` has sorted, in the stars' order; 0 where null."""
    for i in range(len(levels)):
        if len(null) and null[i]:
            out[i] = 0
        else:
            pile = pile_of_level[levels[i]]
            out[i] = ordered[places[pile]]
            places[pile] += 1


# Grids ---------------------------------------------------------------------------------------------------------------
@compiled
def nearest(values: Floats, ruler: Ruler, most: float, null: Mask, steps: Integers, wrong: Mask) -> None:
    """The whole number of steps that is nearest to each value; 0, and wrong, where it is not below `most`."""
    for i in range(len(values)):
        steps[i], wrong[i] = 0, False
        if len(null) and null[i]:
            continue
        off = values[i] - ruler.origin[i]
        if ruler.ends == TURN:
            off -= 360.0 * np.rint(off / 360.0)
        off = np.rint(off / _step(ruler, i))
        if abs(off) < most:
            steps[i] = np.int64(off)
        else:
            wrong[i] = True


@compiled
def placed(steps: Integers, ruler: Ruler, null: Mask, out: Floats) -> None:
    """The value at each number of steps, NaN where null."""
    for i in range(len(steps)):
        if len(null) and null[i]:
            out[i] = np.nan
            continue
        if ruler.ends == WHOLE:
            out[i] = np.rint(ruler.origin[i]) + steps[i]
            continue
        value = steps[i] * _step(ruler, i) + ruler.origin[i]
        if ruler.ends == POLES:
            value = -90.0 if value < -90.0 else value
            value = 90.0 if value > 90.0 else value
        elif ruler.ends == TURN:
            value = value + 360.0 if value < 0 else value
            value = value - 360.0 if value >= 360.0 else value
        out[i] = value


@compiled
def _step(ruler: Ruler, i: int) -> float:
    return ruler.step * ruler.errors[i] if len(ruler.errors) else ruler.step


# Bounds --------------------------------------------------------------------------------------------------------------
@compiled
def usable(values: Floats, most: Floats) -> None:
    """Make 0 of bounds that are none, and of those of values that are not finite."""
    for i in range(len(values)):
        if not (math.isfinite(values[i]) and math.isfinite(most[i]) and most[i] > 0):
            most[i] = 0.0


@compiled
def judged(
    values: Floats, rebuilt: Floats, most: Floats, cosines: Floats, stays: int, null: Mask, verdict: NDArray[np.uint8]
) -> float:
    """Judge what would come back, of each value that is not WRONG already.

    Args:
        values, rebuilt: the value, and what would come back.
        most: by how much it may be off; 0: it must be exact.
        cosines: of right ascensions, of the declination: they are off along the sphere, the short way round.
        stays: ANY_SIGN, POSITIVE or NOT_FAR_BELOW, which is more than the bound says only where that allows 0.
        null: of the values.
        verdict: made.

    Returns:
        The largest |error| over its bound of those that are within it.
    """
    worst = 0.0
    for i in range(len(values)):
        if verdict[i] == WRONG or (len(null) and null[i]):
            continue
        value, back = values[i], rebuilt[i]
        if (stays != ANY_SIGN and value > 0 and not back > 0) or (
            stays == NOT_FAR_BELOW and most[i] >= value > 0 and back * (1.0 + most[i] / value) < value
        ):
            verdict[i] = WRONG
        elif not most[i] > 0:
            verdict[i] = EXACT
        else:
            off = abs(back - value)
            if len(cosines):
                off = min(off, 360.0 - off) * cosines[i]
            share = off / most[i]
            if share <= 1:
                worst = max(worst, share)
            else:
                verdict[i] = WRONG
    return worst


# Pixels --------------------------------------------------------------------------------------------------------------
@compiled
def centres(pixels: Integers, order: int, rings: Integers, longitudes: Integers, ra: Floats, sine: Floats) -> None:
    """Right ascension in [0, 360), degrees, and sine of the declination of the centres of nested HEALPix pixels.

    Args:
        pixels, order: the pixels.
        rings, longitudes: of each of the twelve base pixels: the ring of its southern corner, in sides from the north pole, and
            its longitude in eighths.
        ra, sine: made.
    """
    side = 1 << order
    for i in range(len(pixels)):
        base, within = pixels[i] >> (2 * order), pixels[i] & ((1 << (2 * order)) - 1)
        x, y = _even_bits(within), _even_bits(within >> 1)
        ring = rings[base] * side - x - y - 1
        # Pixels of a quarter of the ring: as many as the ring's number near a pole, `side` between.
        quarter = min(ring, 4 * side - ring, side)
        shift = (ring - side) & 1 if quarter == side else 0
        number = (longitudes[base] * quarter + x - y + 1 + shift) >> 1
        if number > 4 * quarter:
            number -= 4 * quarter
        elif number < 1:
            number += 4 * quarter
        east = (number - (shift + 1) * 0.5) * 90.0 / quarter
        ra[i] = east + 360.0 if east < 0 else east
        cap = 1.0 - (quarter * quarter) / (3.0 * side * side)
        if quarter == side:
            sine[i] = (2 * side - ring) * 2.0 / (3.0 * side)
        else:
            sine[i] = cap if ring < side else -cap


@compiled
def _even_bits(number: int) -> int:
    """Every other bit of a number, from the lowest on."""
    bits = number & 0x5555555555555555
    bits = (bits | (bits >> 1)) & 0x3333333333333333
    bits = (bits | (bits >> 2)) & 0x0F0F0F0F0F0F0F0F
    bits = (bits | (bits >> 4)) & 0x00FF00FF00FF00FF
    bits = (bits | (bits >> 8)) & 0x0000FFFF0000FFFF
    return (bits | (bits >> 16)) & 0x00000000FFFFFFFF
