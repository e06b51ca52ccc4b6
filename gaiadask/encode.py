"""Stars to latents: a pure function of a table and a model."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from gaiadask.errors import DataError
from gaiadask.model.star_model import StarModel
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.sky import healpix


def latent_names(latents: int) -> list[str]:
    """Names of the latent columns.

    >>> latent_names(3)
    ['z00', 'z01', 'z02']
    """
    return [f"z{i:02d}" for i in range(latents)]


def latent_schema(model: StarModel) -> pa.Schema:
    """Arrow schema of a latent table."""
    transform = model.transform
    healpix_29 = pa.field(HEALPIX_29, pa.int64(), metadata={"description": "HEALPix index, order 29, nested"})
    mask = {"description": "bit i (of word i // 63): column i of the model's card is null"}
    return pa.schema(
        [
            transform.release.columns[SOURCE_ID].field,
            healpix_29,
            transform.release.columns[RA].field,
            transform.release.columns[DEC].field,
            *(pa.field(name, pa.int64(), metadata=mask) for name in transform.mask_names),
            *(
                pa.field(name, pa.float32(), metadata={"description": "latent, posterior mean"})
                for name in latent_names(model.latents)
            ),
        ]
    )


def encode(table: pa.Table, model: StarModel) -> pa.Table:
    """Latents of stars.

    Args:
        table: source_id, ra, dec and the model's columns (of derived ones only the nulls are used); other columns are ignored.
        model: a trained model; it computes on the device that it was loaded on.

    Returns:
        One row a star, in the table's order: source_id, _healpix_29, ra, dec, the null masks, and the latents z00, z01, …

    Raises:
        DataError: where a column is missing, a value is NaN or infinite, a position is null, or a latent is not finite.
    """
    transform = model.transform
    missing = [name for name in (SOURCE_ID, RA, DEC, *transform.columns) if name not in table.column_names]
    if missing:
        raise DataError(f"cannot encode: the table has no column(s) {missing}; the model was trained on {list(transform.columns)}")
    z = model.encode(transform.forward(table))
    if not np.isfinite(z).all():
        raise DataError(
            f"{int((~np.isfinite(z)).any(axis=1).sum())} of {len(z)} stars have latents that are not finite, expected finite "
            "numbers: look for values far outside the train stars', and leave such stars out"
        )
    masks = transform.null_bits(table)
    index = table[HEALPIX_29] if HEALPIX_29 in table.column_names else healpix(table[RA].to_numpy(), table[DEC].to_numpy())
    columns = [table[SOURCE_ID], index, table[RA], table[DEC], *masks.T, *z.T]
    schema = latent_schema(model)
    return pa.table([_array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _array(values: pa.ChunkedArray | np.ndarray, dtype: pa.DataType) -> pa.ChunkedArray | pa.Array:
    return values.cast(dtype) if isinstance(values, pa.ChunkedArray) else pa.array(np.ascontiguousarray(values), dtype)
