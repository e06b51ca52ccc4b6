"""Coders: one class for each way of coding the values of a column.

A coder is made for one column of one chunk, when what the column depends on is coded. `propose` says what would come back of the
values, so that the caller can find those that must be stored as they are; `pack` makes the bytes, `unpack` what comes back of them.
Values and numbers have a place for every star; what is in the places of those that have none is not coded.
"""

from __future__ import annotations

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.codec import piles
from gaiadask.codec.bounds import Floats, Values
from gaiadask.codec.card import ColumnCode
from gaiadask.codec.grid import Grid
from gaiadask.codec.nulls import Mask, as_floats, blanked, chosen, spread
from gaiadask.codec.piles import Integers, Piles
from gaiadask.codec.prediction import predict
from gaiadask.codec.stars import Stars
from gaiadask.errors import DamagedFileError
from gaiadask.release.release import Release
from gaiadask.sky import SOURCE_ID_SHIFT

_RUNNING_BITS = (1 << SOURCE_ID_SHIFT) - 1
_CATEGORY_LEVELS = 16
"""Piles of a category, at most, for each of its values: by the predicted mean of the values' numbers."""


class Proposal(NamedTuple):
    """What would come back of values.

    Attributes:
        numbers: what is packed, one for each value; None where nothing needs to be.
        values: as they would come back, in the column's own type.
        wrong: which of them are not coded at all; None: all are.
    """

    numbers: Integers | None
    values: Any
    wrong: NDArray[np.bool_] | None


class Coder(ABC):
    """Codes the values of one column.

    Attributes:
        exact: whether every value comes back as it is, so that none needs to be compared.
        mean: the predicted mean of each value, in the column's space, where it is predicted.
        levels: its predicted level, by which it is in a pile; None: all are in one.
        null: which stars have no value; None: all have one.
        count: how many have one.
    """

    exact = True
    mean: Floats | None = None
    levels: NDArray[np.int32] | None = None

    def __init__(self, code: ColumnCode, stars: Stars, null: Mask, release: Release) -> None:
        self.code, self.stars, self.null, self.release = code, stars, null, release
        self.count = stars.rows if null is None else stars.rows - int(np.count_nonzero(null))

    @property
    def dtype(self) -> np.dtype:
        """numpy type of the column."""
        return np.dtype(pa.type_for_alias(self.code.dtype).to_pandas_dtype())

    def propose(self, values: Any, originals: Values) -> Proposal:
        """What would come back of values, and what is packed of them; originals: the catalogue's columns as float64, this one among them."""
        return Proposal(None, values, None)

    @abstractmethod
    def pack(self, proposal: Proposal) -> list[bytes]:
        """The bytes of proposed values."""

    @abstractmethod
    def unpack(self, blobs: Sequence[bytes]) -> tuple[Any, Integers | None]:
        """The values, in the column's own type, and their numbers, of bytes. Raises DamagedFileError where they are not `pack`'s."""

    def floats(self, values: Any, numbers: Integers | None) -> Floats | None:
        """The values as features see them, NaN where null; None: they are not a feature."""
        return as_floats(values, self.null)


class GridCoder(Coder):
    """Whole steps from the prediction."""

    exact = False

    def __init__(self, code: ColumnCode, stars: Stars, null: Mask, release: Release) -> None:
        super().__init__(code, stars, null, release)
        self._grid = Grid.of(code, stars, null, release)
        self.mean, self.levels = self._grid.mean, self._grid.levels
        self._piles = Piles(self.levels, null, stars.rows)

    def propose(self, values: NDArray, originals: Values) -> Proposal:
        steps, wrong = self._grid.steps(originals[self.code.name])
        return Proposal(steps, self._grid.values(steps).astype(self.dtype, copy=False), wrong)

    def pack(self, proposal: Proposal) -> list[bytes]:
        assert proposal.numbers is not None
        return self._piles.pack(proposal.numbers)

    def unpack(self, blobs: Sequence[bytes]) -> tuple[NDArray, Integers]:
        steps = self._piles.unpack(blobs)
        return self._grid.values(steps).astype(self.dtype, copy=False), steps


