"""The section on what a latent does: typical stars, rebuilt while one latent changes, as tracks on the HR diagram."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from gaiadask.release.dr2 import g_magnitude
from gaiadask.release.formulas import absolute_magnitude
from gaiadask.report import ink
from gaiadask.report.ink import Floats
from gaiadask.report.inputs import ReportInputs, colour_magnitude, numbers
from gaiadask.report.markup import absent, figure, section
from gaiadask.report.sections import latent_names

TITLE, ANCHOR = "A walk along each latent", "walks"
TRACK_MAP = "coolwarm"
_COLUMNS = 4
_BACKGROUND_BINS = 90


def walks(inputs: ReportInputs) -> str:
    """Tracks on the HR diagram, one panel a latent."""
    background = colour_magnitude(inputs.rated.real)
    if inputs.walks is None or not inputs.walks.num_rows or background is None or background[0].size < 10:
        why = "No walks: they need <code>bp_rp</code>, <code>phot_g_mean_flux</code> and <code>parallax</code> among the model’s columns."
        return section(ANCHOR, TITLE, absent(why))
    walked = np.unique(inputs.walks["latent"].to_numpy())
    names = [latent_names(inputs.latents)[i] for i in walked[walked >= 0]]
    stars = len(np.unique(inputs.walks["star"].to_numpy()))
    caption = (
        f"{stars} typical stars (white dots: as they are) rebuilt while one latent goes from its 2 % quantile (blue) to its 98 % (red) "
        "and all else is kept. A long track: this latent holds colour or brightness. A dot without a track: it holds what the "
        "diagram does not show, such as motions or extinction. Behind: the real test stars."
    )
    picture = ink.png_uri(tracks(inputs.walks, background), 130)
    return section(ANCHOR, TITLE, figure(picture, f"Walks along {', '.join(names)} on the HR diagram", caption, "dark"))


def tracks(table: pa.Table, background: tuple[Floats, Floats]) -> Figure:
    """table: star, latent (below 0: the star as it is), step, bp_rp, phot_g_mean_flux, parallax. background: colours and absolute magnitudes, finite."""
    star, latent, step = (table[name].to_numpy() for name in ("star", "latent", "step"))
    colour = numbers(table, "bp_rp")
    magnitude = absolute_magnitude(g_magnitude(numbers(table, "phot_g_mean_flux")), numbers(table, "parallax"))
    shown = np.unique(latent[latent >= 0])
    rows = -(-len(shown) // _COLUMNS)
    columns = min(_COLUMNS, len(shown))
    limits = [_limits(axis) for axis in background]
    with mpl.rc_context(ink.STYLE):
        picture = ink.figure(2.35 * columns + 0.5, 2.6 * rows + 0.3, night=True)
        grid = np.atleast_1d(picture.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)).ravel()
        for axes, which in zip(grid, shown, strict=False):
            _behind(axes, background, limits)
            for one in np.unique(star):
                here = np.flatnonzero((star == one) & (latent == which))
                here = here[np.argsort(step[here])]
                _track(axes, colour[here], magnitude[here])
            axes.plot(colour[latent < 0], magnitude[latent < 0], "o", color="white", ms=2.2, mew=0, zorder=4)
            axes.set_title(latent_names(int(shown.max()) + 1)[which])
            ink.night(axes)
        for axes in grid[len(shown) :]:
            axes.axis("off")
        for number, axes in enumerate(grid[: len(shown)]):
            if number % columns == 0:
                axes.set_ylabel("M_G  [mag]")
            if number + columns >= len(shown):
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
