"""Which stars have a value of a column, and those values alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.codec import loops
from gaiadask.compiled import fixed

Mask = NDArray[np.bool_] | None
"""Which stars have no value; None: all have one."""


def masked(null: Mask) -> NDArray[np.bool_]:
    """A mask as the compiled loops take it."""
    return fixed(loops.NO_NULL if null is None else null)


def chosen(values: Any, null: Mask) -> Any:
    """The values that are not null."""
    if null is None:
        return values
    return values.filter(pa.array(~null)) if isinstance(values, pa.Array) else values[~null]


def spread(values: Any, null: Mask) -> Any:
    """Values in the places of those that are not null; in the others NaN, of what has none anything."""
    if null is None:
        return values
    if isinstance(values, pa.Array):
        if not len(values):
            return pa.array([""] * len(null), values.type)
        return values.take(pa.array(np.maximum(np.cumsum(~null) - 1, 0)))
    every = np.full(len(null), np.nan if values.dtype.kind == "f" else 0, values.dtype)
    every[~null] = values
    return every


def blanked(values: NDArray, null: Mask) -> NDArray:
    """The same values, NaN where null if they are floating-point numbers."""
    if null is not None and values.dtype.kind == "f":
        values[null] = np.nan
    return values


def as_floats(values: NDArray, null: Mask) -> NDArray[np.float64]:
    """Numbers as float64, NaN where null: as the floating-point ones among them are already."""
    if null is None or values.dtype.kind == "f":
        return np.asarray(values, np.float64)
    floats: NDArray[np.float64] = np.array(values, np.float64)
    floats[null] = np.nan
    return floats
