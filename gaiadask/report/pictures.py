"""Pictures of stars, real and rebuilt: marginals, residuals, the Hertzsprung-Russell diagram, the sky.

Arrays in, a matplotlib Figure out; `ink` embeds it. Curves are meant for SVG, densities (the dark ones) for WebP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gaiadask import sky
from gaiadask.quality.tables import Floats
from gaiadask.report import ink

_LOG_UNITS = ("'electron'.s**-1", "solLum", "solRad")
_MIN_BINS, _MAX_BINS = 12, 64  # of a small panel: fewer hide the shape, more are narrower than a line
# Written in red where larger: distances and shares that one sees in the panel.
_ALARM_KS, _ALARM_OUTSIDE = 0.05, 0.02
_ALARM_BEYOND_3_SIGMA = 0.003  # a normal distribution has 0.0027
_EDGE_SHARE = 0.003  # of the stars at either end, which would squeeze the rest


@dataclass(frozen=True, slots=True)
class RealAndRebuilt:
    """One column of real stars and of rebuilt or new ones, NaN where null; shape (n,) each. unit: VOUnit."""

    name: str
    unit: str
    real: Floats
    rebuilt: Floats
    baseline: Floats | None = None


# Marginals ----------------------------------------------------------------------------------------------------------
def _robust_range(values: Floats, share: float = _EDGE_SHARE) -> tuple[float, float]:
    low, high = np.quantile(values, [share, 1 - share])
    if high <= low:  # one value, or nearly: a range around it
        half = max(abs(low) * 1e-3, 1e-6)
        return float(low - half), float(high + half)
    return float(low), float(high)


def wants_log(unit: str, real: Floats) -> bool:
    """Whether a log axis suits: positive but for a few stars, and a flux, luminosity, radius, or wider than a factor of 30."""
    low, high = _robust_range(real)
    if low <= 0:
        return False
    if unit in ("deg", "mag"):  # an angle has no zero, a magnitude is a logarithm already
        return False
    return (unit in _LOG_UNITS and high / low > 3) or high / low > 30


def _edges(unit: str, real: Floats) -> tuple[Floats, bool]:
    bins = int(np.clip(1.2 * np.sqrt(real.size), _MIN_BINS, _MAX_BINS))
    low, high = _robust_range(real)
    if wants_log(unit, real):
        pad = (high / low) ** 0.06
        return np.geomspace(low / pad, high * pad, bins + 1), True
    pad = 0.06 * (high - low)
    return np.linspace(low - pad, high + pad, bins + 1), False


def _shares(values: Floats, edges: Floats) -> Floats:
    return np.histogram(values, edges)[0] / max(values.size, 1)


def marginal(column: RealAndRebuilt, ks: float, colour: str = ink.REBUILT, made: str = "rebuilt") -> Figure:
    """Real (grey area) and rebuilt (blue line) distribution of one column over the range of its real stars.

    ks: Kolmogorov-Smirnov distance, written into the corner, NaN where unknown. colour: of the line. made: word for its stars.
    """
    with mpl.rc_context(ink.STYLE):
        figure, axes = ink.small_figure()
        axes.set_title(ink.label(column.name, column.unit), loc="left", fontweight="bold")
        real, rebuilt = column.real[np.isfinite(column.real)], column.rebuilt[np.isfinite(column.rebuilt)]
        if not real.size:
            return _nothing(figure, axes, "null in every star rated")
        edges, log = _edges(column.unit, real)
        axes.stairs(_shares(real, edges), edges, fill=True, color=ink.REAL, lw=0)
        axes.stairs(_shares(rebuilt, edges), edges, color=colour, lw=1.3, baseline=None)
        if log:
            axes.set_xscale("log")
            ink.log_ticks(axes.xaxis)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, None)
        axes.margins(y=0.12)
        ink.quiet(axes, y_axis=False)
        outside = float(np.mean((rebuilt < edges[0]) | (rebuilt > edges[-1]))) if rebuilt.size else 0.0
        notes = [("KS " + f"{ks:.3f}", ink.ALARM if ks > _ALARM_KS else ink.INK)] if np.isfinite(ks) else []
        notes += [(_null_share(1 - real.size / column.real.size), ink.MUTED)] if real.size < column.real.size else []
        notes += [(f"{outside:.1%} {made} outside", ink.ALARM)] if outside > _ALARM_OUTSIDE else []
        ink.corner(axes, [n for n, _ in notes], [c for _, c in notes], x=_freer_side(axes, real, edges))
        return figure


def _null_share(share: float) -> str:
    return f"{share:.0%} null" if share >= 0.01 else "<1% null"


def _freer_side(axes: Axes, real: Floats, edges: Floats) -> float:
    """Right edge of the corner notes: on the right, or on the left where the distribution leans right."""
    shares = _shares(real, edges)
    third = shares.size // 3
    return 0.40 if shares[-third:].max() > 1.3 * shares[:third].max() else 0.985


def _nothing(figure: Figure, axes: Axes, why: str) -> Figure:
    ink.quiet(axes, y_axis=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=ink.MUTED, style="italic")
    return figure


# Residuals ----------------------------------------------------------------------------------------------------------
def residual_sigma(name: str, residual: Floats) -> Figure:
    """Histogram of (rebuilt - real) / sigma beside a unit normal, log scale; what lies beyond 6 is in the end bins.

    residual: shape (n,), in units of each star's own catalogue error, finite.
    """
    with mpl.rc_context(ink.STYLE):
        figure, axes = ink.small_figure()
        axes.set_title(name, loc="left", fontweight="bold")
        edges = np.linspace(-6, 6, 61)
        width = edges[1] - edges[0]
        counts = np.histogram(np.clip(residual, -5.999, 5.999), edges)[0]
        floor = 0.5 / residual.size / width
        fine = np.linspace(-6, 6, 121)
        normal = np.exp(-(fine**2) / 2) / np.sqrt(2 * np.pi)
        axes.fill_between(fine, floor, np.maximum(normal, floor), color=ink.REAL, lw=0)
        axes.stairs(np.maximum(counts / residual.size / width, floor), edges, color=ink.REBUILT, lw=1.3, baseline=None)
        axes.set_yscale("log")
        axes.set_xlim(-6, 6)
        axes.set_ylim(floor, 400)  # room for the shares above the end bins
        axes.set_xticks([-6, -3, -1, 1, 3, 6])
        axes.xaxis.grid(True, color=ink.RULE, lw=0.5)
        axes.set_axisbelow(True)
        ink.quiet(axes, y_axis=False)
        axes.minorticks_off()
        within, beyond = np.mean(np.abs(residual) <= 1), np.mean(np.abs(residual) > 3)
        ink.corner(
            axes, [f"≤1σ {within:.1%}", f">3σ {beyond:.2%}"], [ink.INK, ink.ALARM if beyond > _ALARM_BEYOND_3_SIGMA else ink.MUTED]
        )
        return figure


MIN_STARS = 10
"""Stars below which the 90 % quantile of a bin is one star's error."""


