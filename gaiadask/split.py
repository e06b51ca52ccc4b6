"""Train, validation and test stars: a hash of source_id decides, the same on every machine and for ever (80/10/10)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

RULE = "splitmix64(source_id) / 2**64: train below 0.8, validation below 0.9, test above"
_BOUNDS = (0.8, 0.9)
TRAIN_SHARE = _BOUNDS[0]
# How much further than the expected hash to look for "the n stars of smallest hash", so that chance does not leave too few:
# the number of stars below a bound scatters by its square root, 1 % at 10,000. More only reads more stars than are used.
_MARGIN = 1.05


class Part(IntEnum):
    """A part of the stars: train stars to fit on, validation stars to stop and choose by, test stars to rate on."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


def hash64(source_id: ArrayLike) -> NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele, Lea and Flood 2014) of source_ids: uniform 64-bit numbers.

    >>> hex(int(hash64(0)))
    '0xe220a8397b1dcdaf'
    """
    with np.errstate(over="ignore"):  # it wraps by design; numpy warns of that for scalars
        z = np.asarray(source_id, dtype=np.int64).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def sample_hash(source_id: ArrayLike) -> NDArray[np.uint64]:
    """Another hash, by which `selection.limit` samples the sky.

    It is independent of the split's: the shares of train, validation and test stars are the same among the stars of smallest
    sample_hash as among all.
    """
    return hash64(hash64(source_id).view(np.int64))


def part_of(source_id: ArrayLike) -> NDArray[np.uint8]:
    """The `Part` of each star, shape of `source_id`."""
    return part_of_hash(hash64(source_id))


def part_of_hash(hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The `Part` of stars by their `hash64`, shape of `hashes`."""
    first, second = (np.uint64(int(bound * 2**64)) for bound in _BOUNDS)
    return np.add(hashes >= first, hashes >= second, dtype=np.uint8)


ANY_HASH = 2.0
"""Above every hash as a share of the range; 1.0 would leave out the largest ones, whose quotient rounds to it."""
_SHARES = {Part.TRAIN: (0.0, _BOUNDS[0]), Part.VALIDATION: _BOUNDS, Part.TEST: (_BOUNDS[1], 1.0)}


def chosen(source_id: ArrayLike, part: Part, below: float) -> NDArray[np.bool_]:
    """Which stars are of this part and have a hash below `below`, a share of the hash's range (`hash_bound`); shape of
    `source_id`."""
    return (part_of(source_id) == part) & (hash64(source_id) / 2.0**64 < below)


def smallest(hashes: NDArray[np.uint64], stars: int) -> NDArray[np.int64]:
    """Numbers of the `stars` smallest hashes, in their order; shape (at most stars,)."""
    return np.argsort(hashes, kind="stable")[:stars]


def share(part: Part) -> float:
    """The share of all stars that are of this part."""
    first, last = _SHARES[part]
    return last - first


def hash_bound(part: Part, stars: int, catalogue_rows: int) -> float:
    """The hash, as a share of its range, below which about `stars` stars of this part lie (a few more, rather than fewer)."""
    first, last = _SHARES[part]
    within = min(1.0, _MARGIN * stars / max(1.0, (last - first) * catalogue_rows))
    return ANY_HASH if within >= 1.0 else first + (last - first) * within
