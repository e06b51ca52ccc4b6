"""The section on new, made-up stars: beside the real test stars in the HR diagram, on the sky, and column by column."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from gaiadask.release.column import DEC, RA
from gaiadask.report import ink, pictures
from gaiadask.report.inputs import ReportInputs, colour_magnitude, numbers
from gaiadask.report.markup import absent, count, figure, multiples, number, section, share
from gaiadask.report.pictures import Pair
from gaiadask.report.reading import SAMPLED, dig

TITLE, ANCHOR = "New stars", "new-stars"
KEY = '<span class="key real"></span>real test stars &nbsp; <span class="key sampled"></span>new stars'
_WORDS = {
    "latent": "latents from a flow, and what they leave out from another",
    "gaussian": "latents from N(0, 1), nothing beside: for comparison",
    "free": "a flow on the transformed columns, without latents",
}


def new_stars(inputs: ReportInputs) -> str:
    """What the run's prior draws, beside what is there."""
    sampled = inputs.rated.sampled
    if sampled is None:
        return section(ANCHOR, TITLE, absent('No new stars: the run was asked for no prior (<code>prior.kind = "none"</code>).'))
    intro = f"<p>{_intro(inputs, sampled)}</p>"
    return section(ANCHOR, TITLE, intro, _hr(inputs, sampled), _sky(inputs, sampled), _marginals(inputs, sampled))


def _intro(inputs: ReportInputs, sampled: pa.Table) -> str:
    config = inputs.config.prior
    drawn = _WORDS[config.kind] if config.kind != "latent" or config.residuals else "latents from a flow, nothing beside"
    pieces = [
        f"<b>{count(sampled.num_rows)} stars that never were</b>, drawn position by position from the train stars’ density, then "
        f"{drawn}; derived columns computed."
    ]
    ks = dig(inputs.quality, "sampling", "ks") or {}
    if ks.get("mean") is not None:
        pieces.append(
            f"KS distance to the real test stars {ks['mean']:.3f} on average, {ks['worst']:.3f} at worst ({ks['worst_column']})."
        )
    classifiers = dig(inputs.quality, "two_sample", "comparisons", SAMPLED, "classifiers") or {}
    if classifiers:
        named = {"raw": "trees on raw columns", "physics": "trees with physics", "mlp": "a neural network"}
        told = ", ".join(f"{named.get(k, k)} <b>{v['mean']:.3f}</b>" for k, v in classifiers.items() if v.get("mean") is not None)
        pieces.append(f"AUC of a classifier that is to tell them from real stars: {told} (0.5 = cannot).")
    nearer = dig(inputs.quality, "sampling", "nearer_to_train")
    if nearer is not None:
        pieces.append(f"{share(nearer)} of them lie nearer to a train star than to a test star (50 % is right: nothing is copied).")
    return " ".join(pieces)


def _hr(inputs: ReportInputs, sampled: pa.Table) -> str:
    panels = {"real": colour_magnitude(inputs.rated.real), "new": colour_magnitude(sampled)}
    known = {name: points for name, points in panels.items() if points is not None and points[0].size >= 10}
    if len(known) < 2:
        return absent("No HR diagram: it needs a colour and a parallax among the model’s columns.")
    caption = (
        f"{count(known['real'][0].size)} real test stars and {count(known['new'][0].size)} new ones with a colour and a parallax above 0, "
        "on one logarithmic scale; the last panel is new minus real in units of their Poisson noise: amber where there are too many "
        "new stars, blue where too few. Noise alone gives about ±1."
    )
    return figure(
        ink.png_uri(pictures.hr_diagram(known)), "HR diagram of real and new stars, and their difference", caption, "dark"
    )


def _sky(inputs: ReportInputs, sampled: pa.Table) -> str:
    maps: dict[str, Any] = {}
    for title, table in (("real test stars", inputs.rated.real), ("new stars", sampled)):
        if not {RA, DEC} <= set(table.column_names):
            return ""
        maps[title] = pictures.count_on_sky(numbers(table, RA), numbers(table, DEC))
    distance = dig(inputs.quality, "joint", "sky", SAMPLED, "in_units_of_real")
    unit = f" Their histogram distance is {number(distance, 3)} times that of real stars from other real ones." if distance else ""
    caption = f"Mollweide projection in galactic coordinates.{unit}"
    return figure(ink.png_uri(pictures.sky_map(maps)), "Real and new stars on the sky", caption, "dark")


def _marginals(inputs: ReportInputs, sampled: pa.Table) -> str:
    shown = []
    for name in inputs.columns:
        if name not in sampled.column_names:
            continue
        ks = dig(inputs.quality, "sampling", "columns", name, "ks")
        pair = Pair(name, numbers(inputs.rated.real, name), numbers(sampled, name))
        picture = pictures.marginal(pair, ks, ink.SAMPLED, "new")
        shown.append(figure(ink.svg_uri(picture), f"Distribution of {name}, real and new stars"))
    return f"<p>{KEY}</p>{multiples(shown)}"
