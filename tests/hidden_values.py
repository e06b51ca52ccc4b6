"""Values that stars have, hidden from a model, and what it then makes of them: what tests and the benchmark of imputing share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.impute import imputable
from gaiadask.model import StarModel


def without(stars: pa.Table, model: StarModel, group: tuple[str, ...]) -> tuple[pa.Table, pa.Table]:
    """The stars that have a null group, as they are and without it: each lacks what it lacks, the group, and what one of the stars that
    lack the group lacks too."""
    lacks = np.stack([stars[name].is_null().to_numpy() for name in model.transform.columns], axis=1)
    own = [model.transform.columns.index(name) for name in group]
    having, lacking = np.flatnonzero(~lacks[:, own].any(1)), np.flatnonzero(lacks[:, own].all(1))
    hidden = lacks[having]
    hidden[:, own] = True
    if len(lacking):
        hidden |= lacks[np.resize(lacking, len(having))]
    whole = stars.take(having)
    blind = whole
    for name, null in zip(model.transform.columns, hidden.T, strict=True):
        if null.any() and name not in ("ra", "dec"):
            at = blind.schema.get_field_index(name)
            values = blind[name].combine_chunks()
            blind = blind.set_column(
                at, blind.schema.field(at), pa.array(values.to_numpy(zero_copy_only=False), values.type, mask=null)
            )
    return whole, blind


@dataclass(frozen=True)
class Coverage:
    """One column: how many stars it was hidden from, the share that got a value, the shares of these within one and two of the deviations that
    came with it, the median |error| and that of guessing the column's median for all, and the smallest and largest value."""

    column: str
    stars: int
    imputed: float
    within_1: float
    within_2: float
    error: float
    error_of_median: float
    lowest: float
    highest: float


def coverages(stars: pa.Table, model: StarModel) -> list[Coverage]:
    """Of each imputable column."""
    found = []
    for group in model.transform.null_groups:
        whole, blind = without(stars, model, group)
        if len(whole):
            guessed = decode(encode(blind, model), model, impute=True)
            found += [_coverage(name, whole, guessed) for name in group if name in imputable(model)]
    return found


def _coverage(name: str, whole: pa.Table, guessed: pa.Table) -> Coverage:
    truth, guess, std = (column.cast(pa.float64()).to_numpy() for column in (whole[name], guessed[name], guessed[f"{name}_std"]))
    told = np.isfinite(guess)
    if not told.any():
        return Coverage(name, len(truth), 0.0, *([np.nan] * 6))
    off = np.abs(guess - truth)[told]
    return Coverage(
        name,
        len(truth),
        float(told.mean()),
        float((off <= std[told]).mean()),
        float((off <= 2 * std[told]).mean()),
        float(np.median(off)),
        float(np.median(np.abs(truth - np.median(truth)))),
        float(guess[told].min()),
        float(guess[told].max()),
    )
