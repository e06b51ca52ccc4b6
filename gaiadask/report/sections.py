"""The page's sections with pictures: each a function of the inputs that returns HTML, and says why where it cannot draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gaiadask.release.column import DEC, RA
from gaiadask.report import diagrams, ink, pictures
from gaiadask.report.diagrams import Curve
from gaiadask.report.ink import Floats
from gaiadask.report.inputs import (
    SCATTER_STARS,
    ReportInputs,
    baseline_residual,
    colour_magnitude,
    numbers,
    positions_are_rebuilt,
    residual,
    sigma_of,
)
from gaiadask.report.markup import absent, count, escape, figure, multiples, section
from gaiadask.report.reading import REBUILT, baseline_name, dig, ratings
from gaiadask.sky import galactic

KEY = '<span class="key real"></span>real stars &nbsp; <span class="key rebuilt"></span>rebuilt from the latents'
BASELINE_KEY = ' &nbsp; <span class="key baseline"></span>'
CORNER_LATENTS = 6
MAGNITUDE_BINS = 16
TREND_FLOOR, TREND_CEILING = 1e-5, 1e2


# Marginals ----------------------------------------------------------------------------------------------------------
def distributions(inputs: ReportInputs) -> str:
    """Real and rebuilt distribution of every model column."""
    rated = ratings(inputs.quality, REBUILT)
    shown = []
    for name in inputs.columns:
        pair = inputs.pair(name)
        ks = dig(rated, name, "ks")
        text = f"Distribution of {name}, real and rebuilt" + (f"; Kolmogorov-Smirnov distance {ks:.3f}" if ks is not None else "")
        shown.append(figure(ink.svg_uri(pictures.marginal(pair, ks)), text))
    carried = "" if positions_are_rebuilt(inputs) else " Positions are carried beside the latents, so ra and dec are the real ones."
    return section(
        "distributions",
        "Distributions",
        f"<p>{KEY}. Each panel spans the middle 99.4 % of the real stars; fluxes and other wide columns are on a log axis. "
        f"KS is the largest distance between the two cumulative distributions: 0 alike, 1 apart.{carried}</p>",
        multiples(shown),
    )


# HR diagram ---------------------------------------------------------------------------------------------------------
def hr_diagram(inputs: ReportInputs) -> str:
    """The Hertzsprung-Russell diagram of the same stars, real, rebuilt, by the baseline, and the difference."""
    title, anchor = "Hertzsprung–Russell diagram", "hr"
    tables = {"real": inputs.rated.real, "rebuilt": inputs.rated.rebuilt}
    if inputs.rated.baseline is not None:
        tables[baseline_name(inputs.quality)] = inputs.rated.baseline
    found = {name: colour_magnitude(table) for name, table in tables.items()}
    panels = {name: points for name, points in found.items() if points is not None and points[0].size >= 10}
    if "real" not in panels or "rebuilt" not in panels:
        why = (
            "No HR diagram: it needs <code>bp_rp</code>, <code>phot_g_mean_flux</code> and <code>parallax</code> "
            "among the model's columns, and at least ten stars that have all three."
        )
        return section(anchor, title, absent(why))
    real = panels["real"][0].size
    caption = (
        f"{count(real)} of {count(inputs.stars)} rated stars have a colour and a parallax above 0. M<sub>G</sub> without extinction "
        "correction. All counts on one logarithmic scale; the last panel is rebuilt minus real in units of their Poisson noise: "
        "amber where the model puts too many stars, blue where too few."
    )
    picture = ink.png_uri(pictures.hr_diagram(panels))
    return section(anchor, title, figure(picture, f"HR diagram: {', '.join(panels)}, and their difference", caption, "dark"))


# Sky ----------------------------------------------------------------------------------------------------------------
def sky(inputs: ReportInputs) -> str:
    """Star density of the catalogue; of the rated stars real and rebuilt where the model rebuilds positions."""
    maps: dict[str, Any] = {}
    real = inputs.rated.real
    if positions_are_rebuilt(inputs):
        rebuilt = inputs.rated.rebuilt
        maps["real test stars"] = pictures.count_on_sky(numbers(real, RA), numbers(real, DEC))
        maps["rebuilt, positions from the network"] = pictures.count_on_sky(numbers(rebuilt, RA), numbers(rebuilt, DEC))
        note = "The rated test stars: positions as in the catalogue, and as the network gives them back."
    elif inputs.sky_counts is not None:
        maps["all stars of the catalogue"] = inputs.sky_counts
        note = f"All {count(float(inputs.sky_counts.sum()))} stars of the catalogue."
    elif {RA, DEC} <= set(real.column_names):
        maps["rated test stars"] = pictures.count_on_sky(numbers(real, RA), numbers(real, DEC))
        note = f"The {count(inputs.stars)} rated test stars."
    if not maps or not any(np.any(counts) for counts in maps.values()):
        return section("sky", "Sky", absent("No map of the sky: no star has both <code>ra</code> and <code>dec</code>."))
    caption = (
        f"{note} Mollweide projection in galactic coordinates, the centre of the Galaxy in the middle, longitude growing to "
        "the left. HEALPix pixels coarse enough to hold a few stars each; dark is empty."
    )
    return section("sky", "Sky", figure(ink.png_uri(pictures.sky_map(maps)), "Star density on the sky", caption, "dark"))


# Residuals ----------------------------------------------------------------------------------------------------------
def residuals(inputs: ReportInputs) -> str:
    """(rebuilt - real) / sigma of every column with a catalogue error."""
    shown, exact = [], []
    dec = _declination(inputs)
    for name in inputs.columns:
        sigma = sigma_of(inputs.rated.real, name)
        if sigma is None:
            continue
        in_sigma = residual(inputs.pair(name), dec) / sigma
        in_sigma = in_sigma[np.isfinite(in_sigma)]
        if not in_sigma.size:
            continue
        if not in_sigma.any():
            exact.append(f"<code>{escape(name)}</code>")
            continue
        within = float(np.mean(np.abs(in_sigma) <= 1))
        text = f"Residuals of {name} in units of its catalogue error: {within:.1%} within 1 sigma"
        shown.append(figure(ink.svg_uri(pictures.residual_sigma(name, in_sigma)), text))
    if not shown and not exact:
        why = "No residuals in σ: no model column has its catalogue error (<code>…_error</code>) in the catalogue."
        return section("residuals", "Residuals in σ", absent(why))
    carried = f" Carried exactly, so not drawn: {', '.join(exact)}." if exact else ""
    return section(
        "residuals",
        "Residuals in σ",
        '<p>(rebuilt − real) / σ, with σ each star’s own error in the catalogue. <span class="key real"></span>a unit normal, for '
        "comparison; counts are logarithmic, the end bins hold all beyond 6σ. A star rebuilt within 1σ is as good as measured "
        f"again; a normal has 68.3 % there and 0.27 % beyond 3σ.{carried}</p>",
        multiples(shown),
    )


def _declination(inputs: ReportInputs) -> Floats | None:
    return numbers(inputs.rated.real, DEC) if DEC in inputs.rated.real.column_names else None


def error_against_magnitude(inputs: ReportInputs) -> str:
    """Median and 90 % of the error over the IQR in bins of G, every column on one scale."""
    title, anchor = "Error against magnitude", "magnitude"
    g_mag = inputs.g_mag
    if g_mag is None or np.isfinite(g_mag).sum() < 50:
        why = "No errors against magnitude: they need <code>phot_g_mean_flux</code> and at least fifty stars that have it."
        return section(anchor, title, absent(why))
    trends = {name: found for name in inputs.columns if (found := _trend(inputs, name, g_mag)) is not None}
    if not trends:
        return section(anchor, title, absent("Nothing to draw: every column is rebuilt exactly, or has no spread."))
    limits = _common_limits([t for pair in trends.values() for t in pair if t is not None])
    shown = [
        figure(
            ink.svg_uri(pictures.error_against_magnitude(name, model, baseline, limits)),
            f"Error of {name} over its interquartile range against G magnitude",
        )
        for name, (model, baseline) in trends.items()
    ]
    baseline = f"{BASELINE_KEY}median of {escape(baseline_name(inputs.quality))}" if inputs.rated.baseline else ""
    return section(
        anchor,
        title,
        f'<p><span class="key rebuilt"></span>median of |rebuilt − real| over the column’s interquartile range, the band reaching '
        f"up to its 90 %{baseline}. Against G in magnitudes, faint stars to the right; one logarithmic scale for all.</p>",
        multiples(shown),
    )


def _trend(inputs: ReportInputs, name: str, g_mag: Floats) -> tuple[pictures.ErrorTrend, pictures.ErrorTrend | None] | None:
    pair, dec = inputs.pair(name), _declination(inputs)
    real = pair.real[np.isfinite(pair.real)]
    iqr = float(np.subtract(*np.quantile(real, [0.75, 0.25]))) if real.size else 0.0
    error = np.abs(residual(pair, dec))
    if iqr <= 0 or not np.nan_to_num(error).any():
        return None
    known = g_mag[np.isfinite(g_mag)]
    bins = int(np.clip(known.size // 60, 4, MAGNITUDE_BINS))
    low, high = np.quantile(known, [0.005, 0.995])
    edges = np.linspace(low, high, bins + 1)
    model = pictures.ErrorTrend.of(g_mag, error / iqr, edges)
    by_baseline = baseline_residual(pair, dec)
    baseline = None if by_baseline is None else pictures.ErrorTrend.of(g_mag, np.abs(by_baseline) / iqr, edges)
    return (model, baseline) if np.isfinite(model.median).any() else None


def _common_limits(trends: Sequence[pictures.ErrorTrend]) -> tuple[float, float]:
    values = np.concatenate([np.concatenate([t.median, t.p90]) for t in trends])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return TREND_FLOOR, 1.0
    low, high = 10 ** np.floor(np.log10(values.min())), 10 ** np.ceil(np.log10(values.max()))
    return float(max(low, TREND_FLOOR)), float(min(max(high, 10 * low), TREND_CEILING))


# Training -----------------------------------------------------------------------------------------------------------
def training(inputs: ReportInputs) -> str:
    """Loss, reconstruction and KL apart against stars shown; what each latent costs."""
    panels = {title: curves for title, keys in _PANELS.items() if (curves := _curves(inputs.metrics, keys))}
    parts = []
    if panels:
        caption = _training_caption(inputs)
        parts.append(
            figure(ink.svg_uri(diagrams.training_curves(panels)), f"Training curves: {', '.join(panels)}", caption, "wide")
        )
    else:
        parts.append(absent("No training curves: the run’s <code>metrics.jsonl</code> holds no records."))
    return section("training", "Training", *parts, _kl_per_latent(inputs))


_PANELS: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "loss  [nats a star]": (("train_loss", "training", False), ("validation_loss", "validation", True)),
    "reconstruction  [nats a star]": (
        ("train_reconstruction", "training", False),
        ("validation_reconstruction", "validation", True),
    ),
    "KL  [nats a star]": (("train_kl", "training", False), ("validation_kl", "validation", True)),
}


def _curves(metrics: Sequence[Mapping[str, Any]], keys: Sequence[tuple[str, str, bool]]) -> list[Curve]:
    curves = []
    for key, label, validation in keys:
        points = [(r["rows_seen"], r[key]) for r in metrics if r.get(key) is not None and r.get("rows_seen") is not None]
        if points and (not key.endswith("kl") or any(value for _, value in points)):
            rows, values = np.array(points, np.float64).T
            curves.append(Curve(label, rows, values, validation))
    return curves


def _training_caption(inputs: ReportInputs) -> str:
    last, told = inputs.metrics[-1], dig(inputs.card, "training") or {}
    pieces = ["Loss = reconstruction + KL weight × KL; training values are means since the validation before."]
    if seen := last.get("rows_seen"):
        pieces.append(f"{count(seen)} stars shown in all")
    if best := told.get("best_rows_seen"):
        pieces.append(f"; the model kept is the one at {count(best)}")
    if told.get("stopped_early"):
        pieces.append(", where training stopped early")
    if seconds := told.get("seconds") or last.get("seconds"):
        pieces.append(f"; {seconds / 60:.1f} minutes of training")
    return pieces[0] + " " + "".join(pieces[1:]) + "."


def _kl_per_latent(inputs: ReportInputs) -> str:
    recorded = (record["latents"] for record in reversed(inputs.metrics) if record.get("latents"))
    told: Sequence[Mapping[str, Any]] = inputs.card.get("latents") or next(recorded, ())
    kl = [float(latent.get("kl") or 0.0) for latent in told]
    active = dig(inputs.card, "metrics", "active_units")
    used = f"{len(kl)} latents."
    if active is not None:
        used = f"{count(active)} of {len(kl)} latents are in use (the variance of their mean over stars is above 0.01)."
    if not any(kl):
        why = "No KL term: the model is a plain autoencoder, or its card does not tell what each latent costs."
        return f'<p class="note">{used if kl else ""} {why}</p>'
    caption = f"{used} Together they cost {sum(kl):.1f} nats, {sum(kl) / np.log(2):.0f} bits a star."
    return "<h3>What each latent costs</h3>" + figure(
        ink.svg_uri(diagrams.kl_bars(latent_names(len(kl)), kl)), "KL divergence of each latent", caption, "half"
    )


# Latents ------------------------------------------------------------------------------------------------------------
def latent_names(latents: int) -> list[str]:
    """As the latent catalogue calls them."""
    return [f"z{i:02d}" for i in range(latents)]


def latents(inputs: ReportInputs) -> str:
    """Corner plots of the latents that vary most, coloured by temperature, by magnitude and by position."""
    rows = inputs.scatter_rows
    z = np.asarray(inputs.rated.latents, np.float64)[rows]
    if not np.isfinite(z).all() or len(z) < 20:
        return section("latents", "Latents", absent("No picture of the latents: fewer than twenty stars, or some are not finite."))
    chosen = diagrams.largest_variance(z, CORNER_LATENTS)
    names = [latent_names(inputs.latents)[i] for i in chosen]
    which = (
        f"The {len(chosen)} of {inputs.latents} latents that vary most between stars"
        if len(chosen) < inputs.latents
        else "All latents"
    )
    sample = f", {count(SCATTER_STARS)} of the rated stars (those of smallest hash)" if inputs.stars > SCATTER_STARS else ""
    kind = "dark half" if len(chosen) < 5 else "dark"
    shown = []
    for tint in _tints(inputs):
        colour = None if tint.values is None else tint.values[rows]
        corner = diagrams.latent_corner(z[:, chosen], names, colour, tint.label, tint.reverse)
        known = "; grey: stars without one" if colour is not None and np.isnan(colour).any() else ""
        caption = (
            f"{which}{sample}. Colour: mean {escape(tint.label)} of the stars in a cell, brighter where they crowd{known}. On the "
            "diagonal each latent’s distribution beside a unit normal (dashed), which is what a VAE is asked for."
        )
        text = f"Corner plot of {', '.join(names)}, coloured by {tint.label}"
        shown.append((tint.label, figure(ink.png_uri(corner, 130), text, caption, kind)))
    others = [f"<details><summary>The same by {escape(label)}</summary>{picture}</details>" for label, picture in shown[1:]]
    return section("latents", "Latents", shown[0][1], *others)


class Tint(NamedTuple):
    """What latents are coloured by: values, shape (stars,), NaN where unknown (None: density alone), its label, and whether
    small values are the hot, blue ones."""

    values: Floats | None
    label: str
    reverse: bool


def _tints(inputs: ReportInputs) -> list[Tint]:
    """Temperature, magnitude and galactic latitude, where enough stars have them."""
    real = inputs.rated.real
    found = []
    if "teff_val" in real.column_names:
        found.append(Tint(numbers(real, "teff_val"), "effective temperature  [K]", False))
    if inputs.g_mag is not None:
        found.append(Tint(inputs.g_mag, "G  [mag]", True))
    if {RA, DEC} <= set(real.column_names):
        found.append(Tint(galactic(numbers(real, RA), numbers(real, DEC))[1], "galactic latitude  [°]", False))
    known = [tint for tint in found if tint.values is not None and np.isfinite(tint.values).sum() >= 20]
    return known or [Tint(None, "number", False)]