@dataclass(frozen=True, slots=True)
class ErrorTrend:
    """Absolute error over the IQR in bins of G: centres (k,), median and 90 % (k,), NaN in bins of less than MIN_STARS."""

    centres: Floats
    median: Floats
    p90: Floats

    @classmethod
    def of(cls, g_mag: Floats, error: Floats, edges: Floats) -> ErrorTrend:
        """error: absolute, in units of the IQR, NaN where null; edges: of the magnitude bins, shape (k + 1,)."""
        seen = np.isfinite(error) & np.isfinite(g_mag)
        index = np.digitize(g_mag[seen], edges) - 1
        parts = [error[seen][index == i] for i in range(edges.size - 1)]
        levels = [np.quantile(p, [0.5, 0.9]) if p.size >= MIN_STARS else np.full(2, np.nan) for p in parts]
        median, p90 = np.array(levels).T
        return cls((edges[:-1] + edges[1:]) / 2, median, p90)


def error_against_magnitude(name: str, model: ErrorTrend, baseline: ErrorTrend | None, limits: tuple[float, float]) -> Figure:
    """One column's median error (line) up to its 90 % (band) against G; the baseline's median dashed. Shared log scale."""
    with mpl.rc_context(ink.STYLE):
        figure, axes = ink.small_figure()
        axes.set_title(name, loc="left", fontweight="bold")
        low = limits[0]
        axes.fill_between(
            model.centres, np.maximum(model.median, low), np.maximum(model.p90, low), color=ink.REBUILT, alpha=0.18, lw=0
        )
        axes.plot(model.centres, np.maximum(model.median, low), color=ink.REBUILT, lw=1.4)
        if baseline is not None:
            axes.plot(baseline.centres, np.maximum(baseline.median, low), color=ink.BASELINE, lw=1.2, ls=(0, (3, 1.5)))
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        axes.set_xlim(model.centres[0], model.centres[-1])
        axes.set_position((0.13, 0.13, 0.84, 0.73))
        ink.log_ticks(axes.yaxis, 5)
        axes.yaxis.grid(True, color=ink.RULE, lw=0.5)
        axes.set_axisbelow(True)
        ink.quiet(axes)
        return figure


