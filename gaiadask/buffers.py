"""What lies in the memory of a column: its numbers as they are, and which rows have one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def in_one_piece(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, without copying where it is one."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def numbers(array: pa.Array) -> NDArray[Any]:
    """The numbers of an array of integers or floating-point numbers, shape (n,), not copied: anything where a row has none."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize) if len(array) else np.empty(0, dtype)


def has_value(array: pa.Array) -> NDArray[np.bool_]:
    """Which rows of an array are not null, shape (n,)."""
    if not array.null_count:
        return np.ones(len(array), np.bool_)
    if (validity := array.buffers()[0]) is None:  # of arrow's type of nulls alone
        return np.zeros(len(array), np.bool_)
    skip, first = array.offset % 8, array.offset // 8
    bits = np.frombuffer(validity, np.uint8, -(-(skip + len(array)) // 8), first)
    return np.unpackbits(bits, count=skip + len(array), bitorder="little")[skip:].view(np.bool_)


def array_of(values: NDArray[Any], null: NDArray[np.bool_]) -> pa.Array:
    """An array of these values, shape (n,), null where `null` is set. Numbers are not copied: they must not change any more."""
    if values.dtype.kind == "b":
        return pa.array(values, mask=null)
    bits = np.packbits(~null, bitorder="little")
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [pa.py_buffer(bits), pa.py_buffer(np.ascontiguousarray(values))])


def are_finite(column: pa.ChunkedArray) -> bool:
    """Whether all that lies in the memory of a column of floating-point numbers is finite, also where a row has none."""
    return all(bool(np.isfinite(numbers(chunk)).all()) for chunk in column.chunks)
