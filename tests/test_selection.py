"""Conforming and selecting tables: against a naive filter in Python, and what must be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaiadask.archive import selection as module
from gaiadask.archive.selection import (
    HashLimit,
    apply,
    columns_of,
    limit_threshold,
    needed_columns,
    needed_schema,
)
from gaiadask.config.sections import SelectionConfig
from gaiadask.errors import ConfigurationError
from gaiadask.release.dr2 import COLUMNS, DR2
from gaiadask.sky import SOURCE_ID_STOP
from gaiadask.split import sample_hash

CONDITIONS = {
    "": lambda star: True,
    "parallax > 1": lambda star: star["parallax"] is not None and star["parallax"] > 1,
    'ra < 180 OR "Dec" >= 0 -- either': lambda star: star["ra"] < 180 or star["dec"] >= 0,
    "parallax IS NULL AND abs(dec) < 45": lambda star: star["parallax"] is None and abs(star["dec"]) < 45,
    "bp_rp BETWEEN 0 AND 1": lambda star: star["bp_rp"] is not None and 0 <= star["bp_rp"] <= 1,
    "source_id % 2 = 1": lambda star: star["source_id"] % 2 == 1,
    "FALSE": lambda star: False,
}
stars = st.lists(
    st.fixed_dictionaries(
        {
            "source_id": st.integers(0, SOURCE_ID_STOP - 1),
            "ra": st.floats(0, 360, exclude_max=True),
            "dec": st.floats(-90, 90),
            "parallax": st.none() | st.floats(-5, 100),
            "bp_rp": st.none() | st.floats(-1, 5, width=32),
        }
    ),
    max_size=30,
    unique_by=lambda star: star["source_id"],
)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=needed_schema(SelectionConfig(columns=("parallax", "bp_rp"), not_null=())))


def schema_of(*names: str) -> pa.Schema:
    return pa.schema([COLUMNS[name].field for name in names])


@pytest.mark.slow
@given(stars, st.sampled_from(list(CONDITIONS)), st.sets(st.sampled_from(["parallax", "bp_rp", "ra"])), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_apply_keeps_what_a_naive_filter_keeps(rows: list[dict[str, Any]], where: str, not_null: set[str], limit: int) -> None:
    selection = SelectionConfig(columns=("bp_rp",), not_null=tuple(not_null), where=where, limit=limit)
    schema = schema_of("source_id", "ra", "dec", "bp_rp")
    kept = [star for star in rows if all(star[name] is not None for name in not_null) and CONDITIONS[where](star)]
    selected = apply(table_of(rows), selection, schema)
    assert selected.schema.equals(schema, check_metadata=True)
    assert selected.to_pylist() == [{name: star[name] for name in schema.names} for star in kept]

    threshold = limit_threshold([selected.slice(0, 3), selected.slice(3)], limit)
    fair = sorted(kept, key=lambda star: int(sample_hash([star["source_id"]])[0]))[:limit]
    limited = apply(table_of(rows), selection, schema, int(threshold))
    assert set(limited.column("source_id").to_pylist()) == {star["source_id"] for star in fair}


@given(st.lists(st.integers(0, SOURCE_ID_STOP - 1), unique=True, max_size=200), st.integers(1, 50), st.integers(0, 200))
@settings(max_examples=50, deadline=None)
def test_hash_limits_merge(source_ids: list[int], limit: int, cut: int) -> None:
    left, right = HashLimit(limit), HashLimit(limit)
    left.add(source_ids[:cut])
    right.add(source_ids[cut:])
    left.merge(right)
    hashes = np.sort(sample_hash(source_ids))
    assert left.threshold == (hashes[limit - 1] if len(hashes) >= limit else 2**64 - 1)


def test_a_hash_limit_compacts_on_the_way() -> None:
    source_ids = np.arange(300_000)
    smallest = HashLimit(1_000)
    for part in np.array_split(source_ids, 7):
        smallest.add(part)
    assert smallest.threshold == np.sort(sample_hash(source_ids))[999]


def test_needed_columns_follow_the_selection() -> None:
    selection = SelectionConfig(columns=("bp_rp",), not_null=("teff_val",), where="Parallax > 1 AND 'ra_error' <> 'pmra'")
    assert needed_columns(selection) == ("source_id", "ra", "dec", "bp_rp", "teff_val", "parallax")
    assert columns_of("stars.dec > 1 OR ra > 2", DR2) == ("ra", "dec")
    assert columns_of("", DR2) == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("ra IN (SELECT 1)", "subqueries"),
        ("EXISTS (FROM stars)", "subqueries"),
        ("ra > 0; DROP TABLE stars", "';'"),
        ("ra > 0) UNION SELECT (1", "statement"),
        ("1) FROM (stars", "statement"),
        ("ra > 0) ORDER BY (1", "statement"),
        ("ra > 0) LIMIT (1", "statement"),
        ("ra >", "syntax error"),
        ("random() < 0.5", "random"),
        ("now() > '2020-01-01'", "now"),
        ("avg(ra) > 3", "aggregates"),
        ("row_number() OVER () > 3", "windows"),
        ("COLUMNS('ra.*') > 3", "COLUMNS"),
        ("ra > $1", "parameters"),
        ("phot_w_mean_mag > 3", "no column phot_w_mean_mag: did you mean phot_g_mean_mag?"),
        ("__row > 3", "no column __row"),
        ("ra", "of type DOUBLE"),
        ("ra > 'north'", "north"),
        ("read_text('/etc/passwd') = ''", "read_text"),
    ],
)
def test_what_is_no_condition_on_a_star_is_refused(where: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=r"selection\.where") as caught:
        columns_of(where, DR2)
    assert reason in str(caught.value)


def test_the_condition_reaches_no_file(tmp_path: Any) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with module._database() as database, pytest.raises(module.duckdb.Error, match="disabled"):
        database.execute(f"SELECT * FROM '{tmp_path}/secret.csv'")
    with module._database() as database, pytest.raises(module.duckdb.Error, match="locked"):
        database.execute("SET enable_external_access = true")


def test_a_condition_that_fails_on_a_value_is_refused() -> None:
    table = table_of([{"source_id": 1, "ra": 1.0, "dec": 1.0, "parallax": -1.0, "bp_rp": 1.0}])
    with pytest.raises(ConfigurationError, match="logarithm"):
        apply(table, SelectionConfig(columns=("parallax",), not_null=(), where="ln(parallax) > 0"), schema_of("source_id"))
