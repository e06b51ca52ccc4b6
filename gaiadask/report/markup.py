"""The page's templates, and how numbers read in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gaiadask.report import ink

DASH = "–"
"""In the place of a number that is unknown or undefined."""
THIN_SPACE = "\u202f"
BETTER_BY = 0.98
"""A number is marked as the better of two where it is below this share of the other: 2 % apart is no more than noise."""


def fill(template: str, **values: object) -> Markup:
    """A template of `templates/` filled with values, as HTML; every text among the values is escaped."""
    return Markup(_ENVIRONMENT.get_template(f"{template}.html").render(values))


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many significant digits; a dash where it is None or not finite."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{max(digits - 1, 1)}e}".split("e")
        return Markup(f"{mantissa}·10<sup>{int(exponent)}</sup>")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace(",", THIN_SPACE)


def percent(value: float) -> str:
    """A share in per cent, with two significant digits."""
    return number(100 * value)


def uncertain(value: float, error: float) -> str:
    """A number ± its standard error, down to the digit where that begins; without it where it is not known.

    >>> uncertain(0.3612, 0.0042), uncertain(0.3612, 0.0142), uncertain(0.3612, math.nan)
    ('0.361 ± 0.004', '0.361 ± 0.014', '0.36')
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return number(value)
    first = math.floor(math.log10(error))
    # An error that begins with 1 is given with two digits: 0.014 is not 0.01.
    decimals = max(0, (1 if error < 2 * 10**first else 0) - first)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals; a dash where it is not finite."""
    return f"{value:.{decimals}f}" if math.isfinite(value) else DASH


def count(value: float) -> str:
    """A whole number, its thousands apart: 1 692 919 135."""
    return f"{round(value):,}".replace(",", THIN_SPACE)


def listing(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def share(value: float, decimals: int = 1) -> str:
    """A share as per cent with its sign."""
    return f"{100 * value:.{decimals}f}{THIN_SPACE}%" if math.isfinite(value) else DASH


def is_better(value: float, other: float | None) -> bool:
    """Whether a number is clearly smaller than another one, which may be infinite; not where either is undefined."""
    return other is not None and math.isfinite(value) and value < BETTER_BY * other


_ENVIRONMENT = Environment(
    loader=PackageLoader("gaiadask.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters |= {f.__name__: f for f in (number, percent, uncertain, fixed, count, share, listing, ink.pretty_unit)}
_ENVIRONMENT.tests |= {"finite": math.isfinite, "better_than": is_better}
