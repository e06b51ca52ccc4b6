"""Statistics of columns in one pass over the stars: moments and quantiles of parts, which merge into those of the whole.

Merged in any order, the statistics of parts equal those of the whole: counts, minima and maxima exactly, mean and standard
deviation to float64 rounding, quantiles within a rank error stated by `QuantileSketch`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.checks import check_finite_column
from gaiadask.errors import DataError
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.release.column import HEALPIX_29, SOURCE_ID, Column
from gaiadask.release.release import Release
from gaiadask.split import Part, hash64, part_of

# Of statistics.json, and so of what depends on it: version 2 added null_sum, by which columns that are null together are recognised.
FORMAT_VERSION = 2


@dataclass(frozen=True, eq=False)
class ColumnStatistics:
    """One column: `count` values and `nulls`; minimum, maximum, mean and standard deviation (of the population) of the values.

    All four are None where the column has no value. The standard deviation is stored instead of a sum of squares because it
    is finite for any finite numbers; `variance` is infinite where its square exceeds float64 (deviations beyond 1e154).
    sketch: the values' quantiles.
    orphans: for a column that can be derived from others, rows with a value in it and none in one of the others (all its
    values where the table lacks one of the others); 0 for any other column.
    misfits: for such a column, rows whose value is further from its formula's than rounding explains. deviation: the largest
    difference, of any but magnitudes and angles as a share of the formula's value.
    null_sum: hashes of the source_ids of the stars without a value, added modulo 2^64: columns with as many nulls and the
    same null_sum are null in the same stars (but for a chance of 2^-64).
    """

    count: int
    nulls: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    sketch: QuantileSketch
    orphans: int = 0
    null_sum: int = 0
    misfits: int = 0  # these two came after 0.1.0, whose files lack them: formulas were not compared
    deviation: float = 0.0

    @classmethod
    def empty(cls) -> ColumnStatistics:
        """Of no star."""
        return cls(0, 0, None, None, None, None, QuantileSketch.empty())

    @classmethod
    def from_values(cls, values: NDArray[Any], nulls: int = 0, orphans: int = 0, null_sum: int = 0) -> ColumnStatistics:
        """Statistics of finite numbers, shape (n,), and of a number of nulls beside them."""
        if not values.size:
            return cls(0, nulls, None, None, None, None, QuantileSketch.empty(), 0, null_sum)
        minimum, maximum = float(values.min()), float(values.max())
        # Scaled by a power of two, which is exact, so that neither sum overflows.
        exponent = min(math.frexp(max(abs(minimum), abs(maximum)))[1], 1023)
        scaled = np.ldexp(values.astype(np.float64), -exponent)
        mean = scaled.mean()
        scaled -= mean
        std = math.sqrt(np.dot(scaled, scaled) / scaled.size)
        sketch = QuantileSketch.from_values(values)
        mean, std = math.ldexp(mean, exponent), math.ldexp(std, exponent)
        return cls(values.size, nulls, minimum, maximum, mean, std, sketch, orphans, null_sum)

    @property
    def variance(self) -> float | None:
        """Of the population (divided by the count)."""
        return None if self.std is None else self.std * self.std

    @property
    def is_constant(self) -> bool:
        """Whether the column has one value at most."""
        return self.minimum == self.maximum

    def merge(self, other: ColumnStatistics) -> ColumnStatistics:
        """Statistics of both together (Chan, Golub and LeVeque 1983, in a form that cannot overflow)."""
        nulls, orphans = self.nulls + other.nulls, self.orphans + other.orphans
        null_sum = (self.null_sum + other.null_sum) % 2**64
        misfits, deviation = self.misfits + other.misfits, max(self.deviation, other.deviation)
        if not (self.count and other.count):
            one = self if self.count else other
            return replace(one, nulls=nulls, orphans=orphans, null_sum=null_sum, misfits=misfits, deviation=deviation)
        assert self.minimum is not None and self.maximum is not None and self.mean is not None and self.std is not None
        assert other.minimum is not None and other.maximum is not None and other.mean is not None and other.std is not None
        count = self.count + other.count
        a, b = self.count / count, other.count / count
        between = 2 * math.sqrt(a * b) * (self.mean / 2 - other.mean / 2)
        return ColumnStatistics(
            count,
            nulls,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            a * self.mean + b * other.mean,
            math.hypot(math.sqrt(a) * self.std, math.sqrt(b) * other.std, between),
            self.sketch.merge(other.sketch),
            orphans,
            null_sum,
            misfits,
            deviation,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "nulls": self.nulls,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "mean": self.mean,
            "std": self.std,
            "orphans": self.orphans,
            "null_sum": self.null_sum,
            "misfits": self.misfits,
            "deviation": self.deviation,
            "sketch": self.sketch.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ColumnStatistics:
        return cls(**{**record, "sketch": QuantileSketch.from_json(record["sketch"])})


@dataclass(frozen=True, eq=False)
class TableStatistics:
    """Number of rows, and the statistics of each column."""

    rows: int
    columns: dict[str, ColumnStatistics]

    @classmethod
    def empty(cls, names: Iterable[str]) -> TableStatistics:
        return cls(0, {name: ColumnStatistics.empty() for name in names})

    def merge(self, other: TableStatistics) -> TableStatistics:
        """Statistics of both together. Raises DataError where their columns differ."""
        if differing := sorted(self.columns.keys() ^ other.columns.keys()):
            raise DataError(f"statistics of tables with different columns cannot be merged: only one of them has {differing}")
        return TableStatistics(self.rows + other.rows, {n: c.merge(other.columns[n]) for n, c in self.columns.items()})

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": {name: column.to_json() for name, column in self.columns.items()}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TableStatistics:
        return cls(record["rows"], {name: ColumnStatistics.from_json(c) for name, c in record["columns"].items()})


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of all stars, and of train stars alone (the only ones that a transform or model may see).

    >>> from gaiadask.release.dr2 import DR2
    >>> table = pa.table({"source_id": [1, 2, 3], "parallax": [0.5, None, 2.0]})
    >>> parallax = Statistics.from_table(table, DR2).all.columns["parallax"]
    >>> parallax.count, parallax.nulls, parallax.mean
    (2, 1, 1.25)
    """

    all: TableStatistics
    train: TableStatistics

    @classmethod
    def empty(cls, names: Iterable[str]) -> Statistics:
        names = tuple(names)
        return cls(TableStatistics.empty(names), TableStatistics.empty(names))

    @classmethod
    def from_table(cls, table: pa.Table, release: Release) -> Statistics:
        """Statistics of a table's numeric and boolean columns, identifiers left out.

        Args:
            table: stars, with source_id: its hash decides which are train stars.
            release: the data release that says which columns are identifiers or can be derived.

        Raises:
            DataError: for a table without source_id, for NaN and for infinities.
        """
        if SOURCE_ID not in table.column_names or table[SOURCE_ID].null_count:
            raise DataError(
                f"a table of {table.num_rows} stars without {SOURCE_ID} in every row: its hash decides which are train stars"
            )
        hashes = hash64(table[SOURCE_ID].to_numpy())
        in_train = part_of(table[SOURCE_ID].to_numpy()) == Part.TRAIN
        train: dict[str, ColumnStatistics] = {}
        whole: dict[str, ColumnStatistics] = {}
        for name in statistics_columns(table.schema, release):
            values, valid = column_values(table, name)
            column = release.columns.get(name)
            orphan = valid & ~_derivable_rows(table, column)
            off = _deviations(table, values, valid & ~orphan, column, release)
            train[name], rest = (
                _with_misfits(_statistics_of(rows, values, valid, orphan, hashes), off[rows], column)
                for rows in (in_train, ~in_train)
            )
            whole[name] = train[name].merge(rest)
        return cls(TableStatistics(table.num_rows, whole), TableStatistics(int(in_train.sum()), train))

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both together. Raises DataError where their columns differ."""
        return Statistics(self.all.merge(other.all), self.train.merge(other.train))

    def to_json(self) -> dict[str, Any]:
        return {"all": self.all.to_json(), "train": self.train.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Statistics:
        return cls(TableStatistics.from_json(record["all"]), TableStatistics.from_json(record["train"]))


def _statistics_of(
    rows: NDArray[np.bool_], values: NDArray[Any], valid: NDArray[np.bool_], orphan: NDArray[np.bool_], hashes: NDArray[np.uint64]
) -> ColumnStatistics:
    """Statistics of one column over some of the rows."""
    present = values[rows & valid]
    null_sum = int(hashes[rows & ~valid].sum(dtype=np.uint64))
    return ColumnStatistics.from_values(present, int(rows.sum()) - present.size, int((orphan & rows).sum()), null_sum)


# How far a value may be from its formula and still follow from it: what rounding makes of the columns that people publish, and
# no more. Magnitudes of four decimals are off by 5e-5 and those of another release's zero points by 1e-3; angles are in
# degrees; anything else is rounded to few digits at times (1.3 % at most among real rows), so its share is taken.
_MAG_LIMIT, _ANGLE_LIMIT, _RELATIVE_LIMIT = 2e-4, 1e-3, 0.02


def _deviations(
    table: pa.Table, values: NDArray[Any], known: NDArray[np.bool_], column: Column | None, release: Release
) -> NDArray[np.float64]:
    """|value - formula| of each row, shape (n,), of any but magnitudes and angles a share of the formula's (of 1 at least); 0 where one of them is not known or not defined."""
    off = np.zeros(len(values))
    if column is None or not column.derived_from or not known.any():
        return off
    sources = {name: np.where(known, column_values(table, name)[0].astype(np.float64), np.nan) for name in column.derived_from}
    formula = release.derive(sources, [column.name])[column.name].astype(np.float64)
    known = known & np.isfinite(formula)
    off[known] = np.abs(values[known] - formula[known])
    if column.unit == "deg":
        off = np.minimum(off, np.abs(360.0 - off))
    elif column.unit != "mag":
        off /= np.maximum(np.abs(np.where(known, formula, 1.0)), 1.0)
    return np.asarray(off)


