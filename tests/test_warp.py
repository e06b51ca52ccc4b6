"""Numbers brought near to each other: as exact as float64 allows, of any size, and back."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gaiadask.inputs.loops import MAX_LOGARITHM, unwarp, warp

RANDOM = np.random.default_rng(0)
SIZES = np.concatenate(
    [[0.0, 5e-324, 1e-300, 2.0**-53, 2.0**53], 10.0 ** RANDOM.uniform(-30, 300, 20_000), RANDOM.lognormal(size=20_000)]
)


def warped(x: NDArray[np.float64], location: float = 0.0, exponent: int = 0) -> NDArray[np.float64]:
    out = np.empty_like(x)
    warp(x, location, exponent, out)
    return out


def unwarped(u: NDArray[np.float64], location: float = 0.0, exponent: int = 0) -> NDArray[np.float64]:
    out = np.empty_like(u)
    unwarp(u, location, exponent, out)
    return out


def test_logarithms_are_right_to_a_unit_in_the_last_place() -> None:
    expected = np.log1p(SIZES.astype(np.longdouble))
    found = warped(SIZES)
    assert (np.abs(found - expected) <= np.spacing(found)).all()
    assert np.array_equal(warped(-SIZES), -found)
    assert np.array_equal(np.signbit(warped(np.array([0.0, -0.0]))), [False, True])


def test_exponentials_are_right_to_two_units_in_the_last_place() -> None:
    u = np.concatenate([[0.0, 5e-324], 10.0 ** RANDOM.uniform(-30, np.log10(MAX_LOGARITHM), 20_000), RANDOM.uniform(0, 3, 20_000)])
    found = unwarped(u)
    assert (np.abs(found - np.expm1(u.astype(np.longdouble))) <= 2 * np.spacing(found)).all()
    assert np.array_equal(unwarped(-u), -found)


@pytest.mark.parametrize("exponent", [-1000, -300, 0, 300, 1024])
@pytest.mark.parametrize("location", [0.0, -1.5, 1e300, -1.7e308])
def test_any_size_comes_back(location: float, exponent: int) -> None:
    """Also where the distance from the location, or its ratio to the scale, exceeds float64."""
    x = np.concatenate([[1.7e308, -1.7e308], SIZES, -SIZES])
    u = warped(x, location, exponent)
    assert np.isfinite(u).all() and (np.diff(u[np.argsort(x)]) >= -1e-15 * np.abs(u).max()).all()
    back = unwarped(u, location, exponent)
    half = 1e-12 * np.abs(x / 2) + 1e-12 * np.abs(x / 2 - location / 2) + np.ldexp(0.5e-12, exponent)
    assert (np.abs(back / 2 - x / 2) <= half).all()


def test_beyond_float64_is_its_end_and_no_number_stays_none() -> None:
    found = unwarped(np.array([1e4, -1e4, np.inf, np.nan, MAX_LOGARITHM + 1, 1.0]), 3.0, 0)
    assert np.array_equal(found[:3], [np.finfo(float).max, -np.finfo(float).max, np.finfo(float).max])
    assert np.isnan(found[3]) and found[4] == pytest.approx(np.exp(701), rel=1e-12) and found[5] == pytest.approx(3 + np.expm1(1))
    assert np.isnan(warped(np.array([np.nan, 1.0]))).tolist() == [True, False]
