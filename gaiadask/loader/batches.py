"""Any HATS catalogue as shuffled torch batches: `gaiadask.batches`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, takewhile
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from gaiadask.ahead import read_ahead
from gaiadask.buffers import has_value, in_one_piece, numbers
from gaiadask.compiled import fixed
from gaiadask.errors import ConfigurationError, DataError, known_names
from gaiadask.keys import digest
from gaiadask.loader.dataset import Dataset, find_dataset
from gaiadask.loader.mixing import Dealt, Mixing, Slab, cut, not_empty
from gaiadask.loader.row_ranges import Placed, RowRange, bounds_of_share, check_each_once, in_passes, read_rows, row_groups
from gaiadask.records import JsonObject, Record, problems
from gaiadask.release.column import SOURCE_ID
from gaiadask.split import Part, part_of
from gaiadask.split import share as share_of_part
from gaiadask.uris import absolute_uri

_BLOCK = 8_192
"""Rows that are made of columns at once: few enough that the columns stay in a core's cache until each row is where it belongs."""
_ORDERED = 3
"""Which way of ordering rows this is, of all that there were: a state is of one of them."""
PartName = Literal["train", "validation", "test"]


class Stars(NamedTuple):
    """A batch of n rows of a catalogue.

    values: shape (n, columns), in the order of the columns asked for; 0 where null. null: shape (n, columns), bool: where the
    catalogue has a null or NaN. state: small, JSON; `batches` with the same arguments and `start=state` goes on after this batch.
    """

    values: Tensor
    null: Tensor
    state: JsonObject


class LoaderState(Record):
    """Where a loader is."""

    of: str = Field(description="hash of the catalogue's row groups and of the loader's arguments")
    batch: int = Field(ge=0, description="batches that have left")
    slab: int = Field(ge=0, description="of the mixing, from which the next batch is taken")
    taken: int = Field(ge=0, description="rows of it that have left")


