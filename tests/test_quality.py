"""Ratings: known answers, properties, and what the two-sample tests can and cannot see."""

from __future__ import annotations

import json
import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from dask_ml.decomposition import PCA
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from gaiadask.config.sections import QualityConfig
from gaiadask.errors import DataError
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.quality import (
    FEATURES,
    Rated,
    bytes_a_star,
    density_coverage,
    gaussian_copula_sample,
    hr_distance,
    independent_columns_sample,
    nearer_to_train,
    rate,
    rate_columns,
    reconstruction,
    run_job,
    sky_distance,
    summarise,
    two_sample_auc,
    two_sample_jobs,
    velocity_dispersions,
)
from gaiadask.quality.baseline import Moments, fit_pca, pca_rebuild, pca_rebuilt
from gaiadask.quality.bootstrap import HeldOut, auc_error, headline_errors
from gaiadask.quality.physics import colour_locus, galactic_velocity, physics_features, tangential_velocities
from gaiadask.quality.reconstruction import ks_distance
from gaiadask.quality.records import Comparison, Quality, Quantiles
from gaiadask.quality.schemas import RECORDS, schema_text
from gaiadask.quality.tables import halves, values
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, DR2, SEED16, SEED25
from gaiadask.report.head import auc_words

FAST = QualityConfig(rows=1_000, two_sample_rows=200, two_sample_seeds=1)


def make_stars(n: int, seed: int = 0) -> pa.Table:
    """Stars with a main sequence, a colour locus, and catalogue errors: the seed's 25 columns; no nulls."""
    random = np.random.default_rng(seed)
    teff = random.uniform(3_800, 8_000, n)
    distance_pc = random.gamma(3, 150, n) + 20
    magnitude = 4.7 - 14 * np.log10(teff / 5_772) + 0.4 * random.standard_normal(n) + 5 * np.log10(distance_pc / 10)
    g_rp = 0.48 - 2.2 * np.log10(teff / 5_772) + 0.01 * random.standard_normal(n)
    bp_g = 0.25 + 0.3 * g_rp + 0.9 * g_rp**2 + 0.01 * random.standard_normal(n)
    v: dict[str, NDArray[Any]] = {
        "ra": random.uniform(0, 360, n),
        "dec": np.degrees(np.arcsin(random.uniform(-1, 1, n))),
        "parallax": 1_000 / distance_pc,
        "radial_velocity": 30 * random.standard_normal(n),
        "phot_g_mean_flux": 10 ** (0.4 * (25.688 - magnitude)),
        "phot_bp_mean_flux": 10 ** (0.4 * (25.351 - magnitude - bp_g)),
        "phot_rp_mean_flux": 10 ** (0.4 * (24.762 - magnitude + g_rp)),
        "teff_val": teff.astype(np.float32),
        "a_g_val": random.gamma(2, 0.1, n).astype(np.float32),
    }
    for name in ("pmra", "pmdec"):
        v[name] = 30 * random.standard_normal(n) * v["parallax"] / 4.74
    v |= DR2.derive(v, ("bp_rp", "bp_g", "g_rp", "radius_val", "lum_val"))
    for name in set(SEED25) - set(SEED16):
        v[name] = np.exp(0.4 * random.standard_normal(n)) * (0.04 if "flux" not in name else 2.0)
    ids = np.arange(n, dtype=np.int64) * 7_919_000_000_123 + seed + 1
    return pa.table({SOURCE_ID: ids} | {name: pa.array(v[name], COLUMNS[name].dtype) for name in SEED25})


@pytest.fixture(scope="module")
def stars() -> pa.Table:
    return make_stars(2_000)


def changed(table: pa.Table, name: str, column: Any) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.column_names.index(name), field, pa.array(column, field.type, from_pandas=True))


def model_columns(table: pa.Table) -> pa.Table:
    return table.select([SOURCE_ID, *SEED16])


def rated(table: pa.Table, rebuilt: pa.Table | None = None, **kwargs: Any) -> Rated:
    rebuilt = model_columns(table) if rebuilt is None else rebuilt
    return Rated(table, rebuilt, np.zeros((table.num_rows, 8), np.float32), DR2, **kwargs)


# Reconstruction ------------------------------------------------------------------------------------------------------
def test_identical_tables_have_no_error(stars: pa.Table) -> None:
    result: Any = reconstruction(stars, model_columns(stars), SEED16, DR2).to_json()
    for entry in result["columns"].values():
        assert entry["error_over_iqr"] == {"median": 0, "p90": 0, "p99": 0, "max": 0}
        assert (entry["ks"], entry["lost"], entry["invented"], entry["stars"]) == (0, 0, 0, 2_000)
    assert result["position_error_arcsec"]["max"] == 0
    assert result["headline"]["beside_position"]["median"] == {"mean": 0, "worst": 0, "worst_column": "parallax", "columns": 14}
    assert result["headline"]["all_columns"]["ks"]["columns"] == 16


