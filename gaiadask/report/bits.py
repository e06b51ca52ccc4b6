"""The section on error against bits a star."""

from __future__ import annotations

from gaiadask.quality.records import RateCurve, RatePoint
from gaiadask.report import diagrams, ink
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill

NAMES = {"model": "latents", "quantiles": "quantile codes", "pca": "PCA"}
"""Codes of a `RateCurve`, in words."""


def bits(inputs: ReportInputs) -> str:
    """The run's latents rounded to other numbers of bits, beside codes without a network."""
    curve = inputs.quality.curve
    if curve is None:
        return fill("bits", curve=None)
    return fill(
        "bits",
        curve=curve,
        picture=ink.svg(diagrams.rate_curves(_lines(curve), curve.stored_bits), "Error against bits a star"),
        rows=_rows(curve),
        names=NAMES,
        latent_bits=[code.bits for code in inputs.card.codes],
    )


def _lines(curve: RateCurve) -> dict[str, list[tuple[int, float]]]:
    return {NAMES[name]: [(point.bits, point.error) for point in points] for name, points in curve.codes.items()}


def _rows(curve: RateCurve) -> list[tuple[int, list[RatePoint]]]:
    """For each number of bits the points of all codes."""
    return [(points[0].bits, list(points)) for points in zip(*curve.codes.values(), strict=True)]
