"""The transform: strictly increasing, invertible on any finite number, fitted from train stars alone."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from gaiadask.errors import DataError
from gaiadask.inputs.encoding import encoding_from_json
from gaiadask.inputs.masses import MassMap
from gaiadask.inputs.scaling import MAX_KNOTS, LinearMap, QuantileMap
from gaiadask.inputs.sketch import QuantileSketch
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.release.dr2 import COLUMNS, DR2, SEED16, SEED25
from gaiadask.sky import separation_deg
from gaiadask.split import Part, part_of

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NEAR = st.floats(-10, 10) | st.sampled_from([0.0, 1.0, 1e-30, 1e30, -1e300])
SEVERAL = arrays(np.float64, st.integers(2, 60), elements=FLOATS | NEAR).filter(lambda x: np.unique(x).size > 1)
INPUTS = arrays(np.float64, st.integers(1, 60), elements=FLOATS | NEAR)


def tolerance(fitted: QuantileMap, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half of the stated bound on |inverse(forward(x)) - x| (halves, since differences may exceed float64)."""
    half = np.abs(x / 2) * fitted.ROUND_TRIP + np.abs(x / 2 - fitted.location / 2) * fitted.ROUND_TRIP
    return half + np.ldexp(fitted.ROUND_TRIP, fitted.exponent - 1)


@pytest.mark.slow
@given(SEVERAL, INPUTS)
@example(np.array([0.0, 5e-324]), np.array([0.0, 5e-324, 1.7e308]))
@example(np.array([-1.7e308, 1.7e308]), np.array([-1.7e308, 0.0, 1.0, 1e300]))
@example(np.array([1.0, 1.0 + 2**-52, 1e30]), np.array([1.0, 2.0, 1e15, 1e30]))
@settings(max_examples=100, deadline=None)
def test_inverse_gives_any_finite_number_back(train: NDArray[np.float64], x: NDArray[np.float64]) -> None:
    fitted = QuantileMap.fit(QuantileSketch.from_values(train))
    x = np.concatenate([x, train])
    scores = fitted.score_of(x)
    back = fitted.value_of(scores)
    assert np.isfinite(scores).all() and np.abs(scores).max() < 6000
    assert (np.abs(back / 2 - x / 2) <= tolerance(fitted, x)).all()


@pytest.mark.slow
@given(SEVERAL, INPUTS)
@settings(max_examples=100, deadline=None)
def test_scores_are_strictly_increasing(train: NDArray[np.float64], x: NDArray[np.float64]) -> None:
    fitted = QuantileMap.fit(QuantileSketch.from_values(train))
    x = np.unique(np.concatenate([x, train]))
    scores = fitted.score_of(x)
    steps = np.diff(scores)
    slack = 1e-15 * (1 + np.maximum(np.abs(scores[:-1]), np.abs(scores[1:])))
    assert (steps >= -slack).all()
    apart = np.diff(x / 2) > 2 * np.maximum(tolerance(fitted, x[:-1]), tolerance(fitted, x[1:]))
    assert (steps[apart] > 0).all()


def test_scores_are_normal_and_knots_few() -> None:
    random = np.random.default_rng(0)
    values = random.standard_cauchy(300_000)
    fitted = QuantileMap.fit(QuantileSketch.from_values(values))
    scores = np.sort(fitted.score_of(values))
    assert fitted.values.size <= MAX_KNOTS
    assert (fitted.values[0], fitted.values[-1]) == (values.min(), values.max())
    assert abs(scores.mean()) < 2e-3 and scores.std() == pytest.approx(1, abs=3e-3)
    # Normal far into the tails: the score of rank 1e-4 is that of a normal.
    assert scores[[30, 300, 150_000, -301, -31]] == pytest.approx([-3.719, -3.09, 0, 3.09, 3.719], abs=0.03)


