"""Other people's columns in the form of the column table: names matched, types converted without loss, one null for all nulls.

The one place where a value of another type becomes a column's own, whatever format or frame it comes from: what keeps its
value is taken (whole numbers as floats, numbers as text, unsigned, decimal and dictionary types), all else is refused.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gaiadask.buffers import are_finite
from gaiadask.checks import check_finite, check_id_range, check_keys
from gaiadask.errors import DataError
from gaiadask.release.column import KEY_COLUMNS, SOURCE_ID
from gaiadask.sky import SOURCE_ID_STOP

logger = logging.getLogger(__name__)

NULL_WORDS = ("", "null", "NULL", "Null", "nan", "NaN", "NAN", "--", "NA", "N/A", "n/a", "None", "<NA>", "masked", r"\N")
"""Texts in place of a number, or of a text of CSV, that mean: no value."""
TRUE_WORDS, FALSE_WORDS = ("true", "True", "TRUE", "t", "T", "1", "1.0"), ("false", "False", "FALSE", "f", "F", "0", "0.0")
"""Texts that spell a flag."""

# What a text that is no number may mean, for the error.
_HINTS = (
    (re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?$"), "it has thousands separators: write it without"),
    (re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?$"), "it has a decimal comma: write numbers with a decimal point"),
    (re.compile(r"[+-]?\d+(\s*[:hd°]\s*\d+|\s+\d+\s+\d+)"), "it is sexagesimal: convert it to decimal degrees"),
    (re.compile(r"[+-]?[\d.]+[dD][+-]?\d+$"), "it has an exponent of Fortran's (D): write it with E"),
    (re.compile(r"[+-]?[\d.]+[eE][+-]?\d+$"), "a whole number in powers of ten may have lost digits: write all of them"),
    (re.compile(r"[+-]?\d+\.\d*[1-9]"), "it is not whole"),
    (re.compile(r"\u2212"), "its minus is not the sign '-': write it with that"),
    (re.compile(r"="), "it is a formula of a spreadsheet: export values"),
    (re.compile(r"[-=]+$|deg$|mas$|mag$|char$|long$|double$"), "a line of units, types or dashes stands among the rows: remove it"),
)


def conform(table: pa.Table, schema: pa.Schema, where_from: str) -> pa.Table:
    """The columns of `schema` out of `table`, in its order, types and metadata; NaN becomes null, other columns are dropped.

    Names are matched by `match_names`. A value is null, too, where a column of flags NAME.mask beside it says so, as astropy
    writes masked columns. `where_from` names the rows' origin in errors.
    Raises DataError for a column that is missing or whose values are not of its type, for infinities, for a null key
    (source_id, ra, dec) and for a source_id out of range.
    """
    names = match_names(table.column_names, schema.names, where_from)
    masks = mask_names(table.column_names, names)
    arrays = []
    for name, field in zip(names, schema, strict=True):
        values = converted(table.column(name), field, where_from)
        if name in masks:
            is_null = converted(table.column(masks[name]), pa.field(masks[name], pa.bool_()), where_from)
            values = pc.if_else(pc.fill_null(is_null, False), pa.scalar(None, field.type), values)
        arrays.append(values)
    result = pa.table(arrays, schema=schema)
    check_finite(result, where_from)
    check_keys(result, where_from)
    if SOURCE_ID in schema.names:
        check_id_range(result.column(SOURCE_ID).to_numpy(), 0, SOURCE_ID_STOP, where_from)
    return result


# Names ----------------------------------------------------------------------------------------------------------------
def match_names(names: Iterable[str], wanted: Iterable[str], where_from: str, remedy: str = "") -> list[str]:
    """For each wanted column its name among `names`: the same, else the one that differs in case, quotes or blanks about it only.

    remedy: for columns that are missing, in place of what helps where stars are selected.
    Raises DataError naming the columns that are missing or that two names fit.

    >>> match_names(["Source_ID", '"ra"', " dec"], ["source_id", "ra"], "a file")
    ['Source_ID', '"ra"']
    """
    known = list(names)
    alike: dict[str, list[str]] = {}
    for name in known:
        alike.setdefault(folded(name), []).append(name)
    matched: list[str] = []
    missing: list[str] = []
    for name in wanted:
        fitting = [name] if name in known else alike.get(folded(name), [])
        if len(fitting) > 1 or known.count(name) > 1:
            raise DataError(f"{where_from}: more than one column fits {name}: {[n for n in known if folded(n) == folded(name)]}")
        (matched if fitting else missing).extend(fitting or [name])
    if missing:
        shown = ", ".join(known[:100]) + (", …" if len(known) > 100 else "")
        raise DataError(f"{where_from}: no column {', '.join(missing)}. Columns found: {shown}. {remedy or _remedy(missing)}")
    return matched


def mask_names(names: Iterable[str], matched: Iterable[str]) -> dict[str, str]:
    """For each of the `matched` names that has one, the name of the column of flags that says where it is null."""
    known = set(names)
    return {name: f"{name}.mask" for name in matched if f"{name}.mask" in known}


def folded(name: str) -> str:
    """A column's name without what writers add to it: capitals, quotes, blanks."""
    return name.strip().strip("\"'`").strip().lower()


