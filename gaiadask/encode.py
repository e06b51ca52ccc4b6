"""Stars to latents: a pure function of a table and a model; and latents in the form that files have."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gaiadask.catalogue import WEIGHTS_ENTRY
from gaiadask.checks import check_positions
from gaiadask.errors import DataError
from gaiadask.frames import table_of
from gaiadask.inputs.nulls import Masks
from gaiadask.inputs.transform import NetworkInputs
from gaiadask.model.rounding import as_latents, as_stored
from gaiadask.model.star_model import Encoded, StarModel
from gaiadask.release.column import DEC, HEALPIX_29, KEY_COLUMNS, RA, SOURCE_ID
from gaiadask.sky import healpix


def latent_schema(model: StarModel) -> pa.Schema:
    """Arrow schema of a latent table, as `encode` gives it."""
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
            *(pa.field(name, pa.float32(), metadata={"description": "latent, posterior mean"}) for name in model.latent_columns),
        ]
    )


def encode(stars: Any, model: StarModel) -> pa.Table:
    """Latents of stars.

    Args:
        stars: any kind of table in `frames.TAKEN` with source_id, ra, dec and the model's columns (of derived ones only the
            nulls are used), named in any case, NaN or null where a star has no value; other columns are ignored.
        model: a trained model; it computes on the device that it was loaded on.

    Returns:
        One row a star, in the table's order: source_id, _healpix_29, ra, dec, the null masks, and the latents z00, z01, …
        Its metadata name the model by the sha256 of its weights, so that `decode` can refuse another model's latents.

    Raises:
        DataError: for what is no table or lacks a column, a column whose values would lose something in the archive's type
            (a source_id in float64 has lost digits), a star without position or off the sphere, an infinite value, and a latent
            that is not finite.

    >>> from gaiadask.run import open_run
    >>> run = open_run("store/runs/dr2")
    >>> encode(run.catalogue().get_partition(0).compute(), run.model).column_names[-1]
    'z05'
    """
    return _latent_table(_computed(_ready(stars, model), model), model)


def encode_as_stored(stars: Any, model: StarModel) -> pa.Table:
    """What `encode` returns in the form of the files: integers with scale and offset, where the model has codes for its latents."""
    return as_stored(encode(stars, model), model.card.codes)


def latents_of_stored(stored: pa.Table, model: StarModel) -> pa.Table:
    """The latents of a table in the form of the files, as `encode` gives them."""
    return as_latents(stored, model.card.codes, latent_schema(model))


# The three steps of `encode` ------------------------------------------------------------------------------------------
class _Ready(NamedTuple):
    """Stars ready for the network.

    stars: source_id, ra and dec, and where the network's device makes its inputs, the columns of these. inputs, masks: the network's
    inputs and the null masks, shape (n, words); None where its device makes them.
    """

    stars: pa.Table
    inputs: NetworkInputs | None
    masks: Masks | None


class _Computed(NamedTuple):
    """Latents of stars. stars: their source_id, ra and dec, among others."""

    stars: pa.Table
    encoded: Encoded


def _ready(stars: Any, model: StarModel) -> _Ready:
    """The stars as the network takes them. Arguments and errors as of `encode`."""
    transform = model.transform
    schema = transform.release.schema(dict.fromkeys((*KEY_COLUMNS, *transform.columns)))
    table = table_of(stars, schema, "cannot encode", "Give the table these columns, null where they are not known")
    check_positions(table, "cannot encode")
    if model.device_transform is not None:
        return _Ready(table, None, None)
    return _Ready(table.select(KEY_COLUMNS), transform.forward(table), transform.null_bits(table))


def _computed(ready: _Ready, model: StarModel) -> _Computed:
    """What the network makes of stars. Errors as of `encode`."""
    stars, inputs, masks = ready
    encoded = model.encode_table(stars) if inputs is None or masks is None else Encoded(model.encode(inputs), masks)
    if not np.isfinite(encoded.latents).all():
        raise DataError(
            f"{int((~np.isfinite(encoded.latents)).any(axis=1).sum())} of {len(stars)} stars have latents that are not finite, expected "
            "finite numbers: look for values far outside the train stars', and leave such stars out"
        )
    return _Computed(stars, encoded)


def _latent_table(computed: _Computed, model: StarModel) -> pa.Table:
    """What `encode` returns."""
    stars, (z, masks) = computed
    source_id, ra, dec = (stars[name] for name in KEY_COLUMNS)
    latents = latent_schema(model)
    columns = [
        source_id,
        healpix(ra.to_numpy(), dec.to_numpy()),
        ra,
        dec,
        *masks.T,
        *(z[:, int(name[1:])] for name in model.latent_columns),
    ]
    table = pa.table([_array(c, f.type) for c, f in zip(columns, latents, strict=True)], schema=latents)
    return table.replace_schema_metadata({WEIGHTS_ENTRY: model.card.weights_sha256})


def _array(values: pa.ChunkedArray | np.ndarray, dtype: pa.DataType) -> pa.ChunkedArray | pa.Array:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(np.ascontiguousarray(values), dtype)