def test_a_shifted_column_is_found_in_its_units(stars: pa.Table) -> None:
    pmra = values(stars, "pmra")
    iqr = float(np.diff(np.quantile(pmra, [0.25, 0.75]))[0])
    shifted = changed(model_columns(stars), "pmra", pmra + 0.5 * iqr)
    result: Any = reconstruction(stars, shifted, SEED16, DR2).to_json()
    entry = result["columns"]["pmra"]
    assert entry["iqr"] == pytest.approx(iqr)
    assert all(x == pytest.approx(0.5) for x in entry["error_over_iqr"].values())
    sigma = 0.5 * iqr / values(stars, "pmra_error")
    assert entry["error_in_sigma"]["median"] == pytest.approx(np.median(sigma), rel=0.01)
    assert entry["error_in_sigma"]["beyond_3_sigma"] == pytest.approx(np.mean(sigma > 3))
    assert entry["error_in_sigma"]["stars"] == 2_000
    assert entry["ks"] > 0.1
    head = result["headline"]["beside_position"]
    assert head["median"]["worst_column"] == head["ks"]["worst_column"] == "pmra"
    assert head["median"]["mean"] == pytest.approx(0.5 / 14)
    assert entry["error_arcsec"] is None
    assert result["columns"]["teff_val"]["error_in_sigma"] is None


def test_right_ascension_is_wrapped_foreshortened_and_in_milliarcseconds_sigmas() -> None:
    mas = 1 / 3_600_000
    real = pa.table(
        {
            SOURCE_ID: [1, 2, 3, 4],
            "ra": [360 - mas, 10.0, 20.0, 200.0],
            "dec": [0.0, 60.0, 0.0, 0.0],
            "ra_error": [1.0, 1.0, 0.5, 4.0],
            "dec_error": [1.0] * 4,
        }
    )
    rebuilt = pa.table({"ra": [mas, 10 + 2 * mas, 20 - 2 * mas, 200 + 2 * mas], "dec": [0.0, 60.0, 0.0, 0.0]})
    rated = rate_columns(real, rebuilt.set_column(1, "dec", pa.array([0.5 * mas, 60.0, -2 * mas, 4 * mas])), ("ra", "dec"), DR2)
    ra, dec = rated["ra"], rated["dec"]
    assert dec.error_in_sigma is not None
    assert (dec.error_in_sigma.median, dec.error_in_sigma.p90) == pytest.approx((0.5, 4.0), rel=1e-4)
    assert (dec.error_in_sigma.within_1_sigma, dec.error_in_sigma.beyond_3_sigma) == (0.5, 0.25)
    # 2 mas across 0/360; 2 mas of ra at 60 degrees are 1 on the sky; 2 mas with sigma 0.5; 2 mas with sigma 4.
    assert ra.error_arcsec is not None and ra.error_in_sigma is not None
    assert (ra.error_arcsec.median, ra.error_arcsec.max) == pytest.approx((0.002, 0.002), rel=1e-4)
    assert ra.error_in_sigma.median == pytest.approx(1.0, rel=1e-4)
    assert ra.error_in_sigma.p90 == pytest.approx(4.0, rel=1e-4)
    assert ra.error_in_sigma.beyond_3_sigma == 0.25
    position = reconstruction(real, rebuilt, ("ra", "dec"), DR2).position_error_arcsec
    assert position is not None and position.max == pytest.approx(0.002, rel=1e-4)


def test_lost_and_invented_values_are_counted_and_count_as_infinite() -> None:
    n = 100
    real = pa.table({SOURCE_ID: range(n), "a_g_val": pa.array([None] * 5 + [0.1 * i for i in range(95)], pa.float32())})
    kept = real.column("a_g_val").to_pylist()
    rebuilt_values = [0.3] * 5 + kept[5:94] + [float("nan")] * 2 + [None] * 4
    rebuilt = pa.table({SOURCE_ID: range(n), "a_g_val": pa.array(rebuilt_values, pa.float32())})
    result: Any = reconstruction(real, rebuilt, ("a_g_val",), DR2).to_json()
    entry = result["columns"]["a_g_val"]
    assert (entry["stars"], entry["lost"], entry["invented"]) == (95, 6, 5)
    # 11 of 100 are infinite: the median is not, 90 % is, and would not be without the invented ones.
    assert entry["error_over_iqr"] == {"median": 0.0, "p90": None, "p99": None, "max": None}
    assert result["headline"]["beside_position"]["p90"]["mean"] is None
    assert result["headline"]["beside_position"]["p90"]["worst_column"] == "a_g_val"
    assert result["position_error_arcsec"] is None


def test_a_constant_or_empty_column_is_not_rated_by_its_width(stars: pa.Table) -> None:
    constant = changed(changed(stars, "a_g_val", np.ones(2_000)), "teff_val", np.full(2_000, np.nan))
    result: Any = reconstruction(constant, model_columns(constant), SEED16, DR2).to_json()
    assert result["columns"]["a_g_val"]["error_over_iqr"]["median"] is None
    assert result["columns"]["teff_val"]["ks"] is None and result["columns"]["teff_val"]["stars"] == 0
    assert result["headline"]["beside_position"]["median"] == {"mean": 0, "worst": 0, "worst_column": "parallax", "columns": 12}


