"""Columns of other types and names in the column table's form: what keeps its value is taken, all else is refused by one error."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaiadask.checks import check_positions
from gaiadask.conform import FALSE_WORDS, NULL_WORDS, TRUE_WORDS, conform, match_names
from gaiadask.errors import DataError
from gaiadask.release.dr2 import COLUMNS
from gaiadask.sky import SOURCE_ID_STOP


def schema_of(*names: str) -> pa.Schema:
    return pa.schema([COLUMNS[name].field for name in names])


def stars(**columns: Any) -> pa.Table:
    """Two stars with these columns."""
    return pa.table({"source_id": pa.array([1, 2]), "ra": [1.0, 2.0], "dec": [1.0, 2.0]} | columns)


def conformed(name: str, values: pa.Array) -> list[Any]:
    table = stars(**{name: values})
    return conform(table, schema_of("source_id", *([name] if name != "source_id" else [])), "some/file")[name].to_pylist()


# Names and types --------------------------------------------------------------------------------------------------------------
def test_conform_orders_matches_names_and_makes_nulls_of_nan(caplog: pytest.LogCaptureFixture) -> None:
    table = pa.table(
        {
            "more": ["x", "y"],
            "DEC": pa.array([1.5, -2.5], pa.float32()),
            "ra": pa.array([1, 2], pa.int16()),
            "Source_Id": pa.array([5, 6], pa.uint64()),
            "parallax": [math.nan, 0.5],
            "bp_rp": [0.1, None],
            "lum_val": pa.nulls(2),
        }
    )
    schema = schema_of("source_id", "ra", "dec", "parallax", "bp_rp", "lum_val")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            result = conform(table, schema, "a file")
    assert result.schema.equals(schema, check_metadata=True)
    assert result.to_pylist() == [
        {"source_id": 5, "ra": 1.0, "dec": 1.5, "parallax": None, "bp_rp": float(np.float32(0.1)), "lum_val": None},
        {"source_id": 6, "ra": 2.0, "dec": -2.5, "parallax": 0.5, "bp_rp": None, "lum_val": None},
    ]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["a file"]
    assert "dec is float" in caplog.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source_id": pa.array([1, None])}, "1 of 2 rows have no source_id"),
        ({"source_id": pa.array([2.0**53, 2.0])}, "source_id holds double, such as '9007199254740992.0'.*as integers"),
        ({"source_id": pa.array([2.0**24, 2.0], pa.float32())}, "source_id holds float, such as '16777216.0'"),
        ({"source_id": pa.array([1.5, 2.0])}, "source_id holds double, such as '1.5'"),
        ({"source_id": pa.array([1, -1])}, "source_id -1"),
        ({"source_id": pa.array([1, SOURCE_ID_STOP])}, f"source_id {SOURCE_ID_STOP}"),
        ({"source_id": pa.array(["1", "5.85E+18"])}, "source_id holds string, such as '5.85E.18': .*all of them"),
        ({"source_id": pa.array(["1", "9007199254740993.0"])}, "source_id holds double, such as '9007199254740992.0'"),
        ({"source_id": pa.array([1, 2**63], pa.uint64())}, "source_id holds uint64"),
        ({"ra": pa.array([1.0, math.nan])}, "1 of 2 rows have no ra"),
        ({"dec": pa.array([None, 1.0])}, "1 of 2 rows have no dec"),
        ({"parallax": pa.array([math.inf, -math.inf])}, r"column parallax: NaN or infinite in 2 of 2 rows"),
        ({"bp_rp": pa.array([1e300, 1.0])}, r"column bp_rp: NaN or infinite in 1 of 2 rows"),
        ({"parallax": pa.array([None, "far"])}, "parallax holds string, such as 'far'"),
        ({"parallax": pa.array([True, False])}, "parallax holds bool"),
        ({"parallax": pa.array([2**60 + 1, 1])}, "parallax holds int64"),
        (
            {"Parallax": pa.array([1.0, 1.0]), "PARALLAX": pa.array([1.0, 1.0]), "parallax": None},
            "more than one column fits parallax",
        ),
        ({"parallax": None}, "no column parallax.*Columns found: source_id, ra, dec, bp_rp"),
    ],
)
def test_conform_refuses(changed: dict[str, Any], message: str) -> None:
    columns = {"source_id": pa.array([1, 2]), "ra": pa.array([1.0, 2.0]), "dec": pa.array([1.0, 2.0])}
    columns |= {"parallax": pa.array([1.0, 2.0]), "bp_rp": pa.array([1.0, 2.0])} | changed
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    with pytest.raises(DataError, match=rf"^some/file: .*{message}"):
        conform(table, schema_of("source_id", "ra", "dec", "parallax", "bp_rp"), "some/file")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1,734.5", "thousands separators"),
        ("0,35", "decimal comma"),
        ("03:12:59.1", "sexagesimal"),
        ("3h12m59s", "sexagesimal"),
        ("03 12 59.1", "sexagesimal"),
        ("1.5D2", "exponent of Fortran's"),
        ("Parallax", "the header line comes again"),
        ("<1.5", "without loss"),
    ],
)
def test_a_text_that_is_no_number_is_shown_with_what_it_may_be(text: str, hint: str) -> None:
    with pytest.raises(DataError, match=rf"^some/file: column parallax holds string, such as '{text}': expected double.*{hint}"):
        conformed("parallax", pa.array([None, text]))


EXTENSION = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8()))
ONE, TWO = 5853498713190525696, 7


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("source_id", pa.array([str(ONE), " +7 "]), [ONE, TWO]),
        ("source_id", pa.array([str(ONE), str(TWO)], pa.string_view()), [ONE, TWO]),
        ("source_id", pa.array([str(ONE), str(TWO)], pa.large_string()).dictionary_encode(), [ONE, TWO]),
        ("source_id", pa.array([ONE, TWO], pa.decimal128(38, 10)), [ONE, TWO]),
        ("source_id", pa.array([ONE, TWO], pa.uint64()).dictionary_encode(), [ONE, TWO]),
        ("source_id", pa.array([2.0**53 - 1, 7.0]), [2**53 - 1, TWO]),
        ("priam_flags", pa.array([100001.0, math.nan]), [100001, None]),
        ("priam_flags", pa.array(["100001.0", "<NA>"]), [100001, None]),
        ("priam_flags", pa.array([100001, None], pa.decimal256(40, 2)), [100001, None]),
        ("duplicated_source", pa.array([1, 0], pa.int8()), [True, False]),
        ("duplicated_source", pa.array([1.0, math.nan]), [True, None]),
        ("duplicated_source", pa.array(["T", "false"]), [True, False]),
        ("duplicated_source", EXTENSION.slice(1), [False, None]),
        ("designation", pa.array(["a", None], pa.string_view()), ["a", None]),
        ("designation", pa.array([b"a", None], pa.binary_view()), ["a", None]),
        ("designation", pa.array([b"a", None], pa.large_binary()), ["a", None]),
        ("phot_variable_flag", pa.array(["a", "a"], pa.dictionary(pa.int8(), pa.large_string())), ["a", "a"]),
        ("parallax", pa.array(["1e-3", '"2.5"']), [0.001, 2.5]),
        ("parallax", pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array([0.5])), [0.5, 0.5]),
        ("bp_rp", pa.array([0.5, None], pa.float16()), [0.5, None]),
    ],
)
def test_what_keeps_its_value_is_taken(name: str, values: pa.Array, expected: list[Any]) -> None:
    assert conformed(name, values) == expected


@pytest.mark.parametrize("word", NULL_WORDS)
def test_words_for_nulls_are_nulls(word: str) -> None:
    for name in ("parallax", "priam_flags", "duplicated_source"):
        assert conformed(name, pa.array([word, f" {word} "])) == [None, None]


def test_a_mask_column_says_what_is_null() -> None:
    table = stars(Parallax=[0.0, 0.5], **{"Parallax.mask": [True, None]})
    assert conform(table, schema_of("parallax"), "f")["parallax"].to_pylist() == [None, 0.5]


def test_names_fit_in_any_case_in_quotes_and_with_blanks() -> None:
    assert match_names(['"RA"', " Dec ", "x"], ["ra", "dec"], "f") == ['"RA"', " Dec "]
    with pytest.raises(DataError, match=r"f: no column ra, bp_rp. Columns found: x. Every star needs ra: rename the column"):
        match_names(["x"], ["ra", "bp_rp"], "f")
    with pytest.raises(DataError, match="Train again"):
        match_names(["x"], ["ra"], "f", "Train again")


@pytest.mark.parametrize(("ra", "dec", "name"), [(-5.0, 0.0, "ra"), (360.5, 0.0, "ra"), (1.0, 90.5, "dec"), (1.0, math.nan, "dec")])
def test_positions_off_the_sphere_are_refused(ra: float, dec: float, name: str) -> None:
    with pytest.raises(DataError, match=rf"^f: 1 rows have a {name} outside"):
        check_positions(pa.table({"ra": [1.0, ra], "dec": [1.0, dec]}), "f")
    check_positions(pa.table({"ra": [0.0, 360.0], "dec": [-90.0, 90.0]}), "f")


VALUES = st.one_of(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
    st.lists(st.none() | st.floats(), min_size=2, max_size=2),
    st.lists(st.none() | st.sampled_from([2.0**k for k in range(60)]), min_size=2, max_size=2),
    st.lists(st.none() | st.text(max_size=4), min_size=2, max_size=2),
    st.lists(st.none() | st.integers(0, 2**62).map(str), min_size=2, max_size=2),
    st.lists(st.none() | st.booleans(), min_size=2, max_size=2),
    st.lists(st.none() | st.binary(max_size=4), min_size=2, max_size=2),
    st.lists(st.none() | st.dates(), min_size=2, max_size=2),
    st.lists(st.none() | st.lists(st.integers(0, 1), max_size=2), min_size=2, max_size=2),
    st.lists(st.none() | st.decimals(allow_nan=False, allow_infinity=False, places=2, max_value=1e9), min_size=2, max_size=2),
)


@pytest.mark.slow
@given(VALUES, st.sampled_from(["priam_flags", "parallax", "bp_rp", "duplicated_source", "designation", "astrometric_n_obs_al"]))
@settings(max_examples=300, deadline=None)
def test_a_column_of_any_type_keeps_its_values_or_is_refused_by_name(values: list[Any], name: str) -> None:
    array = pa.array(values)
    try:
        found = conformed(name, array)
    except DataError as error:
        assert f"column {name}" in str(error)
        return
    for before, after in zip(values, found, strict=True):
        if after is not None and name == "duplicated_source" and isinstance(before, str):
            assert before.strip() in (TRUE_WORDS if after else FALSE_WORDS)
        elif after is not None and name in ("priam_flags", "astrometric_n_obs_al", "duplicated_source"):
            assert int(float(before) if isinstance(before, str) and "." in before else before) == after
        if after is None and isinstance(before, int):
            raise AssertionError(f"{before} became null")
