"""The order in which columns are coded: those that say most about the others first.

How much one column says about another is estimated on ranks: by the share of the variance that the cells of the one explain in the
other, and by how the scatter differs between them (`regression.gains`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from gaiadask.codec.bounds import Floats
from gaiadask.codec.card import CELLS, ColumnCode
from gaiadask.codec.dependencies import must_follow
from gaiadask.codec.regression import ENTRIES, FEW_STARS, Cells, gains
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import Release

_STARS = 20_000
_PREDICTED = ("grid", "category")


def coding_order(codes: Sequence[ColumnCode], values: dict[str, Floats], release: Release) -> list[ColumnCode]:
    """The columns in the order of coding.

    Next is always the column, of those whose needs are coded, that the coded ones say most about: what belongs together is coded
    together. What is computed comes last, and after it the position, declination and right ascension together, for they may be
    coded once more (`chunk`): nothing but what is computed of both depends on them.

    Args:
        codes: the columns.
        values: of those that can be predicted and predict, NaN where null, shape (stars,).
        release: the columns' data release.
    """
    names = [code.name for code in codes if code.kind in _PREDICTED and code.name not in (RA, DEC) and code.offset == "none"]
    says = _dependence(names, values)
    number = {name: i for i, name in enumerate(names)}
    left, ordered = list(codes), [code for code in codes if code.kind == "source_id"]
    left.remove(ordered[0])
    said = says.sum(axis=1)  # before anything is coded, begin with the column that says most
    first = True
    best = np.zeros(len(names))
    while left:
        coded = {code.name for code in ordered}
        ready = [code for code in left if must_follow(code, release) <= coded]
        known = [code for code in ready if code.name in number]
        weights = said if first else best
        chosen = (
            max(known, key=lambda code: weights[number[code.name]])
            if known
            else min(ready, key=lambda code: code.name in (RA, DEC))
        )
        if known:
            first, best = False, np.maximum(best, says[number[chosen.name]])
        ordered.append(chosen)
        left.remove(chosen)
    return ordered


def _dependence(names: Sequence[str], values: dict[str, Floats]) -> NDArray[np.float64]:
    """Bits a star that each column (rows) may save in each other (columns)."""
    by_chance = float(max((len(values[name]) for name in names), default=0) < FEW_STARS)
    scores = [_scores(values[name][:_STARS]) for name in names]
    cells = np.array([_cells(score) for score in scores], np.uint8)
    says = np.zeros((len(names), len(names)))
    for j, score in enumerate(scores):
        present = np.flatnonzero(np.isfinite(score))
        if len(present) < ENTRIES:
            continue
        left = score[present] - score[present].mean()
        says[:, j] = gains(cells[:, present], left, np.log2(np.abs(left) + 0.25), np.ones(len(left)), by_chance)
        says[j, j] = 0.0
    return says


def _scores(values: Floats) -> Floats:
    """Normal scores of the ranks, NaN where null."""
    scores = np.full(len(values), np.nan)
    present = np.flatnonzero(~np.isnan(values))
    ranks = np.empty(len(present))
    ranks[np.argsort(values[present], kind="stable")] = np.arange(len(present))
    scores[present] = ndtri((ranks + 0.5) / max(len(present), 1))
    return scores


def _cells(scores: Floats) -> Cells:
    edges = ndtri(np.arange(1, CELLS) / CELLS)
    return np.where(np.isnan(scores), ENTRIES - 1, np.searchsorted(edges, scores)).astype(np.uint8)
