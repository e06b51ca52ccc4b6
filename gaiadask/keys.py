"""Keys: short hashes of what a result depends on, and the comparison of what was recorded with what is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from gaiadask.errors import KeyMismatchError

_LEAVES_SHOWN = 5
_TEXT_SHOWN = 60


def digest(value: Any) -> str:
    """A short hash (16 hex digits) of any JSON-able value: sorted keys, so that order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require_same(what: str, recorded: Mapping[str, object], expected: Mapping[str, object], remedy: str) -> None:
    """Make sure that a thing is of the same origin as what it is used with.

    Args:
        what: what errors call the thing.
        recorded: what it says that it was made from, by name; what is None or missing is not compared: an earlier version did not
            record it.
        expected: what it must have been made from.
        remedy: what a user can do; ends the error.

    Raises:
        KeyMismatchError: something differs; the message names it.
    """
    known = {name: value for name, value in recorded.items() if value is not None and name in expected}
    wanted = {name: expected[name] for name in known}
    if known != wanted:
        raise KeyMismatchError(f"{what} does not belong to what is used with it ({differences(known, wanted)}): {remedy}")


def differences(recorded: object, asked: object) -> str:
    """The leaves in which two JSON values differ, as one readable line: the first few of them."""
    leaves = list(_leaves(recorded, asked, ""))
    more = [f"and {len(leaves) - _LEAVES_SHOWN} more"] if len(leaves) > _LEAVES_SHOWN else []
    return "; ".join([*leaves[:_LEAVES_SHOWN], *more])


def _leaves(recorded: object, asked: object, at: str) -> Iterator[str]:
    """at: path of the values within the whole."""
    if isinstance(recorded, Mapping) and isinstance(asked, Mapping):
        for key in sorted({key for key in (*recorded, *asked) if recorded.get(key) != asked.get(key)}):
            yield from _leaves(recorded.get(key), asked.get(key), f"{at}.{key}" if at else key)
        return
    if isinstance(recorded, list) and isinstance(asked, list):
        recorded, asked = [v for v in recorded if v not in asked] or recorded, [v for v in asked if v not in recorded] or asked
        if any(isinstance(value, Mapping) for value in (*recorded, *asked)):
            for number, (one, other) in enumerate(_paired(recorded, asked)):
                yield from _leaves(one, other, f"{at}[{_name_of(one, other, number)}]")
            return
    yield f"{at}: {_short(recorded, asked)} there, {_short(asked, recorded)} asked for"


def _paired(recorded: Sequence[Any], asked: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Objects of two lists that are of the same file, else of the same place."""
    by_uri = [{v["uri"]: v for v in values if isinstance(v, Mapping) and "uri" in v} for values in (recorded, asked)]
    if len(by_uri[0]) == len(recorded) and len(by_uri[1]) == len(asked):
        for uri in dict.fromkeys((*by_uri[0], *by_uri[1])):
            yield by_uri[0].get(uri), by_uri[1].get(uri)
    else:
        yield from zip_longest(recorded, asked)


def _name_of(one: object, other: object, number: int) -> str:
    for value in (one, other):
        if isinstance(value, Mapping) and "uri" in value:
            return str(value["uri"])
    return str(number)


def _short(value: object, other: object) -> str:
    """The value in few characters, those in which it differs from the other among them."""
    text, beside = repr(value), repr(other)
    if len(text) <= _TEXT_SHOWN:
        return text
    same = next((i for i, (a, b) in enumerate(zip(text, beside, strict=False)) if a != b), min(len(text), len(beside)))
    first = max(0, min(same - _TEXT_SHOWN // 3, len(text) - _TEXT_SHOWN))
    stop = first + _TEXT_SHOWN
    return f"{'…' if first else ''}{text[first:stop]}{'…' if stop < len(text) else ''}"
