"""The section on stars like no other: which of the rated stars they are, and why."""

from __future__ import annotations

from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill


def outliers(inputs: ReportInputs) -> str:
    """The worst rebuilt and the least likely of the rated stars, with their source_ids."""
    found = inputs.quality.outliers
    return fill(
        "outliers", worst=found.worst_rebuilt if found else (), unlikely=found.least_likely if found else (), stars=inputs.stars
    )
