"""The section on errors against magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gaiadask.quality.tables import Floats
from gaiadask.report import ink, pictures
from gaiadask.report.inputs import ReportInputs, residual
from gaiadask.report.markup import fill
from gaiadask.report.pictures import ErrorTrend
from gaiadask.report.reading import baseline_name

FEWEST_STARS = 50
"""Fewest stars with a magnitude for which a trend is drawn: not a full bin, and its 90 % quantile rests on five stars."""
STARS_A_BIN = 60
"""Stars in a bin of magnitude on average: enough for a 90 % quantile."""
FEWEST_BINS, MOST_BINS = 4, 16
"""Fewer bins show no trend; more than one a magnitude follow single stars."""
LOWEST, HIGHEST = 1e-5, 1e2
"""Limits of the common scale: smaller errors are as good as none, larger ones are as good as lost."""


def error_against_magnitude(inputs: ReportInputs) -> str:
    """Median and 90 % of the error over the IQR in bins of G, every column on one scale."""
    g_mag = inputs.g_mag
    if g_mag is None or np.isfinite(g_mag).sum() < FEWEST_STARS:
        return fill("magnitude", has_magnitudes=False)
    trends = {name: trend for name in inputs.columns if (trend := _trend(inputs, name, g_mag)) is not None}
    limits = _common_limits([trend for pair in trends.values() for trend in pair if trend is not None])
    drawn = [
        ink.svg(
            pictures.error_against_magnitude(name, model, baseline, limits),
            f"Error of {name} over its interquartile range against G magnitude",
        )
        for name, (model, baseline) in trends.items()
    ]
    baseline = baseline_name(inputs.quality) if inputs.rated.baseline is not None else ""
    return fill("magnitude", has_magnitudes=True, pictures=drawn, baseline=baseline)


def _trend(inputs: ReportInputs, name: str, g_mag: Floats) -> tuple[ErrorTrend, ErrorTrend | None] | None:
    """Error against magnitude, of the model and of the baseline; None where the column is rebuilt exactly or has no spread."""
    column, dec = inputs.column(name), inputs.declination
    real = column.real[np.isfinite(column.real)]
    iqr = float(np.subtract(*np.quantile(real, [0.75, 0.25]))) if real.size else 0.0
    error = np.abs(residual(name, column.rebuilt, column.real, dec))
    if iqr <= 0 or not np.nan_to_num(error).any():
        return None
    known = g_mag[np.isfinite(g_mag)]
    bins = int(np.clip(known.size // STARS_A_BIN, FEWEST_BINS, MOST_BINS))
    low, high = np.quantile(known, [0.005, 0.995])
    edges = np.linspace(low, high, bins + 1)
    model = ErrorTrend.of(g_mag, error / iqr, edges)
    if not np.isfinite(model.median).any():
        return None
    if column.baseline is None:
        return model, None
    return model, ErrorTrend.of(g_mag, np.abs(residual(name, column.baseline, column.real, dec)) / iqr, edges)


def _common_limits(trends: Sequence[ErrorTrend]) -> tuple[float, float]:
    values = np.concatenate([np.empty(0), *(part for trend in trends for part in (trend.median, trend.p90))])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return LOWEST, 1.0
    low, high = 10 ** np.floor(np.log10(values.min())), 10 ** np.ceil(np.log10(values.max()))
    return float(max(low, LOWEST)), float(min(max(high, 10 * low), HIGHEST))
