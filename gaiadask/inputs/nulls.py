"""Null masks: which of a star's columns have no value, as bits of integers."""

from __future__ import annotations

MASK_BITS = 63


NULL_MASK = "null_mask"


def mask_names(words: int) -> list[str]:
    """null_mask, null_mask_1, …: one int64 column for each 63 model columns."""
    return [NULL_MASK, *(f"{NULL_MASK}_{i}" for i in range(1, words))]
