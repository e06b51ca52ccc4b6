"""The section with the table of columns: errors and KS distances of each, the model beside PCA."""

from __future__ import annotations

from gaiadask.quality.records import BASELINE, REBUILT
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill
from gaiadask.report.reading import ahead_of_baseline, baseline_name


def quality_table(inputs: ReportInputs) -> str:
    """Errors and KS of each column, the model beside PCA."""
    quality = inputs.quality
    model = quality.reconstruction.get(REBUILT)
    ratings = model.columns.values() if model else ()
    return fill(
        "columns",
        model=model,
        baseline=quality.reconstruction.get(BASELINE),
        baseline_name=baseline_name(quality),
        ahead=ahead_of_baseline(quality),
        position=model.position_error_arcsec if model else None,
        lost=sum(rating.lost for rating in ratings),
        invented=sum(rating.invented for rating in ratings),
    )
