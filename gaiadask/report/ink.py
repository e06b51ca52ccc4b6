"""Palette, style and embedding of the report's pictures, and the few habits that all of them share.

Real stars are grey, rebuilt ones blue, those of the linear baseline amber, new ones violet; these also differ in lightness
and line style, so that they stay apart for colour-blind eyes and in print. Densities stand on dark panels. No pyplot, no
global state: every picture is drawn under `mpl.rc_context(STYLE)` on a Figure of its own.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

INK, MUTED, RULE = "#1c2333", "#6a7080", "#d9d6cd"
NIGHT, STARLIGHT, NIGHT_RULE = "#0d1322", "#c9d1e4", "#36405c"
REAL, REBUILT, BASELINE, ALARM = "#b9b7b0", "#0b62a4", "#d98200", "#b5382a"
SAMPLED = "#7a3b9a"
LATENT_MAP = "RdYlBu"
DENSITY_MAP: Colormap = LinearSegmentedColormap.from_list(
    "starlight", ["#1b2647", "#2f4480", "#4f6fb0", "#8fa9cf", "#e6d9b8", "#fff3cf"]
)
DIFFERENCE_MAP: Colormap = LinearSegmentedColormap.from_list("less_more", ["#7fc4ff", "#2a6db0", NIGHT, "#b8641c", "#ffc470"])

STYLE: Any = {  # matplotlib types its keys as literals
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.5,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "svg.hashsalt": "gaiadask",  # the same data give the same bytes
    "svg.fonttype": "none",  # text as text: as outlines of letters it would be most of a small picture
    "path.simplify_threshold": 0.2,
}
SMALL = (2.55, 1.75)
_UNITS = {
    "'electron'.s**-1": "e⁻/s",
    "solRad": "R☉",
    "solLum": "L☉",
    "deg": "°",
    "mas.yr**-1": "mas/yr",
    "km.s**-1": "km/s",
    "mas**-2": "mas⁻²",
    "um**-1": "µm⁻¹",
    "log(cm.s**-2)": "log cm/s²",
    "'dex'": "dex",
}


# Embedding ----------------------------------------------------------------------------------------------------------
class Picture(NamedTuple):
    """A picture as a page embeds it: its address (a data URI) and a description."""

    uri: str
    alt: str


def svg(figure: Figure, alt: str) -> Picture:
    """A figure as SVG: for curves."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # Percent-encoding of the few signs that need it is shorter than base64.
    return Picture("data:image/svg+xml," + quote(_compact(buffer.getvalue().decode()), safe=" !$'()*+,/:;<=>?@[]^`{|}"), alt)


_NOTHING_TO_SEE = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>| id=\"[\w.]+_\d+\"| transform=\"rotate\(-0 [^\"]*\"", re.DOTALL
)
_PLACE = re.compile(r" (?:d|x|y)=\"[^\"]*\"")
_LONG_NUMBER = re.compile(r"\d+\.\d{2,}")
_STROKE_OF_MARK = re.compile(r"(<use [^>]*style=\"fill: #\w+); stroke: #\w+(?:; stroke-width: [\d.]+)?\"")  # the mark itself has it


def _compact(svg: str) -> str:
    """The same picture in less text: coordinates to 0.1 points; letters of like width where the font is not there."""

    def rounded(place: re.Match[str]) -> str:
        return _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), place[0])

    text = _STROKE_OF_MARK.sub(r'\1"', _PLACE.sub(rounded, _NOTHING_TO_SEE.sub("", svg)))
    text = re.sub(r"\s+", " ", text).replace("> <", "><").replace(" <g/>", "")
    return text.replace("'DejaVu Sans'", "'DejaVu Sans',Verdana,sans-serif")


def webp(figure: Figure, alt: str, dpi: int = 160) -> Picture:
    """A figure as WebP without loss: for densities, which as SVG would be many times larger, and as PNG one and a half times."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # nothing shines through
    Image.fromarray(pixels).save(buffer, "webp", lossless=True, quality=0, method=2)  # more effort would save some per cent
    return Picture(f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}", alt)


def figure(width_in: float, height_in: float, *, night: bool = False) -> Figure:
    """An empty figure, laid out by matplotlib; night: on a dark panel."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor=NIGHT if night else "none")
    FigureCanvasAgg(figure)
    pad = 0.09 if night else 0.03
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)  # type: ignore[union-attr,call-arg]
    return figure


def small_figure() -> tuple[Figure, Axes]:
    """A small picture of many: fixed margins, so that all of them line up (and no layout engine takes its time)."""
    figure = Figure(figsize=SMALL, facecolor="none")
    FigureCanvasAgg(figure)
    return figure, figure.add_axes((0.05, 0.13, 0.9, 0.73))


def log_ticks(axis: Axis, most: int = 6) -> None:
    """Powers of ten, written with superscripts of the font: as mathtext they would take most of the picture's time."""
    axis.set_major_locator(LogLocator(numticks=most))
    axis.set_major_formatter(FuncFormatter(_power_of_ten))
    axis.set_minor_formatter(NullFormatter())


def _power_of_ten(value: float, _position: int | None = None) -> str:
    if value <= 0:
        return ""
    exponent = round(float(np.log10(value)))
    if -1 <= exponent <= 2:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def quiet(axes: Axes, *, y_axis: bool = True) -> None:
    """Only the axes that carry a scale are drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_facecolor("none")
    if not y_axis:
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])


def night(axes: Axes) -> None:
    """Light ink on a dark panel."""
    axes.set_facecolor(NIGHT)
    axes.tick_params(which="both", colors=STARLIGHT)
    axes.xaxis.label.set_color(STARLIGHT)
    axes.yaxis.label.set_color(STARLIGHT)
    axes.title.set_color("white")
    for spine in axes.spines.values():
        spine.set_color(NIGHT_RULE)


def corner(axes: Axes, lines: Sequence[str], colours: Sequence[str], *, x: float = 0.985) -> None:
    """Lines of text in the upper corner, right-aligned at `x` of the axes' width."""
    for i, (line, colour) in enumerate(zip(lines, colours, strict=True)):
        axes.text(x, 0.97 - 0.125 * i, line, transform=axes.transAxes, ha="right", va="top", fontsize=7, color=colour)


def pretty_unit(unit: str) -> str:
    """A VOUnit as one reads it: `e⁻/s` for `'electron'.s**-1`."""
    return _UNITS.get(unit, unit)


def label(name: str, unit: str) -> str:
    """A column's name with its unit."""
    return f"{name}  [{pretty_unit(unit)}]" if unit else name
