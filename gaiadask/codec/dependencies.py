"""What a column must be coded after."""

from __future__ import annotations

from collections.abc import Sequence

from gaiadask.codec.card import ColumnCode, Feature
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.release.release import Release

MASK = "null:"
"""Begins the name of a null mask, which is coded like a column."""


def must_follow(code: ColumnCode, release: Release) -> set[str]:
    """What a column must be coded after, whatever predicts it: what says its step, its nulls and where it is counted from."""
    needs = set()
    if code.kind == "text" or code.offset == "centre":
        needs.add(SOURCE_ID)
    if code.leader and not code.name.startswith(MASK):
        needs.add(f"{MASK}{code.leader}")
    if code.kind in ("formula", "ulps") or code.offset == "formula":
        needs.update(release.columns[code.name].derived_from)
    if code.tolerance.error:
        needs.add(code.tolerance.error)
    if code.name == RA and code.tolerance.kind != "exact":
        needs.add(DEC)
    return needs


def depends_on(code: ColumnCode, features: Sequence[Feature], release: Release) -> set[str]:
    """What a column must be decoded after: also what it is predicted from."""
    needs = must_follow(code, release)
    if code.prediction is not None:
        if code.prediction.sky_mean:
            needs.add(SOURCE_ID)
        parents = [features[parent.feature] for parent in code.prediction.parents]
        needs.update(name for feature in parents for name in (feature.column, feature.other) if name)
    return needs
