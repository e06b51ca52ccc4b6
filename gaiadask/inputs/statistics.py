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

from gaiadask.buffers import has_value, in_one_piece, numbers
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
    def from_values(cls, values: NDArray[Any], nulls: int = 0, null_sum: int = 0, *, ascending: bool = False) -> ColumnStatistics:
        """Statistics of finite numbers, shape (n,), and of a number of nulls beside them; of others they are not finite.

        ascending: whether they are sorted already, NaN last.
        """
        if not values.size:
            return cls(0, nulls, None, None, None, None, QuantileSketch.empty(), 0, null_sum)
        ordered = values if ascending else np.sort(values)  # NaN last
        minimum, maximum = float(ordered[0]), float(ordered[-1])
        if not math.isfinite(minimum) or not math.isfinite(maximum):
            return cls(ordered.size, nulls, minimum, maximum, math.nan, math.nan, QuantileSketch.empty(), 0, null_sum)
        # Scaled by a power of two, which is exact, where a sum may overflow or a square vanish.
        exponent = min(max(math.frexp(max(-minimum, maximum))[1], -1022), 1023)
        exponent = exponent if abs(exponent) > _SAFE_EXPONENT else 0
        scaled = np.multiply(ordered, math.ldexp(1.0, -exponent), dtype=np.float64) if exponent else ordered
        mean = float(scaled.mean(dtype=np.float64))
        distances = np.subtract(scaled, mean, dtype=np.float64)
        std = math.ldexp(math.sqrt(np.square(distances, out=distances).mean()), exponent)
        sketch = QuantileSketch.from_values(ordered, ascending=True)
        return cls(ordered.size, nulls, minimum, maximum, math.ldexp(mean, exponent), std, sketch, 0, null_sum)

    @property
    def variance(self) -> float | None:
        """Of the population (divided by the count)."""
        return None if self.std is None else self.std * self.std

    @property
    def limits(self) -> tuple[float, float]:
        """Minimum and maximum, of a column that has a value."""
        assert self.minimum is not None and self.maximum is not None
        return self.minimum, self.maximum

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
    hashes = hash64(table[SOURCE_ID].to_numpy())
    in_train = part_of_hash(hashes) == Part.TRAIN
    columns = {name: _numbers(table[name]) for name in statistics_columns(table.schema, release)}
    formulas = _formulas(columns, release)
    # Used again by each column: what was touched before is in the cache.
    room = {dtype: np.empty((2, table.num_rows + 1), dtype) for dtype in {x.dtype for x, _ in columns.values()}}
    train = int(in_train.sum())
    parts = _Parts(TableStatistics(train, {}), TableStatistics(table.num_rows - train, {}))
    for name, column in columns.items():
        records = _of_column(column, in_train, hashes, room[column[0].dtype])
        if not all(math.isfinite(record.mean or 0.0) for record in records):
            check_finite_column(name, table[name])
        if name in release.columns and release.columns[name].derived_from:
            found = np.zeros((2, 3))
            if name in formulas:
                found = _compared(release.columns[name], columns, formulas[name], in_train)
            records = [
                replace(record, orphans=record.count - int(known), misfits=int(misfits), deviation=deviation)
                for record, (known, misfits, deviation) in zip(records, found.tolist(), strict=True)
            ]
        for part, record in zip(parts, records, strict=True):
            part.columns[name] = record
    return parts


_Values = tuple[NDArray[Any], NDArray[np.bool_]]
"""A column as float32 (where it is) or float64, and which rows have a value; others hold anything."""


def _of_column(
    column: _Values, in_train: NDArray[np.bool_], hashes: NDArray[np.uint64], room: NDArray[Any]
) -> list[ColumnStatistics]:
    """Statistics of a column of train stars, and of all others. room: for the values of either, overwritten."""
    from gaiadask.inputs import statistics_loops  # here: numba takes half a second to import

    nulls = np.empty((2, 2), np.uint64)
    first = statistics_loops.split(*column, in_train, hashes, room, nulls)
    (lacking, null_sum), (others_lacking, others_sum) = nulls.tolist()
    train, others = room[0, :first], room[1, : len(in_train) - first - lacking - others_lacking]
    for values in (train, others):
        values.sort()
    return [
        ColumnStatistics.from_values(train, lacking, null_sum, ascending=True),
        ColumnStatistics.from_values(others, others_lacking, others_sum, ascending=True),
    ]


def _numbers(column: pa.ChunkedArray) -> _Values:
    if not pa.types.is_float32(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    array = in_one_piece(column)
    return numbers(array), has_value(array)


# How far a value may be from its formula and still follow from it: what rounding makes of the columns that people publish, and
# no more. Magnitudes of four decimals are off by 5e-5 and those of another release's zero points by 1e-3; angles are in
# degrees; anything else is rounded to few digits at times (1.3 % at most among real rows), so its share is taken.
_DIFFERENCE = {"mag": (0, 2e-4), "deg": (1, 1e-3)}
_SHARE = (2, 0.02)
"""The kind of a difference, as `statistics_loops.compare` numbers them, and its limit; of a column by its unit, and of any other."""


def _formulas(columns: Mapping[str, _Values], release: Release) -> dict[str, NDArray[np.float64]]:
    """What the formulas give of those derived columns that are there with all of their sources; NaN where one is null."""
    derived = {name: release.columns[name].derived_from for name in columns if name in release.columns}
    names = [name for name, sources in derived.items() if sources and columns.keys() >= set(sources)]
    values = {}
    for source in {source for name in names for source in derived[name]}:
        x, valid = columns[source]
        values[source] = np.where(valid, x, np.float64("nan"))
    return {name: formula.astype(np.float64, copy=False) for name, formula in release.derive(values, names).items()}


def _compared(
    column: Column, columns: Mapping[str, _Values], formula: NDArray[np.float64], in_train: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """How far the values of a column are from its formula's, as `statistics_loops.compare` tells."""
    from gaiadask.inputs import statistics_loops

    x, valid = columns[column.name]
    known = np.logical_and.reduce([valid, *(columns[source][1] for source in column.derived_from)])
    return statistics_loops.compare(x.astype(np.float64), formula, known, in_train, *_DIFFERENCE.get(column.unit, _SHARE))


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
    if table[name].null_count:
        values = np.where(valid, values, values.dtype.type(0))
    if not np.isfinite(values).all():
        check_finite_column(name, table[name])
    return values, valid