# The Hertzsprung-Russell diagram -------------------------------------------------------------------------------------
def hr_diagram(panels: Mapping[str, tuple[Floats, Floats]]) -> Figure:
    """M_G against BP - RP for the panels (title -> (colour, absolute magnitude), finite), the first being the real stars,
    on one logarithmic scale of star counts; then the difference of the second and the first in units of its Poisson noise.
    """
    with mpl.rc_context(ink.STYLE):
        colour, magnitude = next(iter(panels.values()))
        x_range, y_range = _robust_range(colour, 0.002), _robust_range(magnitude, 0.002)
        x_edges, y_edges = (_padded_edges(r, _hr_bins(colour.size)) for r in (x_range, y_range))
        counts = {title: np.histogram2d(x, y, (x_edges, y_edges))[0] for title, (x, y) in panels.items()}
        figure = ink.figure(2.45 * (len(counts) + 1) + 0.6, 4.2, night=True)
        all_axes = np.atleast_1d(figure.subplots(1, len(counts) + 1, sharex=True, sharey=True))
        norm = LogNorm(0.7, max(float(next(iter(counts.values())).max()), 2.0))
        image = None
        for axes, (title, count) in zip(all_axes, counts.items(), strict=False):
            image = axes.pcolormesh(
                x_edges, y_edges, np.ma.masked_equal(count.T, 0), cmap=ink.DENSITY_MAP, norm=norm, rasterized=True
            )
            axes.set_title(title)
        real, rebuilt = list(counts.values())[:2]
        made = list(counts)[1]
        noise = np.sqrt(np.maximum(real + rebuilt, 1))
        difference = all_axes[-1].pcolormesh(
            x_edges, y_edges, ((rebuilt - real) / noise).T, cmap=ink.DIFFERENCE_MAP, norm=Normalize(-4, 4), rasterized=True
        )
        all_axes[-1].set_title(f"{made} − real")
        for axes in all_axes:
            axes.set_xlabel("BP − RP  [mag]")
            ink.night(axes)
        all_axes[0].set_ylabel("M_G = G + 5 log₁₀(ϖ / 100 mas)  [mag]")
        all_axes[0].set_ylim(y_edges[-1], y_edges[0])  # bright stars on top; blue ones are on the left already
        _colour_bar(figure, image, list(all_axes[:-1]), "stars in a cell")
        _colour_bar(figure, difference, [all_axes[-1]], "difference / √(sum)")
        return figure


def _hr_bins(stars: int) -> int:
    # A handful of stars a cell: more bins show finer structure, and more of the noise of counting.
    return int(np.clip(np.sqrt(stars) * 0.55, 28, 110))


def _padded_edges(limits: tuple[float, float], bins: int) -> Floats:
    pad = 0.05 * (limits[1] - limits[0])
    return np.linspace(limits[0] - pad, limits[1] + pad, bins + 1)


def _colour_bar(figure: Figure, image: Any, axes: list[Axes], label: str, shrink: float = 0.9) -> None:
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=shrink, aspect=30 if len(axes) > 1 else 18, pad=0.03)
    bar.set_label(label, color=ink.STARLIGHT, fontsize=7.5)
    bar.ax.tick_params(which="both", colors=ink.STARLIGHT, labelsize=6.5)
    bar.outline.set_edgecolor(ink.NIGHT_RULE)


# The sky ------------------------------------------------------------------------------------------------------------


MAX_ORDER = 6
"""Finest HEALPix order of a map: pixels of a degree, some five of the raster's cells."""
STARS_A_PIXEL = 6.0
"""Stars in half of the pixels at least: with fewer the map would show little but the noise of counting."""


def count_on_sky(ra: Floats, dec: Floats, order: int = MAX_ORDER) -> NDArray[np.int64]:
    """Stars in each nested HEALPix pixel of `order`, shape (12 * 4**order,); positions in degrees, NaN left out."""
    seen = np.isfinite(ra) & np.isfinite(dec)
    return np.bincount(sky.healpix(ra[seen], dec[seen], order), minlength=12 << (2 * order)).astype(np.int64)


