"""The column table agrees with itself, with the units' standard, and with the archive's own rows."""

from __future__ import annotations

import astropy.units as u
import pyarrow as pa
import pytest

from gaiadask.errors import ConfigurationError
from gaiadask.release.column import HEALPIX_29, KEY_COLUMNS
from gaiadask.release.dr2 import COLUMNS, DR2, SEED16, SEED25


@pytest.mark.parametrize(("preset", "columns", "free"), [(SEED16, 16, 11), (SEED25, 25, 20)])
def test_presets_have_their_columns_and_free_columns(preset: tuple[str, ...], columns: int, free: int) -> None:
    assert len(preset) == len(set(preset)) == columns
    assert len(preset) - len(DR2.derivable(preset)) == free
    assert set(preset) <= COLUMNS.keys()


def test_derivable_needs_every_source() -> None:
    assert DR2.derivable(["bp_rp", "phot_bp_mean_flux"]) == ()
    assert DR2.derivable(["phot_rp_mean_flux", "bp_rp", "phot_bp_mean_flux", "radius_val"]) == ("bp_rp",)
    assert set(DR2.derivable(SEED16)) == {"bp_rp", "bp_g", "g_rp", "radius_val", "lum_val"}


def test_the_table_refers_to_itself_only() -> None:
    for name, column in COLUMNS.items():
        assert column.name == name and column.description and column.ucd
        assert set(column.derived_from) <= COLUMNS.keys() - {name}
        # What a column derives from is free, so that derivation needs no order.
        assert not any(COLUMNS[source].derived_from for source in column.derived_from)
        if column.error_column:
            error = COLUMNS[column.error_column]
            sigma = 1 * u.Unit(error.unit, format="vounit")
            assert sigma.to_value(u.Unit(column.unit, format="vounit")) == pytest.approx(column.error_factor, rel=1e-12)


@pytest.mark.parametrize("name", COLUMNS)
def test_units_are_vounits(name: str) -> None:
    # astropy does not know the standard's functions: their argument must be a unit.
    text = COLUMNS[name].unit.removeprefix("log(").removesuffix(")")
    unit = u.Unit(text, format="vounit", parse_strict="raise")
    assert (unit == u.dimensionless_unscaled) == (COLUMNS[name].unit == "")


def test_columns_are_resolved_in_order_and_once() -> None:
    assert DR2.resolve("seed25") == SEED25 and DR2.resolve("all") == tuple(COLUMNS)
    assert DR2.resolve(["pmra", "ra", "pmra"]) == ("pmra", "ra")
    assert DR2.resolve([]) == ()


def test_what_is_unknown_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"'seed17'.*seed16"):
        DR2.resolve("seed17")
    with pytest.raises(ConfigurationError, match=r"pmrra: did you mean pmra\?$"):
        DR2.resolve(["pmrra", "ra"])


@pytest.mark.parametrize("preset", DR2.presets)
def test_a_catalogue_has_its_keys_first_and_tells_units(preset: str) -> None:
    schema = DR2.catalogue_schema(DR2.resolve(preset))
    assert schema.names[:2] == [HEALPIX_29, "source_id"]
    assert len(schema.names) == len(set(schema.names))
    assert set(KEY_COLUMNS) <= set(schema.names)
    for field in schema:
        if field.name != HEALPIX_29:
            assert field.type == COLUMNS[field.name].dtype
            assert field.metadata[b"unit"].decode() == COLUMNS[field.name].unit


def test_models_can_encode_numbers_and_flags_only() -> None:
    for column in COLUMNS.values():
        numeric = pa.types.is_integer(column.dtype) or pa.types.is_floating(column.dtype)
        assert (column.role == "label") == (not numeric and column.name != "designation")
        assert column.is_encodable == ((numeric and column.role != "identifier") or column.dtype == pa.bool_())
    assert not COLUMNS["phot_variable_flag"].is_encodable


def test_what_follows_is_null_only_with_its_sources() -> None:
    for column in COLUMNS.values():
        if not column.nullable:
            assert not any(COLUMNS[source].nullable for source in column.derived_from), column.name
        if column.error_column:
            assert COLUMNS[column.error_column].nullable == column.nullable


def test_names_order_and_types_are_those_of_real_rows(real_rows: pa.Table) -> None:
    assert len(COLUMNS) == 94
    assert list(COLUMNS) == [name for name in real_rows.column_names if name not in ("origin", "colours_derived")]
    for name, column in COLUMNS.items():
        assert real_rows.schema.field(name).type == column.dtype, name


def test_nulls_are_where_whole_real_rows_have_some(real_rows: pa.Table) -> None:
    """Rows with solution_id were taken with all columns; the others lack what their origin left out."""
    whole = real_rows.filter(real_rows["solution_id"].is_valid())
    assert len(whole) > 1_000
    assert {name for name, column in COLUMNS.items() if column.nullable} == {n for n in COLUMNS if whole[n].null_count}
