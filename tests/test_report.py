"""The report: complete, self-contained, valid HTML, and honest about what is missing."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.quality import Rated, bytes_a_star, rate
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import BP_ZERO_POINT, COLUMNS, DR2, G_ZERO_POINT, RP_ZERO_POINT, SEED16, SEED25
from gaiadask.report import ReportInputs, render, sections, tables
from gaiadask.report.diagrams import largest_variance
from gaiadask.report.inputs import residual
from gaiadask.report.markup import number
from gaiadask.report.new_stars import new_stars
from gaiadask.report.page import SECTIONS, auc_words, tiles, verdict
from gaiadask.report.pictures import Pair, coarsened, mollweide_raster, wants_log
from gaiadask.report.walks import walks
from gaiadask.sky import position, separation_deg

STARS = 400


# Made-up stars ------------------------------------------------------------------------------------------------------
def free_columns(n: int, seed: int = 0) -> dict[str, NDArray]:
    """What does not follow from the rest, of stars with a main sequence, giants, and errors that grow with magnitude."""
    rng = np.random.default_rng(seed)
    giant = rng.random(n) < 0.25
    absolute = np.where(giant, rng.normal(0.6, 0.9, n), rng.normal(4.5, 1.4, n))
    colour = np.where(giant, 1.25 + 0.12 * (0.6 - absolute), 0.2 + 0.16 * absolute) + rng.normal(0, 0.04, n)
    distance_pc = rng.gamma(3.0, 250.0, n) + 30
    g = absolute + 5 * np.log10(distance_pc / 10)
    sigma = 0.03 * 10 ** (0.12 * np.maximum(g - 13, 0)) * rng.lognormal(0, 0.3, n)
    dec = np.degrees(np.arcsin(np.clip(rng.normal(0, 0.35, n), -1, 1)))
    values = {
        "ra": rng.uniform(0, 360, n),
        "dec": dec,
        "parallax": 1000 / distance_pc + sigma * rng.normal(size=n),
        "pmra": rng.normal(0, 40, n) * 300 / distance_pc,
        "pmdec": rng.normal(-10, 40, n) * 300 / distance_pc,
        "radial_velocity": rng.normal(0, 35, n),
        "phot_g_mean_flux": 10 ** (-0.4 * (g - G_ZERO_POINT)),
        "phot_bp_mean_flux": 10 ** (-0.4 * (g + 0.45 * colour - BP_ZERO_POINT)),
        "phot_rp_mean_flux": 10 ** (-0.4 * (g - 0.55 * colour - RP_ZERO_POINT)),
        "teff_val": np.round(8200 * 10 ** (-0.17 * colour) + rng.normal(0, 60, n)),
        "a_g_val": rng.gamma(2.0, 0.15, n),
    }
    for name in SEED16:
        if error := COLUMNS[name].error_column:
            relative = np.abs(values[name]) * 1e-3 if "flux" in name else 1.0
            values[error] = sigma * relative * rng.lognormal(0, 0.2, n) + 1e-6
    return values


def as_table(values: dict[str, NDArray], columns: tuple[str, ...], null_share: dict[str, float], seed: int) -> pa.Table:
    """A table with derived columns, and nulls in the given shares of some columns (the same rows for the same seed)."""
    values = values | DR2.derive(values, DR2.derivable(columns))
    rng = np.random.default_rng(seed)
    n = len(values["ra"])
    arrays = {SOURCE_ID: pa.array(np.arange(n) * 128)}
    for name in columns:
        hidden = (rng.random(n) < null_share.get(name, 0.0)) | ~np.isfinite(values[name])
        arrays[name] = pa.array(values[name], mask=hidden).cast(COLUMNS[name].dtype)
    return pa.table(arrays)


def disturbed(values: dict[str, NDArray], by: float, seed: int) -> dict[str, NDArray]:
    """The stars with an error of `by` standard deviations in each free column (multiplicative where positive)."""
    rng = np.random.default_rng(seed)
    out = dict(values)
    for name in SEED16:
        if name in values and name not in ("ra", "dec"):
            noise = by * rng.standard_t(3, len(values[name]))
            positive = "flux" in name
            out[name] = values[name] * np.exp(noise) if positive else values[name] + noise * values[name].std()
    return out


# Inputs -------------------------------------------------------------------------------------------------------------
def made_up_config(columns: tuple[str, ...], **changes: Any) -> Config:
    values: dict[str, Any] = {
        "name": "trial",
        "archive": {"kind": "mock"},
        "selection": {"columns": "seed25", "not_null": []},
        "model": {"columns": list(columns), "latents": 4},
        "quality": {"two_sample_rows": 100, "two_sample_seeds": 2},
    }
    return parse_config(values | changes)


def made_up_inputs(
    n: int = 3_000,
    columns: tuple[str, ...] = SEED16,
    catalogue_columns: tuple[str, ...] = SEED25,
    null_share: dict[str, float] | None = None,
    baseline: bool = True,
    two_sample: bool = False,
    latents: int = 4,
    sampled: bool = True,
    **config: Any,
) -> ReportInputs:
    """Inputs as a run leaves them; the rating is the real one, without its two-sample tests where these are not asked for."""
    values = free_columns(n)
    nulls = null_share or {}
    real = as_table(values, catalogue_columns, nulls, 3)
    rebuilt = as_table(disturbed(values, 0.02, 1), columns, nulls, 3)
    pca = as_table(disturbed(values, 0.06, 2), columns, nulls, 3) if baseline else None
    z = np.random.default_rng(5).normal(size=(n, latents)).astype(np.float32)
    new = as_table(free_columns(n, 6), columns, nulls, 7).select(list(columns)) if sampled else None
    rated = Rated(real.select([SOURCE_ID, *catalogue_columns]), rebuilt, z, pca, new)
    settings = made_up_config(columns, **config)
    storage = bytes_a_star(10 * n, latents, 1, 400_000, 60 * n, 900 * n)
    quality = rate(rated, settings.quality, None if two_sample else {}, storage)
    return ReportInputs(settings, card(columns, latents), manifest(), quality, metrics(latents), rated, None, {"written": 10 * n})


def card(columns: tuple[str, ...], latents: int) -> dict[str, Any]:
    return {
        "key": "0123456789abcdef",
        "columns": [{"name": name, "unit": COLUMNS[name].unit} for name in columns],
        "latents": [{"kl": 3.0 / (i + 1), "mean": 0.0, "std": 1.0} for i in range(latents)],
        "metrics": {"active_units": latents},
        "training": {"best_rows_seen": 9_000_000, "seconds": 120.0, "stopped_early": False},
        "versions": {"torch": "2.10"},
    }


def manifest() -> dict[str, Any]:
    entry = {
        "key": "fedcba9876543210",
        "inputs": {},
        "result": {"catalogue_id": "00ca7a10900e1d00"},
        "seconds": 12.3,
        "finished": "2026-01-02T03:04:05+00:00",
    }
    return {"format": 1, "run": "trial", "stages": {"ingest": entry, "train": entry}, "versions": {"gaiadask": "0.1.0"}}


def metrics(latents: int) -> list[dict[str, Any]]:
    return [
        {
            "rows_seen": 1_000_000 * i,
            "train_loss": -10 + 40 / i,
            "train_reconstruction": -30 + 38 / i,
            "train_kl": 20 + 2 / i,
            "validation_loss": -9 + 40 / i,
            "validation_reconstruction": -29 + 38 / i,
            "validation_kl": 20 + 2 / i,
            "latents": [{"kl": 1.0}] * latents,
        }
        for i in range(1, 13)
    ]


# Reading the page ---------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Checks that elements are nested and closed, and gathers what the tests ask about."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = text
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def pictures(self) -> dict[str, bytes]:
        """What each picture shows, in words -> its bytes."""
        return {str(a["alt"]): base64.b64decode(str(a["src"]).split(",", 1)[1]) for a in self.all("img")}


@pytest.fixture(scope="module")
def page() -> Page:
    """One whole page for the tests that only look; the others make the section that they are about."""
    return Page(render(made_up_inputs(STARS)))


def test_page_asks_nothing_of_the_network_and_runs_nothing(page: Page) -> None:
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), f"{name}={value[:60]}"
    assert "@import" not in page.source
    assert "url(" not in page.source


def test_every_model_column_has_its_picture_and_its_row(page: Page) -> None:
    for name in SEED16:
        assert sum(alt.startswith(f"Distribution of {name}, real and rebuilt") for alt in page.pictures) == 1
        assert sum(alt == f"Distribution of {name}, real and new stars" for alt in page.pictures) == 1
    assert len(re.findall("|".join(SEED16), page.text)) >= len(SEED16)
    assert len(page.pictures) >= len(SEED16) + 10


def test_pictures_are_pictures(page: Page) -> None:
    for alt, content in page.pictures.items():
        assert content.startswith(b"\x89PNG") or b"<svg" in content[:1000], alt


def test_anchors_lead_somewhere(page: Page) -> None:
    ids = {a["id"] for _, a in page.tags if a.get("id")}
    assert {str(a["href"]).removeprefix("#") for a in page.all("a")} <= ids
    assert {name for name, _, _ in SECTIONS} <= ids


def test_headline_tells_how_many_stars_and_how_large_the_error_is(page: Page) -> None:
    inputs = made_up_inputs(STARS)
    mean = inputs.quality["reconstruction"]["rebuilt"]["headline"]["beside_position"]["median"]["mean"]
    head = page.text[:1_500]
    assert f"{STARS} test stars" in head.replace("\u202f", " ")
    assert f"{number(100 * mean)} %" in head.replace("\u202f", " ")
    assert "ahead of PCA-4" in head


def test_made_up_stars_are_called_so_and_real_ones_credited(page: Page) -> None:
    assert page.text.count("Made-up stars") >= 3
    assert "European Space Agency" not in page.text
    real = Page(tables.provenance(made_up_inputs(300, archive={"kind": "tap"}))).text
    assert "This work has made use of data from the European Space Agency (ESA) mission Gaia, processed by" in real
    assert "Made-up" not in real


def test_text_from_outside_is_escaped() -> None:
    where = "a < 1 <script>alert('&')</script>"
    inputs = made_up_inputs(300, selection={"columns": "seed25", "not_null": [], "where": where})
    inputs.rows["<b>odd</b>"] = 1
    inputs.card["versions"]['"><img src=x>'] = "<i>"
    part = Page(tables.provenance(inputs))
    assert part.all("script") == part.all("img") == part.all("i") == []
    assert part.text.count(where) == 1 + 1  # the condition, and the configuration
    assert "<b>odd</b> 1" in part.text


def test_same_inputs_same_pictures() -> None:
    first, again = (sections.residuals(made_up_inputs(300, ("parallax", "pmra"))) for _ in range(2))
    assert first == again


def test_better_of_model_and_pca_is_marked(page: Page) -> None:
    classes = [str(a.get("class") or "") for a in page.all("td")]
    # The model's errors are a third of the baseline's in every column.
    assert sum("better" in c for c in classes) >= 3 * 14


# What may be missing ------------------------------------------------------------------------------------------------
def test_nulls_are_told_and_a_column_null_throughout_is_shown_as_such() -> None:
    inputs = made_up_inputs(300, ("ra", "dec", "radial_velocity", "teff_val"), null_share={"teff_val": 0.4, "radial_velocity": 1.0})
    part = Page(sections.distributions(inputs))
    assert {alt.split(",")[0] for alt in part.pictures} == {f"Distribution of {n}" for n in inputs.columns}
    assert "radial_velocity" not in Page(sections.residuals(inputs)).text
    row = re.search("radial_velocity.*?</tr>", tables.quality_table(inputs))
    assert row is not None
    assert row[0].count("–") >= 9


def test_new_stars_are_shown_beside_real_ones_and_what_lacks_is_told() -> None:
    columns = ("ra", "dec", "parallax", "phot_g_mean_flux", "phot_bp_mean_flux", "phot_rp_mean_flux", "bp_rp")
    inputs = made_up_inputs(800, columns)
    aucs = {name: {"mean": mean, "values": [mean]} for name, mean in (("raw", 0.551), ("physics", 0.612), ("mlp", 0.524))}
    inputs.quality["two_sample"] = {"comparisons": {"sampled": {"auc": 0.612, "classifiers": aucs}}}
    part = Page(new_stars(inputs))
    assert "800 stars that never were" in part.text.replace("\u202f", " ")
    assert "trees on raw columns 0.551, trees with physics 0.612, a neural network 0.524" in part.text
    assert any(alt.startswith("HR diagram of real and new stars") for alt in part.pictures)
    assert "Real and new stars on the sky" in part.pictures
    assert "and tells some new stars from real ones at 0.612" in Page(verdict(inputs)).text
    assert "new, made-up stars" in tables.two_sample(inputs)
    columns = ("ra", "dec", "parallax", "pmra")
    assert "No HR diagram" in Page(new_stars(made_up_inputs(300, columns, columns))).text
    none = made_up_inputs(300, sampled=False)
    assert "asked for no prior" in Page(new_stars(none)).text
    assert "new stars" not in verdict(none)


def test_walks_are_drawn_one_panel_a_latent_and_what_lacks_is_told() -> None:
    inputs = made_up_inputs(300)
    assert "No walks" in Page(walks(inputs)).text
    star, latent, step = (a.ravel() for a in np.meshgrid(range(3), [-1, 0, 2, 3], range(5), indexing="ij"))
    columns = {name: inputs.rated.real[name].to_numpy()[: star.size].copy() for name in ("bp_rp", "phot_g_mean_flux", "parallax")}
    columns["parallax"][3] = -1.0  # a star without an absolute magnitude on its way
    table = pa.table({"star": star, "latent": latent, "step": step} | columns)
    part = Page(walks(replace(inputs, walks=table)))
    assert list(part.pictures) == ["Walks along z00, z02, z03 on the HR diagram"]
    assert "3 typical stars" in part.text


def test_the_corner_is_coloured_by_temperature_magnitude_and_position() -> None:
    part = Page(sections.latents(made_up_inputs(300, latents=2)))
    assert [alt.split("coloured by ")[1].split()[0] for alt in part.pictures] == ["effective", "G", "galactic"]
    bare = Page(sections.latents(made_up_inputs(300, ("parallax", "pmra"), ("parallax", "pmra"), latents=2)))
    assert [alt.split("coloured by ")[1] for alt in bare.pictures] == ["number"]


def test_few_stars_are_called_rough() -> None:
    assert "With so few stars these numbers are rough" in verdict(made_up_inputs(300))
    assert "rough" not in verdict(made_up_inputs(2_500))


def test_without_colours_the_sections_say_why() -> None:
    columns = ("ra", "dec", "parallax", "pmra", "pmdec")
    inputs = made_up_inputs(400, columns, columns)
    assert "No HR diagram: it needs bp_rp" in Page(sections.hr_diagram(inputs)).text
    assert "No errors against magnitude" in Page(sections.error_against_magnitude(inputs)).text
    assert "No residuals in σ" in Page(sections.residuals(inputs)).text  # the errors are not in the catalogue either


def test_without_baseline_nothing_speaks_of_pca() -> None:
    inputs = made_up_inputs(400, baseline=False)
    assert "no baseline was rated" in "".join(note for _, _, note in tiles(inputs))
    assert "PCA" not in Page(tables.quality_table(inputs)).text + verdict(inputs)


def test_bare_inputs_make_every_table() -> None:
    bare = replace(made_up_inputs(300), card={}, manifest={}, quality={}, metrics=[], rows={})
    made = (sections.training, tables.quality_table, tables.two_sample, tables.storage, tables.provenance)
    text = " ".join(Page(make(bare)).text for make in made)
    for absent in ("No training curves", "No ratings", "No two-sample tests", "No sizes"):
        assert absent in text
    assert len(tiles(bare)) == 6


def test_position_from_the_network_is_mapped_beside_the_real_one() -> None:
    inputs = made_up_inputs(400, ("ra", "dec", "parallax"))
    rebuilt = inputs.rated.rebuilt
    shifted = rebuilt.set_column(rebuilt.schema.get_field_index("ra"), "ra", pa.array((rebuilt["ra"].to_numpy() + 0.5) % 360))
    moved = replace(inputs, rated=replace(inputs.rated, rebuilt=shifted))
    assert "as the network gives them back" in Page(sections.sky(moved)).text
    assert any(alt.startswith("Residuals of ra ") for alt in Page(sections.residuals(moved)).pictures)
    assert "Carried exactly, so not drawn: ra, dec" in Page(sections.residuals(inputs)).text


def test_residual_of_right_ascension_goes_the_short_way_round() -> None:
    pair = Pair("ra", np.array([359.9, 0.1, 10.0]), np.array([0.1, 359.9, 10.0]))
    np.testing.assert_allclose(residual(pair, np.array([0.0, 60.0, 0.0])), [0.2, -0.1, 0.0], atol=1e-12)


@pytest.mark.slow
def test_two_sample_tests_are_told_with_their_yardsticks() -> None:
    part = Page(tables.two_sample(made_up_inputs(800, two_sample=True)))
    told = next(alt for alt in part.pictures if alt.startswith("AUC:"))
    for against in ("other real stars", "rebuilt stars", "rebuilt by PCA", "Gaussian copula", "independent columns"):
        assert against in told
    assert "0.5 = indistinguishable" in part.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"n": 300, "null_share": {"teff_val": 0.4, "radial_velocity": 1.0}}, {"columns": ("parallax",)}]
)
def test_odd_inputs_make_a_whole_page(changes: dict[str, Any]) -> None:
    inputs = made_up_inputs(**changes)
    for made in (inputs, replace(inputs, card={}, manifest={}, quality={}, metrics=[], rows={})):
        assert len(Page(render(made)).pictures) >= 2


@pytest.mark.slow
def test_page_of_many_stars_stays_small_and_says_what_it_left_out() -> None:
    many, values = 60_000, free_columns(60_000)
    real, rebuilt = as_table(values, SEED25, {}, 3), as_table(disturbed(values, 0.02, 1), SEED16, {}, 3)
    z = np.random.default_rng(5).normal(size=(many, 4)).astype(np.float32)
    text = render(replace(made_up_inputs(300), rated=Rated(real, rebuilt, z, rebuilt)))
    assert len(text) < 6_000_000
    assert "50 000 of the rated stars (those of smallest hash)" in text.replace("\u202f", " ")


@pytest.mark.parametrize(
    ("auc", "words"),
    [(0.5, "cannot tell"), (0.58, "can hardly"), (0.7, "tells some"), (0.8, "many"), (0.95, "most"), (0.99, "nearly all")],
)
def test_auc_in_words(auc: float, words: str) -> None:
    assert words in auc_words(auc, 0.5)


def test_many_latents_show_those_that_vary_most() -> None:
    inputs = made_up_inputs(400, latents=9)
    z = inputs.rated.latents * np.array([1, 0.01, 1, 1, 0.01, 1, 1, 0.01, 1], np.float32)
    np.testing.assert_array_equal(largest_variance(z, 6), [0, 2, 3, 5, 6, 8])


# Pictures' arithmetic -----------------------------------------------------------------------------------------------
def test_sky_counts_are_conserved_when_coarsened() -> None:
    counts = np.random.default_rng(0).poisson(0.3, 12 * 4**5)
    coarse, order = coarsened(counts)
    assert coarse.sum() == counts.sum()
    assert coarse.size == 12 * 4**order < counts.size
    with pytest.raises(ValueError, match="12 \\* 4\\*\\*order"):
        coarsened(np.ones(100))


def test_galactic_raster_holds_the_centre_and_the_pole() -> None:
    """ICRS positions of the galactic centre and north pole: J2000, 266.405 -28.936 and 192.859 27.128 degrees."""
    vectors, inside = mollweide_raster(400)
    assert inside.mean() == pytest.approx(np.pi / 4, abs=0.01)
    for row, column, ra, dec in ((100, 200, 266.405, -28.936), (0, 200, 192.859, 27.128)):
        found = position(vectors[row, column][None])
        assert separation_deg(*found, ra, dec)[0] < 3.0


def test_log_axis_where_it_helps() -> None:
    rng = np.random.default_rng(1)
    assert wants_log("phot_g_mean_flux", 10 ** rng.normal(4, 1, 1_000))
    assert wants_log("parallax", 10 ** rng.normal(0, 1, 1_000))
    assert not wants_log("teff_val", rng.uniform(3_500, 8_000, 1_000))
    assert not wants_log("pmra", rng.normal(0, 10, 1_000))
    assert not wants_log("bp_rp", 10 ** rng.normal(-1, 1, 1_000))
    assert not wants_log("ra", rng.uniform(0, 360, 1_000))


def test_numbers_read_well() -> None:
    assert [number(x) for x in (None, float("nan"), 0.0, 0.01234, 12_345.6)] == ["–", "–", "0", "0.012", "12\u202f346"]
    assert number(1.23e-7) == "1.2·10<sup>-7</sup>"
