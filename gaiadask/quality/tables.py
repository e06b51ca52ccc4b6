"""Small tools every part of the rating uses: columns of a table as numbers, and numbers as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.errors import DataError
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.release.dr2 import COLUMNS
from gaiadask.split import hash64

_HALVING_BIT = 24


def values(table: pa.Table, name: str) -> NDArray[np.float64]:
    """One column as numbers, shape (rows,), NaN where null. Raises DataError where the table lacks it."""
    if name not in table.column_names:
        raise DataError(f"the table to rate has no column {name!r}: expected it beside {table.column_names}")
    column = table.column(name)
    return np.asarray(column.to_numpy(), np.float64)


def number_columns(real: pa.Table, fake: pa.Table) -> tuple[str, ...]:
    """Columns that both tables have and that hold numbers about a star: no identifiers, nothing that tells its row.

    Raises DataError where there is none.
    """
    names = tuple(f.name for f in real.schema if f.name in fake.column_names and _is_number(f))
    if not names:
        raise DataError(f"nothing to compare: {real.column_names} and {fake.column_names} share no column of numbers")
    return names


def _is_number(field: pa.Field) -> bool:
    column = COLUMNS.get(field.name)
    is_identifier = field.name in (SOURCE_ID, HEALPIX_29) or (column is not None and column.role == "identifier")
    return not is_identifier and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))


def sampled(table: pa.Table, rows: int, random: np.random.Generator) -> pa.Table:
    """At most `rows` rows of a table, drawn without replacement, copied (so that it pickles small)."""
    return table.take(pa.array(random.permutation(table.num_rows)[:rows]))


def halves(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the two disjoint halves of a table's stars, as a bit of the hash of source_id tells, in order of the hash.

    The split into train and test stars, and "the stars of smallest hash", read the highest bits, other people's samples
    may read the lowest: a bit in the middle leaves the halves fair.
    """
    hashes = hash64(table.column(SOURCE_ID).to_numpy())
    order = np.argsort(hashes)
    odd = (hashes[order] >> np.uint64(_HALVING_BIT) & np.uint64(1)).astype(bool)
    return order[~odd], order[odd]


def jsonable(value: Any) -> Any:
    """`value` with numpy's scalars as Python's and None for every number that JSON cannot hold (NaN, infinite)."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
