"""Stars to latents: a pure function of a table and a model, and the same for one partition of a store."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from gaiadask import catalogue
from gaiadask.errors import DataError
from gaiadask.keys import digest
from gaiadask.model.files import load_model_cached
from gaiadask.model.star_model import StarModel
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.sky import healpix
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths


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


# Partitions ----------------------------------------------------------------------------------------------------------
LATENT_KEY = "gaiadask.key"


def latent_key(model_key: str, source: catalogue.Partition) -> str:
    """Key of a latent partition: it depends on the model and on the checksum of the partition that it encodes."""
    return digest({"model": model_key, "input": source.checksum})


def encode_partition(store: Store, run: RunPaths, model_key: str, source: catalogue.Partition) -> catalogue.Partition:
    """Encode one partition of the catalogue into the same partition of the run's latents.

    A partition that an earlier, interrupted run encoded with the same model from the same input is used as it is. Raises
    DataError where the catalogue's partition has another number of rows than were written to it.
    """
    key = latent_key(model_key, source)
    footer = catalogue.read_footer(store, run.latent, source.tile)
    if footer is not None and footer.get(LATENT_KEY) == key:
        return catalogue.reread(store, run.latent, source.tile)
    model = load_model_cached(store, run, model_key)
    columns = [HEALPIX_29, *dict.fromkeys((SOURCE_ID, RA, DEC, *model.transform.columns))]
    pieces = catalogue.iterate_partition(store, paths.CATALOGUE, source.tile, columns)
    latents = pa.concat_tables([encode(piece, model) for piece in pieces])
    if latents.num_rows != source.rows:
        raise DataError(
            f"partition {source.tile}: {source.rows} rows were written, its file holds {latents.num_rows}: changed from outside"
        )
    return catalogue.write_partition(store, run.latent, source.tile, latents, {LATENT_KEY: key})
