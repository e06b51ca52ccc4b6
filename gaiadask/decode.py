"""Latents to stars: a pure function of a latent table and a model, and the same of a partition of a store."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gaiadask import catalogue
from gaiadask.columns import COLUMNS, DEC, RA, SOURCE_ID
from gaiadask.encode import latent_names, mask_names
from gaiadask.errors import DataError
from gaiadask.model.artifact import StarModel, load_model_cached
from gaiadask.paths import RunPaths
from gaiadask.store import Store

Positions = Literal["catalogue", "model"]


def decode(latents: pa.Table, model: StarModel, positions: Positions = "catalogue") -> pa.Table:
    """The stars behind `latents`: source_id where carried, then the model's columns in physical units.

    What was null is null again. positions: "catalogue" returns the carried ra and dec; "model" the network's own, which a
    model that takes position as a condition does not have. Raises DataError where a column is missing or the choice of
    positions does not fit the model.
    """
    transform = model.transform
    words = (len(transform.columns) + 62) // 63
    z_names, masks = latent_names(model.latents), mask_names(words)
    conditioned = transform.position == "condition"
    carried = positions == "catalogue" and (conditioned or {RA, DEC} <= set(latents.column_names))
    needed = [*z_names, *masks, *((RA, DEC) if conditioned or carried else ())]
    missing = [name for name in needed if name not in latents.column_names]
    if missing:
        raise DataError(f"cannot decode: the latent table has no column(s) {missing}; it has {latents.column_names}")
    if positions == "model" and conditioned:
        raise DataError("positions='model': this model takes position as a condition and does not rebuild it; use 'catalogue'")
    ra, dec = (latents[RA].to_numpy(), latents[DEC].to_numpy()) if conditioned or carried else (None, None)
    z = np.stack([latents[name].to_numpy() for name in z_names], axis=1).astype(np.float32)
    values = transform.inverse(model.decode(z, transform.condition(latents)), ra, dec)
    mask = np.stack([latents[name].to_numpy() for name in masks], axis=1)
    names = [SOURCE_ID] if SOURCE_ID in latents.column_names else []
    schema = pa.schema([COLUMNS[name].field for name in (*names, *transform.columns)])
    arrays = [latents[SOURCE_ID]] if names else []
    arrays += [_nullable(values[c], is_null(mask, i), COLUMNS[c].dtype) for i, c in enumerate(transform.columns)]
    return pa.table(arrays, schema=schema)


def is_null(mask: NDArray[np.int64], column: int) -> NDArray[np.bool_]:
    """Whether model column number `column` is null, per star; mask: shape (n, words)."""
    return (mask[:, column // 63] >> (column % 63) & 1).astype(bool)


def _nullable(values: NDArray[np.float64], null: NDArray[np.bool_], dtype: pa.DataType) -> pa.Array:
    # A derived column is undefined where the rebuilt star has, say, no positive parallax: null too, and rated as lost.
    undefined = ~np.isfinite(values)
    return pa.array(np.where(undefined, 0, values).astype(dtype.to_pandas_dtype()), dtype, mask=null | undefined)


def decode_partition(store: Store, run: RunPaths, model_key: str, output: Store, partition: catalogue.Partition) -> int:
    """Decode one latent partition into a parquet file of `output`; returns its rows.

    Raises DataError where the latents do not hold the partition's rows.
    """
    model = load_model_cached(store, run, model_key)
    stars = pa.concat_tables(decode(t, model) for t in catalogue.iterate_partition(store, run.latent, partition.tile))
    if stars.num_rows != partition.rows:
        raise DataError(
            f"partition {partition.tile}: the catalogue has {partition.rows} rows, its latents {stars.num_rows}: encode again"
        )
    with output.writing(f"{partition.tile.flat_name}.parquet") as scratch:
        pq.write_table(stars, scratch, row_group_size=catalogue.ROW_GROUP_ROWS, compression="zstd")
    return int(stars.num_rows)