@dataclass(frozen=True)
class Batches:
    """Rows of a HATS catalogue in a random order, as batches of torch tensors: iterate over it.

    Row groups are read in a random order, ahead in threads, and mixed in a buffer, so that memory does not depend on the catalogue's
    size: it holds `buffer_rows` rows, and beside them some six row groups as the files have them. With a buffer of twice the rows of
    a rank or more, each pass is fully shuffled by itself. The same arguments give the same batches, on any machine.

    Args:
        catalogue: folder or URI of a HATS catalogue (local, s3, https, …), ours or any other, or of a collection.
        columns: names of columns of numbers or booleans.
        batch_rows: rows in a batch; the last one of all may have fewer.
        buffer_rows: rows that are mixed with each other.
        passes: how often every row comes; None: for ever, so that more passes may be added later.
        seed: tells the order.
        rank, world_size: this process among those that share the rows out: each takes as many batches, and no row of another one.
            Of a `part`, how many stars a rank has is known to within chance: one that has fewer shows its first ones once more, one
            that has more leaves its last ones out.
        part: only the train, validation or test stars of gaiadask's split, a hash of `source_id`.
        dtype: of the values: float32, or float64, for instance for positions.
        start: `state` of the batch after which to begin.

    Yields:
        `Stars`: values, a mask of nulls, and the state after the batch.

    Raises:
        ConfigurationError: an argument that is none.
        DataError: a column is not there or holds no numbers, or a rank has no row; while iterating, an infinite value.
        StoreError: there is no such catalogue, or it cannot be read.

    >>> stars = next(iter(Batches("store/catalogue", ["parallax", "teff_val"], batch_rows=100)))
    >>> stars.values.shape, stars.null.sum(0).tolist(), stars.state["batch"]
    (torch.Size([100, 2]), [0, 5], 1)
    """

    catalogue: str | os.PathLike[str]
    columns: Sequence[str]
    batch_rows: int = 4_096
    buffer_rows: int = 1_000_000
    passes: int | None = 1
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    part: PartName | None = None
    dtype: Literal["float32", "float64"] = "float32"
    start: JsonObject | None = None

    def __post_init__(self) -> None:
        self._check_arguments()
        self._check_columns()
        if self._rows_of_each < 1:
            raise DataError(
                f"{self._dataset.store.uri} has {self._rows} rows, too few for {self.world_size} ranks: each needs one at least"
            )
        _ = self._begin

    @cached_property
    def steps(self) -> int | None:
        """How many batches each rank takes; None where there is no end, or, of a part, where it shows only when all are read."""
        if self.passes is None or (self.part and self.world_size == 1):
            return None
        if self.part:
            return max(1, int(share_of_part(Part[self.part.upper()]) * self.passes * self._rows_of_each) // self.batch_rows)
        return -(-self.passes * self._rows_of_each // self.batch_rows)

    def __iter__(self) -> Iterator[Stars]:
        from gaiadask.loader import loops  # here: numba takes half a second to import

        begin = self._begin
        numbers = count(begin.batch + 1) if self.steps is None else range(begin.batch + 1, self.steps + 1)
        # In this order: a batch beyond the last one is not asked for.
        for number, rows in zip(numbers, cut(self._slabs(begin.slab), self.batch_rows, begin.taken), strict=False):
            null = np.empty(rows.rows.shape, np.bool_)
            loops.without_nan(rows.rows.reshape(-1), null.reshape(-1))
            state = LoaderState(of=begin.of, batch=number, slab=rows.slab, taken=rows.taken)
            yield Stars(torch.from_numpy(rows.rows), torch.from_numpy(null), state.to_json())

    def _slabs(self, first: int) -> Iterator[Slab]:
        """Mixed rows from a slab on. Where a rank may have too few for its steps, it shows some again, from the beginning."""
        yield from self._once(first)
        while self.part and self.world_size > 1:
            yield from self._once(self._mixing.first_slab)

    def _once(self, first: int) -> Iterator[Slab]:
        """The rows of all passes, mixed, from a slab on. Raises DataError where none is of the part."""
        mixing, mine = self._mixing, self._own_rows
        stream: Iterator[Placed] = in_passes(
            self._ranges, (self.rank, self.world_size), self.seed, position=mixing.first_position(first)
        )
        if self.passes is not None:
            stop = self.passes * mine
            stream = takewhile(lambda placed: placed.position < stop, stream)
        dealt: Iterator[Dealt] = read_ahead(partial(self._dealt, mixing), stream)
        if self.part and first == mixing.first_slab:
            dealt = not_empty(
                dealt,
                mine,
                f"no {self.part} star among the {mine} rows of rank {self.rank} in {self._dataset.store.uri}: take fewer ranks, another "
                "part, or a larger catalogue",
            )
        return mixing.slabs(dealt, first)

    # Planning ---------------------------------------------------------------------------------------------------------
    @cached_property
    def _dataset(self) -> Dataset:
        return find_dataset(absolute_uri(os.fspath(self.catalogue)))

    @cached_property
    def _ranges(self) -> list[RowRange]:
        return row_groups(self._dataset.store, self._dataset.names)

    @cached_property
    def _rows(self) -> int:
        return sum(each.rows for each in self._ranges)

    @property
    def _rows_of_each(self) -> int:
        """Rows that every rank has at least, in a pass."""
        return self._rows // self.world_size

    @property
    def _needed(self) -> list[str]:
        """Columns that are read."""
        return list(dict.fromkeys((*self.columns, *([SOURCE_ID] if self.part else []))))

    @property
    def _own_rows(self) -> int:
        """Rows of this rank, in a pass."""
        first, stop = bounds_of_share(self._rows, self.rank, self.world_size)
        return stop - first

    @property
    def _mixing(self) -> Mixing:
        share, seed = share_of_part(Part[self.part.upper()]) if self.part else 1.0, (self.seed, self.rank, self.world_size)
        # A pass is there twice when it leaves: as it was gathered, and in its order.
        if 2 * share * self._own_rows <= self.buffer_rows:
            return Mixing.of_passes(self._own_rows, seed)
        return Mixing.within(self.buffer_rows, seed, share)

    @cached_property
    def _begin(self) -> LoaderState:
        arguments = (
            _ORDERED, *self.columns, self.batch_rows, self.buffer_rows, self.passes, self.seed, self.rank, self.world_size, self.part,
            self.dtype, *((each.name, each.rows) for each in self._ranges),
        )  # fmt: skip
        of = digest(arguments)
        if self.start is None:
            return LoaderState(of=of, batch=0, slab=self._mixing.first_slab, taken=0)
        try:
            state = LoaderState.model_validate(self.start)
        except ValidationError as error:
            raise ConfigurationError(f"start is no state of a batch of gaiadask.batches: {problems(error, 'start')[0]}") from error
        if state.of != of:
            raise ConfigurationError(
                "start is the state of a batch of another catalogue or of other arguments (columns, batch_rows, buffer_rows, passes, seed, "
                "rank, world_size, part, dtype): give the same ones, or leave start out"
            )
        return state

    def _check_arguments(self) -> None:
        for name, least in (("batch_rows", 1), ("buffer_rows", 1), ("passes", 1), ("seed", 0), ("rank", 0), ("world_size", 1)):
            value = getattr(self, name)
            if isinstance(value, np.integer):
                object.__setattr__(self, name, value := int(value))
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if (value is not None or name != "passes") and (not is_whole or value < least):
                raise ConfigurationError(f"{name} is {value!r}: expected a whole number from {least} on")
        if self.rank >= self.world_size:
            raise ConfigurationError(f"rank is {self.rank}, and world_size {self.world_size}: ranks are numbered from 0")
        for name, allowed in (("part", (None, *(part.name.lower() for part in Part))), ("dtype", ("float32", "float64"))):
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in allowed:
                raise ConfigurationError(f"{name} is {value!r}: expected one of {', '.join(map(repr, allowed))}")
        columns: Any = self.columns
        is_list = isinstance(columns, Sequence) and not isinstance(columns, str) and all(isinstance(name, str) for name in columns)
        if not is_list or not columns or len(set(columns)) < len(columns):
            raise ConfigurationError(f"columns is {columns!r}: expected a list of names, each once")
        if not isinstance(self.catalogue, str | os.PathLike):
            raise ConfigurationError(f"catalogue is {self.catalogue!r}: expected a folder or the URI of one")

    def _check_columns(self) -> None:
        store, names = self._dataset
        if not names:
            raise DataError(f"the HATS catalogue {store.uri} has no partition")
        with store.open_parquet(names[0]) as file:
            schema: pa.Schema = file.schema_arrow
        if missing := [name for name in self._needed if name not in schema.names]:
            raise DataError(
                f"the catalogue {store.uri} has no column(s) {', '.join(missing)}: {known_names(missing, sorted(schema.names))}"
            )
        check_each_once(schema.names, self._needed, f"the catalogue {store.uri}")
        _check_numbers(schema, self.columns, f"the catalogue {store.uri}")
        if self.part:
            _check_ids(schema.field(SOURCE_ID).type, 0, f"the catalogue {store.uri}")

    # Reading ----------------------------------------------------------------------------------------------------------
    def _dealt(self, mixing: Mixing, placed: Placed) -> Dealt:
        store, rows = self._dataset.store, placed.rows
        table, where = pa.concat_tables(read_rows(store, rows, self._needed)), store.uri_of(rows.name)
        kept = None
        if self.part:
            _check_ids(table[SOURCE_ID].type, table[SOURCE_ID].null_count, where)
            own = part_of(table[SOURCE_ID].to_numpy()) == Part[self.part.upper()]
            kept, table = np.flatnonzero(own), table.filter(pa.array(own))
        lots = mixing.lots(placed.position, placed.position + rows.rows, kept)
        return lots.dealt(rows_of(table, self.columns, self.dtype, lots.places, where))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind))


