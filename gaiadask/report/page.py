"""report.html: one page that has everything it shows in itself, and fetches nothing from the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple

from markupsafe import Markup

from gaiadask.report.bits import bits
from gaiadask.report.columns import quality_table
from gaiadask.report.compressed import compressed
from gaiadask.report.distributions import distributions
from gaiadask.report.head import tiles, verdict
from gaiadask.report.hr_diagram import hr_diagram
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.latent_traversal import latent_traversal
from gaiadask.report.latents import latents
from gaiadask.report.magnitude import error_against_magnitude
from gaiadask.report.markup import fill
from gaiadask.report.new_stars import new_stars
from gaiadask.report.outliers import outliers
from gaiadask.report.provenance import MOCK_WARNING, finished, provenance
from gaiadask.report.residuals import residuals
from gaiadask.report.sky import sky
from gaiadask.report.storage import storage
from gaiadask.report.training import training
from gaiadask.report.two_sample import two_sample

# In the order of the page: anchor, name in the navigation, the function that makes it.
SECTIONS: tuple[tuple[str, str, Callable[[ReportInputs], str]], ...] = (
    ("distributions", "Distributions", distributions),
    ("hr", "HR diagram", hr_diagram),
    ("sky", "Sky", sky),
    ("residuals", "Residuals", residuals),
    ("magnitude", "Magnitude", error_against_magnitude),
    ("new-stars", "New stars", new_stars),
    ("training", "Training", training),
    ("latents", "Latents", latents),
    ("traversals", "Traversals", latent_traversal),
    ("quality", "Columns", quality_table),
    ("two-sample", "Classifiers", two_sample),
    ("outliers", "Outliers", outliers),
    ("bits", "Bits", bits),
    ("bytes", "Bytes", storage),
    ("compressed", "Compressed", compressed),
    ("provenance", "Provenance", provenance),
)


class _Section(NamedTuple):
    anchor: str
    name: str
    html: str


def render(inputs: ReportInputs) -> str:
    """The whole page as HTML text: style, pictures and one small script inline, nothing fetched; the browser is told to refuse more."""
    script = _file("page.js")
    return fill(
        "page",
        name=inputs.config.name,
        style=_file("style.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        verdict=verdict(inputs),
        tiles=tiles(inputs),
        sections=[_Section(anchor, name, make(inputs)) for anchor, name, make in SECTIONS],
        finished=finished(inputs.manifest),
        is_mock=inputs.is_mock,
        mock_warning=MOCK_WARNING,
    )


def _file(name: str) -> Markup:
    """Text of a file of this package, as it is."""
    return Markup(files("gaiadask.report").joinpath(name).read_text(encoding="utf-8"))
