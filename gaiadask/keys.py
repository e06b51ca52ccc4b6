"""Keys: short hashes of what a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gaiadask.errors import KeyMismatchError

_LEAVES = 8
"""So many differences are told, in one screen."""
_LETTERS = 60
"""So much of a value."""


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
    """The leaves in which two JSON values differ, as one readable line; of many, the first.

    >>> differences({"a": {"x": 1}, "b": [1, 2]}, {"a": {"x": 2}, "b": [1, 3]})
    'a.x: 1 there, 2 asked for; b: [2] there, [3] asked for'
    """
    leaves = list(_leaves(recorded, asked, ""))
    more = [f"and {len(leaves) - _LEAVES} more"] if len(leaves) > _LEAVES else []
    return "; ".join([*leaves[:_LEAVES], *more])


def _leaves(recorded: object, asked: object, at: str) -> Iterator[str]:
    """at: path of the values within the whole."""
    if isinstance(recorded, Mapping) and isinstance(asked, Mapping):
        for key in sorted({key for key in (*recorded, *asked) if recorded.get(key) != asked.get(key)}):
            yield from _leaves(recorded.get(key), asked.get(key), f"{at}.{key}" if at else key)
        return
    if isinstance(recorded, list | tuple) and isinstance(asked, list | tuple):
        gone, come = [v for v in recorded if v not in asked], [v for v in asked if v not in recorded]
        names = [_shared(*pair) for pair in zip(gone, come, strict=False)]
        if len(gone) == len(come) and gone and all(names):
            for before, after, name in zip(gone, come, names, strict=True):
                yield from _leaves(before, after, f"{at}[{name}]")
            return
        recorded, asked = _listed(gone or recorded), _listed(come or asked)
    yield f"{at}: {_around(repr(recorded), repr(asked))} there, {_around(repr(asked), repr(recorded))} asked for"


def _shared(one: object, other: object) -> str:
    """A text that two objects have under one key, which names both; "" where there is none."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return ""
    return next((value for key, value in one.items() if isinstance(value, str) and other.get(key) == value), "")


def _listed(values: Sequence[object]) -> list[object]:
    return [*values[:3], f"… {len(values)} in all"] if len(values) > 4 else list(values)


def _around(text: str, other: str) -> str:
    """A text, or where it is long the part of it that begins to differ from the other."""
    if len(text) <= _LETTERS:
        return text
    first = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, min(first - _LETTERS // 3, len(text) - _LETTERS))
    end = start + _LETTERS
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
