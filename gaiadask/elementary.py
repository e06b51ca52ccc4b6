"""Elementary functions that give the same bits on every machine.

numpy's exp, log, sin and power differ in the last bits from one instruction set to the next. These are made of single operations
that IEEE 754 defines to the last bit (+, -, ×, ÷, square root, rounding to an integer, operations on integers), compiled such that
none is joined with another (`gaiadask.compiled`), and of tables that are shipped with the package (elementary.json, which
docs/make_tables.py writes), so that what is decided by their results is decided alike everywhere. A NaN among the results is
always the same NaN. They are accurate to one or two units in the last place and take some 3 ns a value.

Each takes numbers or arrays of any shape, as float64, and returns float64 of the same shape.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaiadask.compiled import fixed

Floats = NDArray[np.float64]

_KNOTS = 4096.0
"""Of the tables, a binade (docs/make_tables.py)."""


def log2(x: ArrayLike) -> Floats:
    """Logarithm to base 2; NaN where x is not above 0. 0 at 1, and accurate beside it."""
    return _elementwise(_loops().log2, x, *_of("log2", "log2_series"))


def log10(x: ArrayLike) -> Floats:
    """Logarithm to base 10; NaN where x is not above 0."""
    return _elementwise(_loops().log10, x, *_of("log2", "log2_series", "log10_of_2"))


def exp2(y: ArrayLike) -> Floats:
    """2 to the power of y."""
    return _elementwise(_loops().power, y, _tables()["exp2_steps"], 1.0, *_of("exp2_series", "exp2"))


def exp10(y: ArrayLike) -> Floats:
    """10 to the power of y."""
    return _elementwise(
        _loops().power, y, _tables()["exp10_steps"], float(_tables()["log10_of_2"][0]), *_of("exp10_series", "exp2")
    )


def cbrt(x: ArrayLike) -> Floats:
    """Cube root, which has the sign of x."""
    return _elementwise(_loops().cube_roots, x, *_of("log2", "log2_series", "exp2", "exp2_series", "exp2_steps"))


def sin_degrees(x: ArrayLike) -> Floats:
    """Sine of an angle in degrees; NaN of infinity."""
    return _elementwise(_loops().sines, x, 0, *_of("sin_first", "sin_series", "cos_series"))


def cos_degrees(x: ArrayLike) -> Floats:
    """Cosine of an angle in degrees, accurate beside 90 degrees too; NaN of infinity."""
    return _elementwise(_loops().sines, x, 1, *_of("sin_first", "sin_series", "cos_series"))


def sin_cos_degrees(x: ArrayLike) -> tuple[Floats, Floats]:
    """Sine and cosine of an angle in degrees."""
    return sin_degrees(x), cos_degrees(x)


def arctan2_degrees(y: ArrayLike, x: ArrayLike) -> Floats:
    """Angle in degrees, from -180 to 180, of the point (x, y); signs of zeros count as in numpy's arctan2."""
    y, x = np.broadcast_arrays(np.asarray(y, np.float64), np.asarray(x, np.float64))
    return _elementwise(_loops().arctangents, y, fixed(x.ravel()), *_of("arctan", "arctan_series"))


def arcsin_degrees(z: ArrayLike) -> Floats:
    """Angle in degrees, from -90 to 90, whose sine is z; NaN beyond -1 and 1."""
    return _elementwise(_loops().arcsines, z, *_of("arctan", "arctan_series"))


def _elementwise(loop: Callable[..., None], x: ArrayLike, *more: Any) -> Floats:
    """What a compiled loop makes of an array of any shape; more: its further arguments."""
    x = np.asarray(x, np.float64)
    value = np.empty(x.size)
    loop(fixed(x.ravel()), *more, value)
    return value.reshape(x.shape)


@functools.cache
def _loops() -> Any:
    """The compiled loops."""
    return importlib.import_module("gaiadask.elementary_loops")


def _of(*names: str) -> list[Floats]:
    return [_tables()[name] for name in names]


def tables_text() -> str:
    """The tables as they are shipped: JSON, each table's numbers as hexadecimal floats."""
    return (resources.files("gaiadask") / "elementary.json").read_text(encoding="utf-8")


@functools.cache
def _tables() -> dict[str, Floats]:
    """The tables by name, read once."""
    tables = {name: np.array([float.fromhex(number) for number in numbers]) for name, numbers in json.loads(tables_text()).items()}
    tables["exp2_steps"] = np.array([_KNOTS, 1 / _KNOTS, 0.0])
    for table in tables.values():
        table.setflags(write=False)
    return tables
