"""What start.sh serves: a DaCHS resource descriptor and one CSV a table, written from arrow tables of stars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from gaiadask.release.dr2 import COLUMNS

SCHEMA = "gaiadr2"
_SQL_TYPES = {
    "bool": "boolean",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "float": "real",
    "double": "double precision",
    "string": "text",
}
_HEAD = f"""<resource schema="{SCHEMA}">
  <meta name="title">Stars</meta><meta name="description">Stars of the tests.</meta>
  <meta name="creationDate">2026-01-01T00:00:00</meta><meta name="creator">gaiadask</meta><meta name="subject">surveys</meta>
"""


def write_tables(tables: Mapping[str, pa.Table], folder: Path, units: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Write q.rd and <name>.csv for each table.

    A column has the unit and UCD of the column table, none where that does not know it. `units` (by table, then column)
    overrides that, so that a service can be made to tell wrong ones.
    """
    for name, table in tables.items():
        csv.write_csv(_postgres_booleans(table), folder / f"{name}.csv", csv.WriteOptions(include_header=False))
    described = "".join(_describe(name, table, (units or {}).get(name, {})) for name, table in tables.items())
    made = "".join(f"<make table={quoteattr(name)}/>" for name in tables)
    (folder / "q.rd").write_text(f'{_HEAD}{described}  <data id="import">{made}</data>\n</resource>\n')


def _describe(name: str, table: pa.Table, units: Mapping[str, str]) -> str:
    columns = "\n    ".join(_column(field, table[field.name].null_count, units) for field in table.schema)
    indices = '<index columns="random_index"/>' if "random_index" in table.column_names else ""
    return (
        f'  <table id={quoteattr(name)} onDisk="True" adql="True" primary="source_id">\n'
        f"    <meta name='description'>{name}</meta>\n    {columns}\n    {indices}\n  </table>\n"
    )


def _column(field: pa.Field, nulls: int, units: Mapping[str, str]) -> str:
    known = COLUMNS.get(field.name)
    unit = units.get(field.name, known.unit if known else "")
    required = pa.types.is_integer(field.type) and not nulls
    # DaCHS wants a stand-in for a null integer in formats that have no nulls of their own.
    stand_in = '<values nullLiteral="-32768"/>' if pa.types.is_integer(field.type) and not required else ""
    return (
        f"<column name={quoteattr(field.name)} type={quoteattr(_SQL_TYPES[str(field.type)])} unit={quoteattr(unit)} "
        f'ucd={quoteattr(known.ucd if known else "")} required="{required}" description={quoteattr(field.name)}>'
        f"{stand_in}</column>"
    )


def _postgres_booleans(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_boolean(field.type):
            table = table.set_column(index, field.name, pc.if_else(table[field.name], "t", "f"))
    return table
