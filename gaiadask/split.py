"""Train, validation and test stars: a hash of source_id decides, the same everywhere and for ever (80/10/10)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

RULE = "splitmix64(source_id) / 2**64: train below 0.8, validation below 0.9, test above"
_BOUNDS = (0.8, 0.9)
TRAIN_SHARE = _BOUNDS[0]


class Part(IntEnum):
    """Which stars a step may see."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


def hash64(source_id: ArrayLike) -> NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele, Lea and Flood 2014) of source_ids: uniform 64-bit numbers."""
    with np.errstate(over="ignore"):  # it wraps by design; numpy warns of that for scalars
        z = np.asarray(source_id, dtype=np.int64).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def sample_hash(source_id: ArrayLike) -> NDArray[np.uint64]:
    """Another hash, by which `selection.limit` samples the sky: independent of the split's, so that of the stars of smallest
    sample_hash as many are train, validation and test stars as of all."""
    return hash64(hash64(source_id).view(np.int64))


def part_of(source_id: ArrayLike) -> NDArray[np.uint8]:
    """The `Part` of each star, shape of `source_id`."""
    bounds = np.array([int(b * 2**64) for b in _BOUNDS], dtype=np.uint64)
    return np.searchsorted(bounds, hash64(source_id), side="right").astype(np.uint8)
