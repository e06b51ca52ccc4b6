"""Diagrams of the model: training curves, latents, AUCs of classifiers, bytes a star."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from gaiadask.quality.tables import Floats
from gaiadask.report import ink

COSTLY_NATS = 0.01
"""KL divergence below which a latent's bar is grey: it encodes nothing."""
NAMED_LATENTS = 24
"""Latents up to which the bars have room for level names and numbers."""


# Training -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Curve:
    """One line: value against rows seen; validation curves have markers, training ones have none."""

    label: str
    rows: Floats
    values: Floats
    validation: bool


def training_curves(panels: Mapping[str, Sequence[Curve]]) -> Figure:
    """One panel a quantity (title -> curves), side by side over the stars shown so far."""
    with mpl.rc_context(ink.STYLE):
        figure = ink.figure(3.2 * len(panels), 2.5)
        for axes, (title, curves) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
            for curve in sorted(curves, key=lambda c: c.validation):
                axes.plot(
                    curve.rows,
                    curve.values,
                    color=ink.REBUILT if curve.validation else "#8f8c82",
                    lw=1.5 if curve.validation else 1.0,
                    marker="o" if curve.validation else None,
                    ms=3,
                    label=curve.label,
                )
            axes.set_title(title, loc="left", fontweight="bold")
            axes.set_xlabel("stars shown")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_ylim(*_settled_range(curves))
            axes.yaxis.grid(True, color=ink.RULE, lw=0.5)
            ink.quiet(axes)
            axes.legend(frameon=False, fontsize=7, loc="best")
        return figure