def test_tables_must_be_the_same_stars(stars: pa.Table) -> None:
    with pytest.raises(DataError, match="same rows: found 2000 and 5"):
        rate_columns(stars, stars.slice(0, 5), SEED16, DR2)
    with pytest.raises(DataError, match="rebuilt stars are not the real ones"):
        rated(stars, model_columns(stars).take(np.arange(2_000)[::-1]))
    with pytest.raises(DataError, match="no column 'pmra'"):
        rate_columns(stars.drop_columns("pmra"), stars, SEED16, DR2)


FINITE = st.floats(-1e6, 1e6)


@pytest.mark.slow
@given(arrays(np.float64, st.integers(1, 30), elements=FINITE), arrays(np.float64, st.integers(1, 30), elements=FINITE))
@settings(max_examples=50, deadline=None)
def test_ks_is_a_distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> None:
    assert 0 <= ks_distance(one, other) <= 1
    assert ks_distance(one, other) == pytest.approx(ks_distance(other, one))
    assert ks_distance(one, one) == 0
    with np.errstate(all="ignore"):  # scipy's p-value, which nobody reads
        assert ks_distance(one, other) == pytest.approx(ks_2samp(one, other, method="asymp").statistic)


@given(arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1e6) | st.just(math.inf)))
@settings(max_examples=50, deadline=None)
def test_error_quantiles_grow_and_infinite_ones_stay_in_their_share(errors: NDArray[np.float64]) -> None:
    q = Quantiles.of(errors)
    assert q.median <= q.p90 <= q.p99 <= q.max == errors.max()
    assert math.isinf(q.median) == (np.isinf(errors).sum() > len(errors) / 2)


# Two-sample tests ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("features", ["raw", "physics", "mlp"])
def test_halves_of_the_same_stars_cannot_be_told_apart_independent_columns_can(stars: pa.Table, features: Any) -> None:
    real, other = stars.slice(0, 1_000), stars.slice(1_000)
    same = two_sample_auc(real, other, DR2, features, rows=300, seeds=1)
    assert 0.38 < same.mean < 0.62 and same.spread == pytest.approx(hanley_mcneil(same.mean, 300), rel=0.3) and same.rows == 300
    assert SOURCE_ID not in same.inputs
    broken = two_sample_auc(real, independent_columns_sample(other, 1_000, DR2), DR2, features, rows=300, seeds=1)
    assert broken.mean > (0.85 if features == "mlp" else 0.9)


def hanley_mcneil(auc: float, stars: int) -> float:
    """Standard error of an AUC of `stars` on each side (Hanley and McNeil 1982, Radiology 143, 29)."""
    both_above, both_below = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (stars - 1) * (both_above + both_below - 2 * auc**2)
    return math.sqrt(variance) / stars


@pytest.mark.slow
def test_an_auc_is_bootstrapped_over_the_stars_of_both_sides() -> None:
    random = np.random.default_rng(0)
    scores, is_fake = random.normal(size=1_000).round(1), np.arange(1_000) % 5 == 0
    scores[is_fake] += 1
    test = HeldOut.of(scores, is_fake, np.arange(1_000))
    assert test.auc() == pytest.approx(roc_auc_score(is_fake, scores))
    weights = random.poisson(1, 1_000).astype(np.float64)
    assert test.auc(weights) == pytest.approx(roc_auc_score(is_fake, scores, sample_weight=weights))
    # Of 200 fake stars and 800 real ones: the scatter over other sets of stars, by simulation.
    others = [roc_auc_score(is_fake, random.normal(size=1_000) + is_fake) for _ in range(200)]
    assert auc_error([test]) == pytest.approx(np.std(others), rel=0.25)
    # A second test of the same stars with the same scores adds nothing, one of other stars does.
    assert auc_error([test, test]) == pytest.approx(auc_error([test]))
    assert auc_error([test, test._replace(stars=test.stars + 1_000)]) == pytest.approx(auc_error([test]) / 2**0.5, rel=0.25)


@pytest.mark.slow
def test_a_headline_is_bootstrapped_over_stars() -> None:
    """Standard errors are the scatter over other test stars."""

    def pair(seed: int) -> tuple[pa.Table, pa.Table]:
        random, real = (
            np.random.default_rng(seed),
            model_columns(make_stars(400, seed)).select([SOURCE_ID, "dec", "pmra", "parallax"]),
        )
        made = changed(real, "pmra", values(real, "pmra") + 0.1 * random.standard_normal(400))
        return real, changed(made, "parallax", values(real, "parallax") + 0.02 * random.standard_normal(400))

    columns, pairs = ["dec", "pmra", "parallax"], [pair(seed) for seed in range(60)]
    summaries = [summarise(rate_columns(*each, columns, DR2)).beside_position for each in pairs]
    errors = [headline_errors(*each, columns) for each in pairs[:8]]
    for name in ("median", "p99", "ks"):
        for of in ("mean", "worst"):
            scatter = np.std([getattr(getattr(summary, name), of) for summary in summaries], ddof=1)
            ratio = np.mean([getattr(getattr(error, name), of) for error in errors]) / scatter
            # The largest of many differences that are nearly 0 scatters more in replicates than over stars.
            assert 0.6 < ratio < (2.5 if name == "ks" else 1.6), (name, of)
    real, made = pairs[0]
    lost = headline_errors(real, changed(made, "pmra", np.full(400, np.nan)), columns)
    assert math.isnan(lost.median.mean) and lost.ks.worst == 0 and math.isnan(headline_errors(real, made, ["dec"]).ks.worst)
    assert headline_errors(real, made, columns) == headline_errors(real, made, columns)