def _remedy(missing: list[str]) -> str:
    if keys := [name for name in missing if name in KEY_COLUMNS]:
        return f"Every star needs {', '.join(keys)}: rename the columns that hold {'it' if len(keys) == 1 else 'them'}"
    return "Leave it out of selection.columns, not_null and where, or take files that have it"


# Types ----------------------------------------------------------------------------------------------------------------
def converted(values: pa.ChunkedArray, field: pa.Field, where_from: str) -> pa.ChunkedArray:
    """One column in the field's type, NaN as null. Raises DataError for values that would not be the same in it."""
    source, target = values.type, field.type
    if not source.equals(target):
        try:
            values = _cast(_plain(values), field, where_from)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise _refused(_any(values), source, field, where_from, str(error)) from error
    if pa.types.is_floating(target) and not are_finite(values):
        nan = pc.is_nan(values)
        if pc.any(nan).as_py():
            values = pc.if_else(nan, pa.scalar(None, target), values)
    return values


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values without what only says how they are stored: dictionaries, runs, extension types, views."""
    while True:
        kind = values.type
        if isinstance(kind, pa.BaseExtensionType):
            values = pa.chunked_array([chunk.storage for chunk in values.chunks], kind.storage_type)
        elif pa.types.is_dictionary(kind):
            values = values.cast(kind.value_type)
        elif pa.types.is_run_end_encoded(kind):
            values = pa.chunked_array([pc.run_end_decode(chunk) for chunk in values.chunks], kind.value_type)
        else:
            break
    if _is_text(kind) and not pa.types.is_string(kind):
        values = values.cast(pa.string())
    return values


def _is_text(kind: pa.DataType) -> bool:
    """Bytes too, which older writers do not declare as text: what is not UTF-8 is refused when it is converted."""
    tests = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _cast(values: pa.ChunkedArray, field: pa.Field, where_from: str) -> pa.ChunkedArray:
    """`values` in the field's type, without loss but for float64 rounded to float32."""
    source, target = values.type, field.type
    number = pa.types.is_integer(source) or pa.types.is_decimal(source) or pa.types.is_floating(source)
    if pa.types.is_null(source) or source.equals(target):
        return values.cast(target)
    if pa.types.is_string(source) and not pa.types.is_string(target):
        return _from_text(values, field, where_from)
    if pa.types.is_floating(target) and number:
        if pa.types.is_floating(source) and source.bit_width < target.bit_width:
            _warn_narrow(where_from, field.name, str(source), str(target))
        return values.cast(target)
    if pa.types.is_integer(target) and number:
        return (_whole(values, field, where_from) if pa.types.is_floating(source) else values).cast(target)
    if pa.types.is_boolean(target) and number:
        flags = _whole(values, field, where_from) if pa.types.is_floating(source) else values.cast(pa.int64())
        if _first(flags, pc.invert(pc.is_in(flags, pa.array([0, 1, None], pa.int64())))) is None:
            return flags.cast(target)
    raise _refused(_any(values), source, field, where_from)