@pytest.mark.slow
@given(SEVERAL, INPUTS)
@example(np.array([0.0, 5e-324]), np.array([0.0, 5e-324, 1.7e308]))
@example(np.array([-1.7e308, 1.7e308]), np.array([-1.7e308, 0.0, 1.0, 1e300]))
@settings(max_examples=100, deadline=None)
def test_slopes_are_positive_numbers(train: NDArray[np.float64], x: NDArray[np.float64]) -> None:
    """Of any finite number; 0 or infinite only where float64 ends."""
    fitted = QuantileMap.fit(QuantileSketch.from_values(train))
    slopes = fitted.slope_of(np.concatenate([x, train]))
    assert (slopes >= 0).all()
    assert ((slopes > 0) & np.isfinite(slopes)).all() or np.abs(np.r_[x, train]).max() > 1e290 or fitted.exponent < -900


def test_a_slope_is_the_scores_derivative() -> None:
    fitted = QuantileMap.fit(QuantileSketch.from_values(np.random.default_rng(0).standard_cauchy(20_000)))
    x = np.r_[np.linspace(-50, 50, 1_001) + 1e-3, -1e9, 1e9]
    step = 1e-7 * np.abs(x - fitted.location)
    expected = (fitted.score_of(x + step) - fitted.score_of(x - step)) / (2 * step)
    assert np.quantile(np.abs(fitted.slope_of(x) / expected - 1), 0.99) < 1e-5  # a knot may lie between


def test_few_values_ties_and_outliers() -> None:
    two = QuantileMap.fit(QuantileSketch.from_values([0.0] * 3 + [1.0]))
    np.testing.assert_allclose(two.score_of([0.0, 1.0]), [-0.3186, 1.1503], atol=1e-4)  # mid-ranks 3/8 and 7/8
    spiked = QuantileMap.fit(QuantileSketch.from_values(np.r_[np.zeros(39_000), np.linspace(0.1, 3, 61_000)]))
    assert spiked.score_of(0.0) == pytest.approx(-0.8596, abs=1e-3)  # 0.195
    outlier = QuantileMap.fit(QuantileSketch.from_values(np.r_[np.linspace(1, 2, 5_000), 1e30]))
    x = np.linspace(0.5, 4, 1_000)
    np.testing.assert_allclose(outlier.value_of(outlier.score_of(x)), x, rtol=1e-12)
    plain = QuantileMap.fit(QuantileSketch.from_values(np.linspace(1, 2, 5_000)))
    assert 3.5 < plain.score_of(2.1) < plain.score_of(1e30) < 300
    assert -300 < plain.score_of(-1e30) < plain.score_of(0.9) < -3.5
    assert np.isfinite(plain.value_of([-1e9, 1e9])).all()


def stars(n: int = 3_000, seed: int = 0, nulls: float = 0.1) -> pa.Table:
    """Stars with the seed's 25 columns: derived columns as derived, nulls with what they derive from."""
    random = np.random.default_rng(seed)
    values: dict[str, NDArray[np.floating]] = {
        "source_id": random.integers(0, 2**62, n),
        "_healpix_29": np.zeros(n, np.int64),
        "ra": random.uniform(0, 360, n),
        "dec": np.degrees(np.arcsin(random.uniform(-1, 1, n))),
    }
    for name in (n for n in SEED25 if n not in values and not COLUMNS[n].derived_from):
        values[name] = random.lognormal(1, 0.5, n).astype(COLUMNS[name].dtype.to_pandas_dtype())
    values["teff_val"] = random.uniform(3500, 9000, n).astype(np.float32)
    values["pmra"] = random.normal(0, 20, n)
    missing = {name: random.random(n) < nulls for name in ("teff_val", "phot_bp_mean_flux", "a_g_val")}
    derived = [n for n in SEED25 if COLUMNS[n].derived_from]
    values |= DR2.derive(values, derived)
    for name in derived:
        missing[name] = np.any([missing[s] for s in COLUMNS[name].derived_from if s in missing] or [np.zeros(n, bool)], axis=0)
    schema = DR2.catalogue_schema(SEED25)
    return pa.table({f.name: pa.array(values[f.name], f.type, mask=missing.get(f.name)) for f in schema}, schema=schema)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["condition", "input"])
