"""Statistics: the record of the whole is the merge of the records of its parts."""

from __future__ import annotations

import json
import math
from functools import reduce

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_up import made_up_stars
from numpy.typing import NDArray

from gaiadask.errors import DataError
from gaiadask.inputs.sketch import GRID, QuantileSketch
from gaiadask.inputs.statistics import ColumnStatistics, Statistics, TableStatistics
from gaiadask.inputs.transform import Transform
from gaiadask.release.dr2 import DR2, SEED16, SEED25
from gaiadask.split import Part, part_of

MODERATE = st.floats(-1e30, 1e30, allow_nan=False)
ANY = st.floats(allow_nan=False, allow_infinity=False)
REPEATED = st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0])


@st.composite
def parts(draw: st.DrawFn, elements: st.SearchStrategy[float] = MODERATE) -> list[tuple[NDArray[np.float64], int]]:
    """Parts of a column: values, and a number of nulls beside them; either may be none."""
    part = st.tuples(arrays(np.float64, st.integers(0, 40), elements=elements | REPEATED), st.integers(0, 3))
    return draw(st.lists(part, min_size=1, max_size=6))


def records(of: list[tuple[NDArray[np.float64], int]]) -> list[ColumnStatistics]:
    return [ColumnStatistics.from_values(values, nulls) for values, nulls in of]


def merged(of: list[ColumnStatistics]) -> ColumnStatistics:
    return reduce(ColumnStatistics.merge, of)


def assert_same_moments(a: ColumnStatistics, b: ColumnStatistics) -> None:
    assert (a.count, a.nulls, a.orphans, a.minimum, a.maximum) == (b.count, b.nulls, b.orphans, b.minimum, b.maximum)
    if a.count:
        assert a.mean is not None and b.mean is not None and a.std is not None and b.std is not None
        size = max(abs(a.minimum or 0), abs(a.maximum or 0))
        assert a.mean == pytest.approx(b.mean, rel=1e-12, abs=1e-12 * size)
        assert a.std == pytest.approx(b.std, rel=1e-12, abs=1e-12 * size)


@pytest.mark.slow
@given(parts())
@settings(max_examples=100, deadline=None)
def test_merge_of_parts_is_the_whole(some: list[tuple[NDArray[np.float64], int]]) -> None:
    whole = np.concatenate([values for values, _ in some])
    record = merged(records(some))
    assert_same_moments(record, ColumnStatistics.from_values(whole, sum(nulls for _, nulls in some)))
    assert (record.count, record.nulls) == (whole.size, sum(nulls for _, nulls in some))
    if whole.size:
        assert (record.minimum, record.maximum) == (whole.min(), whole.max())
        scale = np.abs(whole).max() or 1.0
        np.testing.assert_allclose(record.std / scale, (whole / scale).std(), rtol=1e-12, atol=1e-14 + 5e-324 / scale)
        # So few values are all kept: quantiles and ranks are exact.
        p = np.array([0.0, 0.01, 0.25, 0.5, 0.9, 1.0])
        np.testing.assert_array_equal(record.sketch.quantile(p), np.quantile(whole, p, method="inverted_cdf"))
        ranks = [(np.mean(whole < x) + np.mean(whole <= x)) / 2 for x in whole]
        np.testing.assert_allclose(record.sketch.cdf(whole), ranks, rtol=1e-12)


@pytest.mark.slow
@given(parts(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_merge_does_not_depend_on_order(some: list[tuple[NDArray[np.float64], int]], random: object) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    a, b = merged(records(some)), merged(records(shuffled))
    assert_same_moments(a, b)
    np.testing.assert_array_equal(a.sketch.values, b.sketch.values)
    np.testing.assert_array_equal(a.sketch.weights, b.sketch.weights)


@pytest.mark.slow
@given(parts(ANY))
@settings(max_examples=100, deadline=None)
def test_any_finite_number_is_survived_and_json_is_exact(some: list[tuple[NDArray[np.float64], int]]) -> None:
    record = merged(records(some))
    assert all(v is None or math.isfinite(v) for v in (record.minimum, record.maximum, record.mean, record.std))
    back = ColumnStatistics.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))
    assert back.to_json() == record.to_json()


def test_huge_values_keep_a_finite_deviation() -> None:
    record = ColumnStatistics.from_values(np.array([-1.7e308, 1.7e308])).merge(ColumnStatistics.from_values(np.array([1.7e308])))
    assert record.std == pytest.approx(1.7e308 * math.sqrt(8 / 9), rel=1e-12)
    assert record.variance == math.inf


