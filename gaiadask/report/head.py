"""The head of the page: one sentence, and the numbers to quote."""

from __future__ import annotations

from gaiadask.quality.records import BASELINE, CONFIDENCE_95, REAL, REBUILT, SAMPLED, Comparison
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill
from gaiadask.report.reading import ahead_of_baseline, baseline_name, beside_position
from gaiadask.report.storage import plain_bytes

_AUC_WORDS = {
    0.6: "can hardly distinguish", 0.75: "distinguishes some", 0.9: "distinguishes many", 0.98: "distinguishes most",
    2.0: "distinguishes nearly all",
}  # fmt: skip
"""What a classifier can do whose AUC is below each of these bounds."""
AUC_NOISE = 0.01
"""AUCs that differ by less than this are taken as equal: about the spread over seeds of the default settings."""


def verdict(inputs: ReportInputs) -> str:
    """One sentence: how many stars were rated, how large the error is, whether a classifier can tell, how PCA does."""
    quality = inputs.quality
    rebuilt, sampled, real = (quality.comparison(name) for name in (REBUILT, SAMPLED, REAL))
    return fill(
        "verdict",
        stars=inputs.stars,
        latents=inputs.latents,
        model=beside_position(quality, REBUILT),
        rebuilt=rebuilt,
        rebuilt_words=_words(rebuilt, real, "rebuilt"),
        sampled=sampled,
        sampled_words=_words(sampled, real, "new"),
        ahead=ahead_of_baseline(quality),
        baseline_name=baseline_name(quality),
    )


def tiles(inputs: ReportInputs) -> str:
    """The numbers to quote, each with a label and a note."""
    quality = inputs.quality
    return fill(
        "tiles",
        model=beside_position(quality, REBUILT),
        baseline=beside_position(quality, BASELINE),
        baseline_name=baseline_name(quality),
        ahead=ahead_of_baseline(quality),
        rebuilt=quality.comparison(REBUILT),
        real=quality.comparison(REAL),
        storage=quality.storage,
        plain_bytes=plain_bytes(inputs),
        columns=len(inputs.columns),
        stars=inputs.stars,
        catalogue_stars=inputs.rows.get("encoded") or inputs.rows.get("written"),
    )


def _words(comparison: Comparison | None, real: Comparison | None, stars: str) -> str:
    return auc_words(comparison.auc, real.auc if real else None, stars, comparison.spread or 0.0) if comparison else ""


def auc_words(auc: float, real: float | None, stars: str = "rebuilt", spread: float = 0.0) -> str:
    """An AUC in words.

    Args:
        auc: of real stars against others.
        real: of real stars against other real stars; None where unknown.
        stars: name of the others.
        spread: standard error of the AUC: where 0.5 is within its 95 % interval, nothing is told apart.
    """
    if auc <= max(0.5, real or 0.5) + AUC_NOISE or auc - CONFIDENCE_95 * spread <= 0.5:
        return f"cannot distinguish {stars} stars from real ones"
    words = next(words for bound, words in _AUC_WORDS.items() if auc < bound)
    return f"{words} {stars} stars from real ones"
