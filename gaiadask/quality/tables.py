"""Columns of a table as numbers, and rows of a table drawn or halved."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.errors import DataError
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.split import hash64

_HALVING_BIT = 24

Floats = NDArray[np.float64]


def values(table: pa.Table, name: str) -> Floats:
    """One column as numbers, shape (rows,), NaN where null. Raises DataError where the table lacks it."""
    if name not in table.column_names:
        raise DataError(f"the table to rate has no column {name!r}; it has {table.column_names}")
    column = table.column(name)
    column = column.cast(pa.float64()) if pa.types.is_boolean(column.type) else column
    return np.asarray(column.to_numpy(), np.float64)


def finite_values(table: pa.Table, name: str) -> Floats:
    """One column as numbers, shape (rows,), NaN where null or not finite. Raises DataError where the table lacks it."""
    column = values(table, name)
    return np.where(np.isfinite(column), column, np.nan)


def number_columns(one: pa.Table, other: pa.Table, release: Release) -> tuple[str, ...]:
    """Columns of numbers and flags about a star that both tables have: no identifiers, by which a row could be recognised.

    Raises DataError where there is none.
    """
    names = tuple(f.name for f in one.schema if f.name in other.column_names and _is_number(f, release))
    if not names:
        raise DataError(f"nothing to compare: {one.column_names} and {other.column_names} share no column of numbers")
    return names


def _is_number(field: pa.Field, release: Release) -> bool:
    column = release.columns.get(field.name)
    is_identifier = field.name in (SOURCE_ID, HEALPIX_29) or (column is not None and column.role == "identifier")
    types = pa.types
    return not is_identifier and (types.is_floating(field.type) or types.is_integer(field.type) or types.is_boolean(field.type))


def sampled(table: pa.Table, rows: int, random: np.random.Generator) -> pa.Table:
    """At most `rows` rows of a table, drawn without replacement, copied (so that it pickles small)."""
    return table.take(pa.array(random.permutation(table.num_rows)[:rows]))


def halves(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the two disjoint halves of a table's stars, by one bit of the hash of source_id, in order of the hash.

    The split into train and test stars, and "the stars of smallest hash", read the highest bits, samples made elsewhere may
    read the lowest: a bit in the middle leaves the halves fair.
    """
    hashes = hash64(table.column(SOURCE_ID).to_numpy())
    order = np.argsort(hashes)
    is_odd = (hashes[order] >> np.uint64(_HALVING_BIT) & np.uint64(1)).astype(bool)
    return order[~is_odd], order[is_odd]


def largest_variance(latents: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Indices, ascending, of the `k` latents whose values vary most between stars; latents: shape (n, latents)."""
    return np.sort(np.argsort(latents.var(axis=0))[::-1][:k]).astype(np.int64)
