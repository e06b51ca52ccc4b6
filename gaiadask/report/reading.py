"""Numbers of a rating that the report and the flows quote, and their names."""

from __future__ import annotations

import math
from collections.abc import Callable

from gaiadask.quality.records import BASELINE, NAN, REBUILT, AucResult, ErrorSummaries, HeadlineErrors, Quality, SummaryErrors
from gaiadask.report.diagrams import ClassifierAuc

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
"""The four measures in which a model should be ahead of PCA, smaller being better."""


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


def ahead_of_baseline(quality: Quality) -> list[str] | None:
    """Names of the MEASURES in which the model is ahead; None where either side lacks one."""
    model, pca = (beside_position(quality, name) for name in (REBUILT, BASELINE))
    if model is None or pca is None:
        return None
    pairs = {name: (measure(model), measure(pca)) for name, measure in MEASURES.items()}
    if not all(math.isfinite(x) for pair in pairs.values() for x in pair):
        return None
    return [name for name, (of_model, of_pca) in pairs.items() if of_model < of_pca]


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
