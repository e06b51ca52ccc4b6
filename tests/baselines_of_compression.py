"""Other ways to store stars within a bound, which the codec is held against; each as kind to itself as can be.

Every one is lossless or keeps each value within its own bound: what its scheme misses it stores as it is and pays for. It packs a
table of stars into byte strings, a list for each column, and makes the table anew from nothing else.
"""

from __future__ import annotations

import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from codec_stars import deviation
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from gaiadask.codec.bounds import Tolerance, allowed
from gaiadask.codec.coders import packed_texts, unpacked_texts
from gaiadask.codec.columns import Native, Originals, native
from gaiadask.codec.grid import MARGIN, step_of
from gaiadask.codec.pixels import centre_of
from gaiadask.elementary import cos_degrees, exp2, log2
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.sky import SOURCE_ID_ORDER, SOURCE_ID_SHIFT

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Blobs = dict[str, list[bytes]]

MASK = "null:"
_MOST_STEPS = 2.0**52


class Baseline(ABC):
    """Stars as byte strings and back."""

    @abstractmethod
    def compress(self, table: pa.Table) -> Blobs:
        """The byte strings of each column."""

    @abstractmethod
    def decompress(self, blobs: Blobs, rows: int) -> pa.Table:
        """The stars, without `_healpix_29`."""


