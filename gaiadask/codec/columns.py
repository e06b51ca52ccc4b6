"""One column of a chunk as bytes and back: its nulls, its exceptions, and its values.

A coded column is a list of byte strings: the CRC-32 of what comes back, its own null mask (empty: it is the leader's), the rows and
the values of its exceptions (values that what is coded does not come near enough to, stored as they are; rows are counted among those
that are not null), then what its coder makes of the values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.codec import piles
from gaiadask.codec.bounds import Floats, Tolerance, Values, allowed, deviation
from gaiadask.codec.card import ColumnCode
from gaiadask.codec.coders import CODERS, Coder, packed_texts, unpacked_texts
from gaiadask.codec.dependencies import MASK
from gaiadask.codec.prediction import Rows
from gaiadask.codec.stars import Stars
from gaiadask.errors import DamagedFileError
from gaiadask.release.release import Release

HEAD = 4
"""Byte strings before the coder's own."""


class Native(NamedTuple):
    """A column in its own type.

    Attributes:
        values: shape (rows,), anything where null; texts as an Arrow array.
        null: whether each is null; None: none is.
    """

    values: Any
    null: NDArray[np.bool_] | None

    @property
    def rows(self) -> Rows:
        """Numbers of the rows that have a value; None: all."""
        return None if self.null is None else np.flatnonzero(~self.null)

    @property
    def present(self) -> Any:
        """The values that are not null."""
        return self.values if self.null is None else _filter(self.values, ~self.null)

    @property
    def as_floats(self) -> Floats:
        """As float64, NaN where null."""
        if self.null is None:
            return np.asarray(self.values, np.float64)
        values: Floats = np.array(self.values, np.float64)
        values[self.null] = np.nan
        return values

    def to_arrow(self, dtype: pa.DataType) -> pa.Array:
        """As an Arrow array."""
        if isinstance(self.values, pa.Array):
            return self.values if self.null is None else pc.if_else(pa.array(self.null), pa.scalar(None, dtype), self.values)
        return pa.array(self.values, dtype, mask=self.null)


class Coded(NamedTuple):
    """A column as bytes, and how near what comes back of them is.

    Attributes:
        blobs: its nulls, exceptions and values.
        worst: the largest |error| over its bound; 0 where every value comes back as it is.
        exceptions: number of values that are stored as they are.
    """

    blobs: list[bytes]
    worst: float
    exceptions: int


