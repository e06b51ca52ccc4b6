"""Any kind of table as an arrow table of the columns that are needed, in the release's types: as ingest takes files.

Only the needed columns are converted, so whatever else a table has does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import astropy.table
import numpy as np
import pandas as pd
import pyarrow as pa

from gaiadask.archive.files.units import check_unit
from gaiadask.conform import conform, mask_names, match_names
from gaiadask.errors import DataError

TAKEN = (
    "a pandas or dask frame, an arrow table or record batch, an astropy table, a structured numpy array, a dict of columns, or "
    "what hands out arrow tables (polars, duckdb)"
)
"""The kinds of table that are taken, for messages."""


class _Columns(NamedTuple):
    """What is asked of any kind of table. names: of its columns; column, unit: of the column of this name (unit: empty where it has none)."""

    names: list[str]
    column: Callable[[str], Any]
    unit: Callable[[str], str] = lambda name: ""


def table_of(frame: Any, schema: pa.Schema, where: str, remedy: str) -> pa.Table:
    """The columns of `schema` out of any kind of table, in its order, types and metadata; NaN as null.

    Args:
        frame: one of the kinds in `TAKEN`, but dask, which has partitions.
        schema: the needed columns; names match as in files (`conform.match_names`).
        where: begins messages.
        remedy: what to do about a missing column, for messages.

    Raises:
        DataError: for another kind; for a column that is missing, named twice, in another unit or not convertible without loss;
            for infinities, a null key (source_id, ra, dec) and a source_id out of range.
    """
    columns = _columns(frame, where)
    names = match_names(columns.names, schema.names, where, remedy)
    for name, field in zip(names, schema, strict=True):
        check_unit(columns.unit(name), field, where)
    needed = [*names, *mask_names(columns.names, names).values()]
    arrays = {name: _array(columns.column(name), name, where) for name in needed}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: columns of different lengths, {lengths}: expected one value a star in each")
    return conform(pa.table(arrays), schema, where)


def entry_of(frame: Any, name: str) -> str:
    """An entry of the metadata that a table carries: of arrow's schema, pandas' attrs, astropy's meta; "" where it has none."""
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return (frame.schema.metadata or {}).get(name.encode(), b"").decode(errors="replace")
    carried = getattr(frame, "attrs", None) or getattr(frame, "meta", None)
    return str(carried.get(name, "")) if isinstance(carried, Mapping) else ""


def column_names(frame: Any, where: str) -> list[str]:
    """Names of the columns of any kind of table, a dask frame too. Raises DataError for what is none."""
    return _columns(frame, where).names


def is_integer(frame: Any, name: str, where: str) -> bool:
    """Whether a column has integers, by its type. Raises DataError for what is no table, or no column of numbers."""
    return bool(pa.types.is_integer(_array(_columns(frame, where).column(name), name, where).type))


def _columns(frame: Any, where: str) -> _Columns:
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return _Columns(frame.schema.names, frame.column, lambda name: _field_unit(frame.schema.field(name)))
    if isinstance(frame, astropy.table.Table):
        return _Columns(frame.colnames, frame.__getitem__, lambda name: str(frame[name].unit or ""))
    if isinstance(frame, np.ndarray) and frame.dtype.names:
        return _Columns(list(frame.dtype.names), frame.__getitem__)
    if isinstance(frame, Mapping):
        return _Columns(_texts(frame), frame.__getitem__)
    if isinstance(frame, pd.Series):
        raise DataError(f"{where}: one row (a pandas Series), whose values have one type: give a frame of one row, frame.iloc[[0]]")
    if hasattr(frame, "columns") and hasattr(frame, "dtypes") and hasattr(frame, "__getitem__"):  # pandas, dask, polars
        return _Columns(_texts(frame.columns), frame.__getitem__)
    if hasattr(frame, "__arrow_c_stream__"):
        return _columns(pa.table(frame), where)
    raise DataError(f"{where}: a {type(frame).__module__.split('.')[0]} {type(frame).__name__}: expected {TAKEN}")


def _texts(names: Any) -> list[str]:
    # Of pandas, a name may be a number or a tuple: a column that is not needed.
    return [name for name in names if isinstance(name, str)]


def _field_unit(field: pa.Field) -> str:
    return (field.metadata or {}).get(b"unit", b"").decode()


def _array(values: Any, name: str, where: str) -> pa.Array | pa.ChunkedArray:
    """One column as arrow has it, null where it is masked or NaN. Raises DataError for what is no column of single values."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    try:
        if isinstance(values, pd.Series) and not isinstance(values.dtype, np.dtype):
            return pa.array(values.array, from_pandas=True)
        if hasattr(values, "__arrow_c_stream__") and not isinstance(values, pd.Series):
            return pa.chunked_array(values)
        # Of a list numpy would make one type, and lose digits of ids among floats.
        array = np.asarray(values, object) if isinstance(values, list | tuple) else np.ma.getdata(values)
        array = np.asarray(array)
        if array.ndim != 1:
            raise DataError(f"{where}: column {name} has the shape {array.shape}: expected one value a star, shape (stars,)")
        if array.dtype.kind == "S":
            array = array.astype(str)
        masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
        return pa.array(array.astype(array.dtype.newbyteorder("="), copy=False), mask=masked, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{where}: column {name} is no column of numbers: {' '.join(str(error).split())[:200]}") from error
