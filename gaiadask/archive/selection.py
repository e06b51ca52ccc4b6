"""The selection on tables: what must be read for it, and the rows that are selected (`apply`).

Over TAP the service selects; here it is done for files and mock stars. The condition `selection.where` is one SQL expression
over columns of the column table, evaluated by duckdb in a database that can reach no file, network or setting.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pydantic import JsonValue

from gaiadask.config.sections import SelectionConfig
from gaiadask.errors import ConfigurationError, known_names
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.split import sample_hash

_ROW = "__row"
_STARS = "stars"


def needed_columns(selection: SelectionConfig) -> tuple[str, ...]:
    """Columns that must be read to select: those fetched, then those that only not_null and where depend on.

    Raises ConfigurationError for a condition that is not one, or names a column that gaiadask does not know.
    """
    conditions = (*selection.not_null_names, *columns_of(selection.where, selection.release))
    return tuple(dict.fromkeys((*selection.column_names, *conditions)))


def needed_schema(selection: SelectionConfig) -> pa.Schema:
    """Arrow schema of `needed_columns`."""
    return selection.release.schema(needed_columns(selection))


# Selected rows --------------------------------------------------------------------------------------------------------
def apply(table: pa.Table, selection: SelectionConfig, schema: pa.Schema, hash_limit: int | None = None) -> pa.Table:
    """The rows of `table` that pass the selection, in their order, in the columns of `schema`.

    table: conformed, with the columns of `needed_schema(selection)` at least.
    hash_limit: the largest `sample_hash(source_id)` kept (`limit_threshold`); None keeps all that pass not_null and where.
    Raises ConfigurationError where the condition cannot be evaluated.
    """
    keep = np.ones(len(table), dtype=bool)
    for name in selection.not_null_names:
        keep &= np.asarray(table.column(name).is_valid())
    if hash_limit is not None:
        keep &= sample_hash(table.column(SOURCE_ID).to_numpy()) <= np.uint64(hash_limit)
    if not keep.all():
        table = table.filter(pa.array(keep))
    if selection.where and len(table):
        table = table.take(_rows_where(table, selection))
    return table.select(schema.names).cast(schema)


def limit_threshold(tables: Iterable[pa.Table], limit: int) -> np.uint64:
    """The `hash_limit` with which `apply` keeps the `limit` stars of smallest hash among these selected rows."""
    smallest = HashLimit(limit)
    for table in tables:
        smallest.add(table.column(SOURCE_ID).to_numpy())
    return smallest.threshold


class HashLimit:
    """The `limit` smallest `sample_hash` of the source_ids seen so far, in memory for 3 * limit numbers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._hashes: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._pending: list[NDArray[np.uint64]] = []

    def add(self, source_id: ArrayLike) -> None:
        """Take in more stars, shape (n,)."""
        self._take(sample_hash(source_id))

    def merge(self, other: HashLimit) -> None:
        """Take in all stars that `other` has seen."""
        for hashes in (other._hashes, *other._pending):
            self._take(hashes)

    @property
    def threshold(self) -> np.uint64:
        """The limit-th smallest hash; the largest there is where fewer stars were seen."""
        self._compact()
        return self._hashes.max() if len(self._hashes) == self._limit else np.uint64(2**64 - 1)

    def _take(self, hashes: NDArray[np.uint64]) -> None:
        if len(self._hashes) == self._limit:
            hashes = hashes[hashes < self._hashes.max()]
        self._pending.append(hashes)
        if sum(map(len, self._pending)) >= max(self._limit, 1 << 16):
            self._compact()

    def _compact(self) -> None:
        hashes = np.concatenate([self._hashes, *self._pending])
        # partition, not sort: amortised cost a star is constant, for a compaction comes once every `limit` candidates.
        self._hashes = np.partition(hashes, self._limit - 1)[: self._limit] if len(hashes) > self._limit else hashes
        self._pending = []


