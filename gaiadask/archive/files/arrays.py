"""numpy's arrays of a FITS file or a binary VOTable as arrow's."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.errors import DataError


def array_of(values: NDArray, null: NDArray[np.bool_], name: str, label: str) -> pa.Array:
    """An arrow array in this machine's byte order; an empty text is null, for these formats have no other null of texts.

    Raises DataError for cells of more than one number.
    """
    if values.ndim > 1 and values.shape[1:] == (1,) * (values.ndim - 1):  # an array of one: arraysize="1"
        values, null = values.reshape(len(values)), null.reshape(len(values))
    is_text = values.dtype.kind in "US" or (values.dtype.kind == "O" and all(isinstance(value, str) for value in values))
    if values.ndim != 1 or not (is_text or values.dtype.kind in "biuf"):
        raise DataError(f"{label}: column {name} holds {values.dtype} of shape {values.shape[1:]}: expected one value a row")
    if is_text:
        texts = values.astype(str)
        return pa.array(texts.tolist(), pa.string(), mask=null | (texts == ""))
    return pa.array(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")), mask=null)
