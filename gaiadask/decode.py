"""Latents to stars: a pure function of a latent table and a model, and the same of a partition of a store."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.encode import latent_names
from gaiadask.errors import DataError
from gaiadask.inputs.nulls import is_null, read_masks
from gaiadask.inputs.scaling import NORMAL_IQR
from gaiadask.inputs.transform import GUESS_LIMIT
from gaiadask.model.star_model import StarModel
from gaiadask.release.column import DEC, RA, SOURCE_ID, Column

Positions = Literal["catalogue", "model"]

STD = "_std"
DRAWS = 32


def decode(latents: pa.Table, model: StarModel, positions: Positions = "catalogue", impute: bool = False) -> pa.Table:
    """The stars behind `latents`: source_id where carried, then the model's columns in physical units.

    What was null is null again; with `impute` it is what the model says, and for each column that train stars may lack
    there is one more, <name>_std, with the standard deviation of what it says, null where the star has a value (see
    `imputed`). positions: "catalogue" returns the carried ra and dec; "model" the network's own, which a model that takes
    position as a condition does not have. Raises DataError where a column is missing or the choice of positions does not
    fit the model.
    """
    transform = model.transform
    z_names, masks = latent_names(model.latents), transform.mask_names
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
    condition = transform.condition(latents)
    network_values = model.decode(z, condition)
    values = transform.inverse(network_values, ra, dec)
    mask = read_masks(latents, len(transform.columns))
    null = {name: is_null(mask, i) for i, name in enumerate(transform.columns)}
    std: dict[str, NDArray[np.float64]] = {}
    never = np.zeros(len(z), np.bool_)
    if impute:
        lacking = np.stack([null.get(name, never) for name in transform.value_names], axis=1)
        said = model.decode(z, transform.as_complete(condition))
        means, std = imputed(model, np.where(lacking, said, network_values), lacking, ra, dec)
        values |= {name: np.where(null[name], mean, values[name]) for name, mean in means.items()}
    names = [SOURCE_ID] if SOURCE_ID in latents.column_names else []
    arrays = [latents[SOURCE_ID]] if names else []
    arrays += [_nullable(values[c], null[c] & (c not in std), transform.release.columns[c].dtype) for c in transform.columns]
    arrays += [_nullable(std[c], ~null[c], pa.float64()) for c in std]
    return pa.table(arrays, schema=decoded_schema(model, impute, *names))


def decoded_schema(model: StarModel, impute: bool, *names: str) -> pa.Schema:
    """Arrow schema of decoded stars: `names`, the model's columns, and what `impute` adds."""
    release = model.transform.release
    columns = release.schema((*names, *model.transform.columns))
    lacking = imputable(model) if impute else ()
    return pa.schema(
        [*columns, *(pa.field(f"{c}{STD}", pa.float64(), metadata=_std_metadata(release.columns[c])) for c in lacking)]
    )


def _std_metadata(column: Column) -> dict[str, str]:
    what = f"Standard deviation of the model's {column.name}, null where the star has its own"
    return {"unit": column.unit, "description": what}


def imputable(model: StarModel) -> tuple[str, ...]:
    """The columns that some train stars lack and others have, in the card's order."""
    lacking = {name for group in model.transform.null_groups for name in group}
    return tuple(name for name in model.transform.columns if name in lacking)


def imputed(
    model: StarModel,
    said: NDArray[np.float32],
    lacking: NDArray[np.bool_],
    ra: NDArray[np.float64] | None,
    dec: NDArray[np.float64] | None,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Mean and standard deviation of what the model says of its `imputable` columns, shape (n,) each.

    Over DRAWS stars about each star, as far from it as validation stars were rebuilt wrong: in the values that it lacks, by
    the error of guessing them where they were known and hidden, guesses taken for what they were worth there; in the others, by the error of rebuilding them. Both are
    in the card (`errors`); so the deviation is that of a typical star. Every star has the same draws, in pairs about the
    middle, so that its numbers do not depend on the stars beside it.

    said: network values, shape (n, n_values), decoded as if nothing were null where `lacking`, shape (n, n_values). ra, dec:
    degrees, shape (n,), where positions are not the model's. Raises DataError where the card has no errors.
    """
    names, transform = imputable(model), model.transform
    errors = model.card.get("errors") or {}
    if not errors.get("rebuilt"):
        raise DataError("this model's card does not tell its errors, so nothing can be imputed: train it with `gaiadask train`")
    center, width = said.astype(np.float64), np.zeros(said.shape)
    for i, name in enumerate(transform.value_names):
        limit = GUESS_LIMIT * transform.spread[i]
        # A value that was never hidden, since no train star lacked it, may be anything that stars have.
        worth = errors["hidden"].get(name, {"offset": 0.0, "slope": 0.0, "error": transform.spread[i] / NORMAL_IQR})
        guess = worth["offset"] + worth["slope"] * np.clip(center[:, i], -limit, limit)
        center[:, i] = np.where(lacking[:, i], guess, center[:, i])
        width[:, i] = np.where(lacking[:, i], worth["error"], errors["rebuilt"].get(name, 0.0))
    half = np.random.default_rng(0).standard_normal((DRAWS // 2, transform.n_values))
    totals = {name: np.zeros((3, len(said))) for name in names}
    for noise in (*half, *-half):
        stars = transform.inverse(center + width * noise, ra, dec)
        for name, total in totals.items():
            defined = np.isfinite(stars[name])  # a derived column may not be
            x = np.where(defined, stars[name], 0)
            total += np.stack([defined, x, x * x])
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {name: x / n for name, (n, x, _) in totals.items()}
        return means, {name: np.sqrt(np.maximum(xx / n - (x / n) ** 2, 0)) for name, (n, x, xx) in totals.items()}


def _nullable(values: NDArray[np.float64], null: NDArray[np.bool_], dtype: pa.DataType) -> pa.Array:
    # A derived column is undefined where the rebuilt star has, say, no positive parallax: null too, and rated as lost.
    undefined = ~np.isfinite(values)
    return pa.array(np.where(undefined, 0, values).astype(dtype.to_pandas_dtype()), dtype, mask=null | undefined)
