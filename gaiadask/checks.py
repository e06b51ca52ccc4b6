"""Checks of rows, repeated wherever rows pass from one part to another; each raises DataError with one wording.

`where` names the rows' origin (a file, a chunk, a tile) and begins each message.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.buffers import are_finite
from gaiadask.errors import DataError
from gaiadask.release.column import DEC, KEY_COLUMNS, RA, SOURCE_ID


def check_keys(table: pa.Table, where: str) -> None:
    """Refuse rows that have no source_id, ra or dec; a key column that the table lacks is not looked at."""
    for name in KEY_COLUMNS:
        if name in table.schema.names and (nulls := table[name].null_count):
            raise DataError(
                f"{where}: {nulls} of {len(table)} rows have no {name}, without which a star cannot be filed: fill it in, or leave "
                "such rows out of the file"
            )


def check_positions(table: pa.Table, where: str) -> None:
    """Refuse rows whose position lies off the sphere: ra outside [0, 360], dec outside [-90, 90] degrees, NaN, null."""
    for name, low, high in ((RA, 0.0, 360.0), (DEC, -90.0, 90.0)):
        # Counted from the inside, for NaN lies in no range.
        inside = pc.and_(pc.greater_equal(table[name], low), pc.less_equal(table[name], high))
        if wrong := table.num_rows - (pc.sum(inside).as_py() or 0):
            sample = table[name].filter(pc.invert(pc.fill_null(inside, False)))[0].as_py()
            raise DataError(
                f"{where}: {wrong} rows have a {name} outside [{low:g}, {high:g}] degrees (such as {sample}): correct them, "
                "as in a table whose ra goes from -180 to 180 or in hours, or leave them out with selection.where"
            )


def check_finite(table: pa.Table, where: str) -> None:
    """Refuse NaN and infinities in any column of floating-point numbers."""
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_floating(field.type):
            check_finite_column(field.name, column, where)


def check_finite_column(name: str, column: pa.ChunkedArray, where: str = "") -> None:
    """Refuse NaN and infinities in one column of floating-point numbers."""
    if are_finite(column):  # nearly always, and soon seen
        return
    if bad := pc.sum(pc.invert(pc.is_finite(column))).as_py():
        raise DataError(
            f"{where}{': ' if where else ''}column {name}: NaN or infinite in {bad} of {len(column)} rows; every value must be a "
            "finite number, and a missing one null: correct the values at their source, or leave the rows out with "
            "selection.where, and ingest again"
        )


def check_same_stars(ids: NDArray[np.int64], latent_ids: NDArray[np.int64], where: str) -> None:
    """Refuse latents that are not of the catalogue's stars, row by row."""
    if not np.array_equal(ids, latent_ids):
        raise DataError(
            f"{where}: its latents are of other stars than the catalogue's: encode again with "
            "`gaiadask encode CONFIG --replace encode`"
        )


def check_id_range(ids: NDArray[np.int64], first: int, stop: int, where: str, given_by: str = "") -> None:
    """Refuse a source_id outside the half-open range. given_by: what says that this is the range, for the message."""
    if len(ids) and (ids.min() < first or ids.max() >= stop):
        outside = ids[(ids < first) | (ids >= stop)]
        raise DataError(
            f"{where}: {SOURCE_ID} {outside[0]} is out of range ({len(outside)} of {len(ids)} rows): "
            f"expected {first} <= {SOURCE_ID} < {stop}{f', as {given_by} says' if given_by else ''}"
        )


def repeated(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The source_ids that come more than once, ascending, each once."""
    ordered = np.sort(ids)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def check_ids_once(ids: NDArray[np.int64], where: str) -> None:
    """Refuse a source_id that comes more than once."""
    twice = repeated(ids)
    if len(twice):
        raise DataError(f"{where}: {len(twice)} stars came more than once ({SOURCE_ID} {twice[0]} first): expected each star once")
