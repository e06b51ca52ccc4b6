"""The section on distributions: every model column, real and rebuilt."""

from __future__ import annotations

import math

from gaiadask.quality.records import NAN, REBUILT
from gaiadask.report import ink, pictures
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill


def distributions(inputs: ReportInputs) -> str:
    """Real and rebuilt distribution of every model column."""
    rating = inputs.quality.reconstruction.get(REBUILT)
    drawn = []
    for name in inputs.columns:
        ks = rating.columns[name].ks if rating else NAN
        distance = f"; Kolmogorov-Smirnov distance {ks:.3f}" if math.isfinite(ks) else ""
        drawn.append(ink.svg(pictures.marginal(inputs.column(name), ks), f"Distribution of {name}, real and rebuilt{distance}"))
    return fill("distributions", pictures=drawn, positions_are_carried=not inputs.positions_are_rebuilt)
