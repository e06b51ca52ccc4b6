"""Stars of the HR diagram as the page has them: which star is where, for its script to name them and for people to download."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gaiadask.quality.physics import hr_position
from gaiadask.quality.tables import Floats
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.split import hash64, smallest

MOST_STARS = 20_000
"""Stars that the page has by name, at most, those of smallest hash: half a megabyte."""
_UNKNOWN = -(2**15)


def shown_rows(real: pa.Table, release: Release) -> NDArray[np.int64]:
    """Rows of the real stars that have a place in the diagram, at most MOST_STARS."""
    rows = np.flatnonzero(np.isfinite(hr_position(real, release)).all(axis=0))
    return rows[smallest(hash64(real[SOURCE_ID].to_numpy()[rows]), MOST_STARS)]


def hr_stars(figure: Figure, tables: Mapping[str, pa.Table], rows: NDArray[np.int64], release: Release) -> str:
    """JSON of the stars in these rows: their source_ids, and their places in each panel of a figure that is drawn.

    figure: of `pictures.hr_diagram`; its first panels are of `tables`, in their order.
    """
    places = [hr_position(table, release)[:, rows] for table in tables.values()]
    panels = [axes.get_position() for axes in figure.axes[: len(tables)]]
    record = {
        "series": list(tables),
        # From the left and the top of the picture, as shares of its width and height.
        "panels": [
            {"series": i, "box": [round(x, 5) for x in (box.x0, 1 - box.y1, box.width, box.height)]} for i, box in enumerate(panels)
        ],
        "x": figure.axes[0].get_xlim(),
        "y": figure.axes[0].get_ylim()[::-1],  # from the top
        "ids": _base64(next(iter(tables.values()))[SOURCE_ID].to_numpy()[rows].astype("<u8")),
        "places": [_base64(_thousandths(place)) for place in places],
    }
    return json.dumps(record, separators=(",", ":")).replace("<", "\\u003c")


def _thousandths(magnitudes: Floats) -> NDArray[np.int16]:
    """Magnitudes in mmag, _UNKNOWN where there is none or it does not fit."""
    rounded = np.round(1_000 * magnitudes)
    return np.where(np.abs(rounded) < -_UNKNOWN, rounded, _UNKNOWN).astype("<i2")


def _base64(values: NDArray[np.generic]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")