def coarsened(counts: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Nested HEALPix counts at the finest order, at most MAX_ORDER, whose hit pixels have enough stars; and that order."""
    order = round(np.log2(counts.size / 12) / 2)
    if 12 << (2 * order) != counts.size:
        raise ValueError(f"sky counts must have 12 * 4**order elements, found {counts.size}")
    while order > MAX_ORDER or (order > 2 and np.median(counts[counts > 0]) < STARS_A_PIXEL):
        counts, order = counts.reshape(-1, 4).sum(axis=1), order - 1
    return counts, order


def sky_map(maps: Mapping[str, NDArray[Any]]) -> Figure:
    """Mollweide maps of star density in galactic coordinates, centre of the Galaxy in the middle, longitude growing leftwards.

    maps: title -> stars in each nested HEALPix pixel of the equatorial sky, one order or several; on one scale.
    """
    with mpl.rc_context(ink.STYLE):
        figure = ink.figure(9.0 if len(maps) == 1 else 10.4, 4.5 if len(maps) == 1 else 2.75, night=True)
        all_axes = np.atleast_1d(figure.subplots(1, len(maps)))
        vectors, inside = mollweide_raster(900)
        images = [_density_image(counts, vectors, inside) for counts in maps.values()]
        hit = np.concatenate([im[np.isfinite(im) & (im > 0)] for im in images])
        low, high = (np.quantile(hit, 0.01), hit.max()) if hit.size else (1.0, 10.0)
        norm = LogNorm(low, max(high, 2 * low))
        for axes, title, density in zip(all_axes, maps, images, strict=True):
            # Empty sky inside the ellipse is drawn, not left out: black is "no star here".
            drawn = axes.imshow(
                np.ma.masked_less_equal(np.nan_to_num(density), 0), extent=(-2, 2, -1, 1), cmap=ink.DENSITY_MAP, norm=norm,
                interpolation="nearest", rasterized=True,
            )  # fmt: skip
            _graticule(axes)
            axes.set_title(title, color="white")
        bar = figure.colorbar(drawn, ax=list(all_axes), location="right", shrink=0.75, aspect=22, pad=0.01)
        bar.set_label("stars per square degree", color=ink.STARLIGHT)
        bar.ax.tick_params(which="both", colors=ink.STARLIGHT)
        bar.outline.set_edgecolor(ink.NIGHT_RULE)
        return figure


def mollweide_raster(width: int) -> tuple[Floats, NDArray[np.bool_]]:
    """ICRS unit vectors, shape (width // 2, width, 3), of a Mollweide raster of the galactic sky; which cells are sky."""
    x = (np.arange(width) + 0.5) / width * 4 - 2
    y = 1 - (np.arange(width // 2) + 0.5) / (width // 2) * 2
    theta = np.arcsin(y)[:, None]
    latitude = np.arcsin(np.clip((2 * theta + np.sin(2 * theta)) / np.pi, -1, 1))
    longitude = -np.pi * x / (2 * np.cos(theta))  # minus: the sky is seen from inside
    inside = np.abs(longitude) <= np.pi
    galactic = sky.unit_vector(np.degrees(longitude), np.degrees(np.broadcast_to(latitude, longitude.shape)))
    return galactic @ sky.ICRS_TO_GALACTIC, inside  # row vectors: v @ M is M transposed times v


def _density_image(counts: NDArray[Any], vectors: Floats, inside: NDArray[np.bool_]) -> Floats:
    counts, order = coarsened(counts)
    ra, dec = sky.position(vectors[inside])
    image = np.full(inside.shape, np.nan)
    image[inside] = counts[sky.healpix(ra, dec, order)] / (4 * 180**2 / np.pi / counts.size)
    return image


def _mollweide(longitude: Floats, latitude: Floats) -> tuple[Floats, Floats]:
    """Plane coordinates (|x| <= 2, |y| <= 1) of galactic positions in degrees, longitude in [-180, 180]."""
    target = np.pi * np.sin(np.radians(latitude))
    theta = np.radians(latitude) * 0.95
    for _ in range(30):  # Newton on 2t + sin 2t = pi sin b; slow but sure near the poles
        theta = theta - (2 * theta + np.sin(2 * theta) - target) / np.maximum(2 + 2 * np.cos(2 * theta), 1e-9)
    return -2 / 180 * longitude * np.cos(theta), np.sin(theta)


def _graticule(axes: Axes) -> None:
    line: dict[str, Any] = {"color": "white", "alpha": 0.22, "lw": 0.5}
    halo = [withStroke(linewidth=2, foreground=ink.NIGHT)]
    latitudes = np.linspace(-89.9, 89.9, 181)
    for longitude in range(-120, 121, 60):
        axes.plot(*_mollweide(np.full(181, float(longitude)), latitudes), **line)
        x, y = _mollweide(np.array([float(longitude)]), np.array([2.0]))
        name = f"{longitude % 360}°" if longitude else "l = 0°"
        axes.text(float(x[0]) + 0.015, float(y[0]), name, color="white", fontsize=6.5, va="bottom", ha="left", path_effects=halo)
    longitudes = np.linspace(-180, 180, 181)
    for latitude in range(-60, 61, 30):
        axes.plot(*_mollweide(longitudes, np.full(181, float(latitude))), **line)
        x, y = _mollweide(np.array([180.0]), np.array([float(latitude)]))
        axes.text(
            float(x[0]) - 0.02,
            float(y[0]),
            f"{latitude:+d}°".replace("-", "−") if latitude else "b = 0°",
            color=ink.STARLIGHT,
            fontsize=6.5,
            ha="right",
            va="center",
        )
    angle = np.linspace(0, 2 * np.pi, 361)
    axes.plot(2 * np.cos(angle), np.sin(angle), color=ink.STARLIGHT, lw=0.8)
    axes.set_xlim(-2.16, 2.03)
    axes.set_ylim(-1.02, 1.02)
    axes.set_aspect("equal")
    axes.axis("off")