def _check_numbers(schema: pa.Schema, columns: Sequence[str], where: str) -> None:
    """Raise DataError where a column, which there is, has no numbers."""
    kinds = {name: schema.field(name).type for name in columns}
    if other := {name: str(kind) for name, kind in kinds.items() if not _is_number(kind)}:
        raise DataError(f"{where} has no numbers in these columns: {other}. Leave them out, or make numbers of them")


def _check_ids(kind: pa.DataType, nulls: int, where: str) -> None:
    """Raise DataError for ids by which no part of the split can be told."""
    if not pa.types.is_integer(kind) or nulls:
        raise DataError(
            f"{where}: {SOURCE_ID} is {kind} with {nulls} nulls, expected a whole number of every star, whose hash says which part it is "
            "of. Leave `part` out, or write the ids as int64"
        )


def rows_of(table: pa.Table, columns: Sequence[str], dtype: str, places: NDArray[np.int64], where: str) -> NDArray[Any]:
    """Columns of numbers side by side, shape (n, columns), NaN where null.

    Args:
        places: of each of the table's rows among those returned, shape (n,).
        where: the rows are from.

    Raises:
        DataError: a column has no numbers, or a value is infinite.
    """
    from gaiadask.loader import loops  # here: numba takes half a second to import

    _check_numbers(table.schema, columns, where)
    by_row = np.empty((len(table), len(columns)), dtype)
    by_column = np.empty((len(columns), _BLOCK), dtype)
    # Arrays that cannot be written, so that one compiled function is for all.
    parts = [
        (fixed(numbers(array)), fixed(has_value(array)) if array.null_count else None)
        for array in (_array(table[name]) for name in columns)
    ]
    all_have = fixed(np.ones(_BLOCK, np.bool_))
    for first in range(0, len(table), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(table)))
        n = rows.stop - first
        for name, (x, valid), row in zip(columns, parts, by_column, strict=True):
            if loops.fill(x[rows], all_have[:n] if valid is None else valid[rows], row[:n]):
                raise DataError(
                    f"{where}: column {name} has values that are infinite, or larger than {dtype} reaches, expected finite numbers: leave "
                    f"the column out{', or take dtype=float64' if dtype == 'float32' else ''}"
                )
        loops.put(by_column.T, places[rows], by_row)
    return by_row


def _array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, of a type that numpy has too."""
    if pa.types.is_boolean(column.type) or pa.types.is_decimal(column.type):
        column = pc.cast(column, pa.float64())
    if pa.types.is_float16(column.type):
        column = pc.cast(column, pa.float32())
    return in_one_piece(column)