@pytest.mark.slow
def test_seeds_draw_different_stars_and_give_a_spread_yet_repeat() -> None:
    tables = [make_stars(400, seed).select([SOURCE_ID, "pmra", "parallax"]) for seed in (0, 1)]
    result = two_sample_auc(*tables, DR2, "raw", rows=100, seeds=2)
    assert len(set(result.values)) == 2 and result.spread is not None and result.spread > np.std(result.values, ddof=1)
    assert two_sample_auc(*tables, DR2, "raw", rows=100, seeds=2).values == result.values


@pytest.mark.slow
def test_sets_of_one_origin_are_told_apart_no_more_often_than_one_in_twenty(stars: pa.Table) -> None:
    """Pairs of 80 stars: the seeds' scatter alone tells half of them apart; the interval holds 0.5 for 95 %."""
    random, apart, by_seeds = np.random.default_rng(0), 0, 0
    for _ in range(40):
        rows = random.permutation(len(stars))[:160]
        result = two_sample_auc(stars.take(pa.array(rows[:80])), stars.take(pa.array(rows[80:])), DR2, "raw", rows=80, seeds=3)
        low, high = result.interval
        apart += not low <= 0.5 <= high
        by_seeds += abs(result.mean - 0.5) > 1.96 * np.std(result.values, ddof=1) / np.sqrt(3)
        assert auc_words(Comparison.of({"raw": result}), "new").startswith("can hardly tell") == (low <= 0.5)
    assert apart <= 5, "40 pairs at 5 %: 2 are expected, more than 5 have a chance of 1 %"
    assert by_seeds > 10


@pytest.mark.slow
def test_physics_sees_what_raw_columns_hide(stars: pa.Table) -> None:
    # A tenth off in luminosity: hidden in the width of the main sequence, plain once Teff stands beside M_G + 2.5 log L.
    random = np.random.default_rng(0)
    made = make_stars(2_000, 5)
    made = changed(made, "lum_val", values(made, "lum_val") * np.exp(0.1 * random.standard_normal(2_000)))
    columns = ["phot_g_mean_flux", "parallax", "teff_val", "lum_val"]
    raw, physics = (two_sample_auc(stars.select(columns), made.select(columns), DR2, f, 1_500, seeds=1) for f in ("raw", "physics"))
    assert physics.mean > raw.mean + 0.1 and physics.mean > 0.75


@pytest.mark.slow
def test_nulls_alone_give_stars_away_to_every_classifier(stars: pa.Table) -> None:
    holed = make_stars(2_000, 3)
    holed = changed(holed, "pmra", np.where(np.arange(2_000) % 2, np.nan, values(holed, "pmra")))
    for features in FEATURES:
        assert two_sample_auc(stars.select(["pmra"]), holed.select(["pmra"]), DR2, features, 1_000, seeds=1).mean > 0.7


@pytest.mark.slow
def test_a_coarser_type_gives_nothing_away(stars: pa.Table) -> None:
    single = pa.table({"pmra": stars.column("pmra").cast(pa.float32())}).slice(0, 1_000)
    other = pa.table({"pmra": values(stars, "pmra")[1_000:]})
    assert abs(two_sample_auc(single, other, DR2, "raw", 400, seeds=1).mean - 0.5) < 0.12


def test_two_sample_refuses_what_it_cannot_compare(stars: pa.Table) -> None:
    with pytest.raises(DataError, match="at least 6 stars"):
        two_sample_auc(stars.slice(0, 5), stars, DR2)
    with pytest.raises(DataError, match="share no column"):
        two_sample_auc(stars.select([SOURCE_ID, "ra"]), stars.select([SOURCE_ID, "dec"]), DR2)


