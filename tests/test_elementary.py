"""Elementary functions: how near to the true value they are, special values, and the same bits without the machine's vector units."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from numpy.typing import NDArray

from gaiadask.elementary import (
    arcsin_degrees,
    arctan2_degrees,
    cbrt,
    cos_degrees,
    exp2,
    exp10,
    log2,
    log10,
    sin_cos_degrees,
    sin_degrees,
)
from gaiadask.release.dr2 import COLUMNS, DR2

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
VECTOR_UNITS = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
"""What numpy finds in this machine and could do without."""

Floats = NDArray[np.float64]


def units_off(ours: Floats, true: list[Decimal]) -> Floats:
    """Errors in units of the last place of the true values."""
    errors = [abs(Decimal(float(value)) - truth) for value, truth in zip(ours, true, strict=True)]
    return np.array([float(error / Decimal(math.ulp(float(truth)))) for error, truth in zip(errors, true, strict=True)])


def sine(degrees: Decimal) -> Decimal:
    """Sine of an angle of at most a few turns."""
    x = degrees * PI / 180
    term = total = x
    for n in range(1, 60):
        term *= -x * x / (2 * n * (2 * n + 1))
        total += term
    return total


def angle_off(ours: float, x: Decimal, y: Decimal) -> float:
    """By how many units in the last place this is not the angle of the point (x, y)."""
    degrees = Decimal(ours)
    sin, cos = sine(degrees), sine(degrees + 90)
    error = (y * cos - x * sin) / (x * cos + y * sin) * 180 / PI
    return abs(float(error)) / math.ulp(ours)


# How near -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("function", "base"), [(log2, 2), (log10, 10)])
def test_logarithms_are_near(function: Callable[[Floats], Floats], base: int) -> None:
    rng = np.random.default_rng(1)
    wide = np.ldexp(0.5 + rng.random(300) / 2, rng.integers(-1073, 1025, 300))
    beside_1 = 1 + np.ldexp(rng.random(300) - 0.5, rng.integers(-50, 0, 300))
    with localcontext(prec=50):
        for x, most in ((wide, 1.5), (beside_1, 2.5)):
            assert units_off(function(x), [Decimal(v).ln() / Decimal(base).ln() for v in x.tolist()]).max() < most


@pytest.mark.parametrize(("function", "base", "most"), [(exp2, 2, 1020), (exp10, 10, 307)])
def test_powers_are_near(function: Callable[[Floats], Floats], base: int, most: int) -> None:
    y = np.random.default_rng(2).random(300) * np.repeat([1, 30, most], 100) * np.tile([-1, 1], 150)
    with localcontext(prec=50):
        assert units_off(function(y), [Decimal(base) ** Decimal(v) for v in y.tolist()]).max() < 1.2


def test_sine_and_cosine_are_near_beside_their_zeros_too() -> None:
    rng = np.random.default_rng(3)
    near_zeros = np.tile([-180.0, -90, 0, 90, 180, 270], 50) + np.ldexp(rng.random(300) - 0.5, rng.integers(-30, 0, 300))
    x = np.concatenate([rng.random(300) * 720 - 360, near_zeros])
    with localcontext(prec=50):
        assert units_off(sin_degrees(x), [sine(Decimal(v)) for v in x.tolist()]).max() < 2
        assert units_off(cos_degrees(x), [sine(Decimal(v) + 90) for v in x.tolist()]).max() < 2


def test_cube_roots_are_near() -> None:
    rng = np.random.default_rng(4)
    x = np.ldexp(rng.random(300) - 0.5, rng.integers(-1072, 1025, 300))
    roots = [Decimal(root) for root in cbrt(x).tolist()]
    with localcontext(prec=50):
        errors = [(root**3 - Decimal(cube)) / (3 * root**2) for root, cube in zip(roots, x.tolist(), strict=True)]
        assert max(abs(float(error)) / math.ulp(float(root)) for error, root in zip(errors, roots, strict=True)) < 1.2


def test_angles_are_near() -> None:
    rng = np.random.default_rng(5)
    x, y, z = (np.ldexp(rng.random(400) - 0.5, rng.integers(-40, 2, 400)) for _ in range(3))
    z[::2] = 1 - np.abs(z[::2])
    with localcontext(prec=60):
        points = zip(arctan2_degrees(y, x).tolist(), x.tolist(), y.tolist(), strict=True)
        assert max(angle_off(angle, Decimal(across), Decimal(up)) for angle, across, up in points) < 3
        heights = [(angle, Decimal(up)) for angle, up in zip(arcsin_degrees(z).tolist(), z.tolist(), strict=True)]
        assert max(angle_off(angle, (1 - up * up).sqrt(), up) for angle, up in heights) < 3


def test_sine_and_cosine_come_together() -> None:
    x = np.append(np.random.default_rng(6).random(1000) * 1e4 - 5e3, [NAN, INF, 1e300])
    together = sin_cos_degrees(x)
    np.testing.assert_array_equal(together, (sin_degrees(x), cos_degrees(x)))
    assert [part.shape for part in sin_cos_degrees(30)] == [(), ()] and sin_cos_degrees(30)[0] == sin_degrees(30)


def test_round_numbers_have_round_results() -> None:
    np.testing.assert_array_equal(log2(np.ldexp(1.0, np.arange(-1074, 1024))), np.arange(-1074, 1024))
    np.testing.assert_array_equal(exp2(np.arange(-1080, 1024)), np.ldexp(1.0, np.arange(-1080, 1024)))
    powers_of_ten = [10.0**n for n in range(23)]
    np.testing.assert_array_equal(log10(powers_of_ten), np.arange(23))
    np.testing.assert_array_equal(exp10(np.arange(23)), powers_of_ten)
    quarters = np.arange(-8, 9)
    np.testing.assert_array_equal(sin_degrees(90 * quarters), np.array([0, 1, 0, -1])[quarters % 4])
    np.testing.assert_array_equal(cos_degrees(90 * quarters), np.array([1, 0, -1, 0])[quarters % 4])
    assert not np.signbit(np.append(sin_degrees([180, -180, 360]), cos_degrees([90, -90, 270]))).any()
    sides = np.arange(-300, 301)
    np.testing.assert_array_equal(cbrt(sides**3), sides)
    np.testing.assert_array_equal(arcsin_degrees([-1, 0, 1]), [-90, 0, 90])
    np.testing.assert_array_equal(
        arctan2_degrees([0, 1, 5, 2, 0, -1, -3, -7], [2, 1, 0, -2, -1, -1, 0, 7]), [0, 45, 90, 135, 180, -135, -90, -45]
    )
    assert sin_degrees(1e300) == sin_degrees(math.fmod(1e300, 360)) and cos_degrees(-1e20) == cos_degrees(math.fmod(1e20, 360))


# Special values -------------------------------------------------------------------------------------------------------
NAN, INF = math.nan, math.inf
LEAST, LARGEST = 5e-324, sys.float_info.max


@pytest.mark.parametrize(
    ("function", "x", "expected"),
    [
        (log2, [0.0, -0.0, -1.0, -INF, NAN, INF, 1.0, LEAST, 3 * LEAST], [NAN] * 5 + [INF, 0.0, -1074.0, log2(3) - 1074]),
        (log10, [0.0, -0.0, -1.0, -INF, NAN, INF, 1.0], [NAN] * 5 + [INF, 0.0]),
        (exp2, [NAN, INF, -INF, 1024.0, -1074.0, -1076.0, 1e300, -1e300, -0.0], [NAN, INF, 0, INF, LEAST, 0, INF, 0, 1]),
        (exp10, [NAN, INF, -INF, 308.3, -323.3, -324.0, 1e300, -1e300, -0.0], [NAN, INF, 0, INF, LEAST, 0, INF, 0, 1]),
        (cbrt, [NAN, INF, -INF, 0.0, -0.0, 8 * LEAST, -LARGEST], [NAN, INF, -INF, 0.0, -0.0, 2 * 2.0**-358, -cbrt(LARGEST)]),
        (arcsin_degrees, [NAN, INF, -INF, 1.0000000000000002, 0.0, -0.0], [NAN] * 4 + [0.0, -0.0]),
        (sin_degrees, [NAN, INF, -INF, 0.0, -0.0], [NAN, NAN, NAN, 0, 0]),
        (cos_degrees, [NAN, INF, -INF, 0.0, -0.0], [NAN, NAN, NAN, 1, 1]),
    ],
)
def test_special_values(function: Callable[..., Floats], x: list[float], expected: list[float]) -> None:
    with np.errstate(all="raise"):
        together, alone = function(x), [function(value) for value in x]
    np.testing.assert_array_equal(together, expected)
    np.testing.assert_array_equal(alone, expected)
    # To the bit, of which a NaN has many to choose from: every one is numpy's.
    np.testing.assert_array_equal(together.view(np.int64), np.array(expected, np.float64).view(np.int64))


def test_every_pair_of_special_values_has_numpys_angle() -> None:
    values = [0.0, -0.0, 1.0, -1.0, INF, -INF, LEAST, -LEAST, LARGEST, -LARGEST, NAN]
    y, x = np.meshgrid(values, values)
    with np.errstate(all="raise"):
        ours = arctan2_degrees(y, x)
    theirs = np.degrees(np.arctan2(y, x))
    np.testing.assert_allclose(ours, theirs, rtol=1e-15)
    np.testing.assert_array_equal(np.signbit(ours) & ~np.isnan(ours), np.signbit(theirs) & ~np.isnan(theirs))


def test_the_largest_number_comes_back() -> None:
    assert exp2(math.nextafter(1024, 0)) < INF
    assert log2(LARGEST) == 1024  # rounded
    denormal = np.array([1e-310, 3e-320, LEAST])
    np.testing.assert_allclose(exp2(log2(denormal)), denormal, rtol=1e-12)


@pytest.mark.parametrize("function", [log2, log10, exp2, exp10, cbrt, sin_degrees, cos_degrees, arcsin_degrees])
def test_shapes(function: Callable[..., Floats]) -> None:
    x = np.arange(1.0, 40_001).reshape(2, 100, 200) / 40_001
    given = x.copy()
    result = function(x)
    assert result.shape == x.shape and result.dtype == np.float64
    np.testing.assert_array_equal(result[:, ::-3, 7], function(x[:, ::-3, 7]))
    assert result[1, 2, 3] == function(float(x[1, 2, 3])) and function(x[1, 2, 3]).shape == ()
    assert function([]).shape == (0,) and function(3).dtype == np.float64
    np.testing.assert_array_equal(function(x.astype(np.float32)), function(x.astype(np.float32).astype(np.float64)))
    np.testing.assert_array_equal(x, given)


# The same bits everywhere ---------------------------------------------------------------------------------------------
def bits_of_results() -> dict[str, str]:
    """What each function makes of 200,000 numbers, any bits and usual sizes, and what is derived of as many stars: as hashes."""
    rng = np.random.default_rng(7)

    def numbers(scale: float) -> Floats:
        any_bits = rng.integers(0, 2**64, 20_000, np.uint64).view(np.float64)
        return rng.permutation(np.concatenate([any_bits, rng.random(130_000) * scale, rng.random(50_000) * 2 * scale - scale]))

    functions = (log2, log10, exp2, exp10, cbrt, sin_degrees, cos_degrees, arcsin_degrees)
    results = {function.__name__: function(np.append(numbers(1), numbers(360))) for function in functions}
    results["arctan2_degrees"] = arctan2_degrees(numbers(1), numbers(1))
    sources = {source for column in COLUMNS.values() for source in column.derived_from}
    with np.errstate(all="ignore"):
        stars = {name: numbers(90 if name in ("ra", "dec") else 1e4) for name in sorted(sources)}
        results |= DR2.derive(stars, DR2.derivable(COLUMNS))
    return {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in results.items()}


@pytest.mark.slow
@pytest.mark.skipif(not VECTOR_UNITS, reason="numpy uses nothing here but what every machine of this kind has")
def test_the_same_bits_without_vector_units() -> None:
    program = (
        "from numpy._core._multiarray_umath import __cpu_features__ as found; "
        f"assert not any(found[name] for name in {VECTOR_UNITS}); "
        "from test_elementary import bits_of_results; print(bits_of_results())"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(VECTOR_UNITS), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(bits_of_results())
