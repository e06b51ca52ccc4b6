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

from gaiadask.codec.bounds import Tolerance
from gaiadask.codec.compressed import CompressedColumn, CompressedRecord, SizeAtBound
from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.model.card import CardColumn, LatentSummary, MetricsRecord, ModelCard, TrainingSummary, ValueErrors
from gaiadask.model.rounding import LatentCode
from gaiadask.quality import Rated, bytes_a_star, rate
from gaiadask.quality.records import AucResult, Comparison, Joint, Quality, RateCurve, RatePoint, TwoSample
from gaiadask.quality.tables import largest_variance
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import BP_ZERO_POINT, COLUMNS, DR2, G_ZERO_POINT, RP_ZERO_POINT, SEED16, SEED25
from gaiadask.report import ReportInputs, render
from gaiadask.report.bits import bits
from gaiadask.report.columns import quality_table
from gaiadask.report.compressed import compressed
from gaiadask.report.distributions import distributions
from gaiadask.report.head import auc_words, tiles, verdict
from gaiadask.report.hr_diagram import hr_diagram
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
from gaiadask.store.manifest import ManifestRecord, StageEntry

STARS = 400


# Mock stars ---------------------------------------------------------------------------------------------------------
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
def mock_config(columns: tuple[str, ...], **changes: Any) -> Config:
    values: dict[str, Any] = {
        "name": "trial",
        "archive": {"kind": "mock"},
        "selection": {"columns": "seed25", "not_null": []},
        "model": {"columns": list(columns), "latents": 4},
        "quality": {"two_sample_rows": 100, "two_sample_seeds": 2},
    }
    return parse_config(values | changes)


def mock_inputs(
    n: int = 3_000,
    columns: tuple[str, ...] = SEED16,
    catalogue_columns: tuple[str, ...] = SEED25,
    null_share: dict[str, float] | None = None,
    baseline: bool = True,
    tested: bool = False,
    width: int = 4,
    sampled: bool = True,
    **config: Any,
) -> ReportInputs:
    """Inputs as a run leaves them; the rating is the real one, without its two-sample tests where these are not asked for."""
    values = free_columns(n)
    nulls = null_share or {}
    real = as_table(values, catalogue_columns, nulls, 3)
    rebuilt = as_table(disturbed(values, 0.02, 1), columns, nulls, 3)
    pca = as_table(disturbed(values, 0.06, 2), columns, nulls, 3) if baseline else None
    z = np.random.default_rng(5).normal(size=(n, width)).astype(np.float32)
    new = as_table(free_columns(n, 6), columns, nulls, 7).select(list(columns)) if sampled else None
    rated = Rated(real.select([SOURCE_ID, *catalogue_columns]), rebuilt, z, DR2, pca, new)
    settings = mock_config(columns, **config)
    size = bytes_a_star(10 * n, 4 * width, 1, 400_000, 60 * n, 900 * n)
    quality = rate(rated, settings.quality, two_sample=None if tested else {}, storage=size)
    return ReportInputs(settings, card(settings, width), manifest(), quality, metrics(width), rated, None, {"written": 10 * n})


def card(config: Config, width: int) -> ModelCard:
    columns = [(name, COLUMNS[name]) for name in config.model_columns]
    training = TrainingSummary(
        config=config.training, rows_seen=12_000_000, best_rows_seen=9_000_000, stopped_early=False, seconds=120.0,
        rows_per_s=1e5, parameters=1_000, validation_rows=500, device="cpu",
    )  # fmt: skip
    return ModelCard(
        format_version=2,
        key="0123456789abcdef",
        columns=tuple(CardColumn(name=n, unit=c.unit, ucd=c.ucd, dtype=str(c.dtype), role="free") for n, c in columns),
        transform={},
        model=config.model,
        training=training,
        metrics=record(9, width),
        latents=tuple(LatentSummary(kl=3.0 / (i + 1), mean=0.0, std=1.0) for i in range(width)),
        errors=ValueErrors(),
        metadata={},
        versions={"torch": "2.10"},
    )


