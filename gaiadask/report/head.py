"""The head of the page: one sentence, and the numbers to quote."""

from __future__ import annotations

from gaiadask.quality.records import REAL, REBUILT, SAMPLED, ColumnRating, Comparison, Quality
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill
from gaiadask.report.reading import ahead_of_baseline, baseline_name, beside_position, errors_beside_position

_AUC_WORDS = {0.6: "tells a few", 0.75: "tells some", 0.9: "tells many", 0.98: "tells most", 2.0: "tells nearly all"}
"""What a classifier does whose AUC is below each of these bounds."""


def verdict(inputs: ReportInputs) -> str:
    """What the numbers say: how large the errors are, whether a classifier can tell, in which columns PCA is better."""
    quality = inputs.quality
    rebuilt, sampled = (quality.comparison(name) for name in (REBUILT, SAMPLED))
    return fill(
        "verdict",
        stars=inputs.stars,
        latents=inputs.latents,
        model=beside_position(quality, REBUILT),
        g_flux=g_flux(quality),
        rebuilt=rebuilt,
        rebuilt_words=auc_words(rebuilt, "rebuilt") if rebuilt else "",
        sampled=sampled,
        sampled_words=auc_words(sampled, "new") if sampled else "",
        ahead=ahead_of_baseline(quality),
        baseline_name=baseline_name(quality),
    )


def tiles(inputs: ReportInputs) -> str:
    """The numbers to quote, each with a label and a note."""
    quality = inputs.quality
    return fill(
        "tiles",
        model=beside_position(quality, REBUILT),
        errors=errors_beside_position(quality, REBUILT),
        g_flux=g_flux(quality),
        baseline_name=baseline_name(quality),
        ahead=ahead_of_baseline(quality),
        rebuilt=quality.comparison(REBUILT),
        sampled=quality.comparison(SAMPLED),
        real=quality.comparison(REAL),
        storage=quality.storage,
        catalogue_columns=len(inputs.config.selection.column_names),
        stars=inputs.stars,
        catalogue_stars=inputs.rows.get("encoded") or inputs.rows.get("written"),
    )


def g_flux(quality: Quality) -> ColumnRating | None:
    """How G flux is rebuilt, the column that the catalogue has best; None where it was not rated beside its own error."""
    rating = quality.reconstruction.get(REBUILT)
    of_g = rating.columns.get("phot_g_mean_flux") if rating else None
    return of_g if of_g and of_g.error_in_sigma and of_g.error_in_sigma.stars else None


def auc_words(comparison: Comparison, stars: str) -> str:
    """What a classifier can do, in words; stars: name of those that are not real ones.

    That it can hardly tell is said only where the 95 % interval of its AUC includes 0.5.
    """
    does = next(words for bound, words in _AUC_WORDS.items() if comparison.auc < bound)
    return f"{does if comparison.can_be_told else 'can hardly tell'} {stars} stars from real ones"
