"""report.html: one page that holds everything it shows, and asks nothing of the network."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from string import Template

from gaiadask.report import new_stars, sections, tables, walks
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import count, escape, number
from gaiadask.report.reading import BASELINE, MEASURES, REBUILT, ahead_of_baseline, baseline_name, dig, has_baseline, headline

# In the order of the page: anchor, name in the navigation, the function that makes it.
SECTIONS: tuple[tuple[str, str, Callable[[ReportInputs], str]], ...] = (
    ("distributions", "Distributions", sections.distributions),
    ("hr", "HR diagram", sections.hr_diagram),
    ("sky", "Sky", sections.sky),
    ("residuals", "Residuals", sections.residuals),
    ("magnitude", "Magnitude", sections.error_against_magnitude),
    ("new-stars", "New stars", new_stars.new_stars),
    ("training", "Training", sections.training),
    ("latents", "Latents", sections.latents),
    ("walks", "Walks", walks.walks),
    ("quality", "Columns", tables.quality_table),
    ("two-sample", "Real or made", tables.two_sample),
    ("bytes", "Bytes", tables.storage),
    ("provenance", "Provenance", tables.provenance),
)


def render(inputs: ReportInputs) -> str:
    """The whole page as HTML text: style and pictures inline, no script, nothing fetched."""
    package = files("gaiadask.report")
    template = Template(package.joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{inputs.config.name}: gaiadask report"),
        style=package.joinpath("style.css").read_text(encoding="utf-8"),
        kicker="gaiadask report" + (" · made-up stars" if inputs.is_made_up else " · Gaia stars"),
        name=escape(inputs.config.name),
        warning=f'<p class="madeup"><b>Made-up stars.</b>{escape(tables.MADE_UP.removeprefix("Made-up stars."))}</p>'
        if inputs.is_made_up
        else "",
        verdict=verdict(inputs),
        tiles="".join(tile(*content) for content in tiles(inputs)),
        navigation="".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in SECTIONS),
        sections="\n".join(make(inputs) for _, _, make in SECTIONS),
        footer=_footer(inputs),
    )


def _footer(inputs: ReportInputs) -> str:
    when = tables.finished(inputs.manifest)
    credit = tables.MADE_UP if inputs.is_made_up else tables.GAIA_CREDIT
    return f"<p>{escape(credit)}</p><p>Written by gaiadask{f', {escape(when)}' if when else ''}.</p>"


# The verdict --------------------------------------------------------------------------------------------------------
def verdict(inputs: ReportInputs) -> str:
    """One sentence: how many stars were rated, how large the error is, whether a classifier can tell, how PCA does."""
    quality = inputs.quality
    clauses = [
        f"On <b>{count(inputs.stars)}</b> test stars that training never saw, <b>{inputs.latents} latents</b> "
        f"{_error_clause(inputs)}",
        *_auc_clause(inputs),
        *_new_stars_clause(inputs),
        *_baseline_clause(inputs),
    ]
    few = " With so few stars these numbers are rough." if (quality.get("stars") or inputs.stars) < 2_000 else ""
    return "; ".join(clauses) + "." + few


def _error_clause(inputs: ReportInputs) -> str:
    mean, worst, column, columns = (
        headline(inputs.quality, REBUILT, "median", s) for s in ("mean", "worst", "worst_column", "columns")
    )
    if mean is None or worst is None:
        return "were rated, but some columns came back without a finite median error (see the table)"
    return (
        f"give back {columns} columns to a median error of <b>{number(100 * mean)} %</b> of their interquartile range on average, "
        f"<b>{number(100 * worst)} %</b> in the worst ({escape(column)})"
    )


def _auc_clause(inputs: ReportInputs) -> list[str]:
    rebuilt = dig(inputs.quality, "two_sample", "comparisons", "rebuilt")
    if not rebuilt or rebuilt.get("auc") is None:
        return []
    auc, real = rebuilt["auc"], dig(inputs.quality, "two_sample", "comparisons", "real", "auc")
    return [f"a classifier {auc_words(auc, real)} at an AUC of <b>{auc:.3f}</b> (0.5 = indistinguishable)"]


def _new_stars_clause(inputs: ReportInputs) -> list[str]:
    sampled, real = (dig(inputs.quality, "two_sample", "comparisons", what, "auc") for what in ("sampled", "real"))
    if sampled is None:
        return []
    return [f"and {auc_words(sampled, real, 'new')} at <b>{sampled:.3f}</b>"]


def auc_words(auc: float, real: float | None, made: str = "rebuilt") -> str:
    """What an AUC means; `real`: that of real stars against other real stars, None where unknown. made: which stars."""
    if auc <= max(0.51, (real or 0.5) + 0.01):
        return f"cannot tell {made} stars from real ones"
    for bound, words in ((0.6, "can hardly tell"), (0.75, "tells some"), (0.9, "tells many"), (0.98, "tells most")):
        if auc < bound:
            return f"{words} {made} stars from real ones"
    return f"tells nearly all {made} stars from real ones"


def _baseline_clause(inputs: ReportInputs) -> list[str]:
    ahead = ahead_of_baseline(inputs.quality)
    if ahead is None:
        return []
    name = escape(baseline_name(inputs.quality))
    if len(ahead) == len(MEASURES):
        return [f"it is ahead of {name}, the linear model of the same width, in mean and worst error and KS"]
    if not ahead:
        return [f"{name}, the linear model of the same width, does better in mean and worst error and KS"]
    return [f"it is ahead of {name}, the linear model of the same width, in {' and '.join(ahead)} only"]


# Tiles --------------------------------------------------------------------------------------------------------------
def tile(label: str, value: str, note: str) -> str:
    """A headline number; `value` and `note` are HTML."""
    return f'<div class="tile"><dt>{escape(label)}</dt><dd>{value}</dd><dd class="note">{note}</dd></div>'


def tiles(inputs: ReportInputs) -> list[tuple[str, str, str]]:
    """Label, value and note of the headline tiles."""
    quality = inputs.quality
    mean, worst = (headline(quality, REBUILT, "median", s) for s in ("mean", "worst"))
    column = headline(quality, REBUILT, "median", "worst_column")
    return [
        ("Median error over IQR, mean of columns", _percent(mean), f"worst {_percent(worst)}, {escape(column or '–')}"),
        ("Largest KS distance", _ks(headline(quality, REBUILT, "ks", "worst")), f"{escape(headline(quality, REBUILT, 'ks', 'worst_column') or '–')}; "
         f"mean {_ks(headline(quality, REBUILT, 'ks', 'mean'))}"),
        _baseline_tile(inputs),
        _auc_tile(inputs),
        _bytes_tile(inputs),
        ("Test stars rated", count(inputs.stars), _of_how_many(inputs)),
    ]  # fmt: skip


def _baseline_tile(inputs: ReportInputs) -> tuple[str, str, str]:
    quality = inputs.quality
    if not has_baseline(quality):
        return "Against PCA", "–", "no baseline was rated"
    ahead = ahead_of_baseline(quality)
    mean, ks = headline(quality, BASELINE, "median", "mean"), headline(quality, BASELINE, "ks", "worst")
    value = "–" if ahead is None else f"{len(ahead)} of {len(MEASURES)}"
    name = baseline_name(quality)
    return f"Measures ahead of {name}", value, f"{escape(name)}: error {_percent(mean)}, KS {_ks(ks)}"


def _auc_tile(inputs: ReportInputs) -> tuple[str, str, str]:
    rebuilt = dig(inputs.quality, "two_sample", "comparisons", "rebuilt") or {}
    if rebuilt.get("auc") is None:
        return "AUC, real against rebuilt", "–", "not tested"
    real = dig(inputs.quality, "two_sample", "comparisons", "real", "auc")
    spread = f" ± {rebuilt['spread']:.3f}" if rebuilt.get("spread") is not None else ""
    beside = f"; real against real gives {real:.3f}" if real is not None else ""
    value = f"{rebuilt['auc']:.3f}<small>{spread}</small>"
    return "AUC, real against rebuilt", value, f"0.5 = indistinguishable{beside}"


def _bytes_tile(inputs: ReportInputs) -> tuple[str, str, str]:
    in_memory = dig(inputs.quality, "storage", "in_memory")
    if not in_memory:
        return "Bytes a star", "–", "not known"
    plain = tables.same_columns_bytes(inputs)
    note = f"{plain / in_memory:.1f} times smaller than its {len(inputs.columns)} columns ({plain} bytes)"
    return "Bytes a star, all counted", f"{in_memory:.1f}", note


def _of_how_many(inputs: ReportInputs) -> str:
    whole = inputs.rows.get("encoded") or inputs.rows.get("written")
    return f"of {count(whole)} in the catalogue, a tenth of them test stars" if whole else "none seen in training"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{number(100 * value)}\u202f%"


def _ks(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
