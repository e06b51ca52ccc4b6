"""Statistics of columns in one pass over the stars: moments and quantiles of parts, which merge into those of the whole.

Merged in any order, the statistics of parts equal those of the whole: counts, minima and maxima exactly, mean and standard
deviation to float64 rounding, quantiles within a rank error stated by `QuantileSketch`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.checks import check_finite_column
from gaiadask.errors import DataError
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.release.column import HEALPIX_29, SOURCE_ID, Column
from gaiadask.release.release import Release
from gaiadask.split import Part, hash64, part_of_hash

# Of statistics.json, and so of what depends on it: version 2 added null_sum, by which columns that are null together are recognised.
FORMAT_VERSION = 2

_MERGED_AT_ONCE = 8
# Squares of numbers below 2**400 and above 2**-400 neither overflow in a sum nor vanish.
_SAFE_EXPONENT = 400


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
    def from_values(cls, values: NDArray[Any], nulls: int = 0, null_sum: int = 0) -> ColumnStatistics:
        """Statistics of finite numbers, shape (n,), and of a number of nulls beside them; of others they are not finite."""
        if not values.size:
            return cls(0, nulls, None, None, None, None, QuantileSketch.empty(), 0, null_sum)
        ordered = np.sort(values)  # NaN last
        minimum, maximum = float(ordered[0]), float(ordered[-1])
        if not math.isfinite(minimum) or not math.isfinite(maximum):
            return cls(ordered.size, nulls, minimum, maximum, math.nan, math.nan, QuantileSketch.empty(), 0, null_sum)
        # Scaled by a power of two, which is exact, where a sum may overflow or a square vanish.
        exponent = min(max(math.frexp(max(-minimum, maximum))[1], -1022), 1023)
        exponent = exponent if abs(exponent) > _SAFE_EXPONENT else 0
        scaled = np.multiply(ordered, math.ldexp(1.0, -exponent), dtype=np.float64) if exponent else ordered
        mean = float(scaled.mean(dtype=np.float64))
        distances = np.subtract(scaled, mean, dtype=np.float64)
        std = math.ldexp(math.sqrt(np.dot(distances, distances) / ordered.size), exponent)
        sketch = QuantileSketch.from_values(ordered, ascending=True)
        return cls(ordered.size, nulls, minimum, maximum, math.ldexp(mean, exponent), std, sketch, 0, null_sum)

    @property
    def variance(self) -> float | None:
        """Of the population (divided by the count)."""
        return None if self.std is None else self.std * self.std

    @property
    def is_constant(self) -> bool:
        """Whether the column has one value at most."""
        return self.minimum == self.maximum

    def merge(self, other: ColumnStatistics) -> ColumnStatistics:
        """Statistics of both together."""
        return self.merged([self, other])

    @classmethod
    def merged(cls, records: Sequence[ColumnStatistics]) -> ColumnStatistics:
        """Statistics of all together (Chan, Golub and LeVeque 1983, in a form that cannot overflow)."""
        whole = cls(
            sum(r.count for r in records),
            sum(r.nulls for r in records),
            None,
            None,
            None,
            None,
            QuantileSketch.merged([r.sketch for r in records]),
            sum(r.orphans for r in records),
            sum(r.null_sum for r in records) % 2**64,
            sum(r.misfits for r in records),
            max((r.deviation for r in records), default=0.0),
        )
        if not whole.count:
            return whole
        seen = [_Moments(r.count / whole.count, r.minimum, r.maximum, r.mean, r.std) for r in records if r.count]  # type: ignore[arg-type]
        mean = math.fsum(part.share * part.mean for part in seen)
        roots = [(math.sqrt(part.share), part) for part in seen]
        within = (root * part.std for root, part in roots)
        between = (2 * root * (part.mean / 2 - mean / 2) for root, part in roots)
        return replace(
            whole,
            minimum=min(part.minimum for part in seen),
            maximum=max(part.maximum for part in seen),
            mean=mean,
            std=math.hypot(*within, *between),
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


class _Moments(NamedTuple):
    """Of one column in one of several parts, in which it has a value; share: of all its values."""

    share: float
    minimum: float
    maximum: float
    mean: float
    std: float


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
        return self.merged([self, other])

    @classmethod
    def merged(cls, records: Sequence[TableStatistics]) -> TableStatistics:
        """Statistics of all together, one at least. Raises DataError where their columns differ."""
        names = records[0].columns
        for record in records:
            if differing := sorted(names.keys() ^ record.columns.keys()):
                raise DataError(f"statistics of tables with different columns cannot be merged: only one of them has {differing}")
        columns = {name: ColumnStatistics.merged([record.columns[name] for record in records]) for name in names}
        return cls(sum(record.rows for record in records), columns)

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
    def from_table(cls, stars: pa.Table | Iterable[pa.Table], release: Release) -> Statistics:
        """Statistics of the numeric and boolean columns of a table, identifiers left out.

        Args:
            stars: with source_id: its hash decides which are train stars; a table, or pieces of it (one at least), of which one
                is held at a time.
            release: the data release that says which columns are identifiers or can be derived.

        Raises:
            DataError: for a table without source_id, for NaN and for infinities.
        """
        parts: list[_Parts] = []
        for table in [stars] if isinstance(stars, pa.Table) else stars:
            parts.append(_statistics_by_part(table, release))
            if len(parts) == _MERGED_AT_ONCE:  # so that memory does not grow with the pieces
                parts = [_Parts(*map(TableStatistics.merged, zip(*parts, strict=True)))]
        train = TableStatistics.merged([part.train for part in parts])
        return cls(TableStatistics.merged([train, *(part.rest for part in parts)]), train)

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both together. Raises DataError where their columns differ."""
        return self.merged([self, other])

    @classmethod
    def merged(cls, records: Sequence[Statistics]) -> Statistics:
        """Statistics of all together, one at least. Raises DataError where their columns differ."""
        return cls(TableStatistics.merged([r.all for r in records]), TableStatistics.merged([r.train for r in records]))

    def to_json(self) -> dict[str, Any]:
        return {"all": self.all.to_json(), "train": self.train.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Statistics:
        return cls(TableStatistics.from_json(record["all"]), TableStatistics.from_json(record["train"]))


class _Parts(NamedTuple):
    """Statistics of train stars, and of all others."""

    train: TableStatistics
    rest: TableStatistics


def _statistics_by_part(table: pa.Table, release: Release) -> _Parts:
    if SOURCE_ID not in table.column_names or table[SOURCE_ID].null_count:
        raise DataError(
            f"a table of {table.num_rows} stars without {SOURCE_ID} in every row: its hash decides which are train stars"
        )
    rows = _Rows(hash64(table[SOURCE_ID].to_numpy()))
    train: dict[str, ColumnStatistics] = {}
    rest: dict[str, ColumnStatistics] = {}
    for name in statistics_columns(table.schema, release):
        values, valid = _numbers(table[name])
        for part, present in zip((train, rest), rows.present(valid), strict=True):
            part[name] = ColumnStatistics.from_values(values.take(present.rows), present.nulls, present.null_sum)
            if not math.isfinite(part[name].mean or 0.0):
                check_finite_column(name, table[name])
        column = release.columns.get(name)
        if column is not None and column.derived_from:
            is_derivable = _derivable_rows(table, column)
            known = np.flatnonzero(is_derivable if valid is None else is_derivable & valid)
            off = _deviations(table, values, known, column, release)
            for part, in_part in ((train, rows.in_train[known]), (rest, ~rows.in_train[known])):
                part[name] = _with_formula(part[name], off[in_part], column)
    count = int(rows.in_train.sum())
    return _Parts(TableStatistics(count, train), TableStatistics(table.num_rows - count, rest))


class _Present(NamedTuple):
    """Rows of one part with a value in some column, and the number of the others and the sum of their hashes."""

    rows: NDArray[np.intp]
    nulls: int
    null_sum: int


class _Rows:
    """The rows of a table by part: of train stars, and of all others."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self.hashes, self.in_train = hashes, part_of_hash(hashes) == Part.TRAIN
        self._masks = (self.in_train, ~self.in_train)
        self._known: dict[bytes, tuple[_Present, ...]] = {}  # columns of one instrument are null together
        self._all = tuple(_Present(np.flatnonzero(mask), 0, 0) for mask in self._masks)

    def present(self, valid: NDArray[np.bool_] | None) -> tuple[_Present, ...]:
        """Those of each part with a value; valid: which rows have one, None where all have."""
        if valid is None:
            return self._all
        key = valid.tobytes()
        if key not in self._known:
            self._known[key] = tuple(self._where(mask, valid) for mask in self._masks)
        return self._known[key]

    def _where(self, mask: NDArray[np.bool_], valid: NDArray[np.bool_]) -> _Present:
        without = np.flatnonzero(mask & ~valid)
        return _Present(np.flatnonzero(mask & valid), without.size, int(self.hashes[without].sum(dtype=np.uint64)))


def _numbers(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """A column as float32 (where it is) or float64, and which rows have a value; None where all have. Others hold anything."""
    if not pa.types.is_float32(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not array.null_count:
        return array.to_numpy(), None
    values = pa.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], offset=array.offset)
    return values.to_numpy(), array.is_valid().to_numpy(zero_copy_only=False)


# How far a value may be from its formula and still follow from it: what rounding makes of the columns that people publish, and
# no more. Magnitudes of four decimals are off by 5e-5 and those of another release's zero points by 1e-3; angles are in
# degrees; anything else is rounded to few digits at times (1.3 % at most among real rows), so its share is taken.
_MAG_LIMIT, _ANGLE_LIMIT, _RELATIVE_LIMIT = 2e-4, 1e-3, 0.02


def _deviations(
    table: pa.Table, values: NDArray[Any], known: NDArray[np.intp], column: Column, release: Release
) -> NDArray[np.float64]:
    """|value - formula| of some rows, which have all of a column's sources, shape of `known`; of any but magnitudes and angles a
    share of the formula's (of 1 at least); 0 where the formula is not defined."""
    if not known.size:
        return np.empty(0)
    sources = {name: _numbers(table[name])[0][known].astype(np.float64, copy=False) for name in column.derived_from}
    formula = release.derive(sources, [column.name])[column.name].astype(np.float64, copy=False)
    off = np.abs(values[known] - formula)
    if column.unit == "deg":
        off = np.minimum(off, np.abs(360.0 - off))
    elif column.unit != "mag":
        off /= np.maximum(np.abs(formula), 1.0)
    return np.where(np.isfinite(formula), off, 0.0)


def _with_formula(statistics: ColumnStatistics, off: NDArray[np.float64], column: Column) -> ColumnStatistics:
    """The statistics with what was found where the column and all its sources are known."""
    limit = {"mag": _MAG_LIMIT, "deg": _ANGLE_LIMIT}.get(column.unit, _RELATIVE_LIMIT)
    orphans, misfits = statistics.count - off.size, int((off > limit).sum())
    return replace(statistics, orphans=orphans, misfits=misfits, deviation=float(off.max(initial=0.0)))


def _derivable_rows(table: pa.Table, column: Column) -> NDArray[np.bool_]:
    """Whether each row has a value in all columns that a column derives from, shape (n,)."""
    rows = np.ones(table.num_rows, np.bool_)
    for source in column.derived_from:
        if source not in table.column_names:
            rows[:] = False
        elif table[source].null_count:
            rows &= table[source].is_valid().to_numpy()
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
    values, valid = _numbers(table[name])
    if valid is not None:
        values = np.where(valid, values, values.dtype.type(0))
    if not np.isfinite(values).all():
        check_finite_column(name, table[name])
    return values, np.ones(len(values), np.bool_) if valid is None else valid
