"""Null masks: which of a star's columns have no value, as bits of int64 words, 63 columns a word.

Bit i % 63 of word i // 63 is set where column i is null; the columns are numbered as in the model's card. In a latent table the
words are the columns null_mask, null_mask_1, …
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.inputs.statistics import TableStatistics

NULL_MASK = "null_mask"
BITS_A_WORD = 63  # the sign bit stays 0, so that a mask is never negative

Masks = NDArray[np.int64]


def null_groups(columns: Sequence[str], free: Sequence[str], train: TableStatistics) -> tuple[tuple[str, ...], ...]:
    """The columns that some train stars lack and others have; those that the same stars lack are one group, a free column first."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name in sorted(columns, key=lambda name: name not in free):  # a stable sort: free columns first
        record = train.columns[name]
        if record.count and record.nulls:
            groups.setdefault((record.nulls, record.null_sum), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def mask_words(columns: int) -> int:
    """Number of words that have a bit for each of so many columns."""
    return -(-columns // BITS_A_WORD)


def mask_names(columns: int) -> list[str]:
    """Names of the words' columns for so many columns: null_mask, null_mask_1, …

    >>> mask_names(16), mask_names(94)
    (['null_mask'], ['null_mask', 'null_mask_1'])
    """
    return [f"{NULL_MASK}_{word}" if word else NULL_MASK for word in range(mask_words(columns))]


def pack_nulls(null: Sequence[NDArray[np.bool_]], rows: int) -> Masks:
    """Null masks, shape (rows, words), from whether each column is null, shape (rows,) each.

    >>> pack_nulls([np.array([False, True]), np.array([True, True])], 2).tolist()
    [[2], [3]]
    """
    words = np.zeros((mask_words(len(null)), rows), np.int64).T  # a word of all stars in one piece
    for column, is_set in enumerate(null):
        if is_set.any():
            words[:, column // BITS_A_WORD] |= is_set.astype(np.int64) << (column % BITS_A_WORD)
    return words


def is_null(masks: Masks, column: int) -> NDArray[np.bool_]:
    """Whether column number `column` is null, shape (n,); masks: shape (n, words)."""
    return np.asarray(masks[:, column // BITS_A_WORD] & (1 << column % BITS_A_WORD) != 0)


def beyond(masks: Masks, columns: int) -> NDArray[np.bool_]:
    """Which masks, shape (n, words), are none of so many columns: negative, or with a bit that no column has; shape (n,)."""
    widths = np.minimum(columns - BITS_A_WORD * np.arange(masks.shape[1]), BITS_A_WORD)
    return (masks >> widths != 0).any(axis=1)


def read_masks(table: pa.Table, columns: int) -> Masks:
    """Null masks, shape (n, words), of a latent table of a model with so many columns."""
    return np.stack([table[name].to_numpy() for name in mask_names(columns)], axis=1)
