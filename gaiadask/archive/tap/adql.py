"""The text of the queries to a TAP service: pure functions of the table, the selection and a range of source_id.

Only the common part of ADQL 2.0 and 2.1 is used: no functions, and grouping by a column of a subquery, not by an expression.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gaiadask.config.sections import SelectionConfig
from gaiadask.errors import ConfigurationError
from gaiadask.release.column import SOURCE_ID
from gaiadask.sky import SOURCE_ID_ORDER, SOURCE_ID_SHIFT, SOURCE_ID_STOP

RANDOM_INDEX = "random_index"

_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_TABLE_NAME = re.compile(r'(?:[A-Za-z_]\w*|"[^"]+")(?:\.(?:[A-Za-z_]\w*|"[^"]+"))*')


@dataclass(frozen=True, slots=True)
class StarQuery:
    """Queries about the selected stars of a table.

    first, stop: half-open range of source_id; the whole id space adds no condition.
    random_index_limit: the largest random_index kept, None for all.
    """

    table: str
    selection: SelectionConfig
    first: int = 0
    stop: int = SOURCE_ID_STOP
    random_index_limit: int | None = None

    def count(self) -> str:
        """One row: n_stars."""
        return f"SELECT COUNT(*) AS n_stars FROM {self.table}{self._where()}"

    def rows(self, columns: Sequence[str]) -> str:
        """One row a star, with these columns."""
        return f"SELECT {', '.join(columns)} FROM {self.table}{self._where()}"

    def histogram(self, order: int) -> str:
        """Rows (pixel, n_stars): stars by the HEALPix pixel (nested, of this order) of their source_id."""
        width = pixel_width(order)
        pixels = f"SELECT {SOURCE_ID}/{width} AS pixel FROM {self.table}{self._where()}"
        return f"SELECT pixel, COUNT(*) AS n_stars FROM ({pixels}) AS pixels GROUP BY pixel"

    def threshold(self) -> str:
        """One row: random_index_limit, the largest random_index among the `limit` smallest."""
        smallest = (
            f"SELECT TOP {self.selection.limit} {RANDOM_INDEX} FROM {self.table}"
            f"{self._where(f'{RANDOM_INDEX} IS NOT NULL')} ORDER BY {RANDOM_INDEX}"
        )
        return f"SELECT MAX({RANDOM_INDEX}) AS random_index_limit FROM ({smallest}) AS smallest"

    def _where(self, *more: str) -> str:
        conditions = [f"{name} IS NOT NULL" for name in self.selection.not_null_names]
        if (self.first, self.stop) != (0, SOURCE_ID_STOP):
            conditions = [f"{SOURCE_ID} >= {self.first}", f"{SOURCE_ID} < {self.stop}", *conditions]
        if self.selection.where.strip():
            conditions.append(f"({self.selection.where.strip()})")
        if self.random_index_limit is not None:
            conditions.append(f"{RANDOM_INDEX} <= {self.random_index_limit}")
        conditions += more
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def pixel_width(order: int) -> int:
    """How many source_ids one HEALPix pixel of this order (at most 12) holds."""
    return 1 << (SOURCE_ID_SHIFT + 2 * (SOURCE_ID_ORDER - order))


def columns_query(table: str) -> str:
    """Rows (column_name, unit, datatype): a table's columns in the service's own metadata."""
    quoted = table.replace("'", "''")
    return f"SELECT column_name, unit, datatype FROM TAP_SCHEMA.columns WHERE table_name = '{quoted}'"


def check_condition(where: str) -> None:
    """Refuse text that would not stay one condition between parentheses: `;`, comments, open quotes, unbalanced parentheses.

    Raises ConfigurationError.
    """
    bare = _QUOTED.sub(" ", where)
    if marks := [mark for mark in (";", "--", "/*", "*/") if mark in bare]:
        raise _refused(where, f"contains {' and '.join(marks)}")
    if "'" in bare or '"' in bare:
        raise _refused(where, "has a quote that is never closed")
    depth = 0
    for character in bare:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
    if depth:
        raise _refused(where, "has unbalanced parentheses")


def check_table(table: str) -> None:
    """Refuse text that is no table name (schema.table, parts quoted where necessary). Raises ConfigurationError."""
    if not _TABLE_NAME.fullmatch(table):
        raise ConfigurationError(f"archive.table {table!r} is not the name of a table: expected one like gaiadr2.gaia_source")


def _refused(where: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"selection.where {where!r} {reason}: expected one ADQL condition such as parallax > 1 AND ruwe < 1.4"
    )