class FormulaCoder(Coder):
    """What the formula gives of the decoded inputs."""

    exact = False

    def propose(self, values: NDArray, originals: Values) -> Proposal:
        return Proposal(None, self._values(), None)

    def pack(self, proposal: Proposal) -> list[bytes]:
        return []

    def unpack(self, blobs: Sequence[bytes]) -> tuple[NDArray, None]:
        return self._values(), None

    def _values(self) -> NDArray:
        return blanked(_of_type(self.stars.formula(self.code.name, self.release), self.dtype), self.null)


class UlpsCoder(Coder):
    """How many representable numbers a value is away from what the formula gives: every bit of it."""

    def pack(self, proposal: Proposal) -> list[bytes]:
        return [piles.pack(chosen(_ordinal(proposal.values) - self._formula(), self.null))]

    def unpack(self, blobs: Sequence[bytes]) -> tuple[NDArray, None]:
        (blob,) = _blobs(blobs, 1)
        ordinals = spread(piles.unpack(blob, self.count), self.null) + self._formula()
        return blanked(_from_ordinal(ordinals, self.dtype), self.null), None

    def _formula(self) -> Integers:
        values = np.nan_to_num(self.stars.formula(self.code.name, self.release), nan=0.0)
        return _ordinal(_of_type(values, self.dtype))


class ExactCoder(Coder):
    """The values themselves."""

    def pack(self, proposal: Proposal) -> list[bytes]:
        return [piles.pack_values(chosen(proposal.values, self.null))]

    def unpack(self, blobs: Sequence[bytes]) -> tuple[NDArray, None]:
        (blob,) = _blobs(blobs, 1)
        return spread(piles.unpack_values(blob, self.count, self.dtype), self.null), None


class IdCoder(Coder):
    """source_ids: the gap from the pixel before, then the number within the pixel."""

    def pack(self, proposal: Proposal) -> list[bytes]:
        ids = chosen(proposal.values, self.null)
        running = ids & _RUNNING_BITS
        # Trailing zeros that all of them have: in DR2 the last seven bits.
        everything = int(np.bitwise_or.reduce(running, initial=0))
        zeros = (everything & -everything).bit_length() - 1 if everything else 0
        return [bytes([zeros]), piles.pack(np.diff(ids >> SOURCE_ID_SHIFT, prepend=0)), piles.pack(running >> zeros)]

    def unpack(self, blobs: Sequence[bytes]) -> tuple[NDArray[np.int64], None]:
        zeros, gaps, running = _blobs(blobs, 3)
        pixels = np.cumsum(piles.unpack(gaps, self.count))
        return spread((pixels << SOURCE_ID_SHIFT) | (piles.unpack(running, self.count) << zeros[0]), self.null), None

    def floats(self, values: NDArray[np.int64], numbers: Integers | None) -> None:
        self.stars.ids = values


class CategoryCoder(Coder):
    """Flags, small whole numbers and texts of few kinds, by their number in the list of labels."""

    def __init__(self, code: ColumnCode, stars: Stars, null: Mask, release: Release) -> None:
        super().__init__(code, stars, null, release)
        if code.prediction is not None:
            mean, _ = predict(code.prediction, stars)
            self.levels = np.floor(np.clip(mean, 0.0, float(len(code.labels))) * _CATEGORY_LEVELS).astype(np.int32)
        self._piles = Piles(self.levels, null, stars.rows)
        self._labels = pa.array(code.labels, pa.type_for_alias(code.dtype))

    def propose(self, values: Any, originals: Values) -> Proposal:
        numbers = np.asarray(pc.fill_null(pc.index_in(pa.array(values, self._labels.type), self._labels), -1)).astype(np.int64)
        unknown = numbers < 0 if self.null is None else (numbers < 0) & ~self.null
        return Proposal(np.maximum(numbers, 0), values, unknown)

    def pack(self, proposal: Proposal) -> list[bytes]:
        assert proposal.numbers is not None
        return self._piles.pack(proposal.numbers)

    def unpack(self, blobs: Sequence[bytes]) -> tuple[Any, Integers]:
        numbers = self._piles.unpack(blobs)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(self._labels)):
            raise DamagedFileError(f"column {self.code.name}: a number beyond its {len(self._labels)} labels")
        values = self._labels.take(pa.array(numbers))
        return values if pa.types.is_string(values.type) else values.to_numpy(zero_copy_only=False), numbers

    def floats(self, values: Any, numbers: Integers | None) -> Floats:
        assert numbers is not None
        return as_floats(numbers, self.null)


