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
def turn(by_column: NDArray[Any], by_row: NDArray[Any]) -> None:
    """Write columns, shape (columns, more than n), as rows, shape (n, columns)."""
    for i in range(by_row.shape[0]):
        for column in range(by_row.shape[1]):
            by_row[i, column] = by_column[column, i]


@compiled
def shuffle(numbers: NDArray[np.int64], drawn: NDArray[np.uint32]) -> None:
    """Bring numbers into a random order (Fisher and Yates; Durstenfeld 1964). drawn: random, shape as numbers.

    Where 2**32 is no multiple of the places to choose from, some are more probable than others by a share of their number in 2**32.
    """
    for i in range(len(numbers) - 1, 0, -1):
        j = np.int64(np.uint64(drawn[i]) * np.uint64(i + 1) >> np.uint64(32))
        numbers[i], numbers[j] = numbers[j], numbers[i]
