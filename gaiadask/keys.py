"""Keys: short hashes of what a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest(value: Any) -> str:
    """A short hash (16 hex digits) of any JSON-able value: sorted keys, so that order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(recorded: object, asked: object, at: str = "") -> str:
    """The leaves in which two JSON values differ, as one readable line. at: path of the values within the whole."""
    if isinstance(recorded, Mapping) and isinstance(asked, Mapping):
        keys = sorted({key for key in (*recorded, *asked) if recorded.get(key) != asked.get(key)})
        return "; ".join(differences(recorded.get(key), asked.get(key), f"{at}.{key}" if at else key) for key in keys)
    if isinstance(recorded, list) and isinstance(asked, list):
        recorded, asked = [v for v in recorded if v not in asked] or recorded, [v for v in asked if v not in recorded] or asked
    return f"{at}: {_short(recorded)} there, {_short(asked)} asked for"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
