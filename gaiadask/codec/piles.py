"""Piles: whole numbers sorted by their predicted size, each pile compressed by itself, so that each has its own distribution.

Which pile a star is in follows from the prediction, which a decoder makes too: nothing is stored of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from gaiadask.codec import loops
from gaiadask.codec.nulls import Mask, chosen, masked, spread
from gaiadask.compiled import fixed
from gaiadask.errors import DamagedFileError

Integers = NDArray[np.int64]
LEAST_ROWS = 3000
"""Of a pile: a smaller one costs more for its own description than it saves."""
_LEVEL = 8
_INTEGERS = ChunkConfig(compression_level=_LEVEL, mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.no_op(), enable_8_bit=True)
_AS_THEY_ARE = ChunkConfig(compression_level=_LEVEL, mode_spec=ModeSpec.auto(), delta_spec=DeltaSpec.no_op())
_TYPES = [(dtype, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype in (np.int8, np.int16, np.int32, np.int64)]
"""Of whole numbers, with the least and the largest, the narrowest first."""


def pack(numbers: Integers) -> bytes:
    """Whole numbers as one pcodec chunk, of the narrowest type that has them: it describes them in fewest bytes. No bytes for none."""
    if not len(numbers):
        return b""
    low, high = int(numbers.min()), int(numbers.max())
    dtype = next(dtype for dtype, least, most in _TYPES if least <= low and high <= most)
    return standalone.simple_compress(fixed(numbers.astype(dtype, copy=False)), _INTEGERS)


def unpack(data: bytes, count: int) -> Integers:
    """The whole numbers of `pack`. Raises DamagedFileError where there are not `count`."""
    return _unpacked(data, count).astype(np.int64)


def pack_values(values: NDArray) -> bytes:
    """Numbers of 16 to 64 bits of any type, bit by bit."""
    return standalone.simple_compress(fixed(values), _AS_THEY_ARE) if len(values) else b""


def unpack_values(data: bytes, count: int, dtype: np.dtype) -> NDArray:
    """The numbers of `pack_values`. Raises DamagedFileError where there are not `count` of the type."""
    values = _unpacked(data, count)
    if count and values.dtype != dtype:
        raise DamagedFileError(f"a compressed column has numbers of type {values.dtype} where it must have {dtype}")
    return values.astype(dtype, copy=False)


def pack_flags(flags: NDArray[np.bool_]) -> bytes:
    """Flags, as compressed numbers of 8 bits."""
    return standalone.simple_compress(flags.view(np.uint8), _INTEGERS) if len(flags) else b""


def unpack_flags(data: bytes, count: int) -> NDArray[np.bool_]:
    """The flags of `pack_flags`. Raises DamagedFileError where there are not `count`."""
    return _unpacked(data, count) != 0


def unpack_any(data: bytes) -> NDArray:
    """The numbers of one of the above, whatever their count and type. Raises DamagedFileError for other bytes."""
    if not data:
        return np.zeros(0, np.int64)
    try:
        values = standalone.simple_decompress(data)
    except Exception as error:
        # pcodec raises what its parser meets: a RuntimeError, a TypeError.
        raise DamagedFileError(f"a compressed column cannot be decoded: {error}") from error
    return np.zeros(0, np.int64) if values is None else values


def _unpacked(data: bytes, count: int) -> NDArray:
    values = unpack_any(data)
    if len(values) != count:
        raise DamagedFileError(f"a compressed column has {len(values)} numbers where it must have {count}")
    return values


class Piles:
    """Which pile each star is in.

    Attributes:
        sizes: stars of each pile; the null ones are in none.
    """

    def __init__(self, levels: NDArray[np.int32] | None, null: Mask, rows: int) -> None:
        """levels: predicted size of each star's number, whole, 0 or more; neighbouring levels are put together until a pile has
        LEAST_ROWS. None: all stars are one pile."""
        self._rows, self._null = rows, null
        self.sizes = [rows if null is None else rows - int(np.count_nonzero(null))]
        if levels is not None and self.sizes[0] > LEAST_ROWS:
            counts = np.zeros(int(levels.max()) + 1, np.int64)
            self._arrays = fixed(levels), masked(null)
            loops.counted(*self._arrays, counts)
            self._pile_of_level = fixed(_merged(counts))
            self.sizes = np.bincount(self._pile_of_level, counts).astype(np.int64).tolist()

    def pack(self, numbers: Integers) -> list[bytes]:
        """Each pile's numbers, compressed."""
        if len(self.sizes) == 1:
            return [pack(chosen(numbers, self._null))]
        ordered = np.empty(sum(self.sizes), np.int64)
        loops.piled(fixed(numbers), *self._arrays, self._pile_of_level, self._starts, ordered)
        return [pack(part) for part in np.split(ordered, self._starts[1:])]

    def unpack(self, data: Sequence[bytes]) -> Integers:
        """The numbers in the stars' order, 0 of null ones. Raises DamagedFileError where they are not of these piles."""
        if len(data) != len(self.sizes):
            raise DamagedFileError(f"a compressed column has {len(data)} piles where it must have {len(self.sizes)}")
        if len(self.sizes) == 1:
            return spread(unpack(data[0], self.sizes[0]), self._null)
        numbers = np.empty(self._rows, np.int64)
        ordered = np.empty(sum(self.sizes), np.int64)
        for part, start, size in zip(data, self._starts, self.sizes, strict=True):
            ordered[start : start + size] = _unpacked(part, size)
        loops.unpiled(fixed(ordered), *self._arrays, self._pile_of_level, self._starts, numbers)
        return numbers

    @property
    def _starts(self) -> Integers:
        """Where each pile begins."""
        return np.cumsum([0, *self.sizes[:-1]])


def _merged(counts: Integers) -> Integers:
    """The pile of each level: levels are put together, from the lowest on, until they have LEAST_ROWS; what is left at the top
    joins the pile below it."""
    piles = np.zeros(len(counts), np.int64)
    pile = rows = 0
    for level, count in enumerate(counts.tolist()):
        piles[level] = pile
        rows += count
        if rows >= LEAST_ROWS:
            pile, rows = pile + 1, 0
    if pile:
        piles[piles == pile] = pile - 1
    return piles
