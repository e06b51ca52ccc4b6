"""The section on new stars: beside the real test stars in the HR diagram, on the sky, and column by column."""

from __future__ import annotations

import pyarrow as pa

from gaiadask.config.sections import PriorConfig
from gaiadask.quality.records import NAN, SAMPLED
from gaiadask.quality.tables import finite_values
from gaiadask.report import ink, pictures
from gaiadask.report.ink import Picture
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill
from gaiadask.report.pictures import RealAndRebuilt
from gaiadask.report.sky import sky_counts

_WORDS = {
    "latent": "latents from one flow, and residuals (what the latents leave out) from another",
    "gaussian": "latents from the distribution that the loss takes them to have, without residuals, for comparison",
    "flow": "values from the model's flow, trained on to know what a star lacks",
    "free": "all transformed columns from one flow, without latents",
}
_CLASSIFIERS = {"raw": "trees on raw columns", "physics": "trees with physics", "mlp": "a neural network"}


def new_stars(inputs: ReportInputs) -> str:
    """The stars that the run's prior draws, beside the real test stars."""
    sampled, quality = inputs.rated.sampled, inputs.quality
    if sampled is None:
        return fill("new_stars", new=0)
    panels = {"real": inputs.hr_points(inputs.rated.real), "new": inputs.hr_points(sampled)}
    shown = {name: points for name, points in panels.items() if points is not None}
    hr_diagram = None
    if len(shown) == 2:
        hr_diagram = ink.webp(pictures.hr_diagram(shown), "HR diagram of real and new stars, and their difference")
    distances = quality.joint.sky or {}
    return fill(
        "new_stars",
        new=sampled.num_rows,
        drawn=_drawn(inputs.config.prior, inputs.config.model.preset),
        sampling=quality.sampling,
        comparison=quality.comparison(SAMPLED),
        classifiers=_CLASSIFIERS,
        hr_diagram=hr_diagram,
        stars_in_hr={name: points[0].size for name, points in shown.items()},
        sky=_sky(inputs.rated.real, sampled),
        sky_distance=distances[SAMPLED].in_units_of_real if SAMPLED in distances else NAN,
        pictures=[_marginal(inputs, name, sampled) for name in inputs.columns if name in sampled.column_names],
    )


def _drawn(prior: PriorConfig, preset: str) -> str:
    if prior.kind == "latent" and preset == "flow":
        return _WORDS["flow"]
    return "latents from a flow, without residuals" if prior.kind == "latent" and not prior.residuals else _WORDS[prior.kind]


def _sky(real: pa.Table, sampled: pa.Table) -> Picture | None:
    maps = {"real test stars": sky_counts(real), "new stars": sky_counts(sampled)}
    if not all(counts.any() for counts in maps.values()):
        return None
    return ink.webp(pictures.sky_map(maps), "Real and new stars on the sky")


def _marginal(inputs: ReportInputs, name: str, sampled: pa.Table) -> Picture:
    sampling, unit = inputs.quality.sampling, inputs.release.columns[name].unit
    column = RealAndRebuilt(name, unit, finite_values(inputs.rated.real, name), finite_values(sampled, name))
    picture = pictures.marginal(column, sampling.columns[name].ks if sampling else NAN, ink.SAMPLED, "new")
    return ink.svg(picture, f"Distribution of {name}, real and new stars")
