"""How far each compressed value may be from the catalogue's, and how far it is.

A bound is a column's fact (`Column.bound`), multiplied by `codec.bound_sigma`, or the user's own (`codec.bounds`). A derived column
without a bound of its own may be as far off as its formula takes the bounds of its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gaiadask.codec import loops
from gaiadask.compiled import fixed
from gaiadask.elementary import cos_degrees
from gaiadask.errors import ConfigurationError, known_names
from gaiadask.records import Record
from gaiadask.release.column import DEC, HEALPIX_29, RA, Column
from gaiadask.release.release import Release

Floats = NDArray[np.float64]
Values = Mapping[str, Floats]
"""Columns by name, as float64, NaN where null."""

MAGNITUDE_RESOLUTION = 4e-6
"""Of a difference of two magnitudes, each rounded to float32 beyond magnitude 16."""

_BLOCK = 8192


class Tolerance(Record):
    """How far the values of one column may be off."""

    kind: Literal["exact", "sigma", "relative", "absolute", "formula"] = Field(
        description="exact: not at all; sigma: a multiple of the star's error; relative: of the value; absolute: in the column's unit; "
        "formula: as far as the formula takes the bounds of its inputs"
    )
    amount: float = Field(0.0, description="the multiple; sigma: of the error column's value, in the column's own unit")
    error: str = Field("", description="sigma: the column with the error")
    note: str = Field("", description="why it is not what the column's own bound says")


EXACT = Tolerance(kind="exact")


def tolerances(release: Release, columns: Sequence[str], bound_sigma: float, own: Mapping[str, float]) -> dict[str, Tolerance]:
    """How far the values of each column of a catalogue may be off.

    Args:
        release: the columns' data release.
        columns: of the catalogue; `_healpix_29`, which follows from the position, is left out.
        bound_sigma: the bound in units of each star's own error; 0: every value exact.
        own: bounds of single columns in place of it: in units of the star's error for a column that has one, relative for errors
            and others with a relative bound, else in the column's unit; 0: exact.

    Raises:
        ConfigurationError: for a bound below zero or not finite, for a relative one of 1 or more, and for one of a column that is not
            in the catalogue or has none.
    """
    names = [name for name in columns if name != HEALPIX_29]
    for name, amount in {"bound_sigma": bound_sigma, **own}.items():
        if not np.isfinite(amount) or amount < 0:
            raise ConfigurationError(f"codec: the bound of {name} is {amount}: expected a number of 0 (exact) or more")
    if unknown := sorted(set(own) - set(names)):
        raise ConfigurationError(f"codec.bounds: the catalogue has no column {', '.join(unknown)}: {known_names(unknown, names)}")
    derived = set(release.derivable(names))
    return {name: _tolerance(release.columns[name], names, bound_sigma, own.get(name), name in derived) for name in names}


def _tolerance(column: Column, columns: Sequence[str], bound_sigma: float, own: float | None, is_derived: bool) -> Tolerance:
    bound = column.bound
    amount = own if own is not None else bound_sigma * (bound.amount if bound else 1.0)
    if bound is None and is_derived:
        if own:
            raise ConfigurationError(
                f"codec.bounds: {column.name} follows from {', '.join(column.derived_from)} and is bounded as they are: choose theirs, or 0 (exact)"
            )
        return Tolerance(kind="formula") if own is None and bound_sigma else EXACT
    if bound is None and own:
        raise ConfigurationError(f"codec.bounds: {column.name} is always exact: leave it out, or give it 0")
    if bound is None or amount == 0:
        return EXACT
    if bound.kind == "relative" and amount >= 1:
        raise ConfigurationError(
            f"codec: the bound of {column.name} is {amount:g} of its value: expected less than 1, or a value could come back as 0"
        )
    if bound.kind != "sigma":
        return Tolerance(kind=bound.kind, amount=amount)
    assert column.error_column is not None, column
    if column.error_column not in columns:
        return Tolerance(kind="exact", note=f"its error column {column.error_column} is not in the catalogue")
    return Tolerance(kind="sigma", amount=amount * column.error_factor, error=column.error_column)


def allowed(name: str, values: Values, bounds: Mapping[str, Tolerance], release: Release) -> Floats:
    """How far each value of a column may be off, shape (stars,), in the column's unit (of ra: of ra * cos(dec)).

    Args:
        name: of the column.
        values: the catalogue's own values: the column, its error column, and what its formula takes.
        bounds: of every column (`tolerances`).
        release: the columns' data release.

    Returns:
        0 where the value must be exact: where it is not finite, or its error is not a positive finite number.
    """
    value, bound = values[name], bounds[name]
    if bound.kind == "exact":
        return np.zeros(len(value))
    if bound.kind == "formula":
        return propagated([name], values, bounds, release)[name]
    if bound.kind == "absolute":
        most = np.full(len(value), bound.amount)
    elif bound.kind == "relative":
        most = np.abs(value)
        most *= bound.amount
    else:
        most = values[bound.error] * bound.amount
    loops.usable(fixed(value), most)
    return most


@np.errstate(invalid="ignore")
def propagated(names: Sequence[str], values: Values, bounds: Mapping[str, Tolerance], release: Release) -> dict[str, Floats]:
    """How far each value of derived columns may be off: by the largest change when each of its inputs is anywhere within its bound: at
    the corners of that box, for the formulas are monotone in each input within it; and by what the formula itself differs from the
    archive's own values by. Arguments and results as of `allowed`, of several columns, which share what is computed."""
    sources = list(dict.fromkeys(source for name in names for source in release.columns[name].derived_from))
    sides = {source: allowed(source, values, bounds, release) for source in sources}
    if RA in sides:
        cosine = cos_degrees(values[DEC])
        sides[RA] = np.divide(sides[RA], cosine, out=np.full(len(cosine), 360.0), where=cosine > 0)
    every = {name: np.empty(len(values[name])) for name in names}
    for start in range(0, len(next(iter(every.values()))), _BLOCK):
        part = slice(start, start + _BLOCK)
        # Both ends of each input, each along an axis of its own: a formula gives the corners of those that it takes.
        ends = {}
        for axis, source in enumerate(sources):
            value, side = values[source][part], sides[source][part]
            shape = [1] * len(sources) + [len(value)]
            shape[axis] = 2
            ends[source] = np.stack([value - side, value + side]).reshape(shape)
        centres = release.derive({source: values[source][part] for source in sources}, names)
        corners = release.derive(ends, names)
        for name in names:
            off = np.abs(corners[name].astype(np.float64) - centres[name])
            if release.columns[name].unit == "deg":
                off = np.minimum(off, 360.0 - off)  # a longitude goes the short way round
            every[name][part] = np.fmax.reduce(off.reshape(-1, off.shape[-1]), axis=0, initial=0.0)
    for name, most in every.items():
        column = release.columns[name]
        if column.unit == "mag":
            most += MAGNITUDE_RESOLUTION
        else:
            # An angle's tolerance is in its own unit, any other relative to the value.
            most += column.tolerance * (1.0 if column.unit == "deg" else np.abs(values[name]))
        loops.usable(fixed(values[name]), most)
    return every
