"""One column of a chunk as bytes and back: its nulls, its exceptions, and its values.

A coded column is a list of byte strings: the CRC-32 of what comes back, its own null mask (empty: it is the leader's), the rows and
the values of its exceptions (values that what is coded does not come near enough to, stored as they are; rows are counted among those
that are not null), then what its coder makes of the values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.buffers import array_of, has_value, numbers
from gaiadask.codec import loops, piles
from gaiadask.codec.bounds import Floats, Tolerance, Values, allowed, propagated
from gaiadask.codec.card import ColumnCode
from gaiadask.codec.coders import CODERS, Coder, Proposal, packed_texts, unpacked_texts
from gaiadask.codec.dependencies import MASK
from gaiadask.codec.nulls import Mask, as_floats, chosen, masked
from gaiadask.codec.stars import Stars
from gaiadask.compiled import fixed
from gaiadask.elementary import cos_degrees
from gaiadask.errors import DamagedFileError
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import Release

HEAD = 4
"""Byte strings before the coder's own."""
_NO_ROWS = np.zeros(0, np.int64)


class Native(NamedTuple):
    """A column in its own type.

    Attributes:
        values: shape (rows,), NaN where null, of what has none anything; texts as an Arrow array.
        null: whether each is null; None: none is.
    """

    values: Any
    null: NDArray[np.bool_] | None

    @property
    def present(self) -> Any:
        """The values that are not null."""
        return chosen(self.values, self.null)

    @property
    def as_floats(self) -> Floats:
        """As float64, NaN where null."""
        return as_floats(self.values, self.null)

    def to_arrow(self, dtype: pa.DataType) -> pa.Array:
        """As an Arrow array."""
        if isinstance(self.values, pa.Array):
            return self.values if self.null is None else pc.if_else(pa.array(self.null), pa.scalar(None, dtype), self.values)
        return pa.array(self.values, dtype) if self.null is None else array_of(self.values, self.null)


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


class Judge:
    """What an encoder knows beside the stars: the catalogue's own values, and how far off each may come back."""

    def __init__(self, originals: Values, bounds: Mapping[str, Tolerance], release: Release) -> None:
        self.originals, self.bounds, self.release = originals, bounds, release
        self._propagated: dict[str, Floats] = {}

    def judge(self, name: str, rebuilt: Floats, null: Mask, verdict: NDArray[np.uint8]) -> float:
        """Judge each value of a column that is not found wrong already; returns the largest |error| over its bound of those that are
        right."""
        cosines = self._cos_dec if name == RA else loops.NONE
        return float(
            loops.judged(
                fixed(self.originals[name]), fixed(rebuilt), fixed(self._allowed(name)), fixed(cosines),
                self._stays(name), masked(null), verdict,
            )
        )  # fmt: skip

    def _stays(self, name: str) -> int:
        if name in self.release.magnitude_sources:
            return loops.NOT_FAR_BELOW
        return loops.POSITIVE if self.release.columns[name].sign_matters else loops.ANY_SIGN

    def _allowed(self, name: str) -> Floats:
        if self.bounds[name].kind != "formula":
            return allowed(name, self.originals, self.bounds, self.release)
        if not self._propagated:
            # All of them together: they share what is computed.
            names = [other for other, bound in self.bounds.items() if bound.kind == "formula"]
            self._propagated = propagated(names, self.originals, self.bounds, self.release)
        return self._propagated[name]

    @cached_property
    def _cos_dec(self) -> Floats:
        return cos_degrees(self.originals[DEC])


