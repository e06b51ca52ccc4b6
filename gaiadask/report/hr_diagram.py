"""The section on the Hertzsprung-Russell diagram."""

from __future__ import annotations

import re

from markupsafe import Markup

from gaiadask.report import ink, pictures
from gaiadask.report.hr_stars import hr_stars, shown_rows
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill
from gaiadask.report.reading import baseline_name

_ALT = "HR diagram: "


def hr_diagram(inputs: ReportInputs) -> str:
    """The diagram of the same stars, real, rebuilt, by the baseline, and the difference."""
    rated = inputs.rated
    tables = {"real": rated.real, "rebuilt": rated.rebuilt, baseline_name(inputs.quality): rated.baseline}
    panels = {name: points for name, table in tables.items() if table is not None and (points := inputs.hr_points(table))}
    if not {"real", "rebuilt"} <= set(panels):
        return fill("hr_diagram", picture=None)
    figure = pictures.hr_diagram(panels)
    picture = ink.webp(figure, f"{_ALT}{', '.join(panels)}, and their difference")
    rows = shown_rows(rated.real, inputs.release)
    named = hr_stars(
        figure, {name: table for name, table in tables.items() if name in panels and table is not None}, rows, inputs.release
    )
    return fill(
        "hr_diagram", picture=picture, shown=panels["real"][0].size, stars=inputs.stars, named=Markup(named), number_named=len(rows)
    )


def hr_picture(page: str) -> str | None:
    """The diagram of a report that is written, as a data URI; None where it has none."""
    found = re.search(rf'<img src="(data:image/webp;base64,[^"]+)" alt="{_ALT}', page)
    return found and found[1]