def manifest() -> ManifestRecord:
    entry = StageEntry(
        key="fedcba9876543210", inputs={}, result={"catalogue_id": "00ca7a10900e1d00"}, seconds=12.3,
        finished="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    return ManifestRecord(format=1, run="trial", stages={"ingest": entry, "train": entry}, versions={"gaiadask": "0.1.0"})


def record(i: int, width: int) -> MetricsRecord:
    return MetricsRecord(
        rows_seen=1_000_000 * i, seconds=10.0 * i, learning_rate=1e-3, kl_weight=1.0,
        train_loss=-10 + 40 / i, train_reconstruction=-30 + 38 / i, train_kl=20 + 2 / i,
        validation_loss=-9 + 40 / i, validation_reconstruction=-29 + 38 / i, validation_kl=20 + 2 / i,
        median_error={}, active_units=width, latents=(LatentSummary(kl=1.0, mean=0.0, std=1.0),) * width,
    )  # fmt: skip


def metrics(width: int) -> list[MetricsRecord]:
    return [record(i, width) for i in range(1, 13)]


def bare(inputs: ReportInputs) -> ReportInputs:
    """The inputs without anything that may be missing."""
    joint = Joint(hr_diagram=None, sky=None, velocity_dispersions=None, density_coverage=None)
    quality = Quality(
        key="", stars=inputs.stars, latents=inputs.latents, reconstruction={}, two_sample=None, joint=joint, sampling=None,
        storage=None, skipped={},
    )  # fmt: skip
    model = inputs.card.model_copy(update={"latents": (), "versions": {}})
    empty = ManifestRecord(format=1, run="trial", stages={}, versions={})
    return replace(inputs, card=model, manifest=empty, quality=quality, metrics=[], rows={})


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
    return Page(render(mock_inputs(STARS)))


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
    inputs = mock_inputs(STARS)
    mean = inputs.quality.reconstruction["rebuilt"].headline.beside_position.median.mean
    assert inputs.quality.uncertainty is not None
    error = inputs.quality.uncertainty.reconstruction["rebuilt"].median.mean
    head = page.text[:1_500]
    assert f"{STARS} test stars" in head.replace("\u202f", " ")
    assert f"{uncertain(100 * mean, 100 * error)} %" in head.replace("\u202f", " ") and "±" in uncertain(100 * mean, 100 * error)
    assert "ahead of PCA-4" in head


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
def test_nulls_are_told_and_a_column_null_throughout_is_shown_as_such() -> None:
    inputs = mock_inputs(300, ("ra", "dec", "radial_velocity", "teff_val"), null_share={"teff_val": 0.4, "radial_velocity": 1.0})
    part = Page(distributions(inputs))
    assert {alt.split(",")[0] for alt in part.pictures} == {f"Distribution of {n}" for n in inputs.columns}
    assert "radial_velocity" not in Page(residuals(inputs)).text
    row = re.search("radial_velocity.*?</tr>", quality_table(inputs))
    assert row is not None
    assert row[0].count("–") >= 9


def auc_result(features: Any, mean: float) -> AucResult:
    return AucResult(features=features, mean=mean, spread=None, values=(mean,), rows=100, folds=3, inputs=(), seconds_per_fit=0.1)


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
    assert "and tells some new stars from real ones at 0.612 (0.612 to 0.612)" in Page(verdict(inputs)).text
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


@pytest.mark.slow
def test_two_sample_tests_are_told_with_their_yardsticks() -> None:
    part = Page(two_sample(mock_inputs(800, tested=True)))
    told = next(alt for alt in part.pictures if alt.startswith("AUC:"))
    for against in ("other real stars", "rebuilt stars", "rebuilt by PCA", "Gaussian copula", "independent columns"):
        assert against in told
    assert "0.5 = indistinguishable" in part.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"n": 300, "null_share": {"teff_val": 0.4, "radial_velocity": 1.0}}, {"columns": ("parallax",)}]
)
def test_odd_inputs_make_a_whole_page(changes: dict[str, Any]) -> None:
    inputs = mock_inputs(**changes)
    for made in (inputs, bare(inputs)):
        assert len(Page(render(made)).pictures) >= 2


@pytest.mark.slow
def test_page_of_many_stars_stays_small_and_says_what_it_left_out() -> None:
    many, values = 60_000, free_columns(60_000)
    real, rebuilt = as_table(values, SEED25, {}, 3), as_table(disturbed(values, 0.02, 1), SEED16, {}, 3)
    z = np.random.default_rng(5).normal(size=(many, 4)).astype(np.float32)
    text = render(replace(mock_inputs(300), rated=Rated(real, rebuilt, z, DR2, rebuilt)))
    assert len(text) < 6_000_000
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
    column = CompressedColumn(
        bytes=24_500, worst=0.999, exceptions=3, tolerance=Tolerance(kind="sigma", amount=0.1, error="parallax_error"), raw_bits=64,
        alone_bits=9.31, noise_bits=4.37,
    )  # fmt: skip
    mask = column.model_copy(update={"tolerance": Tolerance(kind="exact"), "raw_bits": 1, "noise_bits": None, "bytes": 1_250})
    record = CompressedRecord(
        version=1, key="k", catalogue_id="c", bound_sigma=0.1, card="s", tables="t", rows=10_000, bytes=50_000,
        columns={"null:parallax": mask, "parallax": column}, sizes=(SizeAtBound(bound_sigma=1.0, bytes_a_star=4.0),), partitions=(),
    )  # fmt: skip
    text = compressed(replace(mock_inputs(200), compressed=record))
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
    for name in ("latents: mean", "quantile codes: mean", "PCA: mean"):
        assert name in text
    assert text.count("<tr><th scope=") == 3


CODES = {"model": 0.1, "quantiles": 0.4, "pca": 0.2}


def rate_point(bits: int, error: float) -> RatePoint:
    return RatePoint(
        bits=bits, error=error, worst=2 * error, worst_column="pmra", p99=9 * error, ks=0.1 * error, within_1_sigma=0.5
    )