def native(column: pa.ChunkedArray) -> Native:
    """A column of a table in its own type."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    null = ~has_value(array) if array.null_count else None
    if pa.types.is_string(array.type):
        return Native(array if null is None else pc.fill_null(array, ""), null)
    if pa.types.is_boolean(array.type):
        return Native((array if null is None else pc.fill_null(array, False)).to_numpy(zero_copy_only=False), null)
    values = numbers(array)
    if null is not None:
        values = values.copy()
        values[null] = np.nan if values.dtype.kind == "f" else 0
    return Native(values, null)


class Chosen(NamedTuple):
    """What is to be packed of a column.

    Attributes:
        coder: of it.
        proposal: what comes back of its values, exceptions among them, and their numbers.
        head: what comes before the numbers' bytes.
        worst, exceptions: as of `Coded`.
    """

    coder: Coder
    proposal: Proposal
    head: list[bytes]
    worst: float
    exceptions: int

    def packed(self) -> Coded:
        """The column as bytes."""
        return Coded([*self.head, *self.coder.pack(self.proposal)], self.worst, self.exceptions)


def encode(code: ColumnCode, stars: Stars, column: Native, judge: Judge) -> Coded:
    """Code one column of a chunk, as `choose` and `Chosen.packed` do."""
    return choose(code, stars, column, judge).packed()


def choose(code: ColumnCode, stars: Stars, column: Native, judge: Judge, exact_rows: NDArray[np.bool_] | None = None) -> Chosen:
    """Choose what is coded of one column of a chunk, and let `stars` have what a decoder will get.

    Args:
        code: how.
        stars: the chunk's stars, with the columns that this one depends on.
        column: its values.
        judge: what says whether a value comes back near enough.
        exact_rows: rows whose value, where they have one, must come back as it is.
    """
    leader = None if code.name.startswith(MASK) else stars.nulls.get(code.leader)  # of a mask no value is null
    null = column.null
    own_nulls = b"" if _same_mask(null, leader) else piles.pack_flags(_flags(null, stars.rows))
    coder = CODERS[code.kind](code, stars, null, judge.release)
    proposal, worst = coder.propose(column.values, judge.originals), 0.0
    floats = coder.floats(proposal.values, proposal.numbers)
    wrong = proposal.wrong
    if not coder.exact:
        assert floats is not None
        wrong = np.zeros(stars.rows, np.bool_) if wrong is None else wrong
        if exact_rows is not None:
            wrong |= exact_rows if null is None else exact_rows & ~null
        verdict = wrong.view(np.uint8)
        worst = judge.judge(code.name, floats, null, verdict)
        unsure = np.flatnonzero(verdict == loops.EXACT)
        verdict[unsure] = _bits_differ(proposal.values[unsure], column.values[unsure])
    exceptions, which = [b"", b""], np.flatnonzero(wrong) if wrong is not None else _NO_ROWS
    if len(which):
        values = _taken(column.values, which)
        # Rows are counted among those that are not null.
        counted = which if null is None else which - np.cumsum(null)[which]
        exceptions = [piles.pack(np.diff(counted, prepend=0)), _pack_raw(values)]
        if proposal.numbers is not None:
            proposal.numbers[which] = 0
        proposal = proposal._replace(values=_put(proposal.values, which, values))
        floats = coder.floats(proposal.values, proposal.numbers)
    _keep(coder, floats)
    return Chosen(coder, proposal, [_checksum(null, proposal.values), own_nulls, *exceptions], worst, len(which))


def decode(code: ColumnCode, stars: Stars, blobs: Sequence[bytes], release: Release) -> Native:
    """One column of a chunk. Raises DamagedFileError for bytes that are not this column's."""
    if len(blobs) < HEAD:
        raise DamagedFileError(f"column {code.name}: {len(blobs)} parts where there must be {HEAD} or more")
    checksum, own_nulls, exception_rows, exception_values, *coded = blobs
    null = piles.unpack_flags(own_nulls, stars.rows) if own_nulls else stars.nulls.get(code.leader)
    if null is not None and not null.any():
        null = None
    coder = CODERS[code.kind](code, stars, null, release)
    try:
        values, numbers = coder.unpack(coded)
    except IndexError as error:  # a part that is empty, a text that is not there
        raise DamagedFileError(f"column {code.name}: its parts are not what was compressed: {error}") from error
    if exception_values:
        exact = _unpack_raw(exception_values, values)
        which = np.cumsum(piles.unpack(exception_rows, len(exact)))
        if len(which) and not (which.min() >= 0 and which.max() < coder.count):
            raise DamagedFileError(f"column {code.name}: an exception in row {which.max()} of {coder.count}")
        values = _put(values, which if null is None else np.flatnonzero(~null)[which], exact)
    if _checksum(null, values) != checksum:
        raise DamagedFileError(f"column {code.name}: its values are not those that were compressed")
    _keep(coder, coder.floats(values, numbers))
    return Native(values, null)


def _keep(coder: Coder, floats: Floats | None) -> None:
    """Let the stars have a coded column, for the columns that depend on it."""
    if floats is not None:
        coder.stars.put(coder.code.name, floats, coder.mean)


def _checksum(null: Mask, values: Any) -> bytes:
    """CRC-32, 4 bytes, little-endian, of a column's packed null mask, where there is a null, and of the values that are not null."""
    begun = zlib.crc32(np.packbits(null).tobytes()) if null is not None and null.any() else 0
    values = chosen(values, null)
    if isinstance(values, pa.Array):
        return zlib.crc32("\x00".join(values.to_pylist()).encode(), begun).to_bytes(4, "little")
    return zlib.crc32(np.ascontiguousarray(values).data, begun).to_bytes(4, "little")


def _same_mask(null: NDArray[np.bool_] | None, leader: NDArray[np.bool_] | None) -> bool:
    if null is None or leader is None:
        return not (null is not None and null.any()) and not (leader is not None and leader.any())
    return bool(np.array_equal(null, leader))


def _flags(null: NDArray[np.bool_] | None, rows: int) -> NDArray[np.bool_]:
    return np.zeros(rows, np.bool_) if null is None else null


def _taken(values: Any, rows: NDArray[np.int64]) -> Any:
    return values.take(pa.array(rows)) if isinstance(values, pa.Array) else values[rows]


def _put(values: Any, rows: NDArray[np.int64], replacements: Any) -> Any:
    """Values, of which some are replaced."""
    if isinstance(values, pa.Array):
        mask = np.zeros(len(values), np.bool_)
        mask[rows] = True
        return pc.replace_with_mask(values, pa.array(mask), replacements)
    values = values.copy()
    values[rows] = replacements
    return values


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
