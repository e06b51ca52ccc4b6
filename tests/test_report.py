"""The report: complete, self-contained, valid HTML, and honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from report_inputs import (
    CODES,
    as_table,
    auc_result,
    bare,
    compressed_record,
    disturbed,
    free_columns,
    mock_inputs,
    rate_point,
)

from flows.reporting import quality_markdown
from gaiadask.model.rounding import LatentCode
from gaiadask.quality import Rated
from gaiadask.quality.physics import hr_position
from gaiadask.quality.records import Comparison, RateCurve, TwoSample
from gaiadask.quality.tables import largest_variance
from gaiadask.release.dr2 import COLUMNS, DR2, SEED16, SEED25
from gaiadask.report import ReportInputs, ink, render
from gaiadask.report.bits import bits
from gaiadask.report.columns import quality_table
from gaiadask.report.compressed import compressed
from gaiadask.report.distributions import distributions
from gaiadask.report.head import auc_words, tiles, verdict
from gaiadask.report.hr_diagram import hr_diagram
from gaiadask.report.hr_stars import MOST_STARS
from gaiadask.report.inputs import residual
from gaiadask.report.latent_traversal import latent_traversal
from gaiadask.report.latents import latents
from gaiadask.report.magnitude import error_against_magnitude
from gaiadask.report.markup import number, uncertain
from gaiadask.report.new_stars import new_stars
from gaiadask.report.page import SECTIONS
from gaiadask.report.pictures import coarsened, mollweide_raster, wants_log
from gaiadask.report.provenance import provenance
from gaiadask.report.residuals import residuals
from gaiadask.report.sky import sky
from gaiadask.report.storage import storage
from gaiadask.report.training import training
from gaiadask.report.two_sample import two_sample
from gaiadask.sky import position, separation_deg

pytestmark = pytest.mark.slow

STARS = 400


# Reading the page ---------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Checks that elements are nested and closed, and gathers what the tests ask about."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
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
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def pictures(self) -> dict[str, bytes]:
        """What each picture shows, in words -> its bytes."""
        return {str(a["alt"]): content(str(a["src"])) for a in self.all("img")}


def content(uri: str) -> bytes:
    """What a data URI holds."""
    head, text = uri.split(",", 1)
    return base64.b64decode(text) if head.endswith(";base64") else unquote(text).encode()


@pytest.fixture(scope="module")
def page(report_page: str) -> Page:
    """One whole page for the tests that only look; the others make the section that they are about."""
    return Page(report_page)


def test_page_asks_nothing_of_the_network_and_runs_one_script_of_its_own(page: Page) -> None:
    assert page.all("link") == page.all("iframe") == []
    assert page.all("script") == [{"type": "application/json", "id": "hr-stars"}, {}], "stars, and the page's own script"
    (policy,) = (str(a["content"]) for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode() in policy, "or the browser refuses it"
    assert "default-src 'none'" in policy and "http" not in policy
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), f"{name}={value[:60]}"
    assert "@import" not in page.source
    assert re.search(r"url\((?!%23)", page.source) is None, "pictures refer to parts of themselves"


def test_every_model_column_has_its_picture_and_its_row(page: Page) -> None:
    for name in SEED16:
        assert sum(alt.startswith(f"Distribution of {name}, real and rebuilt") for alt in page.pictures) == 1
        assert sum(alt == f"Distribution of {name}, real and new stars" for alt in page.pictures) == 1
    assert len(re.findall("|".join(SEED16), page.text)) >= len(SEED16)
    assert len(page.pictures) >= len(SEED16) + 10


def test_pictures_are_pictures(page: Page) -> None:
    for alt, content in page.pictures.items():
        assert content.startswith(b"RIFF") or b"<svg" in content[:1000], alt


def test_anchors_lead_somewhere(page: Page) -> None:
    ids = {a["id"] for _, a in page.tags if a.get("id")}
    assert {str(a["href"]).removeprefix("#") for a in page.all("a")} <= ids
    assert {name for name, _, _ in SECTIONS} <= ids


def test_headline_tells_how_many_stars_and_how_large_the_error_is(page: Page) -> None:
    inputs = mock_inputs(STARS)
    g_flux = inputs.quality.reconstruction["rebuilt"].columns["phot_g_mean_flux"]
    assert g_flux.error_in_sigma is not None and g_flux.error_in_unit is not None
    mean = inputs.quality.reconstruction["rebuilt"].headline.beside_position.median.mean
    assert inputs.quality.uncertainty is not None
    error = inputs.quality.uncertainty.reconstruction["rebuilt"].median.mean
    head = page.text[:1_500]
    assert f"{STARS} test stars" in head.replace("\u202f", " ")
    assert f"{uncertain(100 * mean, 100 * error)} %" in head.replace("\u202f", " ") and "±" in uncertain(100 * mean, 100 * error)
    assert f"G flux is off by {number(g_flux.error_in_sigma.median)} σ of its own catalogue error" in head
    assert f"{number(g_flux.error_in_unit.median)} mmag" in head
    assert "ahead of PCA-4, the linear model of the same width, in 14 of 14 columns" in head


def rated_again(inputs: ReportInputs, side: str, medians: dict[str, float]) -> ReportInputs:
    """The inputs with other median errors of some columns."""
    sides = dict(inputs.quality.reconstruction)
    columns = dict(sides[side].columns)
    for name, median in medians.items():
        errors = columns[name].error_over_iqr.model_copy(update={"median": median})
        columns[name] = columns[name].model_copy(update={"error_over_iqr": errors})
    sides[side] = sides[side].model_copy(update={"columns": columns})
    return replace(inputs, quality=inputs.quality.model_copy(update={"reconstruction": sides}))


def test_columns_in_which_pca_is_better_are_named() -> None:
    inputs = mock_inputs(300)
    medians = {name: rating.error_over_iqr.median for name, rating in inputs.quality.reconstruction["rebuilt"].columns.items()}
    better = rated_again(inputs, "baseline", {"pmra": 0.7 * medians["pmra"], "teff_val": 0.99 * medians["teff_val"]})
    assert "in 12 of 14 columns; PCA-4 is better in pmra." in Page(verdict(better)).text
    assert "12 of 14PCA-4 ahead in pmra; level in teff_val" in Page(tiles(better)).text
    assert "ahead in 12 of 14 columns, PCA-4 in pmra; they are level in teff_val" in Page(quality_table(better)).text
    lost = rated_again(inputs, "baseline", {"pmra": float("inf")})
    assert "in 14 of 14 columns. " in Page(verdict(lost)).text


def test_errors_of_the_table_are_in_units_that_one_speaks_of() -> None:
    inputs = mock_inputs(300)
    text = Page(quality_table(inputs)).text
    for name, unit in (
        ("phot_g_mean_flux", "mmag"),
        ("bp_rp†", "mmag"),
        ("teff_val", "K"),
        ("parallax", "mas"),
        ("pmra", "mas/yr"),
    ):
        assert f"{name} {unit}" in text
    rating = inputs.quality.reconstruction["rebuilt"].columns["radial_velocity"]
    assert rating.error_in_unit is not None
    assert f"radial_velocity km/s{number(rating.error_in_unit.median)}" in text
    columns = {
        name: each.model_copy(update={"error_in_unit": None})
        for name, each in inputs.quality.reconstruction["rebuilt"].columns.items()
    }
    earlier = inputs.quality.reconstruction["rebuilt"].model_copy(update={"columns": columns})
    old = replace(inputs, quality=inputs.quality.model_copy(update={"reconstruction": {"rebuilt": earlier}}))
    assert "radial_velocity km/s––" in Page(quality_table(old)).text
    assert "mmag" not in verdict(old) + tiles(old) and "σ of its own catalogue error in the median." in Page(verdict(old)).text


def test_bytes_a_star_is_one_number_everywhere() -> None:
    inputs = mock_inputs(300)
    size = inputs.quality.storage
    assert size is not None and size.on_disk is not None and size.on_disk != size.in_memory
    assert size.bytes_a_star == size.on_disk
    told = f"{size.on_disk:.1f}"
    assert f"Bytes a star, all counted{told}" in Page(tiles(inputs)).text
    assert f"A star takes {told} bytes" in Page(storage(inputs)).text
    assert f"{size.on_disk:.3g} bytes a star" in quality_markdown("trial", inputs.quality)
    plain = size.model_copy(update={"on_disk": None})
    unknown = replace(inputs, quality=inputs.quality.model_copy(update={"storage": plain}))
    assert f"Bytes a star, all counted{size.in_memory:.1f}uncompressed" in Page(tiles(unknown)).text
    assert f"A star takes {size.in_memory:.1f} bytes, uncompressed" in Page(storage(unknown)).text


def test_mock_stars_are_called_so_and_real_ones_credited(page: Page) -> None:
    assert page.text.count("Mock stars") >= 3
    assert "European Space Agency" not in page.text
    real = Page(provenance(mock_inputs(300, archive={"kind": "tap"}))).text
    assert "This work has made use of data from the European Space Agency (ESA) mission Gaia, processed by" in real
    assert "Mock" not in real


def test_text_from_outside_is_escaped() -> None:
    where = "a < 1 <script>alert('&')</script>"
    inputs = mock_inputs(300, selection={"columns": "seed25", "not_null": [], "where": where})
    odd = inputs.card.model_copy(update={"versions": {'"><img src=x>': "<i>"}})
    part = Page(provenance(replace(inputs, card=odd, rows={**inputs.rows, "<b>odd</b>": 1})))
    assert part.all("script") == part.all("img") == part.all("i") == []
    assert part.text.count(where) == 1 + 1  # the condition, and the configuration
    assert "<b>odd</b> 1" in part.text


def test_same_inputs_same_pictures() -> None:
    first, again = (residuals(mock_inputs(300, ("parallax", "pmra"))) for _ in range(2))
    assert first == again


def test_better_of_model_and_pca_is_marked(page: Page) -> None:
    classes = [str(a.get("class") or "") for a in page.all("td")]
    # The model's errors are a third of the baseline's in every column.
    assert sum("better" in c for c in classes) >= 3 * 14


# What may be missing ------------------------------------------------------------------------------------------------
def test_the_hr_diagram_has_its_stars_by_name_and_where_they_are_drawn() -> None:
    inputs = mock_inputs(300)
    part = Page(hr_diagram(inputs))
    stars = json.loads(part.scripts[0])
    assert stars["series"] == ["real", "rebuilt", "PCA-4"]
    ids = np.frombuffer(base64.b64decode(stars["ids"]), "<u8")
    real, rebuilt, _ = (np.frombuffer(base64.b64decode(text), "<i2").reshape(2, -1) / 1_000 for text in stars["places"])
    rows = [inputs.rated.real["source_id"].to_pylist().index(star) for star in ids]
    expected = hr_position(inputs.rated.real, DR2)
    assert set(rows) == set(np.flatnonzero(np.isfinite(expected).all(axis=0)))
    np.testing.assert_allclose(real, expected[:, rows], atol=0.0006)
    again = hr_position(inputs.rated.rebuilt, DR2)[:, rows]
    assert np.isfinite(again).all()
    np.testing.assert_allclose(rebuilt, again, atol=0.0006)
    # Where the record says that a star is, the picture is lit.
    ((_, picture),) = part.pictures.items()
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), np.int64)
    for panel, places in zip(stars["panels"], (real, rebuilt), strict=False):
        (left, top, width, height), shares = panel["box"], []
        for place, (start, stop) in zip(places, (stars["x"], stars["y"]), strict=True):
            shares.append((place - start) / (stop - start))
        inside = ((np.array(shares) > 0.01) & (np.array(shares) < 0.99)).all(axis=0)
        column = ((left + width * shares[0][inside]) * pixels.shape[1]).astype(int)
        line = ((top + height * shares[1][inside]) * pixels.shape[0]).astype(int)
        lit = pixels[line, column].sum(axis=1) > 60 + int(ink.NIGHT[1:3], 16) + int(ink.NIGHT[3:5], 16) + int(ink.NIGHT[5:7], 16)
        assert inside.sum() > 250 and lit.mean() > 0.9, "but for places that are rounded across the border of a cell"


def test_a_page_of_all_columns_would_have_5_megabytes_at_most(page: Page) -> None:
    """Reckoned from a page of few columns: it would take half a minute to draw."""

    def mean_size(begin: str) -> float:
        return float(np.mean([len(str(a["src"])) for a in page.all("img") if str(a["alt"]).startswith(begin)]))

    more = [column for name, column in COLUMNS.items() if column.is_encodable and name not in SEED16]
    assert len(more) > 60
    rows = len(quality_table(mock_inputs(300))) / len(SEED16)
    of_columns = len(more) * (2 * mean_size("Distribution") + mean_size("Error of") + rows)
    of_errors = sum(column.error_column is not None for column in more) * mean_size("Residuals")
    stars = MOST_STARS * (8 + 3 * 4) * 4 / 3
    densities = 1_400_000  # of 20,000 stars
    assert len(page.source) + of_columns + of_errors + stars + densities < 5_000_000


def test_nulls_are_told_and_a_column_null_throughout_is_shown_as_such() -> None:
    inputs = mock_inputs(300, ("ra", "dec", "radial_velocity", "teff_val"), null_share={"teff_val": 0.4, "radial_velocity": 1.0})
    part = Page(distributions(inputs))
    assert {alt.split(",")[0] for alt in part.pictures} == {f"Distribution of {n}" for n in inputs.columns}
    assert "radial_velocity" not in Page(residuals(inputs)).text
    row = re.search("radial_velocity.*?</tr>", quality_table(inputs))
    assert row is not None
    assert row[0].count("–") >= 9


def test_new_stars_are_shown_beside_real_ones_and_what_lacks_is_told() -> None:
    columns = ("ra", "dec", "parallax", "phot_g_mean_flux", "phot_bp_mean_flux", "phot_rp_mean_flux", "bp_rp")
    inputs = mock_inputs(800, columns)
    aucs = {name: auc_result(name, mean) for name, mean in (("raw", 0.551), ("physics", 0.612), ("mlp", 0.524))}
    tests = TwoSample(rows_a_side=100, rows_asked=100, folds=3, seeds=1, max_iter=150, comparisons={"sampled": Comparison.of(aucs)})
    inputs = replace(inputs, quality=inputs.quality.model_copy(update={"two_sample": tests}))
    part = Page(new_stars(inputs))
    assert "800 new stars" in part.text.replace("\u202f", " ")
    assert (
        "trees on raw columns 0.551 (0.551 to 0.551), trees with physics 0.612 (0.612 to 0.612), a neural network 0.524"
        in part.text
    )
    assert any(alt.startswith("HR diagram of real and new stars") for alt in part.pictures)
    assert "Real and new stars on the sky" in part.pictures
    assert "A classifier tells some new stars from real ones at 0.612 (0.5: it cannot)" in Page(verdict(inputs)).text
    assert "new stars, neural network" in two_sample(inputs)
    columns = ("ra", "dec", "parallax", "pmra")
    assert "No HR diagram" in Page(new_stars(mock_inputs(300, columns, columns))).text
    none = mock_inputs(300, sampled=False)
    assert "asked for no prior" in Page(new_stars(none)).text
    assert "new stars" not in verdict(none)


def test_traversals_are_drawn_one_panel_a_latent_and_what_lacks_is_told() -> None:
    inputs = mock_inputs(300)
    assert "No latent traversals" in Page(latent_traversal(inputs)).text
    star, latent, step = (a.ravel() for a in np.meshgrid(range(3), [-1, 0, 2, 3], range(5), indexing="ij"))
    columns = {name: inputs.rated.real[name].to_numpy()[: star.size].copy() for name in ("bp_rp", "phot_g_mean_flux", "parallax")}
    columns["parallax"][3] = -1.0  # a star without an absolute magnitude on its way
    table = pa.table({"star": star, "latent": latent, "step": step} | columns)
    part = Page(latent_traversal(replace(inputs, latent_traversal=table)))
    assert list(part.pictures) == ["Traversals of z00, z02, z03 on the HR diagram"]
    assert "3 typical stars" in part.text


def test_the_corner_is_coloured_by_temperature_magnitude_and_position() -> None:
    part = Page(latents(mock_inputs(300, width=2)))
    assert [alt.split("coloured by ")[1].split()[0] for alt in part.pictures] == ["effective", "G", "galactic"]
    bare = Page(latents(mock_inputs(300, ("parallax", "pmra"), ("parallax", "pmra"), width=2)))
    assert [alt.split("coloured by ")[1] for alt in bare.pictures] == ["number"]


def test_few_stars_are_called_rough() -> None:
    assert "With so few stars these numbers are rough" in verdict(mock_inputs(300))
    assert "rough" not in verdict(mock_inputs(2_500))


def test_without_colours_the_sections_say_why() -> None:
    columns = ("ra", "dec", "parallax", "pmra", "pmdec")
    inputs = mock_inputs(400, columns, columns)
    assert "No HR diagram: it needs bp_rp" in Page(hr_diagram(inputs)).text
    assert "No errors against magnitude" in Page(error_against_magnitude(inputs)).text
    assert "No residuals in σ" in Page(residuals(inputs)).text  # the errors are not in the catalogue either


def test_without_baseline_nothing_speaks_of_pca() -> None:
    inputs = mock_inputs(400, baseline=False)
    assert "no baseline was rated" in Page(tiles(inputs)).text
    assert "PCA" not in Page(quality_table(inputs)).text + verdict(inputs)


def test_bare_inputs_make_every_table() -> None:
    inputs = bare(mock_inputs(300))
    made = (training, quality_table, two_sample, storage, compressed, provenance)
    text = " ".join(Page(make(inputs)).text for make in made)
    for absent in ("No training curves", "No ratings", "No two-sample tests", "No sizes", "None yet"):
        assert absent in text
    assert sum(a.get("class") == "tile" for a in Page(tiles(inputs)).all("div")) == 6


def test_position_from_the_network_is_mapped_beside_the_real_one() -> None:
    inputs = mock_inputs(400, ("ra", "dec", "parallax"))
    rebuilt = inputs.rated.rebuilt
    shifted = rebuilt.set_column(rebuilt.schema.get_field_index("ra"), "ra", pa.array((rebuilt["ra"].to_numpy() + 0.5) % 360))
    moved = replace(inputs, rated=replace(inputs.rated, rebuilt=shifted))
    assert "as the network rebuilds them" in Page(sky(moved)).text
    assert any(alt.startswith("Residuals of ra ") for alt in Page(residuals(moved)).pictures)
    assert "Rebuilt exactly, so not drawn: ra, dec" in Page(residuals(inputs)).text


def test_residual_of_right_ascension_goes_the_short_way_round() -> None:
    rebuilt, real = np.array([0.1, 359.9, 10.0]), np.array([359.9, 0.1, 10.0])
    np.testing.assert_allclose(residual("ra", rebuilt, real, np.array([0.0, 60.0, 0.0])), [0.2, -0.1, 0.0], atol=1e-12)


def test_two_sample_tests_are_told_with_their_yardsticks() -> None:
    part = Page(two_sample(mock_inputs(800, tested=True)))
    told = next(alt for alt in part.pictures if alt.startswith("AUC:"))
    for against in ("other real stars", "rebuilt stars", "rebuilt by PCA", "Gaussian copula", "independent columns"):
        assert against in told
    assert "0.5 = indistinguishable" in part.text


@pytest.mark.parametrize(
    "changes", [{"n": 300, "null_share": {"teff_val": 0.4, "radial_velocity": 1.0}}, {"columns": ("parallax",)}]
)
def test_odd_inputs_make_a_whole_page(changes: dict[str, Any]) -> None:
    inputs = mock_inputs(**changes)
    for made in (inputs, bare(inputs)):
        assert len(Page(render(made)).pictures) >= 2


def test_page_of_many_stars_stays_small_and_says_what_it_left_out() -> None:
    many, values = 60_000, free_columns(60_000)
    real, rebuilt = as_table(values, SEED25, {}, 3), as_table(disturbed(values, 0.02, 1), SEED16, {}, 3)
    z = np.random.default_rng(5).normal(size=(many, 4)).astype(np.float32)
    text = render(replace(mock_inputs(300), rated=Rated(real, rebuilt, z, DR2, rebuilt)))
    assert len(text) < 4_000_000
    assert "50 000 of the rated stars (those of smallest hash)" in text.replace("\u202f", " ")


@pytest.mark.parametrize(
    ("auc", "words"),
    [
        (0.5, "can hardly tell"),
        (0.51, "can hardly tell"),
        (0.53, "tells a few"),
        (0.7, "tells some"),
        (0.8, "many"),
        (0.95, "most"),
        (0.99, "nearly all"),
    ],
)
def test_auc_in_words(auc: float, words: str) -> None:
    """That a classifier can hardly tell is said only where 0.5 is within the 95 % interval, here ± 0.0196."""
    result = auc_result("raw", auc).model_copy(update={"spread": 0.01})
    assert words in auc_words(Comparison.of({"raw": result}), "new")


def test_many_latents_show_those_that_vary_most() -> None:
    inputs = mock_inputs(400, width=9)
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
    assert wants_log(COLUMNS["phot_g_mean_flux"].unit, 10 ** rng.normal(4, 1, 1_000))
    assert wants_log(COLUMNS["parallax"].unit, 10 ** rng.normal(0, 1, 1_000))
    assert not wants_log(COLUMNS["teff_val"].unit, rng.uniform(3_500, 8_000, 1_000))
    assert not wants_log(COLUMNS["pmra"].unit, rng.normal(0, 10, 1_000))
    assert not wants_log(COLUMNS["bp_rp"].unit, 10 ** rng.normal(-1, 1, 1_000))
    assert not wants_log(COLUMNS["ra"].unit, rng.uniform(0, 360, 1_000))


def test_numbers_read_well() -> None:
    assert [number(x) for x in (None, float("nan"), 0.0, 0.01234, 12_345.6)] == ["–", "–", "0", "0.012", "12\u202f346"]
    assert number(1.23e-7) == "1.2·10<sup>-7</sup>"


def test_the_compressed_catalogue_is_shown_column_by_column() -> None:
    text = compressed(replace(mock_inputs(200), compressed=compressed_record()))
    for part in ("5.00 bytes", "0.1 σ", "9.31", "19.60", "4.37", "0.9990", "1.00"):
        assert part in text, part


def test_bits_are_shown_beside_codes_without_a_network() -> None:
    inputs = mock_inputs(300)
    assert "latents are not rounded" in bits(inputs)
    points = {name: [rate_point(each, scale / each) for each in (24, 48, 96)] for name, scale in CODES.items()}
    curve = RateCurve(stars=300, stored_bits=60, entropy_bits=55.5, codes={name: tuple(each) for name, each in points.items()})
    codes = tuple(LatentCode.of(f"z{i:02d}", 15 - i, 0.1) for i in range(4))
    card = inputs.card.model_copy(update={"codes": codes})
    text = bits(replace(inputs, quality=inputs.quality.model_copy(update={"curve": curve}), card=card))
    assert "60 bits a star" in text and "15, 14, 13, 12 for the latents" in text and "would leave 55.5" in text
    for name in ("latents", "quantile codes", "PCA"):
        assert f'colspan="5">{name}</th>' in text
    assert text.count('<tr><th scope="row">') == 3