def test_yardsticks_keep_marginals_and_nulls_and_only_the_copula_keeps_correlations(stars: pa.Table) -> None:
    holed = changed(stars, "pmra", np.where(np.arange(2_000) < 500, np.nan, values(stars, "pmra")))
    correlation = np.corrcoef(np.log(values(stars, "phot_g_mean_flux")), np.log(values(stars, "phot_bp_mean_flux")))[0, 1]
    for sample, kept in (
        (independent_columns_sample(holed, 3_000, DR2), 0.0),
        (gaussian_copula_sample(holed, 3_000, DR2), correlation),
    ):
        assert sample.num_rows == 3_000 and SOURCE_ID not in sample.column_names
        assert sample.schema.field("teff_val").type == pa.float32()
        assert sample.column("pmra").null_count / 3_000 == pytest.approx(0.25, abs=0.03)
        for name in ("phot_g_mean_flux", "teff_val", "pmra"):
            drawn = pc.drop_null(sample.column(name))
            assert ks_distance(pc.drop_null(holed.column(name)).to_numpy(), drawn.to_numpy()) < 0.05
            assert pc.all(pc.is_in(drawn, holed.column(name).combine_chunks())).as_py()
        made = np.corrcoef(np.log(values(sample, "phot_g_mean_flux")), np.log(values(sample, "phot_bp_mean_flux")))[0, 1]
        assert made == pytest.approx(kept, abs=0.08)


def test_the_halves_are_disjoint_whole_and_do_not_depend_on_order(stars: pa.Table) -> None:
    one, other = halves(stars)
    assert sorted([*one, *other]) == list(range(2_000))
    assert abs(len(one) - 1_000) < 150
    mixed = np.random.default_rng(0).permutation(2_000)
    again, _ = halves(stars.take(mixed))
    assert np.array_equal(mixed[again], one)


# Physics -------------------------------------------------------------------------------------------------------------
def test_velocities_of_a_star_at_the_galactic_centre() -> None:
    # Galactic centre and the proper motion of Sgr A* (Reid & Brunthaler 2004): the Sun's motion along l, at 8.0 kpc.
    centre = {"ra": [266.416837], "dec": [-29.007811], "parallax": [0.125], "pmra": [-3.151], "pmdec": [-5.547]}
    table = pa.table(centre | {"radial_velocity": [12.0]})
    u, v, w = galactic_velocity(table)[0]
    assert u == pytest.approx(12.0, abs=0.3)
    assert v == pytest.approx(-6.379 * 4.7405 * 8, rel=0.002)
    assert w == pytest.approx(-0.202 * 4.7405 * 8, abs=0.5)
    assert np.hypot(*tangential_velocities(table)) == pytest.approx(np.hypot(v, w), rel=1e-4)


def test_physics_features_are_those_whose_columns_are_there(stars: pa.Table) -> None:
    features = physics_features(stars, colour_locus(stars), DR2)
    expected = {"abs_g_mag", "bolometric", "v_tangential", "u", "v", "w", "x", "y", "z", "locus_residual", "parallax_snr"}
    assert set(features) == expected
    assert np.std(features["locus_residual"]) < 0.02
    assert np.allclose(features["u"] ** 2 + features["v"] ** 2 + features["w"] ** 2,
                       features["v_tangential"] ** 2 + values(stars, "radial_velocity") ** 2)  # fmt: skip
    assert set(physics_features(stars.select(["ra", "dec", "parallax"]), None, DR2)) == {"x", "y", "z"}
    negative = changed(stars, "parallax", -values(stars, "parallax"))
    assert np.isnan(physics_features(negative, None, DR2)["v_tangential"]).all()


# Joint structure -----------------------------------------------------------------------------------------------------
def test_histogram_distances_are_one_for_like_stars_and_more_for_others(stars: pa.Table) -> None:
    a, b, c = stars, make_stars(2_000, 1), make_stars(2_000, 2)
    for distance in (partial(hr_distance, release=DR2), sky_distance):
        assert distance(a, b, c).in_units_of_real == pytest.approx(1, abs=0.15)
        assert distance(a, b, a).in_units_of_real == 1
    assert hr_distance(a, b, independent_columns_sample(c, 2_000, DR2), DR2).in_units_of_real > 1.3
    cap = changed(c, "dec", np.abs(values(c, "dec")))
    assert sky_distance(a, b, cap).in_units_of_real > 2
    nowhere = changed(c, "parallax", np.full(2_000, -1.0))
    assert hr_distance(a, b, nowhere, DR2).distance == 1


def test_velocity_dispersions_tell_a_shrunk_column(stars: pa.Table) -> None:
    shrunk = changed(stars, "pmra", values(stars, "pmra") * 0.5)
    bins = velocity_dispersions(stars, shrunk)
    assert len(bins) == 8 and sum(b.stars for b in bins) >= 2_000
    for b in bins:
        assert b.real_ra_km_s == pytest.approx(30, rel=0.25)
        assert b.made_ra_km_s == pytest.approx(b.real_ra_km_s / 2)
        assert b.made_dec_km_s == b.real_dec_km_s


def test_density_and_coverage_of_alike_crowded_and_strange_stars(stars: pa.Table) -> None:
    real, other = model_columns(stars), model_columns(make_stars(2_000, 1))
    alike = density_coverage(real, other, DR2)
    assert alike.density == pytest.approx(1, abs=0.1)
    assert alike.coverage == pytest.approx(1 - 2**-5, abs=0.03)
    few_places = density_coverage(real, other.take(np.arange(2_000) % 20), DR2)
    assert few_places.coverage < 0.1
    assert density_coverage(real, independent_columns_sample(other, 2_000, DR2), DR2).density < 0.5
    with pytest.raises(DataError, match="more than 5 stars"):
        density_coverage(real.slice(0, 5), other, DR2)


