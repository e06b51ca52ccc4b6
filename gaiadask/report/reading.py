"""Numbers of a rating that the report and the flows quote, and their names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from gaiadask.quality.records import BASELINE, NAN, REBUILT, AucResult, ErrorSummaries, HeadlineErrors, Quality, SummaryErrors
from gaiadask.release.column import DEC, RA
from gaiadask.report.diagrams import ClassifierAuc
from gaiadask.report.markup import is_better

CLASSIFIERS = {"raw": "boosted trees, raw columns", "physics": "boosted trees, with physics", "mlp": "neural network"}
COMPARISONS = {
    "real": "other real stars",
    "sampled": "new stars",
    "rebuilt": "rebuilt stars",
    "baseline": "rebuilt by PCA",
    "copula": "Gaussian copula",
    "independent": "independent columns",
}
"""Stars that real ones are compared with, from the most to the least like them."""
MEASURES: dict[str, Callable[[ErrorSummaries], float]] = {
    "mean error": lambda summaries: summaries.median.mean,
    "worst error": lambda summaries: summaries.median.worst,
    "mean KS": lambda summaries: summaries.ks.mean,
    "worst KS": lambda summaries: summaries.ks.worst,
}
"""The four measures by which a model is held beside PCA, smaller being better."""


class Ahead(NamedTuple):
    """Names of columns by whose median error is clearly the smaller one: the model's, PCA's, or neither's."""

    model: list[str]
    baseline: list[str]
    level: list[str]

    @property
    def columns(self) -> int:
        """How many were compared."""
        return len(self.model) + len(self.baseline) + len(self.level)


def beside_position(quality: Quality, name: str) -> ErrorSummaries | None:
    """Summaries over every column but ra and dec, of "rebuilt" or "baseline"; None where it was not rated."""
    rating = quality.reconstruction.get(name)
    return rating.headline.beside_position if rating else None


def errors_beside_position(quality: Quality, name: str) -> HeadlineErrors:
    """Standard errors of these summaries, of "rebuilt" or "baseline"; NaN where an earlier version rated."""
    known = quality.uncertainty.reconstruction.get(name) if quality.uncertainty else None
    unknown = SummaryErrors(mean=NAN, worst=NAN)
    return known or HeadlineErrors(median=unknown, p99=unknown, ks=unknown)


def baseline_name(quality: Quality) -> str:
    """PCA and its width, as PCA-8."""
    return f"PCA-{quality.latents}"


def ahead_of_baseline(quality: Quality) -> Ahead | None:
    """Which columns beside position the model rebuilds better than PCA, by their median errors; None without PCA."""
    model, pca = (quality.reconstruction.get(name) for name in (REBUILT, BASELINE))
    if model is None or pca is None:
        return None
    ahead = Ahead([], [], [])
    for name, rating in model.columns.items():
        ours, theirs = rating.error_over_iqr.median, pca.columns[name].error_over_iqr.median
        if name in (RA, DEC) or math.isnan(ours) or math.isnan(theirs):
            continue
        side = ahead.model if is_better(ours, theirs) else ahead.baseline if is_better(theirs, ours) else ahead.level
        side.append(name)
    return ahead


def classifier_aucs(quality: Quality) -> list[ClassifierAuc]:
    """Every AUC, yardsticks included, from the most to the least like real stars."""
    return [
        ClassifierAuc(against, CLASSIFIERS[result.features], result.mean, *result.interval)
        for name, against in COMPARISONS.items()
        for result in _results(quality, name)
    ]


def _results(quality: Quality, name: str) -> list[AucResult]:
    comparison = quality.comparison(name)
    return list(comparison.classifiers.values()) if comparison else []
