"""The section on the sky."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.quality.tables import finite_values
from gaiadask.release.column import DEC, RA
from gaiadask.report import ink, pictures
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill


def sky(inputs: ReportInputs) -> str:
    """Star density of the catalogue; of the rated stars real and rebuilt where the model rebuilds positions."""
    real, stars = inputs.rated.real, float(inputs.stars)
    if inputs.positions_are_rebuilt:
        shown = "rebuilt"
        maps = {
            "real test stars": sky_counts(real),
            "rebuilt, positions from the network": sky_counts(inputs.rated.rebuilt),
        }
    elif inputs.sky_counts is not None:
        shown, maps, stars = "catalogue", {"all stars of the catalogue": inputs.sky_counts}, float(inputs.sky_counts.sum())
    else:
        shown, maps = "rated", {"rated test stars": sky_counts(real)}
    if not any(np.any(counts) for counts in maps.values()):
        return fill("sky", picture=None)
    return fill("sky", picture=ink.webp(pictures.sky_map(maps), "Star density on the sky"), shown=shown, stars=stars)


def sky_counts(table: pa.Table) -> NDArray[np.int64]:
    """Stars of a table in each HEALPix pixel; zeros where it has no positions."""
    if not {RA, DEC} <= set(table.column_names):
        return np.zeros(12, np.int64)
    return pictures.count_on_sky(finite_values(table, RA), finite_values(table, DEC))