@pytest.mark.slow
def test_copies_of_train_stars_are_found_out() -> None:
    train, test, others = (make_stars(600, seed) for seed in (1, 2, 3))
    assert nearer_to_train(others, train, test, DR2) == pytest.approx(0.5, abs=0.07)
    assert nearer_to_train(train.slice(0, 300), train, test, DR2) == 1
    assert nearer_to_train(test, train, test, DR2) == 0
    assert nearer_to_train(others, train, train, DR2) == 0.5
    with pytest.raises(DataError, match="empty"):
        nearer_to_train(others.slice(0, 0), train, test, DR2)


# Baseline ------------------------------------------------------------------------------------------------------------
def test_pca_of_full_width_is_exact_and_of_less_is_the_best_plane() -> None:
    random = np.random.default_rng(0)
    x = (random.standard_normal((500, 4)) @ random.standard_normal((4, 4)) + 3).astype(np.float32)
    moments = Moments.of(x)
    assert np.allclose(pca_rebuild(fit_pca(moments, 9), x), x, atol=1e-5)
    two = fit_pca(moments, 2)
    u, s, vt = np.linalg.svd(x - x.mean(0), full_matrices=False)
    assert np.allclose(pca_rebuild(two, x), u[:, :2] * s[:2] @ vt[:2] + x.mean(0), atol=1e-4)
    with pytest.raises(DataError, match="at least as many train stars"):
        fit_pca(Moments.of(x[:3]), 2)


def test_the_baseline_is_dask_mls_pca_however_the_stars_are_cut() -> None:
    """Also of values far from zero whose components differ by four orders of magnitude."""
    random = np.random.default_rng(1)
    x = (random.standard_normal((2_000, 6)) * np.logspace(0, -4, 6) @ np.linalg.qr(random.standard_normal((6, 6)))[0] + 20).astype(
        "f4"
    )
    theirs = PCA(n_components=3, svd_solver="full").fit(da.from_array(x.astype("f8"), chunks=(700, 6)))
    cuts = [x[:1], x[1:1], x[1:900], x[900:]]
    ours = fit_pca(Moments.merged([Moments.of(cut) for cut in cuts]), 3)
    assert np.allclose(ours.mean, theirs.mean_, rtol=1e-12)
    projections = [components.T @ components for components in (ours.components, theirs.components_)]
    assert np.allclose(*projections, atol=1e-9)


@pytest.mark.parametrize("position", ["condition", "input"])
def test_pca_rebuilds_stars_through_the_transform(stars: pa.Table, position: Any) -> None:
    holed = changed(stars, "a_g_val", np.where(np.arange(2_000) < 300, np.nan, values(stars, "a_g_val")))
    transform = Transform.fit(SEED16, Statistics.from_table(holed, DR2).train, DR2, position)
    pca = fit_pca(Moments.of(transform.forward(holed).values), transform.n_values)
    rebuilt = pca_rebuilt(pca, transform, holed, own_positions=position == "input")
    assert rebuilt.column_names == [SOURCE_ID, *SEED16]
    assert rebuilt.schema.field("teff_val").type == pa.float32()
    ratings = rate_columns(holed, rebuilt, SEED16, DR2)
    assert all((r.lost, r.invented) == (0, 0) for r in ratings.values())
    assert max(r.error_over_iqr.p99 for r in ratings.values()) < 0.01
    fewer = pca_rebuilt(fit_pca(Moments.of(transform.forward(holed).values), 3), transform, holed)
    assert rate_columns(holed, fewer, SEED16, DR2)["parallax"].error_over_iqr.median > 0.05


# The whole -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def quality(stars: pa.Table) -> Quality:
    baseline = independent_columns_sample(model_columns(stars), 2_000, DR2)
    baseline = baseline.add_column(0, SOURCE_ID, stars.column(SOURCE_ID))
    sampled = model_columns(make_stars(2_000, 9))
    train = model_columns(make_stars(2_000, 10))
    size = bytes_a_star(2_000, 32, 1, 10_000)
    return rate(rated(stars, baseline=baseline, sampled=sampled), FAST, key="0123", storage=size, train=train)


@pytest.fixture(scope="module")
def rating(quality: Quality) -> Any:
    return quality.to_json()