def test_empty_and_all_null_parts() -> None:
    nulls = ColumnStatistics.from_values(np.empty(0), nulls=7)
    assert (nulls.count, nulls.nulls, nulls.minimum, nulls.mean, nulls.variance) == (0, 7, None, None, None)
    some = ColumnStatistics.from_values(np.array([1.0, 3.0]))
    for a in (ColumnStatistics.empty().merge(nulls).merge(some), some.merge(nulls).merge(ColumnStatistics.empty())):
        assert (a.count, a.nulls, a.minimum, a.maximum, a.mean, a.variance) == (2, 7, 1.0, 3.0, 2.0, 1.0)
    with pytest.raises(DataError, match="null"):
        nulls.sketch.quantile(0.5)
    assert np.isnan(nulls.sketch.cdf([1.0])).all()


def rank_errors(sketch: QuantileSketch, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rank error of the sketch at each distinct value, and its distance from the nearer end in rank."""
    ordered = np.sort(values)
    at = np.unique(ordered)
    true = (np.searchsorted(ordered, at, "left") + np.searchsorted(ordered, at, "right")) / (2 * ordered.size)
    return np.abs(sketch.cdf(at) - true), np.minimum(true, 1 - true)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["random", "sorted"])
@pytest.mark.parametrize("shape", ["normal", "heavy tails", "point mass"])
def test_rank_error_of_64_merged_parts_is_as_stated(shape: str, order: str) -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=64 * 6000) if shape != "heavy tails" else random.standard_cauchy(64 * 6000)
    if shape == "point mass":
        values = np.where(random.random(values.size) < 0.39, 0.0, np.exp(values))
    if order == "sorted":
        values.sort()
    sketches = [QuantileSketch.from_values(part) for part in np.split(values, 64)]
    one_by_one = reduce(QuantileSketch.merge, sketches)
    while len(sketches) > 1:
        sketches = [a.merge(b) for a, b in zip(sketches[::2], sketches[1::2], strict=True)]
    for sketch in (one_by_one, sketches[0]):
        assert sketch.count == values.size and sketch.values.size <= 2 * GRID
        assert (sketch.values[0], sketch.values[-1]) == (values.min(), values.max())
        error, tail = rank_errors(sketch, values)
        assert error.max() < QuantileSketch.RANK_ERROR
        assert error[tail < 0.01].max() < QuantileSketch.TAIL_RANK_ERROR
        if shape == "point mass":
            # All of the mass, and at most the neighbours within one bin of it.
            mass = int((values == 0).sum())
            assert mass <= sketch.weights[sketch.values == 0][0] <= mass + QuantileSketch.RANK_ERROR * values.size
            assert sketch.quantile(0.2) == 0.0


def stars(n: int, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "_healpix_29": random.integers(0, 2**60, n),
            "source_id": random.integers(0, 2**62, n),
            "random_index": random.integers(0, 2**31, n),
            "ra": random.uniform(0, 360, n),
            "phot_bp_mean_flux": pa.array(random.lognormal(size=n), mask=random.random(n) < 0.3),
            "phot_rp_mean_flux": random.lognormal(size=n),
            "bp_rp": pa.array(random.normal(size=n).astype(np.float32), mask=random.random(n) < 0.2),
            "duplicated_source": pa.array(random.random(n) < 0.3, mask=random.random(n) < 0.1),
            "phot_variable_flag": ["NOT_AVAILABLE"] * n,
        }
    )


def test_statistics_of_a_table_count_all_and_train_stars_apart() -> None:
    table = stars(2_000)
    statistics = Statistics.from_table(table, DR2)
    train = part_of(table["source_id"].to_numpy()) == Part.TRAIN
    names = ["ra", "phot_bp_mean_flux", "phot_rp_mean_flux", "bp_rp", "duplicated_source"]
    for record, rows in ((statistics.all, table), (statistics.train, table.filter(pa.array(train)))):
        assert record.rows == rows.num_rows and list(record.columns) == names
        for name, column in record.columns.items():
            values = rows[name].drop_null().to_numpy().astype(np.float64)
            assert (column.count, column.nulls) == (values.size, rows[name].null_count)
            assert (column.minimum, column.maximum) == (values.min(), values.max())
            assert column.mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-14)
            assert column.variance == pytest.approx(values.var(), rel=1e-12)
            assert column.sketch.quantile(0.25) == np.quantile(values, 0.25, method="inverted_cdf")
        colour, flux = (rows[name].is_null().to_numpy() for name in ("bp_rp", "phot_bp_mean_flux"))
        assert record.columns["bp_rp"].orphans == (~colour & flux).sum() > 0


def test_tables_merge_and_survive_json() -> None:
    tables = [stars(500, seed) for seed in range(3)]
    whole = Statistics.from_table(pa.concat_tables(tables), DR2)
    records_ = [Statistics.from_table(t, DR2) for t in tables]
    names = list(records_[0].all.columns)
    again = reduce(Statistics.merge, records_, Statistics.empty(names))
    for a, b in ((again.all, whole.all), (again.train, whole.train)):
        assert a.rows == b.rows
        for name in names:
            assert_same_moments(a.columns[name], b.columns[name])
            assert a.columns[name].sketch.to_json() == b.columns[name].sketch.to_json()
    assert Statistics.from_json(json.loads(json.dumps(again.to_json()))).to_json() == again.to_json()


def test_pieces_of_a_table_are_the_table() -> None:
    """More of them than are merged at once."""
    table = stars(2_000)
    whole = Statistics.from_table(table, DR2).to_json()
    again = Statistics.from_table((table.slice(first, 100) for first in range(0, 2_000, 100)), DR2).to_json()
    for part in ("all", "train"):
        for name, column in whole[part]["columns"].items():
            found = again[part]["columns"][name]
            assert found.pop("mean") == pytest.approx(column.pop("mean"), rel=1e-12)
            assert found.pop("std") == pytest.approx(column.pop("std"), rel=1e-12)
            assert found == column


def test_an_empty_table_has_empty_statistics() -> None:
    statistics = Statistics.from_table(stars(0), DR2)
    assert statistics.all.rows == 0 and statistics.all.columns["ra"].count == 0
    assert Statistics.from_table(stars(10), DR2).merge(statistics).all.rows == 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name_and_count(bad: float) -> None:
    table = stars(50)
    ra = table["ra"].to_numpy().copy()
    ra[[3, 40]] = bad
    with pytest.raises(DataError, match=r"column ra: NaN or infinite in 2 of 50 rows"):
        Statistics.from_table(table.set_column(table.column_names.index("ra"), "ra", pa.array(ra)), DR2)


def test_what_cannot_be_split_or_merged_is_refused() -> None:
    with pytest.raises(DataError, match="source_id"):
        Statistics.from_table(stars(5).drop(["source_id"]), DR2)
    with pytest.raises(DataError, match=r"\['dec'\]"):
        TableStatistics.empty(["ra", "dec"]).merge(TableStatistics.empty(["ra"]))


def test_real_rows(real_rows: pa.Table) -> None:
    table = real_rows.select(["source_id", *SEED25])
    statistics = Statistics.from_table(table, DR2)
    for name in SEED25:
        values = table[name].drop_null().to_numpy().astype(np.float64)
        column = statistics.all.columns[name]
        assert (column.count, column.nulls) == (values.size, table[name].null_count)
        assert (column.minimum, column.maximum) == (values.min(), values.max())
        assert column.mean == pytest.approx(values.mean(), rel=1e-9)
        assert column.std == pytest.approx(values.std(), rel=1e-12)
        error, _ = rank_errors(column.sketch, values)
        assert error.max() < QuantileSketch.RANK_ERROR


# Formulas -------------------------------------------------------------------------------------------------------------
def with_colours(stars: pa.Table, shift: float, digits: int = 9) -> pa.Table:
    """The stars with BP - G shifted and rounded."""
    values = np.round(stars["bp_g"].to_numpy(zero_copy_only=False).astype(np.float64) + shift, digits)
    return stars.set_column(stars.column_names.index("bp_g"), "bp_g", pa.array(values, pa.float32(), from_pandas=True))


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "digits", "follows"), [(0.0, 9, True), (0.0, 4, True), (0.012, 9, False), (0.0011, 9, False)])
def test_a_column_that_does_not_follow_from_its_sources_is_seen_and_not_derived(
    caplog: pytest.LogCaptureFixture, shift: float, digits: int, follows: bool
) -> None:
    """Stars of DR3 have DR2's column names and other zero points; rounding to four decimals is none."""
    stars = with_colours(made_up_stars(2_000), shift, digits)
    parts = [Statistics.from_table(part, DR2) for part in (stars.slice(0, 700), stars.slice(700))]
    train = Statistics.from_json(json.loads(json.dumps(parts[0].merge(parts[1]).to_json()))).train
    record = train.columns["bp_g"]
    assert (record.misfits == 0) == follows
    assert record.deviation == pytest.approx(shift, abs=1e-4)
    with caplog.at_level("WARNING", logger="gaiadask"):
        transform = Transform.fit(SEED16, train, DR2, "condition")
    others = {name for name in DR2.derivable(SEED16) if name != "bp_g"}
    assert set(transform.derived) == (others | {"bp_g"} if follows else others)
    assert ("bp_g" in transform.free) == (not follows)
    assert ("column bp_g does not follow from the others" in caplog.text) == (not follows)


def test_statistics_of_before_formulas_were_compared_are_read() -> None:
    record = Statistics.from_table(made_up_stars(200), DR2).to_json()
    for column in (*record["all"]["columns"].values(), *record["train"]["columns"].values()):
        del column["misfits"], column["deviation"]
    assert Statistics.from_json(record).train.columns["bp_g"].misfits == 0