def _whole(values: pa.ChunkedArray, field: pa.Field, where_from: str) -> pa.ChunkedArray:
    """Floating-point numbers that are whole, and small enough to have all their digits, as int64; NaN as null."""
    kind, largest = values.type, 2.0 ** {16: 11, 32: 24, 64: 53}[values.type.bit_width]
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values).cast(pa.float64())
    if (large := _first(values, pc.greater_equal(pc.abs(values), largest))) is not None:
        reason = (
            f"{kind} has all digits of numbers below {largest:.0f} only: write it as integers, or as text, where it still has them"
        )
        raise _refused(large, kind, field, where_from, reason)
    return values.cast(pa.int64())


def _from_text(values: pa.ChunkedArray, field: pa.Field, where_from: str) -> pa.ChunkedArray:
    """Numbers and flags out of the text that spells them; a NULL_WORD is null."""
    texts = bare_text(values)
    if pa.types.is_floating(field.type):
        try:
            return pc.replace_substring_regex(texts, r"^\+", "").cast(field.type)
        except pa.ArrowInvalid as error:
            wrong = next((text for text in texts.drop_null().to_pylist() if not _is_number(text)), "")
            raise _refused(wrong, pa.string(), field, where_from, _hint(wrong, field)) from error
    if pa.types.is_integer(field.type):
        spelled = pc.match_substring_regex(texts, r"^[+-]?[0-9]+(\.0*)?$")
    else:
        spelled = pc.is_in(texts, pa.array([*TRUE_WORDS, *FALSE_WORDS, None]))
    if (wrong := _first(texts, pc.invert(spelled))) is not None:
        raise _refused(wrong, pa.string(), field, where_from, _hint(wrong, field))
    if not pa.types.is_integer(field.type):
        return pc.if_else(pc.is_null(texts), pa.scalar(None, field.type), pc.is_in(texts, pa.array(TRUE_WORDS)))
    pointed = pc.fill_null(pc.match_substring(texts, "."), False)
    if pc.any(pointed).as_py():  # "100001.0": pandas writes whole numbers with nulls so
        _whole(texts.filter(pointed).cast(pa.float64()), field, where_from)
        texts = pc.replace_substring_regex(texts, r"\.0*$", "")
    return pc.replace_substring_regex(texts, r"^\+", "").cast(field.type)


def _any(values: pa.ChunkedArray) -> Any:
    """A value that is not null, where there is one."""
    return next((value for chunk in values.chunks for value in chunk.drop_null()[:1].to_pylist()), None)


def bare_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without blanks and quotes about them, a NULL_WORD as null."""
    texts = pc.utf8_trim_whitespace(values)
    if pc.any(pc.starts_with(texts, '"')).as_py():
        texts = pc.utf8_trim_whitespace(pc.utf8_trim(texts, characters='"'))
    return pc.if_else(pc.is_in(texts, pa.array(NULL_WORDS)), pa.scalar(None, pa.string()), texts)


def _first(values: pa.ChunkedArray, which: pa.ChunkedArray) -> Any:
    """The first of those values; None where there is none."""
    found = values.filter(which)
    return found[0].as_py() if len(found) else None


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _hint(text: str, field: pa.Field) -> str:
    """What a text that spells no value may be instead."""
    if folded(text) == field.name:
        return "the header line comes again among the rows, as where files were joined: remove it"
    return next((hint for pattern, hint in _HINTS if pattern.match(text)), "")


def _refused(sample: object, kind: pa.DataType, field: pa.Field, where_from: str, reason: str = "") -> DataError:
    return DataError(
        f"{where_from}: column {field.name} holds {kind}, such as {str(sample)[:80]!r}: expected {field.type}, "
        f"or what becomes it without loss{f': {reason[:300]}' if reason else ''}"
    )


@functools.lru_cache(maxsize=4096)  # so that a file read in a thousand tables warns once
def _warn_narrow(where_from: str, name: str, dtype: str, expected: str) -> None:
    logger.warning("%s: column %s is %s where the archive has %s: values are kept as they are", where_from, name, dtype, expected)