@pytest.mark.slow
def test_a_rating_is_strict_json_with_every_documented_part(quality: Quality, rating: Any) -> None:
    assert json.loads(json.dumps(rating, allow_nan=False)) == rating
    assert json.dumps(Quality.model_validate(rating).to_json()) == json.dumps(rating)
    assert next(iter(rating)) == "key" and set(rating) == {
        "key",
        "stars",
        "latents",
        "reconstruction",
        "two_sample",
        "joint",
        "sampling",
        "storage",
        "skipped",
        "uncertainty",
    }
    assert rating["stars"] == 2_000 and rating["latents"] == 8 and rating["skipped"] == {}
    assert set(rating["reconstruction"]) == {"rebuilt", "baseline"}
    comparisons = rating["two_sample"]["comparisons"]
    assert set(comparisons) == {"rebuilt", "baseline", "sampled", "real", "independent", "copula"}
    for entry in comparisons.values():
        assert entry["auc"] == max(auc["mean"] for auc in entry["classifiers"].values())
        assert set(entry["classifiers"]) == set(FEATURES)
    assert set(rating["joint"]) == {"hr_diagram", "sky", "velocity_dispersions", "density_coverage"}


@pytest.mark.slow
def test_a_perfect_model_is_as_good_as_real_and_a_bad_baseline_is_not(rating: Any) -> None:
    comparisons, joint = rating["two_sample"]["comparisons"], rating["joint"]
    assert comparisons["rebuilt"]["auc"] == comparisons["real"]["auc"] < 0.6
    assert comparisons["baseline"]["auc"] > 0.8 and comparisons["independent"]["auc"] > 0.8
    assert joint["hr_diagram"]["rebuilt"]["in_units_of_real"] == 1 < joint["hr_diagram"]["baseline"]["in_units_of_real"]
    assert joint["density_coverage"]["rebuilt"] == joint["density_coverage"]["real"]
    assert joint["density_coverage"]["baseline"]["density"] < 0.5
    assert rating["reconstruction"]["rebuilt"]["headline"]["beside_position"]["p99"]["worst"] == 0


@pytest.mark.slow
def test_new_stars_of_the_same_sky_are_as_good_as_real_and_copies_are_told(stars: pa.Table, rating: Any) -> None:
    sampling, joint = rating["sampling"], rating["joint"]
    assert sampling["stars"] == 2_000 and sampling["ks"]["columns"] == len(SEED16) - 2
    # Two samples of 2,000 of one distribution: KS beyond .062 once in a thousand columns.
    assert sampling["ks"]["worst"] == max(c["ks"] for n, c in sampling["columns"].items() if n not in ("ra", "dec")) < 0.08
    assert sampling["nearer_to_train"] == pytest.approx(0.5, abs=0.06)
    assert rating["two_sample"]["comparisons"]["sampled"]["auc"] < 0.65
    for part in ("hr_diagram", "sky"):
        assert joint[part]["sampled"]["in_units_of_real"] == pytest.approx(1, abs=0.25)
    train = model_columns(make_stars(2_000, 10))
    copied = rate(rated(stars, sampled=train), FAST, two_sample={}, train=train)
    assert copied.sampling is not None and copied.sampling.nearer_to_train == 1
    shifted = changed(train, "pmra", values(train, "pmra") + 3 * np.std(values(train, "pmra")))
    shifted_sampling = rate(rated(stars, sampled=shifted), FAST, two_sample={}).sampling
    assert shifted_sampling is not None and shifted_sampling.ks.worst_column == "pmra"


@pytest.mark.slow
def test_jobs_travel_and_no_star_is_on_both_sides(stars: pa.Table) -> None:
    config = QualityConfig(rows=1_000, two_sample_rows=100, two_sample_seeds=2)
    marked = rated(stars)
    jobs = two_sample_jobs(marked, config)
    assert len(jobs) == 4 * 3 and len({job.name for job in jobs}) == 12
    for job in jobs:
        assert job.real.num_rows == job.made.num_rows == 200
        assert len(pickle.dumps(job)) < 100_000
    rebuilt = next(job for job in jobs if job.name == "rebuilt/mlp")
    assert not set(rebuilt.real.column("ra").to_pylist()) & set(rebuilt.made.column("ra").to_pylist())
    away = {"rebuilt/mlp": run_job(pickle.loads(pickle.dumps(rebuilt)))}
    assert away["rebuilt/mlp"].values == run_job(rebuilt).values
    result = rate(marked, config, two_sample=away)
    comparison = result.comparison("rebuilt")
    assert comparison is not None and comparison.classifier == "mlp"
    assert "baseline" not in result.reconstruction and result.storage is None


def test_few_columns_and_few_stars_leave_parts_out_and_say_so(stars: pa.Table) -> None:
    small = stars.slice(0, 8).select([SOURCE_ID, "pmra", "pmdec", "pmra_error"])
    result: Any = rate(rated(small, small.select([SOURCE_ID, "pmra", "pmdec"])), FAST).to_json()
    assert result["two_sample"] is None
    assert result["joint"]["hr_diagram"] is None and result["joint"]["sky"] is None
    assert set(result["skipped"]) == {"two_sample", "hr_diagram", "sky", "velocity_dispersions", "density_coverage", "sampling"}
    assert result["sampling"] is None
    assert "phot_g_mean_flux" in result["skipped"]["hr_diagram"]
    assert result["reconstruction"]["rebuilt"]["columns"]["pmra"]["error_in_sigma"]["within_1_sigma"] == 1
    json.dumps(result, allow_nan=False)


