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

from gaiadask.elementary import cos_degrees, exp2, exp10, log2, log10, sin_degrees

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


def test_round_numbers_have_round_results() -> None:
    np.testing.assert_array_equal(log2(np.ldexp(1.0, np.arange(-1074, 1024))), np.arange(-1074, 1024))
    np.testing.assert_array_equal(exp2(np.arange(-1080, 1024)), np.ldexp(1.0, np.arange(-1080, 1024)))
    powers_of_ten = [10.0**n for n in range(23)]
    np.testing.assert_array_equal(log10(powers_of_ten), np.arange(23))
    np.testing.assert_array_equal(exp10(np.arange(23)), powers_of_ten)
    quarters = np.arange(-8, 9)
    np.testing.assert_array_equal(sin_degrees(90 * quarters), np.array([0, 1, 0, -1])[quarters % 4])
    np.testing.assert_array_equal(cos_degrees(90 * quarters), np.array([1, 0, -1, 0])[quarters % 4])
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


def test_the_largest_number_comes_back() -> None:
    assert exp2(math.nextafter(1024, 0)) < INF
    assert log2(LARGEST) == 1024  # rounded
    denormal = np.array([1e-310, 3e-320, LEAST])
    np.testing.assert_allclose(exp2(log2(denormal)), denormal, rtol=1e-12)


@pytest.mark.parametrize("function", [log2, log10, exp2, exp10, sin_degrees, cos_degrees])
def test_shapes(function: Callable[..., Floats]) -> None:
    x = np.arange(1.0, 40_001).reshape(2, 100, 200) / 1000
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
    """What each function makes of 200,000 numbers, as a hash: of any bits, and of usual sizes."""
    rng = np.random.default_rng(5)
    any_bits = rng.integers(0, 2**64, 50_000, np.uint64).view(np.float64)
    positive, signed = rng.random(50_000) * 1e6, rng.random(100_000) * 720 - 360
    x = np.concatenate([any_bits, positive, signed])
    functions = (log2, log10, exp2, exp10, sin_degrees, cos_degrees)
    results = {function.__name__: function(x) for function in functions}
    return {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in results.items()}


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
