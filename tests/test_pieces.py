"""Piecewise-linear functions by a table: the very numbers that a search and an interpolation give."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gaiadask.inputs.pieces import Pieces

LOW, HIGH = 0.5, 4.0


def interpolated(at: NDArray[np.float64], to: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.interp(x, at, to) + LOW * np.minimum(x - at[0], 0) + HIGH * np.maximum(x - at[-1], 0)


@pytest.mark.parametrize("decades", [0, 3, 9])
@pytest.mark.parametrize("knots", [2, 3, 500])
def test_it_is_interpolation_to_the_bit_however_crowded_the_knots_are(knots: int, decades: int) -> None:
    random = np.random.default_rng(knots)
    at = np.cumsum(np.sort(10.0 ** random.uniform(-decades, 0, knots)))  # with decades most knots share few of the equal intervals
    to = np.sort(random.normal(size=knots))
    pieces = Pieces.through(at, to, LOW, HIGH)
    beyond = np.concatenate([at[0] - [1e-9, 1, 1e30], at[-1] + [1e-9, 1, 1e30]])
    x = np.concatenate([at, np.nextafter(at, -np.inf), np.nextafter(at, np.inf), random.uniform(at[0], at[-1], 20_000), beyond])
    assert np.array_equal(pieces.value(x), interpolated(at, to, x))
    assert (pieces.steps > 4) == (knots > 3 and decades > 0)
    slopes = np.concatenate([[LOW], np.diff(to) / np.diff(at), [HIGH]])
    assert np.array_equal(pieces.slope(x), slopes[np.searchsorted(at, x, side="right")])


def test_what_is_no_number_stays_so() -> None:
    pieces = Pieces.through(np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0, 3.0]), LOW, HIGH)
    assert np.array_equal(pieces.value(np.array([np.nan, np.inf, -np.inf, 1.0])), [np.nan, np.inf, -np.inf, 2.0], equal_nan=True)
    assert pieces.value(np.empty(0)).shape == (0,)
