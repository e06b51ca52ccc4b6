"""quality.json as the report reads it (its structure: docstring of `gaiadask.quality`); what is absent is None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.release.dr2 import COLUMNS
from gaiadask.report.diagrams import TestResult

REBUILT, BASELINE, SAMPLED = "rebuilt", "baseline", "sampled"
CLASSIFIERS = {"raw": "boosted trees, raw columns", "physics": "boosted trees, with physics", "mlp": "neural network"}
COMPARISONS = {
    "real": "other real stars",
    "sampled": "new, made-up stars",
    "rebuilt": "rebuilt stars",
    "baseline": "rebuilt by PCA",
    "copula": "Gaussian copula",
    "independent": "independent columns",
}
# The four measures in which a model should be ahead of PCA: (what, statistic, how it is called).
MEASURES = (
    ("median", "mean", "mean error"),
    ("median", "worst", "worst error"),
    ("ks", "mean", "mean KS"),
    ("ks", "worst", "worst KS"),
)


def dig(value: Any, *path: str) -> Any:
    """A nested entry of a JSON-able dict, None where any step is absent."""
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def ratings(quality: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Column name -> its rating, of REBUILT or BASELINE; empty where there is none."""
    return dig(quality, "reconstruction", what, "columns") or {}


def headline(quality: Mapping[str, Any], what: str, measure: str, statistic: str, part: str = "beside_position") -> Any:
    """One number (or the worst column's name) over all columns but ra and dec, or over "all_columns"."""
    return dig(quality, "reconstruction", what, "headline", part, measure, statistic)


def has_baseline(quality: Mapping[str, Any]) -> bool:
    return bool(ratings(quality, BASELINE))


def baseline_name(quality: Mapping[str, Any]) -> str:
    """PCA and its width, as PCA-8."""
    latents = quality.get("latents")
    return f"PCA-{latents}" if latents else "PCA"


def ahead_of_baseline(quality: Mapping[str, Any]) -> list[str] | None:
    """Which of MEASURES the model wins; None where either side lacks one."""
    ahead = []
    for measure, statistic, name in MEASURES:
        model, pca = (headline(quality, what, measure, statistic) for what in (REBUILT, BASELINE))
        if model is None or pca is None:
            return None
        ahead += [name] if model < pca else []
    return ahead


def two_sample_results(quality: Mapping[str, Any]) -> list[TestResult]:
    """Every AUC, yardsticks and all, from the most to the least like real stars."""
    comparisons = dig(quality, "two_sample", "comparisons") or {}
    results = []
    for against in [c for c in COMPARISONS if c in comparisons] + [c for c in comparisons if c not in COMPARISONS]:
        for classifier, found in (dig(comparisons, against, "classifiers") or {}).items():
            mean = found.get("mean")
            if mean is None:
                continue
            values = [v for v in found.get("values") or () if v is not None] or [mean]
            name = CLASSIFIERS.get(classifier, classifier)
            results.append(TestResult(COMPARISONS.get(str(against), str(against)), str(name), mean, min(values), max(values)))
    return results


def row_bytes(columns: Iterable[str]) -> int:
    """Bytes of one uncompressed row with these columns, its source_id, position and HEALPix index among them."""
    names = {SOURCE_ID, RA, DEC, *columns} - {HEALPIX_29}
    return 8 + sum(COLUMNS[name].bytes for name in names if name in COLUMNS)
