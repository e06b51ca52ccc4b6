"""The section on comparisons of sets of stars: AUCs with their yardsticks, and joint structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from gaiadask.quality.records import BASELINE, NAN, REAL, REBUILT, SAMPLED, DensityCoverage, HistogramDistance
from gaiadask.report import diagrams, ink
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill
from gaiadask.report.reading import baseline_name, classifier_aucs

Part = TypeVar("Part", HistogramDistance, DensityCoverage)


class Measure(NamedTuple):
    """A row of the table of joint structure: a number for each kind of stars, NaN where unknown, and the ideal one."""

    text: str
    values: list[float]
    ideal: str


def two_sample(inputs: ReportInputs) -> str:
    """AUCs with their yardsticks, and joint structure."""
    quality, results = inputs.quality, classifier_aucs(inputs.quality)
    picture = None
    if results:
        alt = "AUC: " + "; ".join(f"{r.against}, {r.classifier} {r.auc:.3f}" for r in results)
        picture = ink.svg(diagrams.two_sample(results), alt)
    names = {REBUILT: "rebuilt", SAMPLED: "new stars", BASELINE: baseline_name(quality), REAL: "other real stars"}
    absent = {BASELINE} - set(quality.reconstruction) | ({SAMPLED} if inputs.rated.sampled is None else set())
    kinds = [kind for kind in names if kind not in absent]
    dispersions = {kind: bins for kind, bins in (quality.joint.velocity_dispersions or {}).items() if bins}
    with_dispersion = [kind for kind in names if kind in dispersions]
    return fill(
        "two_sample",
        picture=picture,
        tests=quality.two_sample if results else None,
        skipped=quality.skipped.get("two_sample", "quality.json holds none"),
        kinds=[names[kind] for kind in kinds],
        measures=_measures(inputs, kinds),
        dispersion_kinds=[names[kind] for kind in with_dispersion],
        # The bins are the real stars', the same beside each kind of stars.
        dispersions=list(zip(*(dispersions[kind] for kind in with_dispersion), strict=True)),
    )


def _measures(inputs: ReportInputs, kinds: list[str]) -> list[Measure]:
    joint, rows = inputs.quality.joint, []
    unit = "histogram distance, in units of real against real"
    for name, distances in (("HR diagram", joint.hr_diagram), ("Sky", joint.sky)):
        if distances is not None:
            # A distance in units of real against real is 1 for real stars by definition.
            values = [1.0 if kind == REAL else _value(distances, kind, lambda d: d.in_units_of_real) for kind in kinds]
            rows.append(Measure(f"{name}: {unit}", values, "1"))
    if (parts := joint.density_coverage) is not None:
        density = [_value(parts, kind, lambda d: d.density) for kind in kinds]
        coverage = [_value(parts, kind, lambda d: d.coverage) for kind in kinds]
        rows.append(Measure("Density: how many real neighbourhoods a star falls in", density, "1"))
        rows.append(Measure("Coverage: share of real stars with such a neighbour", coverage, "as real"))
    return rows


def _value(parts: Mapping[str, Part], kind: str, number: Callable[[Part], float]) -> float:
    return number(parts[kind]) if kind in parts else NAN
