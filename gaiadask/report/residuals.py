"""The section on residuals in units of each star's own catalogue error."""

from __future__ import annotations

import numpy as np

from gaiadask.report import ink, pictures
from gaiadask.report.inputs import ReportInputs, residual
from gaiadask.report.markup import fill


def residuals(inputs: ReportInputs) -> str:
    """(rebuilt - real) / sigma of every column with a catalogue error."""
    drawn, exact = [], []
    for name in inputs.columns:
        sigma = inputs.sigma(name)
        if sigma is None:
            continue
        column = inputs.column(name)
        in_sigma = residual(name, column.rebuilt, column.real, inputs.declination) / sigma
        in_sigma = in_sigma[np.isfinite(in_sigma)]
        if in_sigma.any():
            within = float(np.mean(np.abs(in_sigma) <= 1))
            alt = f"Residuals of {name} in units of its catalogue error: {within:.1%} within 1 sigma"
            drawn.append(ink.svg(pictures.residual_sigma(name, in_sigma), alt))
        elif in_sigma.size:
            exact.append(name)
    return fill("residuals", pictures=drawn, exact=exact)