@dataclass(frozen=True)
class Parquet(Baseline):
    """Parquet with zstd, lossless; `split`: the bytes of the values of each column apart."""

    split: bool

    def compress(self, table: pa.Table) -> Blobs:
        table = table.drop_columns([HEALPIX_29] if HEALPIX_29 in table.column_names else [])
        fixed = [f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
        encoding = {"use_dictionary": False, "column_encoding": dict.fromkeys(fixed, "BYTE_STREAM_SPLIT")} if self.split else {}
        blobs = {}
        for name in table.column_names:
            mine = {**encoding, "column_encoding": {name: "BYTE_STREAM_SPLIT"}} if self.split and name in fixed else {}
            sink = io.BytesIO()
            pq.write_table(table.select([name]), sink, compression="zstd", store_schema=False, write_statistics=False, **mine)
            blobs[name] = [sink.getvalue()]
        return blobs

    def decompress(self, blobs: Blobs, rows: int) -> pa.Table:
        return pa.table({name: pq.read_table(io.BytesIO(blob))[name] for name, (blob,) in blobs.items()})


# A column's numbers ---------------------------------------------------------------------------------------------------
def _settings(levels: Sequence[int]) -> list[ChunkConfig]:
    modes = (ModeSpec.classic(), ModeSpec.auto())
    deltas = (DeltaSpec.no_op(), DeltaSpec.auto(), DeltaSpec.try_consecutive(1))
    return [
        ChunkConfig(compression_level=i, mode_spec=m, delta_spec=d, enable_8_bit=True)
        for i in levels
        for m in modes
        for d in deltas
    ]


_PLAIN, _IDS = _settings([8])[:4], _settings([8, 12])


class Packer:
    """pcodec with the settings that are best for the first numbers of each name that it packs."""

    def __init__(self) -> None:
        self._chosen: dict[str, ChunkConfig] = {}

    def pack(self, name: str, numbers: NDArray) -> bytes:
        if not len(numbers):
            return b""
        if numbers.dtype == np.int64:
            # Of the narrowest type, which pcodec describes in fewest bytes.
            types = (np.int8, np.int16, np.int32, np.int64)
            numbers = numbers.astype(
                next(t for t in types if np.iinfo(t).min <= numbers.min() and numbers.max() <= np.iinfo(t).max)
            )
        numbers = np.ascontiguousarray(numbers)
        if name not in self._chosen:
            tried = _IDS if name == SOURCE_ID else _PLAIN
            self._chosen[name] = min(tried, key=lambda setting: len(standalone.simple_compress(numbers, setting)))
        return standalone.simple_compress(numbers, self._chosen[name])


def unpack(blob: bytes) -> NDArray:
    """Numbers of `Packer.pack`."""
    values = standalone.simple_decompress(blob) if blob else None
    return np.zeros(0, np.int64) if values is None else values


class Frame(NamedTuple):
    """Where a column's grid begins and how wide its steps are; of a relative bound, in logarithms."""

    name: str
    tolerance: Tolerance
    origin: Floats | float
    step: Floats | float

    def offsets(self, values: Floats) -> Floats:
        """Values from the origin, in the column's space."""
        with np.errstate(invalid="ignore", divide="ignore"):
            off = (np.log2(values) if self.tolerance.kind == "relative" else values) - self.origin
        return off - 360.0 * np.rint(off / 360.0) if self.name == RA and not np.isscalar(self.origin) else off

    def values(self, offsets: Floats) -> Floats:
        """The other way round."""
        value = offsets + self.origin
        if self.tolerance.kind == "relative":
            return exp2(value) * math.sqrt(1 - self.tolerance.amount**2)
        if self.name == RA:
            return np.where(value < 0, value + 360.0, np.where(value >= 360.0, value - 360.0, value))
        return np.clip(value, -90.0, 90.0) if self.name == DEC else value


@dataclass
class State:
    """What is unpacked of some stars."""

    rows: int
    known: dict[str, Floats] = field(default_factory=dict)
    nulls: dict[str, NDArray[np.bool_] | None] = field(default_factory=dict)
    ids: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    predicted: Mapping[str, Floats] = field(default_factory=dict)

    def put(self, name: str, values: Any) -> None:
        null = self.nulls[name]
        floats = np.full(self.rows, np.nan)
        floats[slice(None) if null is None else ~null] = values
        self.known[name] = floats

    def of(self, name: str, floats: Mapping[str, Floats]) -> Floats:
        """Some numbers of the stars that have a value of a column."""
        null = self.nulls[name]
        return floats[name] if null is None else floats[name][~null]


class PerStar(Baseline):
    """Each value as a number of steps on a grid of its star's own, each column packed by pcodec.

    Args:
        release: of the columns.
        bounds: of each column.
        recompute: leave out what follows from other columns, and store what that misses.
        pixel: positions as offsets from the centre of the pixel in source_id.
        split: source_id as pixel and running number apart.
    """

    def __init__(
        self,
        release: Release,
        bounds: Mapping[str, Tolerance],
        *,
        recompute: bool = False,
        pixel: bool = False,
        split: bool = False,
    ) -> None:
        self.release, self.bounds, self.packer = release, bounds, Packer()
        self._recompute, self._pixel, self._split = recompute, pixel, split
        self._derived = set(release.derivable(bounds))
        self._order = self._in_order()

    def compress(self, table: pa.Table) -> Blobs:
        natives = {name: native(table[name]) for name in self.bounds}
        originals, state = Originals(natives), State(table.num_rows)
        blobs = self._pack_nulls(natives, state)
        for name in self._order:
            blobs[name] = self._pack(name, natives[name], originals, state)
            if name == SOURCE_ID:
                blobs |= self._predict(table, state)
        return blobs

    def decompress(self, blobs: Blobs, rows: int) -> pa.Table:
        state, made = State(rows), {}
        masks = {name: unpack(blob).astype(bool) for name, (blob, *_) in blobs.items() if name.startswith(MASK)}
        leaders = json.loads(blobs["leaders"][0])
        state.nulls = {name: masks.get(MASK + leaders.get(name, "")) for name in self.bounds}
        for name in self._order:
            made[name] = self._unpack(name, blobs[name], state)
            if name == SOURCE_ID:
                self._predict_again(blobs, state)
        dtypes = {name: self.release.columns[name].dtype for name in self.bounds}
        return pa.table({name: Native(made[name], state.nulls[name]).to_arrow(dtypes[name]) for name in self.bounds})

    # What a scheme may do otherwise
    def _coded(self, name: str, frame: Frame, values: Floats, most: Floats) -> tuple[list[bytes], Floats]:
        """The bytes of a column's values, each within `most`, and what comes back of them."""
        with np.errstate(invalid="ignore", divide="ignore"):
            steps = np.rint(frame.offsets(values) / frame.step)
        steps[~(np.abs(steps) < _MOST_STEPS)] = 0.0
        return [self.packer.pack(name, steps.astype(np.int64))], frame.values(steps * frame.step)

    def _decoded(self, frame: Frame, blobs: Sequence[bytes]) -> Floats:
        return frame.values(unpack(blobs[0]).astype(np.float64) * frame.step)

    def _predict(self, table: pa.Table, state: State) -> Blobs:
        return {}

    def _predict_again(self, blobs: Blobs, state: State) -> None:
        return None

    # Columns
    def _in_order(self) -> list[str]:
        left, ordered = dict.fromkeys(self.bounds), [SOURCE_ID]
        left.pop(SOURCE_ID)
        while left:
            known = set(ordered)
            ready = [n for n in left if self._needs(n) <= known]
            ordered.append(min(ready, key=lambda n: (self.bounds[n].kind != "relative", list(left).index(n))))
            left.pop(ordered[-1])
        return ordered

    def _needs(self, name: str) -> set[str]:
        bound, needs = self.bounds[name], set()
        needs |= {bound.error} if bound.error else set()
        needs |= {DEC} if name == RA and RA in self.bounds else set()
        return needs | (set(self.release.columns[name].derived_from) if name in self._derived else set())

    def _formula(self, name: str, state: State) -> Floats:
        sources = {source: state.known[source] for source in self.release.columns[name].derived_from}
        return self.release.derive(sources, [name])[name].astype(np.float64)

    def _frame(self, name: str, state: State) -> Frame:
        bound = self.bounds[name]
        step: Floats | float = step_of(bound, self.bounds)
        origin: Floats | float = 0.0
        if bound.kind == "sigma":
            step = step * state.of(name, {name: state.known[bound.error]})
        if bound.kind == "formula":
            known = state.known | {name: self._formula(name, state)}
            step = 2 * MARGIN * MARGIN * state.of(name, {name: allowed(name, known, self.bounds, self.release)})
        if name == RA:
            with np.errstate(divide="ignore"):
                step = np.minimum(step / cos_degrees(state.known[DEC]), 1.0)
        if self._pixel and name in (RA, DEC):
            ra, dec = centre_of(SOURCE_ID_ORDER, state.ids >> SOURCE_ID_SHIFT)
            origin = ra if name == RA else dec
        elif self._recompute and name in self._derived:
            origin = state.of(name, {name: self._formula(name, state)})
        elif name in state.predicted:
            origin = state.of(name, state.predicted)
        if bound.kind == "relative" and not np.isscalar(origin):
            origin = np.nan_to_num(log2(origin), nan=0.0, posinf=0.0, neginf=0.0)
        return Frame(name, bound, origin, step)

    def _is_formula(self, name: str) -> bool:
        return self._recompute and self.bounds[name].kind == "formula"

    def _pack(self, name: str, column: Native, originals: Originals, state: State) -> list[bytes]:
        values, bound = column.present, self.bounds[name]
        if name == SOURCE_ID:
            state.ids = values
            return self._pack_ids(values)
        if isinstance(values, pa.Array):
            return self._pack_texts(name, values.to_pylist(), state)
        if bound.kind == "exact":
            state.put(name, values)
            return [self.packer.pack(name, values.astype(np.uint8) if values.dtype == bool else values)]
        most = state.of(name, {name: allowed(name, originals, self.bounds, self.release)})
        if self._is_formula(name):
            coded, rebuilt = [], state.of(name, {name: self._formula(name, state)})
        else:
            coded, rebuilt = self._coded(name, self._frame(name, state), values.astype(np.float64), most)
        rebuilt = rebuilt.astype(values.dtype)
        state.put(name, rebuilt)
        off = state.of(name, {name: deviation(name, originals, state.known[name])})
        wrong = ~(off <= most) | (np.signbit(rebuilt) != np.signbit(values)) & (most == 0)
        if self.release.columns[name].sign_matters:
            wrong |= (values > 0) & ~(rebuilt > 0)
        which = np.flatnonzero(wrong)
        rebuilt[which] = values[which]
        state.put(name, rebuilt)
        return [self.packer.pack("rows", np.diff(which, prepend=0)), self.packer.pack(f"exact {name}", values[which]), *coded]

    def _unpack(self, name: str, blobs: list[bytes], state: State) -> Any:
        null, dtype = state.nulls[name], self.release.columns[name].dtype
        if name == SOURCE_ID:
            state.ids = self._unpack_ids(blobs)
            return state.ids
        if pa.types.is_string(dtype):
            values = pa.array(self._unpack_texts(blobs, state), dtype)
            place = np.cumsum(np.ones(state.rows, np.int64) if null is None else ~null) - 1
            return values.take(pa.array(np.maximum(place, 0))) if len(values) else pa.array([""] * state.rows, dtype)
        if self.bounds[name].kind == "exact":
            values = unpack(blobs[0]).astype(dtype.to_pandas_dtype())
        else:
            formula = self._is_formula(name)
            values = (
                state.of(name, {name: self._formula(name, state)})
                if formula
                else self._decoded(self._frame(name, state), blobs[2:])
            )
            values = values.astype(dtype.to_pandas_dtype())
            values[np.cumsum(unpack(blobs[0]))] = unpack(blobs[1])
        state.put(name, values)
        spread = np.zeros(state.rows, values.dtype)
        spread[slice(None) if null is None else ~null] = values
        return spread

    def _pack_ids(self, ids: Integers) -> list[bytes]:
        if not self._split:
            return [self.packer.pack(SOURCE_ID, ids)]
        running = ids & ((1 << SOURCE_ID_SHIFT) - 1)
        every = int(np.bitwise_or.reduce(running, initial=0))
        zeros = max((every & -every).bit_length() - 1, 0)
        gaps = np.diff(ids >> SOURCE_ID_SHIFT, prepend=0)
        return [bytes([zeros]), self.packer.pack("pixels", gaps), self.packer.pack("running", running >> zeros)]

    def _unpack_ids(self, blobs: list[bytes]) -> Integers:
        if not self._split:
            return unpack(blobs[0]).astype(np.int64)
        pixels = np.cumsum(unpack(blobs[1]).astype(np.int64))
        return (pixels << SOURCE_ID_SHIFT) | (unpack(blobs[2]).astype(np.int64) << blobs[0][0])

    def _pack_texts(self, name: str, texts: list[str], state: State) -> list[bytes]:
        prefix = texts[0].removesuffix(str(state.ids[0])) if texts else ""
        if texts == [f"{prefix}{i}" for i in state.ids]:
            return [packed_texts([prefix])]
        distinct = sorted(set(texts))
        place = {text: i for i, text in enumerate(distinct)}
        return [packed_texts(distinct), self.packer.pack(name, np.array([place[text] for text in texts], np.int64))]

    def _unpack_texts(self, blobs: list[bytes], state: State) -> list[str]:
        texts = unpacked_texts(blobs[0])
        return [f"{texts[0]}{i}" for i in state.ids] if len(blobs) == 1 else [texts[i] for i in unpack(blobs[1])]

    def _pack_nulls(self, natives: Mapping[str, Native], state: State) -> Blobs:
        first: dict[bytes, str] = {}
        leaders: dict[str, str] = {}
        blobs: Blobs = {}
        for name, column in natives.items():
            state.nulls[name] = column.null
            if column.null is not None:
                leaders[name] = first.setdefault(column.null.tobytes(), name)
                if leaders[name] == name:
                    blobs[MASK + name] = [self.packer.pack(MASK, column.null.astype(np.uint8))]
        return {"leaders": [json.dumps(leaders).encode()], **blobs}


# Near enough? ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Worst:
    """How near what comes back is: the largest |error| over its bound, its column, and how many values are beyond."""

    worst: float = 0.0
    column: str = ""
    beyond: int = 0

    def with_(self, other: Worst) -> Worst:
        """Of both together."""
        larger = max(self, other, key=lambda found: found.worst)
        return Worst(larger.worst, larger.column, self.beyond + other.beyond)


def worst_of(table: pa.Table, rebuilt: pa.Table, bounds: Mapping[str, Tolerance], release: Release) -> Worst:
    """Compare every value with the one it was made from: nulls and what has a bound of 0 must be the same, bit by bit."""
    ours, theirs = ({name: native(t[name]) for name in bounds} for t in (table, rebuilt))
    originals, found = Originals(ours), Worst()
    for name, column in ours.items():
        beyond = int(
            np.sum(
                (column.null if column.null is not None else False)
                != (theirs[name].null if theirs[name].null is not None else False)
            )
        )
        if isinstance(column.values, pa.Array):
            found = found.with_(Worst(0.0, name, beyond + (column.present.to_pylist() != theirs[name].present.to_pylist())))
            continue
        most = allowed(name, originals, bounds, release)
        off = deviation(name, originals, theirs[name].as_floats)
        present = slice(None) if column.null is None else ~column.null
        same = _bits(column.values[present]) == _bits(theirs[name].values[present])
        off, most = off[present], most[present]
        beyond += int(np.sum(np.where(most > 0, ~(off <= most), ~same)))
        share = np.divide(off, most, out=np.zeros(len(off)), where=most > 0)
        found = found.with_(Worst(float(share.max(initial=0.0)), name, beyond))
    return found


def _bits(values: NDArray) -> NDArray:
    return values.view(f"i{values.dtype.itemsize}") if values.dtype.kind == "f" else values
