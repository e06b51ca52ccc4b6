"""Column values <-> network inputs: invertible, and fitted from the statistics of train stars alone.

A free column is mapped through its own quantiles to a standard normal (`gaiadask.scaling`), a derived column is left out
and computed again on the way back, a column that is constant among train stars is kept as that constant, and a position is
a unit vector, so that right ascension has no edge at 0/360 degrees. Which values a star lacks is given to the network as a
condition, one bit for each set of columns that train stars lack together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from gaiadask.errors import DataError
from gaiadask.inputs.nulls import NULL_MASK, Masks, bit_of, mask_name, mask_names, pack_nulls
from gaiadask.inputs.scaling import NORMAL_IQR, ColumnMap, ScalingKind, fit_map, map_from_json
from gaiadask.inputs.statistics import ColumnStatistics, TableStatistics, column_values
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import Release, release_named
from gaiadask.sky import position as sky_position
from gaiadask.sky import unit_vector

PositionMode = Literal["condition", "input", "degrees"]


# A column is derived if no larger share of its values belongs to stars that lack what it derives from: those get no value back.
MAX_ORPHANS = 1e-3


# The three coordinates of a star anywhere on the sky have unit variance after this.
POSITION_SCALE = math.sqrt(3.0)


VECTOR_NAMES = ("x", "y", "z")


# A guess of a value that a star lacks is cut so many interquartile ranges from 0.
GUESS_LIMIT = 4.0


class NetworkInputs(NamedTuple):
    """What the network sees of n stars.

    values: (n, n_values) float32, 0 where null; present: (n, n_values) bool; condition: (n, n_conditions) float32.
    """

    values: NDArray[np.float32]
    present: NDArray[np.bool_]
    condition: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Transform:
    """The map between a table's columns and the network's inputs and outputs.

    columns: the model's columns, in card order: bit i of a null mask is columns[i].
    free: those that the network sees, one value each; derived: computed from others (a column that many stars have
    without having what it derives from is free); constant: one value among train stars
    (None: null in every train star), kept here and out of the network. A star outside the train set whose value differs
    gets the train stars' constant back; whether it is null is still told by its null mask.
    position: "condition" (the unit vector is given to the network), "input" (it is three of the values) or "degrees" (ra
    and dec are free columns like the rest).
    null_groups: columns that some train stars lack, those that are always lacking together in one group, whose first column
    tells the group's bit; a free column leads where there is one.
    """

    columns: tuple[str, ...]
    free: tuple[str, ...]
    derived: tuple[str, ...]
    constant: dict[str, float | None]
    position: PositionMode
    maps: dict[str, ColumnMap]
    release: Release
    null_groups: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def fit(
        cls,
        columns: Sequence[str],
        train: TableStatistics,
        release: Release,
        position: PositionMode,
        scaling: ScalingKind = "quantile",
        derive: bool = True,
    ) -> Transform:
        """Transform of `columns` from the record of train stars. derive: whether what follows from other columns is computed.

        Raises DataError for a column without statistics or that is an identifier, a text or a flag, and where nothing is left to encode.
        """
        if not train.rows:
            raise DataError("no train stars: a transform is fitted from them, and the split left none. Select more stars")
        if labels := [name for name in columns if name in release.columns and release.columns[name].role == "label"]:
            raise DataError(f"column(s) {labels} cannot be encoded: not a number. Leave them out of model.columns")
        if missing := [name for name in columns if name not in train.columns]:
            raise DataError(
                f"no statistics for column(s) {missing}, which the model is to encode: the catalogue has statistics for "
                f"{sorted(train.columns)}. Leave them out of model.columns (identifiers cannot be encoded), or select and ingest them"
            )
        derived = tuple(name for name in release.derivable(columns) if _follows(train.columns[name])) if derive else ()
        apart = () if position == "degrees" else (RA, DEC)
        measured = [n for n in columns if n not in (*derived, *apart)]
        constant = {n: train.columns[n].minimum for n in measured if train.columns[n].is_constant}
        free = tuple(n for n in measured if n not in constant)
        if not free and position != "input":
            raise DataError(f"nothing to encode: of the model's columns {list(columns)} none is free and varies among train stars")
        maps = {name: _fit_map(name, train.columns[name], release, scaling) for name in free}
        return cls(tuple(columns), free, derived, constant, position, maps, release, _null_groups(columns, free, train))

    @property
    def value_names(self) -> tuple[str, ...]:
        """Name of each value: the free columns, then those of the unit vector where position is an input."""
        return self.free + (VECTOR_NAMES if self.position == "input" else ())

    @property
    def n_values(self) -> int:
        """Width of the network's input and output."""
        return len(self.value_names)

    @property
    def n_conditions(self) -> int:
        """Width of what is given to the network beside the values."""
        return (len(VECTOR_NAMES) if self.position == "condition" else 0) + len(self.null_groups)

    @property
    def spread(self) -> tuple[float, ...]:
        """Interquartile range of each value among train stars, in the network's unit."""
        vector = [NORMAL_IQR] * len(VECTOR_NAMES) if self.position == "input" else []
        return (*(self.maps[name].iqr for name in self.free), *vector)

    def forward(self, table: pa.Table) -> NetworkInputs:
        """Network inputs of a table's stars; derived and constant columns may be absent from it.

        Raises DataError for a missing column, for NaN and infinities, and for a star without position.
        """
        self._require(table, (RA, DEC, *self.free))
        values = np.zeros((table.num_rows, self.n_values), np.float32)
        present = np.ones(values.shape, np.bool_)
        for i, name in enumerate(self.free):
            column, present[:, i] = column_values(table, name)
            values[:, i] = self.maps[name].forward(column)
        values[:, : len(self.free)][~present[:, : len(self.free)]] = 0
        if self.position == "input":
            values[:, len(self.free) :] = self._vector(table)
        return NetworkInputs(values, present, self.condition(table))

    def error_columns(self, available: Iterable[str]) -> tuple[str, ...]:
        """Error columns of the free columns, of those `available`: what `sigma` reads."""
        there = set(available)
        return tuple(dict.fromkeys(e for n in self.free if (e := self.release.columns[n].error_column) in there and e is not None))

    def sigma(self, table: pa.Table) -> NDArray[np.float32]:
        """The catalogue's own error of each value in the unit of the network's inputs, shape (n, n_values).

        One sigma of the column times the slope of its map at the star's value, at most 1; 0 where the value or its error is
        null, and for columns whose error the table has not or that have none. Raises DataError for NaN and infinities.
        """
        sigma = np.zeros((table.num_rows, self.n_values), np.float32)
        errors = self.error_columns(table.column_names)
        for i, name in enumerate(self.free):
            error_column = self.release.columns[name].error_column
            if error_column in errors:
                (x, present), (error, known) = column_values(table, name), column_values(table, error_column)
                with np.errstate(over="ignore"):
                    slope = self.release.columns[name].error_factor * self.maps[name].slope(x)
                    sigma[:, i] = np.where(present & known, np.clip(np.float64(error) * slope, 0, 1), 0)
        return sigma

    def condition(self, table: pa.Table) -> NDArray[np.float32]:
        """What the network is given beside values and latents, shape (n, n_conditions): the position where it is a
        condition, then the bit of each null group, 1 where it is null.

        table: ra and dec, and, where there are null groups, the groups' columns or, as latents have it, null_mask. Raises
        DataError where one is missing.
        """
        vector = [self._vector(table)] if self.position == "condition" else []
        bits = [self._group_bit(table, group).astype(np.float32)[:, None] for group in self.null_groups]
        return np.concatenate([np.empty((table.num_rows, 0), np.float32), *vector, *bits], axis=1)

    def as_complete(self, condition: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same condition, shape (n, n_conditions), with nothing null."""
        complete = condition.copy()
        complete[:, self.n_conditions - len(self.null_groups) :] = 0
        return complete

    def _group_bit(self, table: pa.Table, group: Sequence[str]) -> NDArray[np.bool_]:
        if NULL_MASK not in table.column_names:
            return self._is_null(table, group[0])
        column = self.columns.index(group[0])
        self._require(table, [mask_name(column)])
        return bit_of(table[mask_name(column)].to_numpy(), column)

    def _is_null(self, table: pa.Table, name: str) -> NDArray[np.bool_]:
        """Where a column is null; a derived one that the table lacks, where one of those it derives from is."""
        sources = (name,) if name in table.column_names or name not in self.derived else self.release.columns[name].derived_from
        self._require(table, sources)
        null = np.zeros(table.num_rows, np.bool_)
        for source in sources:
            if table[source].null_count:
                null |= table[source].is_null().to_numpy()
        return null

    def inverse(
        self,
        values: NDArray[np.floating],
        ra: ArrayLike | None = None,
        dec: ArrayLike | None = None,
        known: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> dict[str, NDArray[np.float64]]:
        """Physical columns, float64, of network values, shape (n, n_values): the model's columns, and ra and dec (degrees).

        The position is the given one, else, where it is an input, that of the values. Columns of a shorter type are
        rounded to it, so that what is derived from them is what the archive would derive; derived columns are NaN where
        undefined. known: free columns whose values are known already, shape (n,), NaN where not. Raises DataError where no
        position is given and the values hold none.
        """
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != self.n_values:
            raise DataError(
                f"network values of shape {values.shape}: expected (n, {self.n_values}), one for each of {self.value_names}"
            )
        columns = {
            n: _through_type(self.release.columns[n].dtype, self.maps[n].inverse(values[:, i])) for i, n in enumerate(self.free)
        }
        for name, told in (known or {}).items():
            columns[name] = np.where(np.isnan(told), columns[name], told)
        for name, constant in self.constant.items():
            columns[name] = np.full(len(values), np.nan if constant is None else constant)
        columns[RA], columns[DEC] = self._position(values, columns, ra, dec)
        derived = self.release.derive(columns, self.derived)
        columns |= {name: np.asarray(derived[name], np.float64) for name in self.derived}
        return {name: columns[name] for name in dict.fromkeys((*self.columns, RA, DEC))}

    @property
    def mask_names(self) -> list[str]:
        """Names of the columns that hold a latent table's null masks."""
        return mask_names(len(self.columns))

    def null_bits(self, table: pa.Table) -> Masks:
        """Null masks of the model's columns, shape (n, words), as `inputs.nulls` packs them.

        A derived column that the table lacks counts as null where one of those it derives from is. Raises DataError for
        any other missing column.
        """
        self._require(table, [name for name in self.columns if name not in self.derived])
        return pack_nulls([self._is_null(table, name) for name in self.columns], table.num_rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "columns": list(self.columns),
            "free": list(self.free),
            "derived": list(self.derived),
            "constant": self.constant,
            "position": self.position,
            "null_groups": [list(group) for group in self.null_groups],
            "maps": {name: self.maps[name].to_json() for name in self.free},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Transform:
        return cls(
            tuple(record["columns"]),
            tuple(record["free"]),
            tuple(record["derived"]),
            dict(record["constant"]),
            record["position"],
            {name: map_from_json(m) for name, m in record["maps"].items()},
            release_named(record.get("release", "dr2")),
            tuple(tuple(group) for group in record["null_groups"]),
        )

    def _require(self, table: pa.Table, names: Sequence[str]) -> None:
        if missing := [name for name in names if name not in table.column_names]:
            raise DataError(f"the table lacks column(s) {missing}: this model needs {list(dict.fromkeys(names))}. Select them too")

    def _vector(self, table: pa.Table) -> NDArray[np.float32]:
        degrees = []
        for name in (RA, DEC):
            column, valid = column_values(table, name)
            if not valid.all():
                raise DataError(f"column {name}: null in {int((~valid).sum())} of {len(valid)} rows, but every star has a position")
            degrees.append(column)
        return (POSITION_SCALE * unit_vector(*degrees)).astype(np.float32)

    def _position(
        self,
        values: NDArray[np.floating],
        columns: Mapping[str, NDArray[np.float64]],
        ra: ArrayLike | None,
        dec: ArrayLike | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if ra is not None and dec is not None:
            return np.asarray(ra, np.float64), np.asarray(dec, np.float64)
        if self.position == "input":
            return sky_position(values[:, len(self.free) :])
        if {RA, DEC} <= columns.keys():
            return columns[RA] % 360.0, np.clip(columns[DEC], -90.0, 90.0)
        raise DataError("no position: this model takes ra and dec as a condition, so its values hold none. Give ra and dec")


def _follows(statistics: ColumnStatistics) -> bool:
    """Whether a derivable column can be computed again for (nearly) every star that has it."""
    return statistics.orphans <= MAX_ORPHANS * statistics.count


def _null_groups(columns: Sequence[str], free: Sequence[str], train: TableStatistics) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple[int, int], list[str]] = {}
    for name in sorted(columns, key=lambda name: name not in free):  # a stable sort: free columns first
        record = train.columns[name]
        if record.count and record.nulls:
            groups.setdefault((record.nulls, record.null_sum), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def _fit_map(name: str, statistics: ColumnStatistics, release: Release, scaling: ScalingKind) -> ColumnMap:
    if name not in release.columns or not release.columns[name].is_number:
        raise DataError(
            f"column {name} cannot be encoded: only measured columns of the column table can. Leave it out of model.columns"
        )
    return fit_map(name, statistics.sketch, scaling)


def _through_type(archive_type: pa.DataType, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values rounded to what the column's type can hold, as float64."""
    dtype = np.dtype(archive_type.to_pandas_dtype())
    if dtype.kind == "f":
        largest = np.finfo(dtype).max
        return np.clip(values, -largest, largest).astype(dtype).astype(np.float64)
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.clip(np.rint(values), *limits)
