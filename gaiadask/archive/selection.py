"""The selection on tables: rows as the column table wants them (`conform`), then those the selection keeps (`apply`).

What the archive does for us over TAP is done here for files and made-up stars. The condition `selection.where` is one SQL
expression over columns of the column table, evaluated by duckdb in a database that can reach no file, network or setting.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from gaiadask.config.sections import SelectionConfig
from gaiadask.errors import ConfigurationError, DataError
from gaiadask.release.column import KEY_COLUMNS, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.sky import SOURCE_ID_ORDER, SOURCE_ID_SHIFT
from gaiadask.split import sample_hash

logger = logging.getLogger(__name__)

SOURCE_ID_STOP = 12 * 4**SOURCE_ID_ORDER << SOURCE_ID_SHIFT
"""One more than the largest source_id there can be."""

Kinds = tuple[Callable[[pa.DataType], bool], ...]

_ROW = "__row"
_STARS = "stars"


def needed_columns(selection: SelectionConfig) -> tuple[str, ...]:
    """What must be read to select: the fetched columns, then those that only not_null and where look at.

    Raises ConfigurationError for a condition that is not one, or names a column that gaiadask does not know.
    """
    conditions = (*selection.not_null_names, *columns_of(selection.where, selection.release))
    return tuple(dict.fromkeys((*selection.column_names, *conditions)))


def needed_schema(selection: SelectionConfig) -> pa.Schema:
    """Arrow schema of `needed_columns`."""
    return selection.release.schema(needed_columns(selection))


# Rows as the column table wants them ----------------------------------------------------------------------------------
def conform(table: pa.Table, schema: pa.Schema, where_from: str) -> pa.Table:
    """The columns of `schema` out of `table`, in its order, types and metadata; NaN becomes null, other columns are dropped.

    Names match exactly, else without regard to case. `where_from` names the rows' origin in errors.
    Raises DataError for a column that is missing or whose values are not of its type, for infinities, for a null key
    (source_id, ra, dec) and for a source_id that is none.
    """
    names = match_names(table.column_names, schema.names, where_from)
    arrays = [_conformed(table.column(name), field, where_from) for name, field in zip(names, schema, strict=True)]
    result = pa.table(arrays, schema=schema)
    for name in KEY_COLUMNS:
        if name in schema.names and (nulls := result.column(name).null_count):
            raise DataError(f"{where_from}: {nulls} of {len(result)} rows have no {name}, without which a star cannot be filed")
    if SOURCE_ID in schema.names and len(result):
        bounds = cast(dict[str, int], pc.min_max(result.column(SOURCE_ID)).as_py())
        wrong = bounds["min"] if bounds["min"] < 0 else bounds["max"]
        if not 0 <= wrong < SOURCE_ID_STOP:
            raise DataError(f"{where_from}: source_id {wrong} is none: expected 0 <= source_id < {SOURCE_ID_STOP}")
    return result


def match_names(found: Iterable[str], wanted: Iterable[str], where_from: str) -> list[str]:
    """For each wanted column its name among those found: the same, else the one that differs in case only.

    Raises DataError naming the columns that are missing or that two names fit.
    """
    found = list(found)
    folded: dict[str, list[str]] = {}
    for name in found:
        folded.setdefault(name.lower(), []).append(name)
    names: list[str] = []
    missing: list[str] = []
    for name in wanted:
        fitting = [name] if name in found else folded.get(name.lower(), [])
        if len(fitting) > 1 or found.count(name) > 1:
            raise DataError(f"{where_from}: more than one column fits {name}: {[n for n in found if n.lower() == name.lower()]}")
        (names if fitting else missing).extend(fitting or [name])
    if missing:
        shown = ", ".join(found[:100]) + (", …" if len(found) > 100 else "")
        raise DataError(
            f"{where_from}: no column {', '.join(missing)}, which the selection asks for. Columns found: {shown}. "
            "Leave it out of selection.columns, not_null and where, or take files that have it"
        )
    return names


def _conformed(values: pa.ChunkedArray, field: pa.Field, where_from: str) -> pa.ChunkedArray:
    """One column in its type, NaN as null. Raises DataError."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not values.type.equals(field.type):
        values = _cast(values, field, where_from)
    if pa.types.is_floating(field.type):
        infinite = pc.sum(pc.is_inf(values)).as_py() or 0
        if infinite:
            raise DataError(f"{where_from}: {infinite} value(s) of {field.name} are infinite: expected a finite number or null")
        nan = pc.is_nan(values)
        if pc.any(nan).as_py():
            values = pc.if_else(nan, pa.scalar(None, field.type), values)
    return values


