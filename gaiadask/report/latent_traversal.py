"""The section on latent traversals: typical stars, rebuilt while one latent changes, as tracks on the HR diagram."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from gaiadask.model.card import latent_names
from gaiadask.quality.physics import hr_position
from gaiadask.quality.tables import Floats
from gaiadask.release.release import Release
from gaiadask.report import ink
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill

TRACK_MAP = "coolwarm"
_COLUMNS = 4  # panels in a line: as many as are readable at the page's width
_BACKGROUND_BINS = 90  # on each axis: about one for each two pixels of a panel


def latent_traversal(inputs: ReportInputs) -> str:
    """Tracks on the HR diagram, one panel a latent."""
    table, background = inputs.latent_traversal, inputs.hr_points(inputs.rated.real)
    if table is None or not table.num_rows or background is None:
        return fill("latent_traversal", picture=None)
    numbers = np.unique(table["latent"].to_numpy())
    names = [latent_names(inputs.latents)[i] for i in numbers[numbers >= 0]]
    alt = f"Traversals of {', '.join(names)} on the HR diagram"
    picture = ink.webp(tracks(table, background, inputs.release), alt, 130)
    return fill("latent_traversal", picture=picture, stars=len(np.unique(table["star"].to_numpy())))


def tracks(table: pa.Table, background: tuple[Floats, Floats], release: Release) -> Figure:
    """Tracks of typical stars while one latent changes.

    table: star, latent (below 0: the star with its own latents), step, and the columns of the HR diagram. background: colours
    and absolute magnitudes of real stars, finite.
    """
    star, latent, step = (table[name].to_numpy() for name in ("star", "latent", "step"))
    colour, magnitude = hr_position(table, release)
    shown = np.unique(latent[latent >= 0])
    lines = -(-len(shown) // _COLUMNS)
    columns = min(_COLUMNS, len(shown))
    limits = [_limits(axis) for axis in background]
    with mpl.rc_context(ink.STYLE):
        picture = ink.figure(2.35 * columns + 0.5, 2.6 * lines + 0.3, night=True)
        grid = np.atleast_1d(picture.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)).ravel()
        for axes, number in zip(grid, shown, strict=False):
            _behind(axes, background, limits)
            for typical in np.unique(star):
                rows = np.flatnonzero((star == typical) & (latent == number))
                rows = rows[np.argsort(step[rows])]
                _track(axes, colour[rows], magnitude[rows])
            axes.plot(colour[latent < 0], magnitude[latent < 0], "o", color="white", ms=2.2, mew=0, zorder=4)
            axes.set_title(latent_names(int(shown.max()) + 1)[number])
            ink.night(axes)
        for axes in grid[len(shown) :]:
            axes.axis("off")
        for panel, axes in enumerate(grid[: len(shown)]):
            if panel % columns == 0:
                axes.set_ylabel("M_G  [mag]")
            if panel + columns >= len(shown):
                axes.set_xlabel("BP − RP  [mag]")
                axes.tick_params(labelbottom=True)
        grid[0].set_xlim(*limits[0])
        grid[0].set_ylim(*limits[1][::-1])  # bright stars on top
        return picture


def _limits(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.001, 0.999])
    pad = 0.06 * (high - low) or 0.5
    return float(low - pad), float(high + pad)


def _behind(axes: Axes, background: tuple[Floats, Floats], limits: list[tuple[float, float]]) -> None:
    counts, x, y = np.histogram2d(*background, _BACKGROUND_BINS, limits)
    greys = mpl.colors.LinearSegmentedColormap.from_list("dim", ["#1a2236", "#4a5470"])
    axes.pcolormesh(x, y, np.ma.masked_equal(counts.T, 0), cmap=greys, norm=LogNorm(1, max(counts.max(), 2)), rasterized=True)


def _track(axes: Axes, colour: Floats, magnitude: Floats) -> None:
    points = np.stack([colour, magnitude], axis=1)
    segments = np.stack([points[:-1], points[1:]], axis=1)
    known = np.isfinite(segments).all(axis=(1, 2))
    along = np.linspace(0, 1, len(segments))
    lines = LineCollection(list(segments[known]), cmap=TRACK_MAP, norm=Normalize(0, 1), lw=1.5, capstyle="round")
    lines.set_array(along[known])
    axes.add_collection(lines, autolim=False)
