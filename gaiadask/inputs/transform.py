"""Column values <-> network inputs: invertible, and fitted from the statistics of train stars alone.

A free column is encoded as one or several network values (`inputs.encoding`), its slot; a derived column is left out and
computed again on the way back; a column that is constant among train stars is stored as that constant; and a position is a
unit vector, so that right ascension has no edge at 0/360 degrees. Which values a star lacks is given to the network as a
condition, one bit for each set of columns that train stars lack together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from gaiadask.buffers import has_value, in_one_piece
from gaiadask.errors import DataError
from gaiadask.inputs.encoding import Encoding, Slot, encoding_from_json, fit_encoding
from gaiadask.inputs.masses import Cells, MassMap
from gaiadask.inputs.nulls import Masks, is_null, mask_names, null_groups, pack_nulls
from gaiadask.inputs.scaling import NORMAL_IQR, rounded_to
from gaiadask.inputs.statistics import ColumnStatistics, TableStatistics, column_values
from gaiadask.records import JsonObject
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import DEFAULT_RELEASE, Release, release_named
from gaiadask.sky import position as sky_position
from gaiadask.sky import unit_vector

logger = logging.getLogger(__name__)

Number = TypeVar("Number", bound=np.generic)

PositionMode = Literal["condition", "input", "degrees"]

# A column is derived if no larger share of its values belongs to stars that lack what it derives from: those get no value back.
# Not tuned.
MAX_ORPHANS = 1e-3
# Nor if for a larger share its formula gives other values than the stars have, as with another release's zero points. Not tuned.
MAX_MISFITS = 1e-2

# The three coordinates of a star anywhere on the sky have unit variance after this.
POSITION_SCALE = math.sqrt(3.0)
VECTOR_NAMES = ("x", "y", "z")


class NetworkInputs(NamedTuple):
    """What the network is given of n stars.

    values: (n, n_values) float32, 0 where null; present: (n, n_values) bool; condition: (n, n_conditions) float32.
    """

    values: NDArray[np.float32]
    present: NDArray[np.bool_]
    condition: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Transform:
    """The map between a table's columns and the network's inputs and outputs.

    columns: the model's columns, in card order: bit i of a null mask is columns[i].
    free: those that the network is given, each encoded as the values of its slot, in this order; derived: computed from others
    (a column that many stars have without having what it derives from, or with values other than its formula's, is free); constant: one value among train stars
    (None: null in every train star), stored here and not given to the network. A star outside the train set whose value
    differs gets the train stars' constant back; its null mask still says whether it is null.
    position: "condition" (the unit vector is given to the network), "input" (it is three of the values) or "degrees" (ra
    and dec are free columns like the rest).
    encodings: of the free columns, by name. release: the data release whose columns these are.
    null_groups: columns that some train stars lack; those always null together are one group, with the bit of its first column, a free
    one where there is one. limits: of these columns, the smallest and the largest value of train stars; older cards have none.

    >>> from gaiadask.run import open_run
    >>> transform = open_run("store/runs/dr2").model.transform
    >>> transform.value_names[:2], transform.slots["pmra"].values, transform.position
    (('parallax', 'pmra'), slice(1, 2, None), 'condition')
    """

    columns: tuple[str, ...]
    free: tuple[str, ...]
    derived: tuple[str, ...]
    constant: dict[str, float | None]
    position: PositionMode
    encodings: dict[str, Encoding]
    release: Release
    null_groups: tuple[tuple[str, ...], ...] = ()
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        columns: Sequence[str],
        train: TableStatistics,
        release: Release,
        position: PositionMode,
        scaling: str = "quantile",
        derive: bool = True,
    ) -> Transform:
        """The transform of some columns, from the statistics of train stars.

        Args:
            columns: of the release, in the order of the null mask's bits.
            train: statistics of the train stars, these columns among them.
            release: the data release that the columns are of.
            position: how ra and dec reach the network, see the class.
            scaling: how free columns are encoded, a name of `inputs.encoding.scalings`.
            derive: whether columns that follow from others are computed from them instead of encoded.

        Raises:
            DataError: for a column without statistics or that is an identifier or a text, for one whose values the
                scaling cannot take, and where nothing is left to encode.
        """
        if not train.rows:
            raise DataError(
                "0 train stars: a transform is fitted from them, and the split (eight tenths of all stars) left none. Select more stars"
            )
        if labels := [name for name in columns if name in release.columns and release.columns[name].is_text]:
            raise DataError(f"column(s) {labels} cannot be encoded: not a number. Leave them out of model.columns")
        if missing := [name for name in columns if name not in train.columns]:
            raise DataError(
                f"no statistics for column(s) {missing}, which the model is to encode: the catalogue has statistics for "
                f"{sorted(train.columns)}. Leave them out of model.columns (identifiers cannot be encoded), or select and ingest them"
            )
        derived = tuple(n for n in release.derivable(columns) if _is_derivable(n, train.columns[n])) if derive else ()
        position_columns = () if position == "degrees" else (RA, DEC)
        measured = [n for n in columns if n not in (*derived, *position_columns)]
        constant = {n: train.columns[n].minimum for n in measured if train.columns[n].is_constant}
        free = tuple(n for n in measured if n not in constant)
        if not free and position != "input":
            raise DataError(
                f"nothing to encode: of the model's columns {list(columns)} none is free and varies among the {train.rows} train "
                f"star{'s' * (train.rows != 1)} (eight tenths of all). Select more stars, or columns that differ"
            )
        encodings = {name: _fit_encoding(name, train.columns[name], release, scaling) for name in free}
        groups = null_groups(columns, free, train)
        limits = {name: train.columns[name].limits for group in groups for name in group}
        return cls(tuple(columns), free, derived, constant, position, encodings, release, groups, limits)

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """The slot of each free column, in the order of the network values."""
        bounds = np.cumsum([0, *(self.encodings[name].width for name in self.free)]).tolist()
        return {name: Slot(name, *ends) for name, ends in zip(self.free, pairwise(bounds), strict=True)}

    @property
    def vector_start(self) -> int:
        """Number of network values before those of the unit vector."""
        return sum(slot.width for slot in self.slots.values())

    @property
    def _vector_names(self) -> tuple[str, ...]:
        return VECTOR_NAMES if self.position == "input" else ()

    @property
    def value_names(self) -> tuple[str, ...]:
        """Name of each network value: those of the slots, then x, y, z of the unit vector where position is an input."""
        return (*(name for slot in self.slots.values() for name in slot.names), *self._vector_names)

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Column of each network value, beside `value_names`; of the unit vector's, x, y and z again."""
        return (*(slot.column for slot in self.slots.values() for _ in slot.numbers), *self._vector_names)

    @property
    def n_values(self) -> int:
        """Width of the network's input and output."""
        return self.vector_start + len(self._vector_names)

    @property
    def n_conditions(self) -> int:
        """Width of what is given to the network beside the values."""
        return self.first_null_bit + len(self.null_groups)

    @property
    def first_null_bit(self) -> int:
        """Where in the condition the bits of null groups begin."""
        return len(VECTOR_NAMES) if self.position == "condition" else 0

    @cached_property
    def null_numbers(self) -> tuple[tuple[int, ...], ...]:
        """Of each null group the numbers of its values; none for one of columns that follow from others."""
        return tuple(tuple(i for n in group if n in self.slots for i in self.slots[n].numbers) for group in self.null_groups)

    @cached_property
    def cells(self) -> dict[int, Cells]:
        """Of network values in which many stars share a value, by their numbers: the intervals that come back as one value each."""
        return {self.slots[name].start: each.cells for name, each in self.encodings.items() if isinstance(each, MassMap)}

    @property
    def spread(self) -> tuple[float, ...]:
        """Interquartile range of each network value among train stars."""
        columns = (width for name in self.free for width in self.encodings[name].spread)
        return (*columns, *(NORMAL_IQR for _ in self._vector_names))

    def forward(self, table: pa.Table) -> NetworkInputs:
        """Network inputs of a table's stars.

        Args:
            table: ra, dec and the free columns; where there are null groups, also the first column of each, or, for a derived
                one, the columns that it derives from. Constant columns may be absent.

        Raises:
            DataError: for a missing column, for NaN and infinities, and for a star without position.
        """
        self.require(table, (RA, DEC, *self.free))
        values, present = _by_column(self.n_values, table.num_rows, np.float32), _by_column(self.n_values, table.num_rows, np.bool_)
        for slot in self.slots.values():
            x, known = column_values(table, slot.column)
            values[:, slot.values] = self.encodings[slot.column].forward(x)
            present[:, slot.values] = known[:, None]
            if table[slot.column].null_count:
                np.copyto(values[:, slot.values], 0, where=~known[:, None])
        if self.position == "input":
            values[:, self.vector_start :], present[:, self.vector_start :] = self._vector(table), True
        return NetworkInputs(values, present, self.condition(table))

    def error_columns(self, available: Iterable[str]) -> tuple[str, ...]:
        """Error columns of the free columns, of those `available`: what `sigma` reads."""
        errors = (self.release.columns[name].error_column for name in self.free)
        names = set(available)
        return tuple(dict.fromkeys(error for error in errors if error is not None and error in names))

    def sigma(self, table: pa.Table) -> NDArray[np.float32]:
        """The catalogue's own error of each value in the unit of the network's inputs, shape (n, n_values).

        One sigma of the column times the slope of its encoding at the star's value, at most 1; 0 where the value or its error
        is null, and for columns whose error the table lacks or that have none. Raises DataError for NaN and infinities.
        """
        sigma = np.zeros((table.num_rows, self.n_values), np.float32)
        errors = self.error_columns(table.column_names)
        for slot in self.slots.values():
            column = self.release.columns[slot.column]
            if column.error_column in errors:
                (x, present), (error, known) = column_values(table, column.name), column_values(table, column.error_column)
                with np.errstate(over="ignore"):
                    slope = column.error_factor * self.encodings[column.name].slope(x)
                    scaled = np.clip(error.astype(np.float64)[:, None] * slope, 0, 1)
                sigma[:, slot.values] = np.where((present & known)[:, None], scaled, 0)
        return sigma

    def condition(self, table: pa.Table, masks: Masks | None = None) -> NDArray[np.float32]:
        """What the network is given beside values and latents, shape (n, n_conditions): the position where it is a
        condition, then the bit of each null group, 1 where it is null.

        Args:
            table: ra and dec, and, where there are null groups and no masks, the groups' columns.
            masks: null masks, shape (n, words), where the table has no values: what is null by them.

        Raises:
            DataError: where a column is missing.
        """
        condition = _by_column(self.n_conditions, table.num_rows, np.float32)
        if self.first_null_bit:
            condition[:, : self.first_null_bit] = self._vector(table)
        for number, group in enumerate(self.null_groups, start=self.first_null_bit):
            condition[:, number] = self._group_bit(table, group, masks)
        return condition

    def as_complete(self, condition: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same condition, shape (n, n_conditions), with nothing null."""
        complete = condition.copy()
        complete[:, self.first_null_bit :] = 0
        return complete

    def _group_bit(self, table: pa.Table, group: Sequence[str], masks: Masks | None) -> NDArray[np.bool_]:
        return self._is_null(table, group[0]) if masks is None else is_null(masks, self.columns.index(group[0]))

    def _is_null(self, table: pa.Table, name: str) -> NDArray[np.bool_]:
        """Where a column is null; a derived one that the table lacks, where one of the columns that it derives from is."""
        sources = (name,) if name in table.column_names or name not in self.derived else self.release.columns[name].derived_from
        self.require(table, sources)
        null = np.zeros(table.num_rows, np.bool_)
        for source in sources:
            if table[source].null_count:
                null |= ~has_value(in_one_piece(table[source]))
        return null

    def inverse(
        self,
        values: NDArray[np.floating],
        ra: ArrayLike | None = None,
        dec: ArrayLike | None = None,
        known: Mapping[str, NDArray[np.float64]] | None = None,
        *,
        smooth: bool = False,
    ) -> dict[str, NDArray[np.float64]]:
        """Physical columns of network values.

        Columns of a shorter type are rounded to it, so that what is derived from them is what the archive would derive.

        Args:
            values: shape (n, n_values).
            ra, dec: degrees, shape (n,); None where the position is to be that of the values.
            known: free columns whose values are known already, shape (n,), NaN where not.
            smooth: whether columns of shared values rise evenly from one to the next, and whole numbers are not rounded: for slopes.

        Returns:
            The model's columns, and ra and dec (degrees), by name: float64, shape (n,), archive units; a derived column is NaN
            where it is undefined.

        Raises:
            DataError: for values of another shape, and where no position is given and the values hold none.
        """
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != self.n_values:
            raise DataError(
                f"network values of shape {values.shape}: expected (n, {self.n_values}), one for each of {self.value_names}"
            )
        by_column = np.ascontiguousarray(values.T)
        free = {name: self._inverse(name, by_column[slot.values].T, smooth) for name, slot in self.slots.items()}
        return self.completed(free if smooth else self.rounded(free), values[:, self.vector_start :], ra, dec, known)

    def _inverse(self, name: str, values: NDArray[np.floating], smooth: bool) -> NDArray[np.float64]:
        encoding = self.encodings[name]
        return encoding.smooth_value_of(values[:, 0]) if smooth and isinstance(encoding, MassMap) else encoding.inverse(values)

    def rounded(self, free: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """Free columns as their types hold them."""
        return {name: rounded_to(self.release.columns[name].dtype, values) for name, values in free.items()}

    def completed(
        self,
        free: Mapping[str, NDArray[np.float64]],
        vectors: NDArray[np.floating],
        ra: ArrayLike | None = None,
        dec: ArrayLike | None = None,
        known: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> dict[str, NDArray[np.float64]]:
        """All columns of stars whose free columns are known: the constant and derived ones added.

        Args:
            free: the free columns by name, shape (n,), as their types hold them.
            vectors: the network values after those of the slots, shape (n, 3) where position is an input.
            ra, dec, known: as `inverse` takes them.

        Returns:
            What `inverse` returns.
        """
        n = len(vectors)
        columns = dict(free)
        for name, exact in (known or {}).items():
            columns[name] = np.where(np.isnan(exact), columns[name], exact)
        for name, constant in self.constant.items():
            columns[name] = np.full(n, np.nan if constant is None else constant)
        columns[RA], columns[DEC] = self._position(vectors, columns, ra, dec)
        derived = self.release.derive(columns, self.derived)
        columns |= {name: np.asarray(derived[name], np.float64) for name in self.derived}
        return {name: columns[name] for name in dict.fromkeys((*self.columns, RA, DEC))}

    @property
    def mask_names(self) -> list[str]:
        """Names of the columns that hold a latent table's null masks."""
        return mask_names(len(self.columns))

    def null_bits(self, table: pa.Table) -> Masks:
        """Null masks of the model's columns, shape (n, words), as `inputs.nulls` packs them.

        A derived column that the table lacks counts as null where one of the columns that it derives from is. Raises DataError
        for any other missing column.
        """
        self.require(table, [name for name in self.columns if name not in self.derived])
        return pack_nulls([self._is_null(table, name) for name in self.columns], table.num_rows)

    def to_json(self) -> JsonObject:
        """As `from_json` reads it, and card.json has it."""
        return {
            "columns": list(self.columns),
            "free": list(self.free),
            "derived": list(self.derived),
            "constant": {**self.constant},
            "position": self.position,
            "null_groups": [list(group) for group in self.null_groups],
            "limits": {name: list(ends) for name, ends in self.limits.items()},
            "maps": {name: self.encodings[name].to_json() for name in self.free},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Transform:
        """The transform that `to_json` wrote. Raises KeyError, TypeError or ValueError for a record that it did not write."""
        return cls(
            tuple(record["columns"]),
            tuple(record["free"]),
            tuple(record["derived"]),
            dict(record["constant"]),
            record["position"],
            {name: encoding_from_json(encoding) for name, encoding in record["maps"].items()},
            release_named(record.get("release", DEFAULT_RELEASE)),
            tuple(tuple(group) for group in record["null_groups"]),
            {name: (low, high) for name, (low, high) in record.get("limits", {}).items()},
        )

    def require(self, table: pa.Table, names: Sequence[str]) -> None:
        """Raise DataError where a table lacks one of these columns."""
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
        vectors: NDArray[np.floating],
        columns: Mapping[str, NDArray[np.float64]],
        ra: ArrayLike | None,
        dec: ArrayLike | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if ra is not None and dec is not None:
            return np.asarray(ra, np.float64), np.asarray(dec, np.float64)
        if self.position == "input":
            return sky_position(vectors)
        if {RA, DEC} <= columns.keys():
            return columns[RA] % 360.0, np.clip(columns[DEC], -90.0, 90.0)
        raise DataError("no position: this model takes ra and dec as a condition, so its values hold none. Give ra and dec")


def _is_derivable(name: str, statistics: ColumnStatistics) -> bool:
    """Whether a derivable column can be computed again for (nearly) every star that has it, and is what is computed."""
    if statistics.misfits > MAX_MISFITS * statistics.count:
        logger.warning(
            "column %s does not follow from the others in %d of %d train stars (off by up to %.3g), as the formulas of the release "
            "say it does: it is encoded as a column of its own. Are these stars of another data release?",
            name, statistics.misfits, statistics.count, statistics.deviation,
        )  # fmt: skip
        return False
    return statistics.orphans <= MAX_ORPHANS * statistics.count


def _fit_encoding(name: str, statistics: ColumnStatistics, release: Release, scaling: str) -> Encoding:
    if name not in release.columns or not release.columns[name].is_encodable:
        raise DataError(
            f"column {name} cannot be encoded: only measured columns of the column table can. Leave it out of model.columns"
        )
    return fit_encoding(release.columns[name], statistics.sketch, scaling)


def _by_column(width: int, rows: int, dtype: type[Number]) -> NDArray[Number]:
    """An array of shape (rows, width) in whose memory each column is in one piece: columns are made one after the other."""
    return np.empty((width, rows), dtype).T