def _settled_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Range of the values without those of the first steps, which are so large that all later ones would look flat."""
    last = max((float(c.rows[-1]) for c in curves if c.rows.size), default=0.0)
    parts = [c.values[(c.rows >= 0.05 * last) & np.isfinite(c.values)] for c in curves]
    values = np.concatenate([p for p in parts if p.size] or [np.array([0.0, 1.0])])
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    is_flat = high - low <= 1e-4 * abs(high)
    pad = 0.05 * (abs(high) or 1.0) if is_flat else 0.08 * (high - low)
    return low - pad, high + pad


def kl_bars(names: Sequence[str], kl: Sequence[float]) -> Figure:
    """Nats that each latent costs, from the dearest; shape (latents,) each."""
    order = np.argsort(kl)[::-1]
    values = np.asarray(kl, np.float64)[order]
    with mpl.rc_context(ink.STYLE):
        figure = ink.figure(6.8, 1.9)
        axes = figure.add_subplot()
        axes.bar(np.arange(values.size), values, color=[ink.REBUILT if v > COSTLY_NATS else ink.REAL for v in values], width=0.6)
        axes.set_xticks(np.arange(values.size), [names[i] for i in order], rotation=90 if len(names) > NAMED_LATENTS else 0)
        axes.set_ylabel("KL  [nats a star]")
        axes.yaxis.grid(True, color=ink.RULE, lw=0.5)
        axes.set_axisbelow(True)
        ink.quiet(axes)
        if values.size <= NAMED_LATENTS:
            for i, value in enumerate(values):
                axes.text(i, value, f"{value:.2f}", ha="center", va="bottom", fontsize=6.5, color=ink.MUTED)
        return figure


# Latents ------------------------------------------------------------------------------------------------------------
def latent_corner(
    latents: Floats, names: Sequence[str], colour: Floats | None, colour_label: str, reverse: bool = False, even: bool = False
) -> Figure:
    """Every pair of latents as a map of the stars' mean colour, brighter where stars crowd; on the diagonal each one's
    distribution beside a unit normal, or an even one between -1 and 1.

    latents: shape (n, k), finite. colour: shape (n,), NaN where null; None: density alone. reverse: small values are hot.
    """
    k = latents.shape[1]
    bins = int(np.clip(np.sqrt(len(latents)) * 0.45, 20, 90))  # a handful of stars a cell; 90 fill a panel's pixels
    edges = [np.linspace(*_span(z), bins + 1) for z in latents.T]
    norm = _colour_norm(colour)
    with mpl.rc_context(ink.STYLE):
        figure = ink.figure(min(9.0, 1.5 * k + 1.2), min(8.6, 1.42 * k + 0.5), night=True)
        grid = np.atleast_2d(figure.subplots(k, k, squeeze=False))
        for row in range(k):
            for column in range(k):
                axes = grid[row, column]
                if column > row:
                    axes.axis("off")
                    continue
                if column == row:
                    _latent_histogram(axes, latents[:, row], edges[row], even)
                else:
                    _latent_map(axes, latents[:, column], latents[:, row], colour, edges[column], edges[row], norm, reverse)
                ink.night(axes)
                _outer_labels(axes, names, row, column, k)
        if colour is not None:
            mappable = mpl.cm.ScalarMappable(norm, _latent_colours(reverse))
            place = figure.add_axes((0.52, 0.9, 0.42, 0.018)) if k > 2 else None  # into the empty triangle
            bar = figure.colorbar(mappable, cax=place, ax=None if place else grid[0, :].tolist(), orientation="horizontal")
            bar.set_label(f"mean {colour_label}", color=ink.STARLIGHT)
            bar.ax.tick_params(which="both", colors=ink.STARLIGHT)
        return figure


def _span(z: Floats) -> tuple[float, float]:
    low, high = np.quantile(z, [0.002, 0.998])
    pad = 0.08 * (high - low) or 0.5
    return float(low - pad), float(high + pad)


def _colour_norm(colour: Floats | None) -> Normalize:
    seen = colour[np.isfinite(colour)] if colour is not None else np.array([0.0, 1.0])
    low, high = np.quantile(seen, [0.03, 0.97])
    return Normalize(low, high if high > low else low + 1)


def _latent_colours(reverse: bool) -> mpl.colors.Colormap:
    return mpl.colormaps[ink.LATENT_MAP].reversed() if reverse else mpl.colormaps[ink.LATENT_MAP]


def _latent_histogram(axes: Axes, z: Floats, edges: Floats, even: bool) -> None:
    counts = np.histogram(z, edges)[0] / z.size / (edges[1] - edges[0])
    axes.stairs(counts, edges, color="#8fa9cf", fill=True, lw=0, alpha=0.8)
    aimed_at = np.where(np.abs(edges) <= 1, 0.5, 0) if even else np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
    axes.plot(edges, aimed_at, color="#e6d9b8", lw=0.9, ls=(0, (3, 2)))
    axes.set_ylim(0, min(1.25 * counts.max(), 4.0) if counts.max() > 0 else 1)
    axes.set_yticks([])


def _latent_map(
    axes: Axes, x: Floats, y: Floats, colour: Floats | None, x_edges: Floats, y_edges: Floats, norm: Normalize, reverse: bool
) -> None:
    counts = np.histogram2d(x, y, (x_edges, y_edges))[0].T
    brightness = np.log1p(counts) / max(np.log1p(counts).max(), 1e-9)
    extent = (float(x_edges[0]), float(x_edges[-1]), float(y_edges[0]), float(y_edges[-1]))
    if colour is None:
        image = ink.DENSITY_MAP(brightness)
    else:
        seen = np.isfinite(colour)
        weights = np.histogram2d(x[seen], y[seen], (x_edges, y_edges), weights=colour[seen])[0].T
        coloured = np.histogram2d(x[seen], y[seen], (x_edges, y_edges))[0].T
        mean = np.where(coloured > 0, weights / np.maximum(coloured, 1), np.nan)
        image = _latent_colours(reverse)(norm(np.nan_to_num(mean, nan=float(norm.vmin or 0.0))))
        image[coloured == 0, :3] = 0.45  # stars without this colour: grey
    image[..., 3] = np.where(counts > 0, 0.28 + 0.72 * brightness, 0.0)
    axes.imshow(image, extent=extent, origin="lower", aspect="auto", interpolation="nearest")


def _outer_labels(axes: Axes, names: Sequence[str], row: int, column: int, k: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(3))
    if row < k - 1:
        axes.set_xticklabels([])
    else:
        axes.set_xlabel(names[column])
    if column > 0 or row == 0:
        axes.set_yticks([]) if column == row else axes.set_yticklabels([])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3))
    if column == 0:
        axes.set_ylabel(names[row])


# Two-sample tests ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ClassifierAuc:
    """AUC of one classifier on real against other stars: mean over seeds and folds, and the range of the repeats."""

    against: str
    classifier: str
    auc: float
    low: float
    high: float


CLASSIFIER_MARKERS = (("o", "#0b62a4"), ("D", "#d98200"), ("s", "#7a5195"), ("^", "#3b7d6e"))


def two_sample(results: Sequence[ClassifierAuc]) -> Figure:
    """A dot for each classifier with its 95 % interval, one row for each kind of star it was shown beside real
    ones; 0.5: the classifier guesses; 1: it is always right."""
    rows = list(dict.fromkeys(r.against for r in results))
    classifiers = list(dict.fromkeys(r.classifier for r in results))
    with mpl.rc_context(ink.STYLE):
        figure = ink.figure(9.4, 0.44 * len(rows) + 1.1)
        axes = figure.add_subplot()
        low = min(0.48, *(r.low for r in results))
        for y, row in enumerate(rows):
            axes.axhline(y, color=ink.RULE, lw=0.6, zorder=0)
            shown = [r for r in results if r.against == row]
            for r in shown:
                i = classifiers.index(r.classifier)
                marker, colour = CLASSIFIER_MARKERS[i % len(CLASSIFIER_MARKERS)]
                offset = (i - (len(classifiers) - 1) / 2) * 0.17
                axes.plot([r.low, r.high], [y + offset] * 2, color=colour, lw=1.4, alpha=0.7)
                axes.plot(r.auc, y + offset, marker, color=colour, ms=5, mew=0, label=r.classifier if row == rows[0] else None)
            top = max(r.auc for r in shown)
            axes.text(1.025, y, f"{top:.3f}", va="center", ha="left", fontsize=7.5, transform=axes.get_yaxis_transform())
        axes.axvline(0.5, color=ink.INK, lw=0.8, ls=(0, (4, 2)))
        axes.set_xlim(low - 0.01, 1.01)
        axes.set_ylim(len(rows) - 0.5, -0.6)
        axes.set_yticks(range(len(rows)), rows, fontsize=8, color=ink.INK)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("AUC   (0.5: indistinguishable from real stars;  1: every star is recognised)")
        ink.quiet(axes)
        axes.spines["left"].set_visible(False)
        axes.legend(
            frameon=False, fontsize=7.5, ncols=len(classifiers), loc="lower left", bbox_to_anchor=(0, 1.0), handletextpad=0.2
        )
        axes.text(
            1.025, -0.62, "largest", ha="left", va="bottom", fontsize=6.5, color=ink.MUTED, transform=axes.get_yaxis_transform()
        )
        return figure


# Bytes a star -------------------------------------------------------------------------------------------------------
PART_TONES = ("#b9b7b0", "#0b62a4", "#4f8fc4", "#8fb8dc", "#c2d8ea", "#d98200", "#efc27a", "#7a5195")


def byte_bars(bars: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bytes a star: one bar for each way of keeping it (name -> parts -> bytes), a part in one tone throughout."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    totals = [sum(bar.values()) for bar in bars.values()]
    with mpl.rc_context(ink.STYLE):
        figure = ink.figure(9.4, 0.36 * len(bars) + 0.85)
        axes = figure.add_subplot()
        for y, (bar, total) in enumerate(zip(bars.values(), totals, strict=True)):
            left = 0.0
            for part, size in bar.items():
                tone = PART_TONES[parts.index(part) % len(PART_TONES)]
                axes.barh(y, size, left=left, color=tone, height=0.6, edgecolor="white", lw=0.6)
                left += size
            axes.text(left, y, f"  {total:.1f}", va="center", fontsize=8)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=ink.INK)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, 1.09 * max(totals))
        axes.set_xlabel("bytes a star")
        ink.quiet(axes)
        axes.spines["left"].set_visible(False)
        swatches = [Patch(color=PART_TONES[i % len(PART_TONES)], label=part) for i, part in enumerate(parts)]
        axes.legend(
            handles=swatches,
            frameon=False,
            fontsize=7,
            ncols=len(parts),
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            handlelength=1.0,
        )
        return figure


def size_curve(sizes: Mapping[float, float], bound: float, size: float) -> Figure:
    """Bytes a star against the bound in units of the error, and the bound that was chosen with its size."""
    bounds = sorted(sizes)
    with mpl.rc_context(ink.STYLE):
        figure = ink.figure(4.6, 2.6)
        axes = figure.add_subplot()
        axes.plot(bounds, [sizes[b] for b in bounds], color=ink.REBUILT, marker="o", ms=3, lw=1.5)
        if bound > 0:
            axes.plot([bound], [size], marker="o", ms=8, mfc="none", mec=ink.INK, ls="none")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.1 * max(sizes.values()))
        axes.set_xlabel("bound, in units of each star's own error")
        axes.set_ylabel("bytes a star")
        axes.yaxis.grid(True, color=ink.RULE, lw=0.5)
        ink.quiet(axes)
        return figure


def rate_curves(lines: Mapping[str, Sequence[tuple[int, float]]], stored_bits: int) -> Figure:
    """Error against bits a star, a line a code, the first one the model's, with a ring at the bits that are stored."""
    with mpl.rc_context(ink.STYLE):
        figure = ink.figure(5.2, 2.9)
        axes = figure.subplots()
        colours = (ink.REBUILT, "#8f8c82", ink.BASELINE)
        for (label, points), colour in zip(lines.items(), colours, strict=False):
            bits, errors = np.array(points).T
            axes.plot(bits, errors, color=colour, marker="o", ms=3, label=label)
            if label == next(iter(lines)):
                at = np.exp(np.interp(stored_bits, bits, np.log(np.maximum(errors, 1e-12))))
                axes.plot([stored_bits], [at], "o", ms=8, mfc="none", color=colour)
        axes.set_yscale("log")
        axes.set_xlabel("bits a star")
        axes.set_ylabel("error / IQR")
        axes.yaxis.grid(True, color=ink.RULE, lw=0.5)
        axes.set_axisbelow(True)
        ink.quiet(axes)
        axes.legend(frameon=False, fontsize=7, loc="best")
        return figure