# The condition --------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=64)
def columns_of(where: str, release: Release) -> tuple[str, ...]:
    """The columns that a condition reads, in the release's order; none for an empty condition.

    The condition is parsed, bound to empty columns and refused (ConfigurationError) unless it is one expression without
    subqueries that gives the same answer each time, for chunks are fetched again after a failure.
    """
    if not where:
        return ()
    known = release.columns
    with _database() as database:
        nodes = list(_nodes(_expression(database, where)))
        classes = {node.kind for node in nodes}
        if "SUBQUERY" in classes:
            raise _refused(where, "subqueries are not allowed: the condition sees one star at a time")
        if classes & {"WINDOW", "STAR", "LAMBDA", "PARAMETER"}:
            raise _refused(where, "windows, *, COLUMNS(), lambdas and parameters are not allowed")
        functions = {node.name for node in nodes if node.kind == "FUNCTION"}
        if changing := sorted(functions & _changing_functions(database)):
            raise _refused(where, f"{', '.join(changing)} would give another answer next time")
        named = {node.name.lower() for node in nodes if node.kind == "COLUMN_REF"}
        if unknown := sorted(named - {name.lower() for name in known}):
            raise _refused(where, f"gaiadask knows no column {', '.join(unknown)}: {known_names(unknown, known)}")
        columns = tuple(name for name in known if name.lower() in named)
        database.register(_STARS, pa.table({name: pa.nulls(1, known[name].dtype) for name in columns} | {_ROW: [0]}))
        _query(database, f"SELECT {_ROW} FROM {_STARS} WHERE (\n{where}\n)", where)
        kind = str(_query(database, f"DESCRIBE SELECT (\n{where}\n) FROM {_STARS}", where)["column_type"][0])
        if kind != "BOOLEAN":
            raise _refused(where, f"it is of type {kind}, not true or false")
    return columns


def _database() -> duckdb.DuckDBPyConnection:
    """An empty database in memory that can reach no file, network, extension or Python variable; one thread.

    ln(-1) is an error, for otherwise it is NaN, which SQL holds to be larger than every number: the star would be kept.
    """
    options: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "autoload_known_extensions": False,
        "ieee_floating_point_ops": False,
        "threads": 1,
    }
    database = duckdb.connect(":memory:", config=options)
    database.execute("SET python_enable_replacements = false")
    database.execute("SET lock_configuration = true")
    return database


def _rows_where(table: pa.Table, selection: SelectionConfig) -> pa.Array:
    """Numbers, ascending, of the rows for which the condition is true. Raises ConfigurationError."""
    where = selection.where
    numbered = table.select(columns_of(where, selection.release)).append_column(_ROW, pa.array(np.arange(len(table))))
    with _database() as database:
        database.register(_STARS, numbered)
        # The line break ends a comment in the condition.
        rows = _query(database, f"SELECT {_ROW} FROM {_STARS} WHERE (\n{where}\n)", where)[_ROW]
    return pa.array(np.sort(rows))


def _query(database: duckdb.DuckDBPyConnection, sql: str, where: str) -> dict[str, NDArray]:
    """The columns of the answer to a query that holds the condition. Raises ConfigurationError where duckdb refuses it."""
    try:
        return database.execute(sql).fetchnumpy()
    except duckdb.Error as error:
        raise _refused(where, _first_lines(error)) from error


def _expression(database: duckdb.DuckDBPyConnection, where: str) -> JsonValue:
    """duckdb's syntax tree of the condition. Raises ConfigurationError unless it is one expression and nothing more."""
    if ";" in where:
        raise _refused(where, "expected one condition, found a ';'")
    text = database.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT (\n{where}\n)"]).fetchall()[0][0]
    tree = json.loads(text)
    if tree["error"]:
        raise _refused(where, str(tree["error_message"]))
    node = tree["statements"][0]["node"]
    empty = ("modifiers", "where_clause", "group_expressions", "having", "sample", "qualify")
    single = node["type"] == "SELECT_NODE" and len(node["select_list"]) == 1 and len(tree["statements"]) == 1
    if not single or node["from_table"]["type"] != "EMPTY" or any(node.get(key) for key in empty):
        raise _refused(where, "expected one condition on a star's columns, found a statement")
    expression: JsonValue = node["select_list"][0]
    return expression


class _Node(NamedTuple):
    """A node of a syntax tree: duckdb's class of it, and the function or the column that it names, if any."""

    kind: str
    name: str


def _nodes(tree: JsonValue) -> Iterator[_Node]:
    """Every node of a syntax tree."""
    if isinstance(tree, dict):
        column = tree.get("column_names")
        name = column[-1] if isinstance(column, list) and column else tree.get("function_name")
        yield _Node(str(tree.get("class")), str(name))
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for child in children:
        yield from _nodes(child)


def _changing_functions(database: duckdb.DuckDBPyConnection) -> set[str]:
    """Names of the functions whose answer depends on more than their arguments: random, now, current_setting, …"""
    query = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
    return {str(row[0]) for row in database.execute(query).fetchall()}


def _first_lines(error: duckdb.Error) -> str:
    return "\n".join(str(error).strip().splitlines()[:3])


def _refused(where: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"selection.where = {where!r} cannot be evaluated: {reason}\n"
        'Expected one SQL condition on a star, such as "parallax > 10 AND bp_rp BETWEEN 0.5 AND 1"'
    )