def _with_misfits(statistics: ColumnStatistics, off: NDArray[np.float64], column: Column | None) -> ColumnStatistics:
    if column is None or not column.derived_from or not off.size:
        return statistics
    limit = {"mag": _MAG_LIMIT, "deg": _ANGLE_LIMIT}.get(column.unit, _RELATIVE_LIMIT)
    return replace(statistics, misfits=int((off > limit).sum()), deviation=float(off.max()))


def _derivable_rows(table: pa.Table, column: Column | None) -> NDArray[np.bool_]:
    """Whether each row has a value in all columns that a column derives from, shape (n,); true if it derives from none."""
    rows = np.ones(table.num_rows, np.bool_)
    for source in column.derived_from if column else ():
        rows &= table[source].is_valid().to_numpy() if source in table.column_names else False
    return rows


def statistics_columns(schema: pa.Schema, release: Release) -> tuple[str, ...]:
    """Names of the columns that statistics are made of: numeric and boolean, no identifiers, not `_healpix_29`."""
    types = pa.types
    skipped = {HEALPIX_29, *(name for name, column in release.columns.items() if column.role == "identifier")}
    return tuple(
        field.name
        for field in schema
        if field.name not in skipped
        and (types.is_floating(field.type) or types.is_integer(field.type) or types.is_boolean(field.type))
    )


def column_values(table: pa.Table, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A column as float32 (where it is) or float64 with 0 for nulls, and which rows have a value; both of shape (n,).

    Raises DataError for NaN and infinities.
    """
    column = table[name]
    if not pa.types.is_float32(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    check_finite_column(name, column)
    valid = np.ones(len(column), np.bool_) if not column.null_count else column.is_valid().to_numpy()
    return (pc.fill_null(column, 0.0) if column.null_count else column).to_numpy(), valid
