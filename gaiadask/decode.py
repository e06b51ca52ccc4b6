"""Latents to stars: a pure function of a latent table and a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.buffers import array_of
from gaiadask.catalogue import WEIGHTS_ENTRY
from gaiadask.checks import check_positions
from gaiadask.conform import match_names
from gaiadask.encode import latent_schema
from gaiadask.errors import DataError, KeyMismatchError, known_names
from gaiadask.frames import column_names, entry_of, is_integer, table_of
from gaiadask.impute import Columns, Gaps, Sky, imputed, imputed_schema
from gaiadask.inputs.nulls import NULL_MASK, Masks, beyond, is_null, read_masks
from gaiadask.model.card import latent_names
from gaiadask.model.star_model import StarModel
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.voparquet import DESCRIPTION

Positions = Literal["catalogue", "model"]

_WHERE = "cannot decode"
_REMEDY = "Give the table all that `encode` gives"


def decode(latents: Any, model: StarModel, positions: Positions = "catalogue", impute: bool = False) -> pa.Table:
    """The stars behind latents, in physical columns and units.

    Args:
        latents: any kind of table in `frames.TAKEN` with latents and null masks, as `encode` gives them or as the files of a run have
            them (integers); ra and dec where the model takes position as a condition; source_id if it is to be returned.
        model: the model that encoded them; it computes on the device that it was loaded on.
        positions: "catalogue" returns the carried ra and dec; "model" the network's own, which a model that takes position as
            a condition does not have.
        impute: gives the model's values where a star has none, instead of nulls, within what train stars have, and for each column that
            train stars may lack another one, <name>_std, with their standard deviation, null where the star has a value (see `imputed`).

    Returns:
        source_id where carried, then the model's columns. What was null is null again.

    Raises:
        DataError: for what is no table, where a column is missing, a latent or mask is null or not finite, a mask or the number
            of latents is of another model, a position is not on the sphere, or the choice of positions does not fit the model.
        KeyMismatchError: where the table's metadata say that another model encoded them.

    >>> from gaiadask.run import open_run
    >>> run = open_run("store/runs/dr2")
    >>> latents = run.latent().get_partition(0).compute()
    >>> decode(latents, run.model).num_rows == len(latents)
    True
    """
    return _star_table(ready(latents, model, positions), model, impute)


# The two steps of `decode` --------------------------------------------------------------------------------------------
class Ready(NamedTuple):
    """Latents ready for the network.

    table: what they came with. z: shape (n, latents). condition: shape (n, n_conditions). masks: shape (n, words).
    """

    table: pa.Table
    z: NDArray[np.float32]
    condition: NDArray[np.float32]
    masks: Masks


def ready(latents: Any, model: StarModel, positions: Positions = "catalogue", where: str = _WHERE) -> Ready:
    """The latents as the network takes them. Arguments and errors as of `decode`; where: begins messages."""
    transform = model.transform
    table = _latents_of(latents, model, positions, where)
    masks = read_masks(table, len(transform.columns))
    if wrong := int(beyond(masks, len(transform.columns)).sum()):
        raise DataError(
            f"{where}: {wrong} of {len(masks)} rows have a {NULL_MASK} with bits that none of the model's {len(transform.columns)} "
            "columns has: the latents are of another model. Decode them with the model that encoded them"
        )
    return Ready(table, model.latents_of(table, where), transform.condition(table, masks), masks)


def _star_table(latents: Ready, model: StarModel, impute: bool) -> pa.Table:
    """What `decode` returns. impute: as of it."""
    transform, (table, z, condition, masks) = model.transform, latents
    sky = Sky(table[RA].to_numpy(), table[DEC].to_numpy()) if RA in table.column_names else None
    network_values = model.decode(z, condition)
    values = model.inverse(network_values, *(sky or ()))
    null = {name: is_null(masks, i) for i, name in enumerate(transform.columns)}
    std: Columns = {}
    if impute:
        never = np.zeros(len(z), np.bool_)
        lacking = np.stack([null.get(name, never) for name in transform.value_columns], axis=1)
        guesses, std = imputed(model, Gaps(z, condition, network_values, lacking), null, sky)
        values |= {name: np.where(null[name], guess, values[name]) for name, guess in guesses.items()}
    names = [SOURCE_ID] if SOURCE_ID in table.column_names else []
    arrays = [table[SOURCE_ID]] if names else []
    arrays += [_nullable(values[c], null[c] & (c not in std), transform.release.columns[c].dtype) for c in transform.columns]
    arrays += [_nullable(std[c], ~null[c], pa.float64()) for c in std]
    return pa.table(arrays, schema=decoded_schema(model, impute, *names))


# Columns and their types ----------------------------------------------------------------------------------------------
def needed_latents(names: Sequence[str], model: StarModel, positions: Positions, where: str = _WHERE) -> pa.Schema:
    """What `decode` reads of a table with these columns.

    Raises:
        DataError: where a column is missing, there are more latents than the model's, or the choice of positions does not fit
            the model.
    """
    conditioned = model.transform.position == "condition"
    if positions not in get_args(Positions):
        raise DataError(f"positions={positions!r}: {known_names([str(positions)], get_args(Positions))}")
    if positions == "model" and conditioned:
        raise DataError("positions='model': this model takes position as a condition and does not rebuild it; use 'catalogue'")
    known = {name.lower() for name in names}
    z_names = latent_names(model.latents)
    if other := sorted(name for name in known if re.fullmatch(r"z\d{2,}", name) and name not in z_names):
        raise DataError(
            f"{where}: the latents {', '.join(other)} beside the model's {model.latents} ({z_names[0]} to {z_names[-1]}): they "
            "are of another model. Decode them with the model that encoded them"
        )
    carried = positions == "catalogue" and (conditioned or {RA, DEC} <= known)
    wanted = [
        *([SOURCE_ID] if SOURCE_ID in known else []),
        *([RA, DEC] if carried else []),
        *model.transform.mask_names,
        *model.latent_columns,
    ]
    match_names(names, wanted, where, _REMEDY)
    schema = latent_schema(model)
    return pa.schema([schema.field(name) for name in wanted])


def _latents_of(frame: Any, model: StarModel, positions: Positions, where: str) -> pa.Table:
    encoded_by, own = entry_of(frame, WEIGHTS_ENTRY), model.card.weights_sha256
    if encoded_by and encoded_by != own:
        raise KeyMismatchError(
            f"{where}: the latents were encoded by the model with the weights {encoded_by[:12]}…, this model's are {own[:12]}…: "
            "use them with their own model, or encode the stars again with this one"
        )
    names = column_names(frame, where)
    schema = needed_latents(names, model, positions, where)
    for name, own_name in zip(model.latent_columns, match_names(names, model.latent_columns, where), strict=True):
        if model.card.codes and is_integer(frame, own_name, where):  # as files have them
            schema = schema.set(schema.get_field_index(name), pa.field(name, pa.int64()))
    table = table_of(frame, schema, where, _REMEDY)
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            raise DataError(
                f"{where}: {column.null_count} of {len(column)} rows have no {name} (null or NaN): expected a number in each, as "
                "`encode` gives them. Leave these rows out"
            )
    if RA in table.column_names:
        check_positions(table, where)
    return table


def decoded_schema(model: StarModel, impute: bool, *names: str) -> pa.Schema:
    """Arrow schema of decoded stars: `names`, the model's columns, and what `impute` adds."""
    release = model.transform.release
    columns = release.schema((*names, *model.transform.columns))
    deviations = imputed_schema(model) if impute else ()
    return pa.schema(
        [*columns, *deviations], {DESCRIPTION: "Stars rebuilt from a model's latents: close to what was measured, not it"}
    )


def _nullable(values: NDArray[np.float64], null: NDArray[np.bool_], dtype: pa.DataType) -> pa.Array:
    # A derived column is undefined where the rebuilt star has, say, no positive parallax: null too, and rated as lost.
    null = null | ~np.isfinite(values)
    if not pa.types.is_floating(dtype):
        values = np.rint(np.where(null, 0, values))
    return array_of(values.astype(dtype.to_pandas_dtype(), copy=False), null)
