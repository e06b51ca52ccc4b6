"""Loops of the statistics, compiled. Imported when a function is first called: numba takes half a second to import."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaiadask.compiled import compiled

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@compiled
def split(
    x: NDArray[Any], valid: Bools, first_part: Bools, hashes: NDArray[np.uint64], values: NDArray[Any], nulls: NDArray[np.uint64]
) -> int:
    """Sort a column's values into two parts, each in its order.

    Args:
        x: the column, shape (n,). valid: where it has a value. first_part: which rows are of the first part. hashes: of the rows.
        values: written to, shape (2, n + 1): the values of either part, from its beginning.
        nulls: written to, shape (2, 2): of either part, the number of rows without a value and the sum of their hashes.

    Returns:
        How many values the first part has.
    """
    places = np.zeros(2, np.int64)
    nulls[:] = 0
    for i in range(len(x)):
        part = 0 if first_part[i] else 1
        values[part, places[part]] = x[i]
        if valid[i]:
            places[part] += 1
        else:
            nulls[part, 0] += np.uint64(1)
            nulls[part, 1] += hashes[i]
    return places[0]


@compiled
def compare(x: Floats, formula: Floats, known: Bools, first_part: Bools, kind: int, limit: float) -> Floats:
    """How far values are from what a formula gives.

    Args:
        x, formula: shape (n,). known: which rows are looked at. first_part: which rows are of the first part.
        kind: of a difference: 0 as it is, 1 of angles in degrees, 2 as a share of the formula's value, of 1 at least.
        limit: that a difference may have.

    Returns:
        Shape (2, 3): of either part, how many rows are known, how many are beyond the limit, and the largest difference. It counts as
        0 where the formula is not defined.
    """
    found = np.zeros((2, 3))
    for i in range(len(x)):
        if known[i]:
            part, off = 0 if first_part[i] else 1, 0.0
            if np.isfinite(formula[i]):
                off = abs(x[i] - formula[i])
                if kind == 1:
                    off = min(off, abs(360.0 - off))
                elif kind == 2:
                    off /= max(abs(formula[i]), 1.0)
            found[part, 0] += 1.0
            found[part, 1] += off > limit
            found[part, 2] = max(found[part, 2], off)
    return found


@compiled
def bins(ordered: NDArray[Any], ranks: Floats, most: int, starts: NDArray[np.int64]) -> int:
    """Bins of ascending numbers that begin at these ranks, none of which splits a number that is repeated.

    Args:
        ordered: shape (n,). ranks: ascending, between 0 and n.
        most: with fewer different numbers there are no bins.
        starts: written to, shape (len(ranks) + 3,): where each bin begins. The smallest number is a bin of its own, and the largest.

    Returns:
        How many bins there are; 0: none.
    """
    n, different = len(ordered), 0
    for i in range(1, n):
        different += ordered[i] != ordered[i - 1]
        if different >= most:
            break
    if different < most:
        return 0
    second, last = np.searchsorted(ordered, ordered[0], side="right"), np.searchsorted(ordered, ordered[n - 1], side="left")
    starts[0], starts[1], count = 0, second, 2
    for rank in ranks:
        first = int(rank)
        stop, at = first + 1, ordered[first]
        if (first > 0 and ordered[first - 1] == at) or (stop < n and ordered[stop] == at):
            first, stop = np.searchsorted(ordered, at, side="left"), np.searchsorted(ordered, at, side="right")
        # The number at a rank is the first of its bin, or it ends the bin before: by its mid-rank.
        start = min(max(first if (first + stop) / 2 >= rank else stop, second), last)
        if start != starts[count - 1]:
            starts[count] = start
            count += 1
    if last != starts[count - 1]:
        starts[count] = last
        count += 1
    return count