class TextCoder(Coder):
    """Texts: a prefix where the rest is the source_id, else the distinct ones and the number of each."""

    def pack(self, proposal: Proposal) -> list[bytes]:
        values = chosen(proposal.values, self.null)
        texts: list[str] = values.to_pylist()
        prefix = texts[0].removesuffix(str(self._ids[0])) if texts else ""
        if texts == self._with_ids(prefix):
            return [packed_texts([prefix])]
        distinct = pc.unique(values)
        numbers = np.asarray(pc.index_in(values, distinct)).astype(np.int64)
        return [packed_texts(distinct.to_pylist()), piles.pack(numbers)]

    def unpack(self, blobs: Sequence[bytes]) -> tuple[pa.Array, None]:
        texts, dtype = unpacked_texts(blobs[0] if blobs else b""), pa.type_for_alias(self.code.dtype)
        if len(blobs) == 1:
            values = pa.array(self._with_ids(texts[0]), dtype)
        else:
            values = pa.array(texts, dtype).take(pa.array(piles.unpack(_blobs(blobs, 2)[1], self.count)))
        return spread(values, self.null), None

    def floats(self, values: Any, numbers: Integers | None) -> None:
        return None

    @property
    def _ids(self) -> NDArray[np.int64]:
        return chosen(self.stars.ids, self.null)

    def _with_ids(self, prefix: str) -> list[str]:
        return [f"{prefix}{source_id}" for source_id in self._ids]


CODERS: Mapping[str, type[Coder]] = {
    "source_id": IdCoder,
    "grid": GridCoder,
    "formula": FormulaCoder,
    "ulps": UlpsCoder,
    "exact": ExactCoder,
    "category": CategoryCoder,
    "text": TextCoder,
}


def packed_texts(texts: Sequence[str]) -> bytes:
    """Texts as compressed JSON."""
    return zlib.compress(json.dumps(list(texts), ensure_ascii=False).encode(), 9)


def unpacked_texts(data: bytes) -> list[str]:
    """The texts of `packed_texts`. Raises DamagedFileError for other bytes."""
    try:
        texts = json.loads(zlib.decompress(data))
    except (zlib.error, ValueError) as error:
        raise DamagedFileError(f"a compressed column of texts cannot be decoded: {error}") from error
    if not isinstance(texts, list):
        raise DamagedFileError("a compressed column of texts has no list of them")
    return [str(text) for text in texts]


def _blobs(blobs: Sequence[bytes], count: int) -> Sequence[bytes]:
    if len(blobs) != count:
        raise DamagedFileError(f"a compressed column has {len(blobs)} parts where it must have {count}")
    return blobs


def _of_type(values: Floats, dtype: np.dtype) -> NDArray:
    """Values in a column's type; a whole number where the formula gives none is 0, beyond the type's range its end: what a cast
    makes of such differs between machines."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(np.nan_to_num(values)), limits.min, limits.max).astype(dtype)


def _ordinal(values: NDArray) -> Integers:
    """Numbers that count the representable values: neighbours differ by 1; all bits of a NaN and the sign of 0 are in them."""
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    return _folded(values.view(np.int64 if values.dtype.itemsize == 8 else np.int32).astype(np.int64), values.dtype)


def _from_ordinal(ordinals: Integers, dtype: np.dtype) -> NDArray:
    if dtype.kind != "f":
        return ordinals.astype(dtype)
    return _folded(ordinals, dtype).astype(np.int64 if dtype.itemsize == 8 else np.int32).view(dtype)


def _folded(bits: Integers, dtype: np.dtype) -> Integers:
    """Bits of floating-point numbers in the order of their values, and back: of negative ones all bits but the sign are turned over."""
    return np.where(bits < 0, bits ^ (2 ** (8 * dtype.itemsize - 1) - 1), bits)
