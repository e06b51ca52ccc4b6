"""Write gaiadask/elementary.json: the tables and coefficients of gaiadask.elementary, each number the float64 nearest to its true
value, found in decimal arithmetic of 60 digits and written as a hexadecimal float.

python docs/make_tables.py       # `make docs`; a test fails where the file is not what this writes
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal, getcontext
from math import factorial, isqrt
from pathlib import Path

FILE = Path(__file__).parents[1] / "gaiadask" / "elementary.json"
KNOTS = 4096
FIRST_KNOT = 1697  # of 4096 a binade: the multiple of 2**-13 next to the root of a half, where log2 is near -1/2
ARCTAN_KNOTS = 256
GUARD = 200  # bits of the integers that stand for powers of two

getcontext().prec = 60


def tables() -> dict[str, list[str]]:
    """Each table by its name, as hexadecimal floats."""
    two, ten, degree = Decimal(2), Decimal(10), arctan(Decimal(1)) / 45
    return {
        # log2 of the knots: 4096 a binade, from just below the root of a half to just below the root of two.
        "log2": hexadecimal(knot.ln() / two.ln() for knot in knots()),
        # (1 + r)'s log2 as a sum of powers of r, from the first.
        "log2_series": hexadecimal((-1) ** (n + 1) / (n * two.ln()) for n in range(1, 5)),
        # The decimal logarithm of 2: as it is; and in two parts, the first so short that 11 bits times it are exact.
        "log10_of_2": hexadecimal([two.log10(), *in_two(two.log10(), 40)]),
        # 2**(j / 4096).
        "exp2": powers_of_two(),
        # b**r - 1 as a sum of powers of r, from the first.
        "exp2_series": hexadecimal(two.ln() ** n / factorial(n) for n in range(1, 5)),
        "exp10_series": hexadecimal(ten.ln() ** n / factorial(n) for n in range(1, 5)),
        # The decimal logarithm of 2**(1 / 4096): its inverse; and two parts, the first so short that 23 bits times it are exact.
        "exp10_steps": hexadecimal([KNOTS / two.log10(), *in_two(two.log10() / KNOTS, 40)]),
        # Sine as odd and cosine as even powers of degrees; that of the first is in two parts.
        "sin_first": hexadecimal(in_two(degree)),
        "sin_series": hexadecimal((-1) ** n * degree ** (2 * n + 1) / factorial(2 * n + 1) for n in range(1, 9)),
        "cos_series": hexadecimal((-1) ** n * degree ** (2 * n) / factorial(2 * n) for n in range(1, 9)),
        # Arctangent in degrees of j / 256, and as a sum of odd powers.
        "arctan": hexadecimal(arctan(Decimal(j) / ARCTAN_KNOTS) / degree for j in range(ARCTAN_KNOTS + 1)),
        "arctan_series": hexadecimal((-1) ** n / ((2 * n + 1) * degree) for n in range(4)),
    }


def knots() -> Iterable[Decimal]:
    """The numbers whose logarithms are tabulated."""
    for j in range(FIRST_KNOT, FIRST_KNOT + KNOTS):
        binade, step = divmod(j, KNOTS)
        yield Decimal(KNOTS + step) / KNOTS / 2 ** (1 - binade)


def powers_of_two() -> list[str]:
    """2**(j / 4096), by integers: the root taken twelve times, and its products."""
    unit = 1 << GUARD
    root = 2 * unit
    for _ in range(KNOTS.bit_length() - 1):
        root = isqrt(root * unit)
    values = [unit]
    for _ in range(KNOTS - 1):
        values.append(values[-1] * root // unit)
    return [(value / unit).hex() for value in values]


def arctan(x: Decimal) -> Decimal:
    """Arctangent of x from 0 to 1 (Euler's series, whose terms fall at least by half)."""
    square = x * x / (1 + x * x)
    term = total = x / (1 + x * x)
    n = 0
    while term > Decimal(10) ** -getcontext().prec:
        n += 1
        term *= square * (2 * n) / (2 * n + 1)
        total += term
    return total


def in_two(value: Decimal, bits: int | None = None) -> tuple[Decimal, Decimal]:
    """The value as the sum of two: itself cut to so many bits behind the point (none: the nearest float64), and the rest."""
    first = Decimal(float(value)) if bits is None else Decimal(int(value * 2**bits)) / 2**bits
    return first, value - first


def hexadecimal(values: Iterable[Decimal]) -> list[str]:
    """The float64 nearest to each value."""
    return [float(value).hex() for value in values]


def text() -> str:
    """What the file says: a number a line."""
    return json.dumps(tables(), indent=0) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
