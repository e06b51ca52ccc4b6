"""The page's sections with tables: quality by column, two-sample tests and joint structure, bytes a star, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gaiadask.config.toml import dump_toml
from gaiadask.release.column import DEC, RA
from gaiadask.report import diagrams, ink
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import Cell, Row, absent, count, escape, facts, figure, number, section, share, table
from gaiadask.report.reading import (
    BASELINE,
    REBUILT,
    SAMPLED,
    baseline_name,
    dig,
    has_baseline,
    headline,
    ratings,
    row_bytes,
    two_sample_results,
)
from gaiadask.split import RULE

ERROR_KEYS = ("median", "p90", "p99", "max")
GAIA_CREDIT = (
    "This work has made use of data from the European Space Agency (ESA) mission Gaia, processed by the Gaia Data Processing "
    "and Analysis Consortium (DPAC). Funding for the DPAC has been provided by national institutions, in particular the "
    "institutions participating in the Gaia Multilateral Agreement."
)
MADE_UP = "Made-up stars. Everything on this page comes from gaiadask’s mock sky. None of it is a measurement of a real star."


# Quality by column --------------------------------------------------------------------------------------------------
def quality_table(inputs: ReportInputs) -> str:
    """Errors and KS of each column, the model beside PCA."""
    model, pca = ratings(inputs.quality, REBUILT), ratings(inputs.quality, BASELINE)
    if not model:
        return section("quality", "Column by column", absent("No ratings: <code>quality.json</code> holds none."))
    name = baseline_name(inputs.quality)
    rows = [_column_row(column, rating, pca.get(column)) for column, rating in model.items()]
    for part in ("beside_position", "all_columns"):
        rows += [_summary_row(inputs.quality, part, statistic, bool(pca)) for statistic in ("mean", "worst")]
    note = (
        "|error| / IQR in per cent of the interquartile range of the real values; in σ: |error| over the star’s own catalogue error. "
        "† computed from other rebuilt columns. ra is rated on Δα·cos δ, the short way round; the first mean and worst leave ra and dec out."
    )
    if pca:
        note += f" {name}: dask-ml’s PCA of the very inputs that the network sees, derived columns recomputed alike. Bold: the better one."
    parts = [f'<p class="note">{note}{_position_note(inputs.quality)}{_lost_note(model)}</p>']
    whole = table(_quality_head(None), [_column_row(column, rating, None) for column, rating in pca.items()])
    beside = f"<details><summary>{escape(name)} by the same measures</summary>{whole}</details>" if pca else ""
    return section("quality", "Column by column", table(_quality_head(name if pca else None), rows), *parts, beside)


def _quality_head(baseline: str | None) -> str:
    errors = "<th class='first'>median</th><th>90 %</th><th>99 %</th><th>max</th>".replace("'", '"')
    sigmas = '<th class="first">median</th><th>90 %</th><th>≤ 1σ</th><th>&gt; 3σ</th>'
    first = '<tr><th rowspan="2">column</th><th class="group" colspan="4">|error| / IQR  [%]</th>'
    first += '<th class="group" colspan="4">error in σ</th><th class="group">KS</th>'
    second = f'<tr>{errors}{sigmas}<th class="first">model</th>'
    if baseline:
        first += f'<th class="group" colspan="4">{escape(baseline)}: |error| / IQR  [%], KS</th>'
        second += '<th class="first">median</th><th>90 %</th><th>99 %</th><th>KS</th>'
    return f"{first}</tr>{second}</tr>"


def _column_row(name: str, rating: Mapping[str, Any], pca: Mapping[str, Any] | None) -> Row:
    head = f"{escape(name)}{'†' if rating.get('derived') else ''}"
    if unit := ink.pretty_unit(name):
        head += f' <span class="unit">{escape(unit)}</span>'
    errors = [
        _compared(dig(rating, "error_over_iqr", k), dig(pca, "error_over_iqr", k) if k != "max" else None) for k in ERROR_KEYS
    ]
    sigma = rating.get("error_in_sigma") or {}
    cells = _first([Cell(_percent(value), kind) for value, kind in errors])
    cells += _first([Cell(number(sigma.get(k))) for k in ("median", "p90")] + [
        Cell(share(sigma.get("within_1_sigma"))), Cell(share(sigma.get("beyond_3_sigma"), 2))
    ])  # fmt: skip
    ks, kind = _compared(rating.get("ks"), dig(pca, "ks"))
    cells += _first([Cell(_ks(ks), kind)])
    if pca is not None:
        theirs = [_compared(dig(pca, "error_over_iqr", k), dig(rating, "error_over_iqr", k)) for k in ERROR_KEYS[:3]]
        their_ks, kind = _compared(pca.get("ks"), rating.get("ks"))
        cells += _first([*(Cell(_percent(value), k) for value, k in theirs), Cell(_ks(their_ks), kind)])
    return Row(head, cells, "aside" if name in (RA, DEC) else "")


def _summary_row(quality: Mapping[str, Any], part: str, statistic: str, baseline: bool) -> Row:
    columns = headline(quality, REBUILT, "median", "columns", part)
    values = {
        what: {k: headline(quality, what, k, statistic, part) for k in ("median", "p90", "p99", "ks")}
        for what in (REBUILT, BASELINE)
    }
    ours, theirs = values[REBUILT], values[BASELINE]
    cells = [Cell(_percent(v), kind) for v, kind in (_compared(ours[k], theirs[k]) for k in ("median", "p90", "p99"))]
    ks, kind = _compared(ours["ks"], theirs["ks"])
    cells = [*_first([*cells, Cell("")]), *_first([Cell("")] * 4), *_first([Cell(_ks(ks), kind)])]
    if baseline:
        pairs = [_compared(theirs[k], ours[k]) for k in ("median", "p90", "p99", "ks")]
        cells += _first([Cell(_ks(v) if i == 3 else _percent(v), kind) for i, (v, kind) in enumerate(pairs)])
    return Row(f"{statistic} of {columns if columns is not None else '–'}", cells, "total" if statistic == "mean" else "")


def _compared(ours: float | None, theirs: float | None) -> tuple[float | None, str]:
    """A number, and a class where it is clearly (by more than 2 %) the better of the two."""
    is_better = ours is not None and theirs is not None and ours < 0.98 * theirs
    return ours, "better" if is_better else ""


def _first(cells: list[Cell]) -> list[Cell]:
    """The cells with a rule to the left of the group."""
    return [Cell(cells[0].html, f"first {cells[0].classes}".strip()), *cells[1:]]


def _percent(value: float | None) -> str:
    return number(None if value is None else 100 * value)


def _ks(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _position_note(quality: Mapping[str, Any]) -> str:
    arcsec = dig(quality, "reconstruction", REBUILT, "position_error_arcsec")
    if not arcsec or arcsec.get("median") is None:
        return ""
    if arcsec.get("max") == 0:
        return " Positions are carried beside the latents, to the bit."
    worst = number(arcsec.get("max"), 3)
    return (
        f" Rebuilt positions lie {number(arcsec['median'], 3)}″ (median), {number(arcsec.get('p90'), 3)}″ (90 %), {worst}″ (at most) "
        "from the catalogue’s."
    )


def _lost_note(model: Mapping[str, Any]) -> str:
    lost = sum(rating.get("lost") or 0 for rating in model.values())
    invented = sum(rating.get("invented") or 0 for rating in model.values())
    if not lost and not invented:
        return ""
    return f" <b>{count(lost)} values were lost and {count(invented)} invented</b>; each counts as an infinite error (–)."


# Real or rebuilt? ---------------------------------------------------------------------------------------------------
def two_sample(inputs: ReportInputs) -> str:
    """AUCs with their yardsticks, and joint structure."""
    results = two_sample_results(inputs.quality)
    title, anchor = "Can made stars be told from real ones?", "two-sample"
    joint = _joint_table(inputs) + _velocities(inputs)
    if not results:
        why = dig(inputs.quality, "skipped", "two_sample") or "quality.json holds none"
        return section(anchor, title, absent(f"No two-sample tests: {escape(why)}."), joint)
    told: Mapping[str, Any] = inputs.quality["two_sample"]
    caption = (
        f"{count(told.get('rows_a_side'))} stars a side, {told.get('folds', '–')} folds, out of fold; the bar spans "
        f"{told.get('seeds', '–')} seeds. Both sides are always different stars. An AUC grows with the number of stars and the "
        "size of the classifier, so it compares only with others of these settings; the yardsticks have them. Physics: absolute "
        "magnitude, space velocities, galactic direction and the like, which trees do not find by themselves."
    )
    return section(
        anchor,
        title,
        "<p>A classifier is shown real stars on one side and other stars on the other, and asked which is which. AUC is the chance "
        "that it ranks a pair rightly: <b>0.5 = indistinguishable</b>, 1 = always told.</p>",
        figure(ink.svg_uri(diagrams.two_sample(results)), _auc_text(results), caption, "wide"),
        joint,
    )


def _auc_text(results: list[diagrams.TestResult]) -> str:
    return "AUC: " + "; ".join(f"{r.against}, {r.classifier} {r.auc:.3f}" for r in results)


_JOINT = (
    ("hr_diagram", "in_units_of_real", "HR diagram: histogram distance, in units of real against real", "1"),
    ("sky", "in_units_of_real", "Sky: histogram distance, in units of real against real", "1"),
    ("density_coverage", "density", "Density: how many real neighbourhoods a star falls in", "1"),
    ("density_coverage", "coverage", "Coverage: share of real stars with such a neighbour", "as real"),
)


def _joint_table(inputs: ReportInputs) -> str:
    joint = dig(inputs.quality, "joint") or {}
    known = [entry for entry in _JOINT if dig(joint, entry[0], REBUILT) is not None]
    if not known:
        return ""
    whose = [REBUILT, *([BASELINE] if has_baseline(inputs.quality) else []), "real"]
    whose[1:1] = [SAMPLED] if inputs.rated.sampled is not None else []
    names = {REBUILT: "rebuilt", SAMPLED: "new stars", BASELINE: baseline_name(inputs.quality), "real": "other real stars"}
    head = "<tr><th>measure</th>" + "".join(f"<th>{escape(names[w])}</th>" for w in whose) + "<th>right</th></tr>"
    rows = [
        Row(
            f'<span class="words">{escape(text)}</span>',
            [*(Cell(number(_joint_value(joint, part, w, key), 3)) for w in whose), Cell(right)],
        )
        for part, key, text, right in known
    ]
    return "<h3>How the columns hang together</h3>" + table(head, rows)


def _joint_value(joint: Mapping[str, Any], part: str, whose: str, key: str) -> float | None:
    # A distance in units of real against real is 1 for real stars by definition.
    return 1.0 if whose == "real" and key == "in_units_of_real" else dig(joint, part, whose, key)


def _velocities(inputs: ReportInputs) -> str:
    told = dig(inputs.quality, "joint", "velocity_dispersions") or {}
    names = {REBUILT: "rebuilt", SAMPLED: "new stars", BASELINE: baseline_name(inputs.quality)}
    made = {names[what]: told[what] for what in names if told.get(what)}
    if not made:
        return ""
    # The bins are the real stars', the same beside each kind of made ones.
    axes = {"along α": "ra_km_s", "along δ": "dec_km_s"}
    columns = "".join(f"<th>real, {axis}</th>" + "".join(f"<th>{escape(name)}</th>" for name in made) for axis in axes)
    head = f"<tr><th>BP − RP</th><th>stars</th>{columns}</tr>"
    rows = []
    for beside in zip(*made.values(), strict=True):
        first, cells = beside[0], []
        for key in axes.values():
            cells += [Cell(number(first.get(f"real_{key}"), 3)), *(Cell(number(b.get(f"made_{key}"), 3)) for b in beside)]
        colour = f"{number(first.get('bp_rp_from'))} … {number(first.get('bp_rp_to'))}"
        rows.append(Row(colour, [Cell(count(first.get("stars"))), *cells]))
    return f"<details><summary>Dispersions of tangential velocity by colour, km/s</summary>{table(head, rows)}</details>"


# Bytes a star -------------------------------------------------------------------------------------------------------
def same_columns_bytes(inputs: ReportInputs) -> int:
    """Bytes of a star with just the columns that the latents stand for, uncompressed."""
    return row_bytes(inputs.columns)


def storage(inputs: ReportInputs) -> str:
    """What a star costs as a row of the catalogue and as latents."""
    told = inputs.quality.get("storage")
    title, anchor = "Bytes a star", "bytes"
    if not told:
        return section(anchor, title, absent("No sizes: <code>quality.json</code> holds none."))
    row: Mapping[str, float] = told.get("row") or {}
    named = {
        "source_id": "source_id",
        "healpix_29": "HEALPix index",
        "position": "position",
        "null_mask": "null mask",
        "latents": "latents",
    }
    kept = {named.get(part, part): float(size) for part, size in row.items() if size}
    bars: dict[str, Mapping[str, float]] = {
        f"{len(inputs.columns)} model columns": {"columns as they are": float(same_columns_bytes(inputs))},
        "latent row": kept | {"model": float(told.get("model") or 0.0)},
    }
    for key, label in (("catalogue_on_disk", "catalogue, on disk"), ("on_disk", "latents, on disk")):
        if told.get(key):
            bars[label] = {"parquet file": float(told[key])}
    selected = len(inputs.config.selection.column_names)
    caption = (
        f"Over {count(told.get('stars'))} stars; the model’s files are shared out among them. Upper two: uncompressed rows with the same "
        "content. On disk: parquet files as they lie in the store"
    )
    if selected > len(set(inputs.columns)):
        caption += (
            f"; the catalogue’s hold {selected} columns, more than the latents stand for, so those two do not compare directly"
        )
    return section(anchor, title, figure(ink.svg_uri(diagrams.byte_bars(bars)), "Bytes a star by part", caption + ".", "wide"))


# Provenance ---------------------------------------------------------------------------------------------------------
def provenance(inputs: ReportInputs) -> str:
    """Where the stars come from and what made what."""
    config, stages = inputs.config, dig(inputs.manifest, "stages") or {}
    selection = config.selection
    pairs = [
        ("Catalogue id", _code(_catalogue_id(inputs))),
        ("Archive", _archive(inputs)),
        ("Selection", f"{len(selection.column_names)} columns; not null: {_list(selection.not_null_names)}"),
        ("Condition", _code(selection.where) if selection.where else "none"),
        ("Limit", count(selection.limit) if selection.limit else "none: all stars"),
        ("Stars counted", " · ".join(f"{escape(place)} {count(n)}" for place, n in inputs.rows.items()) or "–"),
        ("Split", escape(RULE)),
        ("Rated", f"{count(inputs.stars)} test stars, those of smallest hash (asked for: {count(config.quality.rows)})"),
        ("Model key", _code(inputs.card.get("key"))),
        ("Versions", _versions(inputs)),
        ("Finished", escape(finished(inputs.manifest) or "–")),
    ]
    head = "<tr><th>stage</th><th>key</th><th>seconds</th><th>finished</th></tr>"
    rows = [
        Row(
            escape(name),
            [Cell(_code(entry.get("key"))), Cell(number(entry.get("seconds"), 3)), Cell(escape(entry.get("finished", "–")))],
        )
        for name, entry in stages.items()
    ]
    keys = "<h3>Stages and their keys</h3>" + table(head, rows) if rows else ""
    skipped = dig(inputs.quality, "skipped") or {}
    missing = "; ".join(f"{escape(part)}: {escape(why)}" for part, why in skipped.items())
    not_rated = f'<p class="note">Not rated: {missing}.</p>' if missing else ""
    toml = (
        f"<details><summary>Configuration (config.toml)</summary><pre>{escape(dump_toml(config, comments=False))}</pre></details>"
    )
    credit = MADE_UP if inputs.is_made_up else GAIA_CREDIT
    return section("provenance", "Provenance", facts(pairs), keys, toml, not_rated, f"<h3>Data credit</h3><p>{escape(credit)}</p>")


def finished(manifest: Mapping[str, Any]) -> str | None:
    """When the last stage before the report was finished, ISO 8601."""
    return max((str(e["finished"]) for e in (manifest.get("stages") or {}).values() if e.get("finished")), default=None)


def _catalogue_id(inputs: ReportInputs) -> Any:
    return dig(inputs.manifest, "stages", "ingest", "result", "catalogue_id") or dig(inputs.card, "metadata", "catalogue_id")


def _archive(inputs: ReportInputs) -> str:
    archive = inputs.config.archive
    if archive.kind == "mock":
        return f"<b>mock: made-up stars</b>, {count(archive.mock_stars)} of them, seed {archive.mock_seed}"
    if archive.kind == "files":
        return f"files: {_list(archive.uris)}"
    return f"TAP: {_code(archive.url)}, table {_code(archive.table)}"


def _versions(inputs: ReportInputs) -> str:
    versions = (dig(inputs.card, "versions") or {}) | (dig(inputs.manifest, "versions") or {})
    return escape(" · ".join(f"{name} {version}" for name, version in versions.items())) or "–"


def _code(value: object) -> str:
    return f"<code>{escape(value)}</code>" if value else "–"


def _list(values: tuple[str, ...], most: int = 30) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(_code(v) for v in values[:most]) + more or "none"
