"""Loops of the loader, compiled: columns to rows, and a random order. Imported when a function is first called: numba takes half a
second to import."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaiadask.compiled import compiled


@compiled
def fill(x: NDArray[Any], valid: NDArray[np.bool_], row: NDArray[Any]) -> bool:
    """Write a column's numbers, NaN where it has none; returns whether one is infinite, also by the row's type. All: shape (n,)."""
    infinite = False
    for i in range(len(x)):
        row[i] = x[i]
        row[i] = row[i] if valid[i] else np.nan
        infinite |= abs(row[i]) == np.inf
    return infinite


@compiled
def put(rows: NDArray[Any], places: NDArray[np.int64], to: NDArray[Any]) -> None:
    """Copy rows, shape (n or more, width), the first n each to its place among others, shape (n or more, width). places: shape (n,)."""
    for i in range(len(places)):
        place = places[i]
        for column in range(rows.shape[1]):
            to[place, column] = rows[i, column]


@compiled
def without_nan(values: NDArray[Any], null: NDArray[np.bool_]) -> None:
    """Replace NaN by 0, and say where one was. Both: shape (n,)."""
    for i in range(len(values)):
        null[i] = values[i] != values[i]
        values[i] = 0 if null[i] else values[i]


@compiled
def deal(drawn: NDArray[np.float64], first: int, begins: int, window: int, slab: int, slabs: NDArray[np.int64]) -> None:
    """The slab of each of some positions from `first` on: `drawn` of the window after it, but of none before `begins`.

    drawn: from 0 to 1, shape (n,), as slabs.
    """
    for i in range(len(drawn)):
        slabs[i] = (max(first + i, begins) + np.int64(drawn[i] * window)) // slab


@compiled
def sort(numbers: NDArray[np.int64], least: int, counts: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    """Where each number is when they are sorted, equal ones in their order. numbers, places: shape (n,).

    counts: how many there are of `least` and of each one after it; zeros at first, shape (largest - least + 1,).
    """
    for number in numbers:
        counts[number - least] += 1
    next_place = np.cumsum(counts) - counts
    for i in range(len(numbers)):
        k = numbers[i] - least
        places[i] = next_place[k]
        next_place[k] += 1


@compiled
def shuffle(numbers: NDArray[np.int64], drawn: NDArray[np.uint32]) -> None:
    """Bring numbers into a random order (Fisher and Yates; Durstenfeld 1964). drawn: random, shape as numbers.

    Where 2**32 is no multiple of the places to choose from, some are more probable than others by a share of their number in 2**32.
    """
    for i in range(len(numbers) - 1, 0, -1):
        j = np.int64(np.uint64(drawn[i]) * np.uint64(i + 1) >> np.uint64(32))
        numbers[i], numbers[j] = numbers[j], numbers[i]