def test_errors_are_told_in_the_units_that_one_speaks_of() -> None:
    """Fluxes as magnitudes, angles in mas; a value that is lost or invented counts as an infinite error, one without magnitude not."""
    real = {
        "dec": [10.0, 20.0, 30.0, 40.0, 50.0],
        "phot_g_mean_flux": [100.0, 100.0, 100.0, -5.0, None],
        "phot_g_mean_flux_error": [1.0, 2.0, 3.0, 4.0, 5.0],
        "bp_rp": [1.0, 1.0, 1.0, 1.0, None],
        "teff_val": [5_000.0] * 5,
        "a_g_val": [None, 0.5, 0.5, 0.5, 0.5],
    }
    rebuilt = {
        "dec": [10.0 + 1 / 3.6e6] * 1 + [20.0, 30.0, 40.0, 50.0],
        "phot_g_mean_flux": [100.0 * 10**0.4, 100.0 / 10**0.4, None, 5.0, None],
        "phot_g_mean_flux_error": [1.5, 2.0, 3.0, 4.0, 5.0],
        "bp_rp": [1.01, 0.98, 1.0, 1.0, None],
        "teff_val": [5_010.0] * 5,
        "a_g_val": [0.1, 0.5, 0.5, 0.5, 0.5],
    }
    tables = [pa.table({name: pa.array(column, pa.float64()) for name, column in side.items()}) for side in (real, rebuilt)]
    rated = {name: each.error_in_unit for name, each in rate_columns(*tables, list(real), DR2).items()}
    expected = {
        "dec": ("mas", 0.0, 1.0), "phot_g_mean_flux": ("mmag", 1_000.0, math.inf), "bp_rp": ("mmag", 0.0, 20.0), "teff_val": ("K", 10.0, 10.0),
        "phot_g_mean_flux_error": ("'electron'.s**-1", 0.0, 0.5), "a_g_val": ("mmag", 0.0, math.inf),
    }  # fmt: skip
    for name, (unit, median, largest) in expected.items():
        errors = rated[name]
        assert errors is not None and errors.unit == unit
        assert (errors.median, errors.max) == pytest.approx((median, largest), abs=1e-4), name


def test_bytes_a_star_count_everything() -> None:
    size = bytes_a_star(1_000, 32, 1, 50_000, latent_bytes_on_disk=60_000, catalogue_bytes_on_disk=220_000)
    assert size.row.to_json() == {"source_id": 8, "healpix_29": 8, "position": 16, "null_mask": 8, "latents": 32}
    assert size.in_memory == 72 + 50
    assert size.on_disk == 60 + 50 and size.catalogue_on_disk == 220 and size.ratio == 2
    assert bytes_a_star(10, 16, 2, 0).ratio is None
    with pytest.raises(DataError, match="at least one"):
        bytes_a_star(0, 32, 1, 100)


def test_quality_json_of_an_earlier_version_is_read_and_written_to_the_byte() -> None:
    text = (Path(__file__).parent / "data" / "quality.json").read_text()
    quality = Quality.model_validate_json(text)
    assert json.dumps(quality.to_json(), indent=1, allow_nan=False) + "\n" == text
    # null is an undefined number, or a part that is not there.
    baseline = quality.reconstruction["baseline"]
    assert math.isnan(baseline.columns["lum_val"].error_over_iqr.p99) and math.isnan(baseline.headline.beside_position.p99.mean)
    assert baseline.columns["lum_val"].error_in_sigma is None
    assert quality.comparison("sampled") is None
    assert baseline.columns["lum_val"].error_in_unit is None


@pytest.mark.parametrize("name", RECORDS)
def test_published_schemas_are_up_to_date(name: str) -> None:
    published = Path(__file__).parents[1] / "docs" / "schemas" / name
    assert published.read_text(encoding="utf-8") == schema_text(RECORDS[name]), "python -m gaiadask.quality.schemas docs/schemas"


@pytest.mark.slow
def test_real_rows_are_like_themselves(real_rows: pa.Table) -> None:
    complete = real_rows.select([SOURCE_ID, *SEED25])
    complete = complete.filter(pc.and_(pc.is_valid(complete.column("lum_val")), pc.is_valid(complete.column("ra_error"))))
    complete = complete.filter(pc.is_valid(complete.column("radial_velocity")))
    one, other = halves(complete)
    n = min(len(one), len(other))
    copula_stars = gaussian_copula_sample(complete.take(other), n, DR2)
    same = two_sample_auc(complete.take(one), complete.take(other), DR2, "physics", rows=500, seeds=1)
    copula = two_sample_auc(complete.take(one), copula_stars, DR2, "physics", rows=500, seeds=1)
    assert 0.45 < len(one) / complete.num_rows < 0.55
    assert same.mean < 0.6 < 0.9 < copula.mean
    result = reconstruction(complete, model_columns(complete), SEED16, DR2)
    assert result.columns["lum_val"].error_over_iqr.max == 0