@pytest.mark.parametrize(("columns", "free"), [(SEED16, 9), (SEED25, 18)])
def test_round_trip_of_a_table(columns: tuple[str, ...], free: int, position: str) -> None:
    table = stars()
    transform = Transform.fit(columns, Statistics.from_table(table, DR2).train, DR2, position)  # type: ignore[arg-type]
    assert len(transform.free) == free and len(transform.derived) == 5 and not transform.constant
    inputs = transform.forward(table.drop(list(transform.derived)))
    assert inputs.values.shape == inputs.present.shape == (table.num_rows, transform.n_values)
    groups = {frozenset(group) for group in transform.null_groups}
    assert groups == {
        frozenset({"teff_val", "radius_val", "lum_val"}),
        frozenset({"phot_bp_mean_flux", "bp_rp", "bp_g"}),
        frozenset({"a_g_val"}),
    }
    assert (transform.n_values, transform.n_conditions) == ((free, 3 + 3) if position == "condition" else (free + 3, 3))
    assert inputs.condition.shape == (table.num_rows, transform.n_conditions)
    assert inputs.values.dtype == inputs.condition.dtype == np.float32
    assert len(transform.value_names) == transform.n_values
    assert (inputs.values[~inputs.present] == 0).all()
    vector = inputs.condition[:, :3] if position == "condition" else inputs.values[:, -3:]
    np.testing.assert_allclose(vector.std(axis=0), 1, atol=0.1)

    given = {} if position == "input" else {"ra": table["ra"].to_numpy(), "dec": table["dec"].to_numpy()}
    out = transform.inverse(inputs.values, **given)
    assert list(out) == list(columns) and all(v.dtype == np.float64 for v in out.values())
    for i, name in enumerate(transform.free):
        here = table[name].is_valid().to_numpy()
        np.testing.assert_array_equal(inputs.present[:, i], here)
        np.testing.assert_allclose(out[name][here], table[name].drop_null().to_numpy(), rtol=1e-5, atol=1e-5)
    off = separation_deg(out["ra"], out["dec"], table["ra"].to_numpy(), table["dec"].to_numpy())
    assert off.max() < (1e-5 if position == "input" else 1e-12)
    # Derived columns follow from the rebuilt ones as the archive's do from its own.
    again = DR2.derive(out, transform.derived)
    for name in transform.derived:
        np.testing.assert_array_equal(out[name], np.asarray(again[name], np.float64))
        here = table[name].is_valid().to_numpy()
        np.testing.assert_allclose(out[name][here], table[name].drop_null().to_numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scaling", ["min-max", "iqr", "quantile"])
def test_sixteen_columns_as_they_are(scaling: str) -> None:
    """Position in degrees and derived columns among the values, as the systems of 2020 had it."""
    table = stars(nulls=0)
    train = table.filter(pa.array(_is_train(table)))
    transform = Transform.fit(SEED16, Statistics.from_table(table, DR2).train, DR2, "degrees", scaling, derive=False)
    assert transform.free == SEED16 and transform.n_values == 16 and transform.n_conditions == 0
    inputs = transform.forward(train)
    low, median, high = np.quantile(inputs.values, [0.25, 0.5, 0.75], axis=0)
    np.testing.assert_allclose(high - low, transform.spread, rtol=0.05)
    if scaling == "min-max":
        np.testing.assert_allclose([inputs.values.min(0), inputs.values.max(0)], [[0] * 16, [1] * 16], atol=1e-6)
    else:
        np.testing.assert_allclose([median, transform.spread], [[0] * 16, [1 if scaling == "iqr" else 1.349] * 16], atol=2e-2)
    out = transform.inverse(inputs.values)
    for name in SEED16:
        x = train[name].to_numpy()
        np.testing.assert_allclose(out[name], x, rtol=1e-4, atol=1e-6 * np.ptp(x))
    beyond = transform.inverse(inputs.values + np.float32(100))
    assert (beyond["ra"] < 360).all() and (beyond["ra"] >= 0).all() and (np.abs(beyond["dec"]) <= 90).all()
    given = transform.inverse(inputs.values, train["ra"].to_numpy(), train["dec"].to_numpy())
    np.testing.assert_array_equal(given["ra"], train["ra"].to_numpy())
    again = Transform.from_json(json.loads(json.dumps(transform.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.forward(train).values, inputs.values)


def test_a_column_that_a_scaling_cannot_take_is_named() -> None:
    flat = replaced(stars(), "pmra", np.where(np.arange(3_000) < 2_500, 1.0, 2.0))
    with pytest.raises(DataError, match=r"column pmra cannot be scaled by iqr: its quartiles are equal.*'quantile'"):
        Transform.fit(SEED16, Statistics.from_table(flat, DR2).train, DR2, "condition", "iqr")
    far = replaced(stars(), "pmra", np.where(np.arange(3_000) % 500, stars()["pmra"].to_numpy(), 1e30))
    with pytest.raises(DataError, match=r"pmra cannot be scaled by iqr: its values reach from .* to 1e\+30.*selection\.where"):
        Transform.fit(SEED16, Statistics.from_table(far, DR2).train, DR2, "condition", "iqr")
    with pytest.raises(DataError, match=r"column pmra cannot be scaled by min-max: .* float32 cannot tell its quartiles apart"):
        Transform.fit(SEED16, Statistics.from_table(far, DR2).train, DR2, "condition", "min-max")
    wide = replaced(stars(), "pmra", np.where(np.arange(3_000) % 2, -1.7e308, 1.7e308))
    with pytest.raises(DataError, match="column pmra cannot be scaled by min-max: its range exceeds float64"):
        Transform.fit(SEED16, Statistics.from_table(wide, DR2).train, DR2, "condition", "min-max")


@given(SEVERAL, INPUTS)
@example(np.array([-1e300, -np.finfo(np.float64).max]), np.array([0.0]))  # score times scale overflows, the value does not
@settings(max_examples=50, deadline=None)
def test_linear_scores_are_finite_and_come_back(train: NDArray[np.float64], x: NDArray[np.float64]) -> None:
    sketch = QuantileSketch.from_values(train)
    for kind in ("min-max", "iqr"):
        try:
            fitted = LinearMap.fit(sketch, kind)
        except ArithmeticError:
            continue
        scores = fitted.score_of(x)
        back = fitted.value_of(scores)
        assert np.isfinite(scores).all() and np.isfinite(scores.astype(np.float32)).all() and np.isfinite(back).all()
        near = np.abs(scores) < 1e30
        slack = 1e-12 * np.abs(x / 2) + 1e-12 * abs(fitted.location / 2) + 1e-12 * fitted.scale / 2
        assert (np.abs(back / 2 - x / 2) <= slack)[near].all()
        np.testing.assert_array_equal(fitted.slope_of(x), np.full(x.shape, 1 / fitted.scale))
        assert encoding_from_json(json.loads(json.dumps(fitted.to_json()))) == fitted


def test_what_is_null_is_a_condition_from_columns_or_from_the_mask() -> None:
    table = stars()
    condition = WIDE.condition(table)
    for group, bit in zip(WIDE.null_groups, condition[:, -3:].T, strict=True):
        for name in group:
            np.testing.assert_array_equal(bit, table[name].is_null().to_numpy())
        assert group[0] in WIDE.free
    np.testing.assert_array_equal(WIDE.condition(table.select(["ra", "dec"]), WIDE.null_bits(table)), condition)
    complete = WIDE.as_complete(condition)
    np.testing.assert_array_equal(complete, np.c_[condition[:, :-3], np.zeros((table.num_rows, 3), np.float32)])
    assert condition[:, -3:].any()
    np.testing.assert_array_equal(WIDE.forward(table).condition, condition)
    with pytest.raises(DataError, match="lacks column"):
        WIDE.condition(table.select(["ra", "dec", "teff_val"]))


def test_no_null_no_bit() -> None:
    assert Transform.fit(SEED16, Statistics.from_table(stars(nulls=0), DR2).train, DR2, "condition").n_conditions == 3


def test_columns_null_by_chance_alike_have_their_own_bits() -> None:
    """As many nulls are not the same nulls; and records of parts tell what the record of the whole does."""
    table = stars(nulls=0)
    lost = np.arange(3_000) % 10 == 0
    for name, mask in (("pmra", lost), ("pmdec", lost), ("radial_velocity", np.roll(lost, 1))):
        table = replaced(table, name, pa.array(table[name].to_numpy(), mask=mask))
    whole = Statistics.from_table(table, DR2)
    parts = Statistics.from_table(table.slice(0, 1_234), DR2).merge(Statistics.from_table(table.slice(1_234), DR2))
    for record in (whole, parts):
        groups = Transform.fit(SEED16, record.train, DR2, "condition").null_groups
        assert groups == (("pmra", "pmdec"), ("radial_velocity",))


def test_float32_columns_come_back_as_float32_numbers() -> None:
    table = stars(nulls=0)
    transform = Transform.fit(SEED16, Statistics.from_table(table, DR2).train, DR2, "condition")
    scores = np.random.default_rng(0).normal(0, 1.5, (1_000, transform.n_values))
    scores[0] = 1e6
    out = transform.inverse(scores, np.zeros(1_000), np.zeros(1_000))
    for name in ("teff_val", "a_g_val"):
        np.testing.assert_array_equal(out[name], out[name].astype(np.float32).astype(np.float64))
    assert all(np.isfinite(out[name]).all() for name in transform.free)


def test_what_the_network_rebuilds_is_a_number_that_the_column_can_hold() -> None:
    """Counts are whole and in the range of their type, flags 0 or 1, floats finite: also far outside the train stars' values."""
    table, random = stars(nulls=0), np.random.default_rng(1)
    counts, small = "astrometric_n_obs_al", "astrometric_matched_observations"
    for name, most in ((counts, 2**31 - 1), (small, 30)):
        numbers = random.integers(1, most, len(table)).astype(COLUMNS[name].dtype.to_pandas_dtype())
        table = table.append_column(COLUMNS[name].field, pa.array(numbers, COLUMNS[name].dtype))
    transform = Transform.fit((*SEED25, counts, small), Statistics.from_table(table, DR2).train, DR2, "condition", "iqr")
    n = 200
    values = random.standard_normal((n, transform.n_values)) * np.geomspace(0.1, 1e9, n)[:, None]
    back = transform.inverse(values, np.zeros(n), np.zeros(n))
    for name in (counts, small):
        limits = np.iinfo(COLUMNS[name].dtype.to_pandas_dtype())
        assert np.array_equal(back[name], np.rint(back[name]))
        assert (back[name].min(), back[name].max()) == (limits.min, limits.max)
    assert len(set(back[small])) > 20
    floats = [name for name in transform.free if name not in (counts, small)]
    assert all(np.isfinite(back[name]).all() for name in floats)


def test_values_that_are_known_are_taken_as_they_are() -> None:
    table = stars(50, nulls=0)
    values = WIDE.forward(table).values
    plain = WIDE.inverse(values, np.zeros(50), np.zeros(50))
    known = np.where(np.arange(50) % 3 == 0, 4.25, np.nan)
    back = WIDE.inverse(values, np.zeros(50), np.zeros(50), {"phot_bp_mean_flux": known})
    assert np.array_equal(back["phot_bp_mean_flux"], np.where(np.isnan(known), plain["phot_bp_mean_flux"], 4.25))
    changed = back["bp_rp"] != plain["bp_rp"]
    assert np.array_equal(changed, ~np.isnan(known)), "what derives from it follows"
    assert np.array_equal(back["pmra"], plain["pmra"])


def test_right_ascension_has_no_edge() -> None:
    table = stars(4)
    edge = {"ra": pa.array([0.0, 359.9999999, 1e-7, 180.0]), "dec": pa.array([10.0] * 4)}
    for name, column in edge.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    x = Transform.fit(SEED16, Statistics.from_table(stars(), DR2).train, DR2, "condition").forward(table).condition
    np.testing.assert_allclose(x[1:3], x[[0, 0]], atol=1e-6)
    assert np.abs(x[3] - x[0]).max() > 1


@given(st.lists(st.sets(st.sampled_from(SEED25)), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_null_bits_tell_every_null(nulls: list[set[str]]) -> None:
    table = stars(len(nulls), nulls=0)
    masked = {n: pa.array(table[n].to_pylist(), table[n].type, mask=np.array([n in row for row in nulls])) for n in SEED25}
    bits = WIDE.null_bits(pa.table(masked))
    assert bits.shape == (len(nulls), 1) and bits.dtype == np.int64
    for row, names in zip(bits[:, 0], nulls, strict=True):
        assert {SEED25[i] for i in range(len(SEED25)) if row >> i & 1} == names


WIDE = Transform.fit(SEED25, Statistics.from_table(stars(), DR2).train, DR2, "condition")


def test_null_bits_beyond_63_columns_take_two_words() -> None:
    repeated = tuple(SEED16) * 5
    wide = Transform(repeated, WIDE.free, WIDE.derived, {}, "condition", WIDE.encodings, DR2)
    table = stars(nulls=0.5)
    bits = wide.null_bits(table)
    assert bits.shape == (table.num_rows, 2)
    for i, name in enumerate(repeated):
        np.testing.assert_array_equal(bits[:, i // 63] >> (i % 63) & 1, table[name].is_null().to_numpy())


def test_an_absent_derived_column_is_null_where_it_cannot_be_derived() -> None:
    table = stars()
    np.testing.assert_array_equal(WIDE.null_bits(table.drop(list(WIDE.derived))), WIDE.null_bits(table))


def replaced(table: pa.Table, name: str, values: object) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))


def test_constant_and_all_null_columns_stay_out_of_the_network() -> None:
    table = replaced(replaced(stars(), "pmra", [7.5] * 3_000), "a_g_val", [None] * 3_000)
    transform = Transform.fit(SEED16, Statistics.from_table(table, DR2).train, DR2, "condition")
    assert transform.constant == {"pmra": 7.5, "a_g_val": None}
    assert not {"pmra", "a_g_val"} & set(transform.free)
    other = stars(100, seed=1)  # its pmra and a_g_val are not the train stars' constants
    inputs = transform.forward(other)
    out = transform.inverse(inputs.values, other["ra"].to_numpy(), other["dec"].to_numpy())
    assert (out["pmra"] == 7.5).all() and np.isnan(out["a_g_val"]).all()
    i = SEED16.index("a_g_val")
    np.testing.assert_array_equal(transform.null_bits(other)[:, 0] >> i & 1, other["a_g_val"].is_null().to_numpy())


def test_a_derived_column_of_stars_that_lack_its_sources_is_free() -> None:
    table = replaced(stars(), "phot_bp_mean_flux", [None] * 3_000)
    table = replaced(table, "bp_rp", np.random.default_rng(0).normal(1, 0.3, 3_000))
    transform = Transform.fit(SEED16, Statistics.from_table(table, DR2).train, DR2, "condition")
    assert "bp_rp" in transform.free and "g_rp" in transform.derived
    without = Transform.fit(("bp_rp", "phot_rp_mean_flux"), Statistics.from_table(stars(), DR2).train, DR2, "condition")
    assert without.free == ("bp_rp", "phot_rp_mean_flux")


def test_only_train_stars_are_seen() -> None:
    table = stars()
    statistics = Statistics.from_table(table, DR2)
    train = Statistics.from_table(table.filter(pa.array(_is_train(table))), DR2)
    assert (
        Transform.fit(SEED16, statistics.train, DR2, "input").to_json() == Transform.fit(SEED16, train.all, DR2, "input").to_json()
    )


def _is_train(table: pa.Table) -> NDArray[np.bool_]:
    return part_of(table["source_id"].to_numpy()) == Part.TRAIN


def test_json_is_exact() -> None:
    record = json.loads(json.dumps(WIDE.to_json(), allow_nan=False))
    back = Transform.from_json(record)
    assert back.to_json() == WIDE.to_json()
    table = stars()
    for a, b in zip(WIDE.forward(table), back.forward(table), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_input_is_refused_by_name() -> None:
    table, train = stars(50, nulls=0), Statistics.from_table(stars(), DR2).train
    with pytest.raises(DataError, match=r"lacks column\(s\) \['pmra', 'teff_val'\]"):
        WIDE.forward(table.drop(["pmra", "teff_val", "bp_rp"]))
    with pytest.raises(DataError, match="column ra: null in 1 of 50"):
        WIDE.forward(replaced(table, "ra", [None] + [1.0] * 49))
    with pytest.raises(DataError, match="column dec: NaN or infinite in 2 of 50"):
        WIDE.forward(replaced(table, "dec", [np.inf, np.nan] + [1.0] * 48))
    with pytest.raises(DataError, match="column pmra: NaN or infinite in 1 of 50"):
        WIDE.forward(replaced(table, "pmra", [np.nan] + [1.0] * 49))
    with pytest.raises(DataError, match=r"\['pmra', 'teff_val'\]"):
        WIDE.null_bits(table.drop(["pmra", "teff_val"]))
    with pytest.raises(DataError, match="Give ra and dec"):
        WIDE.inverse(np.zeros((2, WIDE.n_values)))
    with pytest.raises(DataError, match=r"expected \(n, 18\)"):
        WIDE.inverse(np.zeros((2, 5)), [0, 0], [0, 0])
    with pytest.raises(DataError, match=r"no statistics for column\(s\) \['random_index'\]"):
        Transform.fit(("random_index", *SEED16), train, DR2, "condition")
    with pytest.raises(DataError, match=r"\['phot_variable_flag'\] cannot be encoded: not a number"):
        Transform.fit(("phot_variable_flag", *SEED16), train, DR2, "condition")
    extra = Statistics.from_table(stars().append_column("seeing", pa.array(np.arange(3_000.0))), DR2).train
    with pytest.raises(DataError, match=r"column seeing cannot be encoded: only measured columns .*Leave it out of model.columns"):
        Transform.fit(("seeing", *SEED16), extra, DR2, "condition")
    with pytest.raises(DataError, match="nothing to encode"):
        Transform.fit(("ra", "dec"), train, DR2, "condition")
    with pytest.raises(DataError, match="0 train stars"):
        Transform.fit(SEED16, Statistics.from_table(stars(0), DR2).train, DR2, "condition")


def test_a_stars_own_error_in_the_networks_unit() -> None:
    """Where a value moves by its error, its score moves by sigma; no error, no sigma."""
    table = stars(nulls=0)
    n = table.num_rows
    errors = np.full(n, 1e-6)
    errors[:3] = 1e300, 0.0, 1e-6
    table = replaced(table, "pmra_error", pa.array(errors, mask=np.arange(n) == 2))
    i = WIDE.slots["pmra"].start
    sigma = WIDE.sigma(table)
    assert sigma.shape == (n, WIDE.n_values) and sigma.dtype == np.float32
    np.testing.assert_array_equal(sigma[:3, i], [1, 0, 0])
    x = table["pmra"].to_numpy()
    pmra = WIDE.encodings["pmra"]
    moved = (pmra.forward(x + 1e-6) - pmra.forward(x))[:, 0]
    assert np.quantile(np.abs(sigma[3:, i] / moved[3:] - 1), 0.99) < 1e-3
    assert not sigma[:, WIDE.slots["teff_val"].values].any()  # no error column
    assert not WIDE.sigma(table.drop(["pmra_error"]))[:, i].any()
    assert WIDE.error_columns(["pmra_error", "ra_error", "parallax"]) == ("pmra_error",)
    holed = replaced(table, "pmra", [None] * n)
    assert not WIDE.sigma(holed)[:, i].any()


def test_errors_of_positions_are_in_milliarcseconds() -> None:
    """A free ra or dec is in degrees, its error in mas; every other column's error is in the column's own unit."""
    table, mas = stars(nulls=0), 1 / 3_600_000
    transform = Transform.fit(SEED25, Statistics.from_table(table, DR2).train, DR2, "degrees")
    for name, unit in (("ra", mas), ("dec", mas), ("parallax", 1.0), ("phot_g_mean_flux", 1.0)):
        i = transform.slots[name].start
        sigma = transform.sigma(replaced(table, f"{name}_error", pa.array(np.full(len(table), 1e-3 / unit))))[:, i]
        x = table[name].to_numpy()
        moved = (transform.encodings[name].forward(x + 1e-6) - transform.encodings[name].forward(x))[:, 0] * 1e3
        whole = sigma < 1  # cut there
        assert whole.sum() > 100
        assert np.quantile(np.abs(sigma[whole] / moved[whole] - 1), 0.9) < 1e-2, name


@pytest.mark.parametrize("position", ["condition", "input"])
def test_what_follows_from_the_position_costs_no_value(position: str) -> None:
    """Position is given or rebuilt before anything is derived from it."""
    table = stars(500)
    angles = ("l", "b", "ecl_lon", "ecl_lat")
    derived = DR2.derive({name: table[name].to_numpy() for name in ("ra", "dec")}, angles)
    for name in angles:
        table = table.append_column(name, pa.array(derived[name]))
    transform = Transform.fit((*SEED16, *angles), Statistics.from_table(table, DR2).train, DR2, position)  # type: ignore[arg-type]
    assert set(angles) <= set(transform.derived) and len(transform.free) == 9
    inputs = transform.forward(table)
    given = (table["ra"].to_numpy(), table["dec"].to_numpy()) if position == "condition" else ()
    back = transform.inverse(inputs.values, *given)
    for name in angles:
        apart = np.abs((back[name] - derived[name] + 180) % 360 - 180) * np.cos(
            np.radians(derived["b" if name == "l" else "ecl_lat"])
        )
        assert apart.max() < (1e-12 if position == "condition" else 1e-4)  # float32 through the network


def test_positions_alone_can_be_columns() -> None:
    table = stars(500)
    transform = Transform.fit(("ra", "dec"), Statistics.from_table(table, DR2).train, DR2, "degrees")
    back = transform.inverse(transform.forward(table).values)
    assert np.abs(back["dec"] - table["dec"].to_numpy()).max() < 1e-3
    beyond = transform.inverse(np.array([[0.0, -1e3], [0.0, 1e3]]))["dec"]
    assert (beyond.min(), beyond.max()) == (-90.0, 90.0)


def test_an_empty_table_has_inputs_of_no_stars() -> None:
    assert WIDE.forward(stars(0)).values.shape == (0, 18)
    assert WIDE.null_bits(stars(0)).shape == (0, 1)


def test_real_columns_come_back_to_1e_12(real_rows: pa.Table) -> None:
    transform = Transform.fit(SEED25, Statistics.from_table(real_rows.select(["source_id", *SEED25]), DR2).train, DR2, "condition")
    for name, fitted in transform.encodings.items():
        values = real_rows[name].drop_null().to_numpy().astype(np.float64)
        base = fitted.base if isinstance(fitted, MassMap) else fitted
        scale = np.abs(values) + np.abs(values - base.location) + 2.0**base.exponent
        assert (np.abs(fitted.value_of(fitted.score_of(values)) - values) / scale).max() < 1e-12
