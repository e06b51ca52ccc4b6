"""How each column is to be coded, before anything is learned: its kind, its null mask's leader, what it must be coded after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from gaiadask.codec.bounds import Tolerance
from gaiadask.codec.card import ColumnCode
from gaiadask.codec.columns import Native
from gaiadask.codec.dependencies import MASK
from gaiadask.codec.grid import step_of
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.release.release import Release

MOST_LABELS = 16
"""Of a category: whole numbers and texts of more kinds are coded otherwise."""
_WIDEST_INTEGER = 2**31
"""Span of the whole numbers that are worth a prediction; wider ones are names."""


def first_codes(stars: Mapping[str, Native], bounds: Mapping[str, Tolerance], release: Release) -> list[ColumnCode]:
    """Each column's code without a prediction, in the catalogue's order; a null mask's before its leader.

    Args:
        stars: the sample's columns, by name.
        bounds: of each column.
        release: the columns' data release.
    """
    derived = set(release.derivable(stars))
    leaders = _leaders(stars)
    codes = []
    for name, column in stars.items():
        if leaders[name] == name:
            codes.append(
                ColumnCode(
                    name=f"{MASK}{name}",
                    dtype="bool",
                    kind="category",
                    tolerance=Tolerance(kind="exact"),
                    leader=name,
                    labels=(False, True),
                )
            )
        code = _code(name, column, bounds, release, name in derived)
        codes.append(code.model_copy(update={"leader": leaders[name]}))
    return codes


def _code(name: str, column: Native, bounds: Mapping[str, Tolerance], release: Release, is_derived: bool) -> ColumnCode:
    bound, dtype = bounds[name], release.columns[name].dtype
    code = ColumnCode(name=name, dtype=str(dtype), kind="exact", tolerance=bound)
    if name == SOURCE_ID:
        return code.model_copy(update={"kind": "source_id"})
    if bound.kind == "formula":
        return code.model_copy(update={"kind": "formula"})
    if bound.kind != "exact":
        offset = "centre" if name in (RA, DEC) else "formula" if is_derived else "none"
        space = "log" if bound.kind == "relative" else "linear"
        return code.model_copy(update={"kind": "grid", "step": step_of(bound, bounds), "offset": offset, "space": space})
    if is_derived:
        return code.model_copy(update={"kind": "ulps"})
    if pa.types.is_string(dtype) or pa.types.is_boolean(dtype) or pa.types.is_integer(dtype):
        return _discrete(code, column, release.columns[name].role == "identifier")
    return code


def _discrete(code: ColumnCode, column: Native, is_name: bool) -> ColumnCode:
    """Of whole numbers, flags and texts: categories where there are few, a grid of whole numbers, else the values themselves."""
    present = column.present
    is_text = isinstance(present, pa.Array)
    labels = sorted(present.unique().to_pylist()) if is_text else np.unique(present).tolist()
    if code.dtype == "bool":
        labels = [False, True]
    if 0 < len(labels) <= MOST_LABELS and not is_name:
        return code.model_copy(update={"kind": "category", "labels": tuple(labels)})
    if is_text:
        return code.model_copy(update={"kind": "text"})
    if is_name or not labels or labels[-1] - labels[0] > _WIDEST_INTEGER:
        return code
    return code.model_copy(update={"kind": "grid", "step": 1.0})


def _leaders(stars: Mapping[str, Native]) -> dict[str, str]:
    """For each column the first one that is null in the same rows; none where it is never null."""
    first: dict[bytes, str] = {}
    leaders = {}
    for name, column in stars.items():
        null = column.null
        leaders[name] = "" if null is None else first.setdefault(np.packbits(null).tobytes(), name)
    return leaders