class Originals(Mapping[str, Floats]):
    """The catalogue's own columns as float64, NaN where null, each converted when it is asked for."""

    def __init__(self, columns: Mapping[str, Native]) -> None:
        self._columns = columns
        self._floats: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._floats:
            self._floats[name] = self._columns[name].as_floats
        return self._floats[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class Judge(NamedTuple):
    """What an encoder knows beside the stars: the catalogue's own values, and how far off each may come back."""

    originals: Values
    bounds: Mapping[str, Tolerance]
    release: Release


def native(column: pa.ChunkedArray) -> Native:
    """A column of a table in its own type."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    null = np.asarray(array.is_null()) if array.null_count else None
    if pa.types.is_string(array.type):
        return Native(array if null is None else pc.fill_null(array, ""), null)
    if null is not None:
        array = pc.fill_null(array, False if pa.types.is_boolean(array.type) else 0)
    return Native(array.to_numpy(zero_copy_only=False), null)


def encode(code: ColumnCode, stars: Stars, column: Native, judge: Judge, exact_rows: NDArray[np.bool_] | None = None) -> Coded:
    """Code one column of a chunk, and let `stars` have what a decoder will get.

    Args:
        code: how.
        stars: the chunk's stars, with the columns that this one depends on.
        column: its values.
        judge: what says whether a value comes back near enough.
        exact_rows: rows, of those that have a value, whose value must come back as it is.
    """
    leader = None if code.name.startswith(MASK) else stars.nulls.get(code.leader)  # of a mask no value is null
    own_nulls = b"" if _same_mask(column.null, leader) else piles.pack_flags(_flags(column.null, stars.rows))
    values, rows = column.present, column.rows
    coder = CODERS[code.kind](code, stars, rows, judge.release)
    proposal, worst = coder.propose(values), 0.0
    wrong = proposal.wrong
    if not coder.exact:
        share, exact = _share_of_bound(code.name, proposal.values, rows, judge)
        wrong = wrong | ~(share <= 1) | (exact & _bits_differ(proposal.values, values))
        if judge.release.columns[code.name].sign_matters:
            # A flux above 0 must not come back at or below it, whatever its bound.
            wrong |= (values > 0) & ~(proposal.values > 0)
        if exact_rows is not None:
            wrong |= exact_rows
        worst = float(share[~wrong].max(initial=0.0))
    exceptions = [b"", b""]
    if wrong.any():
        if proposal.numbers is not None:
            proposal.numbers[wrong] = 0
        which = np.flatnonzero(wrong)
        exceptions = [piles.pack(np.diff(which, prepend=0)), _pack_raw(_filter(values, wrong))]
        proposal = proposal._replace(values=_put(proposal.values, which, _filter(values, wrong)))
    _keep(coder, proposal.values, proposal.numbers)
    checksum = _checksum(column.null, proposal.values)
    return Coded([checksum, own_nulls, *exceptions, *coder.pack(proposal)], worst, int(wrong.sum()))


def decode(code: ColumnCode, stars: Stars, blobs: Sequence[bytes], release: Release) -> Native:
    """One column of a chunk. Raises DamagedFileError for bytes that are not this column's."""
    if len(blobs) < HEAD:
        raise DamagedFileError(f"column {code.name}: {len(blobs)} parts where there must be {HEAD} or more")
    checksum, own_nulls, exception_rows, exception_values, *coded = blobs
    null = piles.unpack_flags(own_nulls, stars.rows) if own_nulls else stars.nulls.get(code.leader)
    if null is not None and not null.any():
        null = None
    rows = None if null is None else np.flatnonzero(~null)
    coder = CODERS[code.kind](code, stars, rows, release)
    try:
        values, numbers = coder.unpack(coded)
    except IndexError as error:  # a part that is empty, a text that is not there
        raise DamagedFileError(f"column {code.name}: its parts are not what was compressed: {error}") from error
    if exception_values:
        exact = _unpack_raw(exception_values, values)
        which = np.cumsum(piles.unpack(exception_rows, len(exact)))
        if len(which) and not (which.min() >= 0 and which.max() < coder.count):
            raise DamagedFileError(f"column {code.name}: an exception in row {which.max()} of {coder.count}")
        values = _put(values, which, exact)
    if _checksum(null, values) != checksum:
        raise DamagedFileError(f"column {code.name}: its values are not those that were compressed")
    _keep(coder, values, numbers)
    return Native(_spread(values, rows, stars.rows), null)


def _keep(coder: Coder, values: Any, numbers: NDArray[np.int64] | None) -> None:
    """Let the stars have a coded column, for the columns that depend on it."""
    stars, rows, floats = coder.stars, coder.rows, coder.floats(values, numbers)
    if floats is not None:
        mean = None if coder.mean is None else _spread_floats(coder.mean, rows, stars.rows)
        stars.put(coder.code.name, _spread_floats(floats, rows, stars.rows), mean)


def _share_of_bound(name: str, rebuilt: NDArray, rows: Rows, judge: Judge) -> tuple[Floats, NDArray[np.bool_]]:
    """|error| over its bound of each value that is not null, and which of them must be exact: the share of those is 0."""
    originals = judge.originals
    off = deviation(name, originals, _spread_floats(rebuilt.astype(np.float64), rows, len(originals[name])))
    most = allowed(name, originals, judge.bounds, judge.release)
    if rows is not None:
        off, most = off[rows], most[rows]
    return np.divide(off, most, out=np.zeros(len(off)), where=most > 0), most == 0


def _checksum(null: NDArray[np.bool_] | None, values: Any) -> bytes:
    """CRC-32, 4 bytes, little-endian, of a column's packed null mask, where there is a null, and of the values that are not null."""
    begun = zlib.crc32(np.packbits(null).tobytes()) if null is not None and null.any() else 0
    content = "\x00".join(values.to_pylist()).encode() if isinstance(values, pa.Array) else np.ascontiguousarray(values).tobytes()
    return zlib.crc32(content, begun).to_bytes(4, "little")


def _same_mask(null: NDArray[np.bool_] | None, leader: NDArray[np.bool_] | None) -> bool:
    if null is None or leader is None:
        return not (null is not None and null.any()) and not (leader is not None and leader.any())
    return bool(np.array_equal(null, leader))


def _flags(null: NDArray[np.bool_] | None, rows: int) -> NDArray[np.bool_]:
    return np.zeros(rows, np.bool_) if null is None else null


def _filter(values: Any, mask: NDArray[np.bool_]) -> Any:
    return values.filter(pa.array(mask)) if isinstance(values, pa.Array) else values[mask]


def _put(values: Any, rows: NDArray[np.int64], replacements: Any) -> Any:
    """Values, of which some are replaced."""
    if isinstance(values, pa.Array):
        mask = np.zeros(len(values), np.bool_)
        mask[rows] = True
        return pc.replace_with_mask(values, pa.array(mask), replacements)
    values = values.copy()
    values[rows] = replacements
    return values


def _spread(values: Any, rows: Rows, count: int) -> Any:
    """Values in the rows that have one, anything in the others."""
    if rows is None:
        return values
    if isinstance(values, pa.Array):
        place = np.zeros(count, np.int64)
        place[rows] = np.arange(len(rows))
        return values.take(pa.array(place)) if len(rows) else pa.array([""] * count, values.type)
    spread = np.zeros(count, values.dtype)
    spread[rows] = values
    return spread


def _spread_floats(values: Floats, rows: Rows, count: int) -> Floats:
    """Values in the rows that have one, NaN in the others."""
    if rows is None:
        return values
    spread = np.full(count, np.nan)
    spread[rows] = values
    return spread


def _bits_differ(first: NDArray, second: NDArray) -> NDArray[np.bool_]:
    if first.dtype.kind != "f":
        return first != second
    bits = np.int64 if first.dtype.itemsize == 8 else np.int32
    return first.view(bits) != second.view(bits)


def _pack_raw(values: Any) -> bytes:
    return packed_texts(values.to_pylist()) if isinstance(values, pa.Array) else piles.pack_values(_storable(values))


def _unpack_raw(data: bytes, like: Any) -> Any:
    if isinstance(like, pa.Array):
        return pa.array(unpacked_texts(data), like.type)
    return piles.unpack_any(data).astype(like.dtype, copy=False)


def _storable(values: NDArray) -> NDArray:
    return values.astype(np.int16) if values.dtype.itemsize == 1 else values