def _cast(values: pa.ChunkedArray, field: pa.Field, where_from: str) -> pa.ChunkedArray:
    """`values` in the field's type, without loss but for float64 rounded to float32. Raises DataError."""
    source, target = values.type, field.type
    number: Kinds = (pa.types.is_integer, pa.types.is_decimal)
    allowed: Kinds
    if pa.types.is_floating(target):
        allowed = (*number, pa.types.is_floating)
    elif pa.types.is_integer(target):
        allowed = number
    else:
        allowed = (pa.types.is_string, pa.types.is_large_string) if pa.types.is_string(target) else ()
    reason = ""
    if pa.types.is_null(source) or any(is_kind(source) for is_kind in allowed):
        narrow = pa.types.is_floating(source) and source.bit_width < target.bit_width
        if narrow:
            _warn_narrow(where_from, field.name, str(source), str(target))
        try:
            return values.cast(target, safe=True)
        except pa.ArrowInvalid as error:
            reason = f": {error}"
    sample = next((value for chunk in values.chunks for value in chunk.drop_null()[:1].to_pylist()), None)
    raise DataError(
        f"{where_from}: column {field.name} holds {source}, such as {str(sample)[:80]!r}: expected {target}, "
        f"or what becomes it without loss{reason}"
    )


@functools.lru_cache(maxsize=4096)  # so that a file read in a thousand tables warns once
def _warn_narrow(where_from: str, name: str, found: str, expected: str) -> None:
    logger.warning("%s: column %s is %s where the archive has %s: values are kept as they are", where_from, name, found, expected)


# Rows the selection keeps ---------------------------------------------------------------------------------------------
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
    """The `limit` smallest `sample_hash` of the source_ids seen so far; memory of 3 * limit numbers. Records merge."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._hashes: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._pending: list[NDArray[np.uint64]] = []

    def add(self, source_id: ArrayLike) -> None:
        """Look at more stars, shape (n,)."""
        self._take(sample_hash(source_id))

    def merge(self, other: HashLimit) -> None:
        """Look at all that `other` has seen."""
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
        classes = {node.get("class") for node in nodes}
        if "SUBQUERY" in classes:
            raise _refused(where, "subqueries are not allowed: the condition sees one star at a time")
        if classes & {"WINDOW", "STAR", "LAMBDA", "PARAMETER"}:
            raise _refused(where, "windows, *, COLUMNS(), lambdas and parameters are not allowed")
        functions = {str(node["function_name"]) for node in nodes if node.get("class") == "FUNCTION"}
        if changing := sorted(functions & _changing_functions(database)):
            raise _refused(where, f"{', '.join(changing)} would give another answer next time")
        named = {str(node["column_names"][-1]).lower() for node in nodes if node.get("class") == "COLUMN_REF"}
        if unknown := sorted(named - {name.lower() for name in known}):
            raise _refused(where, f"gaiadask knows no column {', '.join(unknown)}; it knows {', '.join(known)}")
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


def _expression(database: duckdb.DuckDBPyConnection, where: str) -> dict[str, Any]:
    """duckdb's syntax tree of the condition. Raises ConfigurationError unless it is one expression and nothing more."""
    if ";" in where:
        raise _refused(where, "expected one condition, found a ';'")
    found = database.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT (\n{where}\n)"]).fetchall()[0][0]
    tree = json.loads(found)
    if tree["error"]:
        raise _refused(where, str(tree["error_message"]))
    node = tree["statements"][0]["node"]
    empty = ("modifiers", "where_clause", "group_expressions", "having", "sample", "qualify")
    single = node["type"] == "SELECT_NODE" and len(node["select_list"]) == 1 and len(tree["statements"]) == 1
    if not single or node["from_table"]["type"] != "EMPTY" or any(node.get(key) for key in empty):
        raise _refused(where, "expected one condition on a star's columns, found a statement")
    return cast(dict[str, Any], node["select_list"][0])


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON tree."""
    if isinstance(tree, dict):
        yield tree
    children: Iterable[Any] = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
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
