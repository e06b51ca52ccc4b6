"""What is read from the memory of arrow's columns is what arrow says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from gaiadask.buffers import are_finite, array_of, has_value, in_one_piece, numbers

WITH_NULLS = pa.array([None if i % 3 == 0 else i for i in range(40)], pa.float32())


@pytest.mark.parametrize("array", [WITH_NULLS, pa.array(range(40), pa.int16()), pa.array([], pa.float64()), pa.nulls(40)])
@pytest.mark.parametrize("part", [slice(0, 40), slice(3, 21), slice(8, 8), slice(39, 40)])
def test_numbers_and_where_they_are(array: pa.Array, part: slice) -> None:
    some = array[part.start : part.stop]
    assert has_value(some).tolist() == some.is_valid().to_pylist()
    if not pa.types.is_null(array.type):
        assert numbers(some)[has_value(some)].tolist() == some.drop_null().to_pylist()


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
@pytest.mark.parametrize("rows", [0, 7, 8, 21])
def test_array_of_numbers_and_nulls(dtype: type, rows: int) -> None:
    values, null = np.arange(rows).astype(dtype), np.arange(rows) % 5 == 2
    made = array_of(values, null)
    made.validate(full=True)
    assert made.equals(pa.array(values, mask=null)) and made.null_count == null.sum()


@pytest.mark.parametrize(
    ("values", "finite"), [([1.0, None], True), ([1.0, float("inf")], False), ([float("nan")], False), ([], True)]
)
def test_finite(values: list[float | None], finite: bool) -> None:
    assert are_finite(pa.chunked_array([pa.array([0.0]), pa.array(values, pa.float64())])) is finite


def test_one_piece() -> None:
    pieces = pa.chunked_array([WITH_NULLS[:5], WITH_NULLS[5:]])
    assert in_one_piece(pieces).equals(WITH_NULLS)
    assert in_one_piece(pa.chunked_array([WITH_NULLS])).buffers()[1].address == WITH_NULLS.buffers()[1].address
