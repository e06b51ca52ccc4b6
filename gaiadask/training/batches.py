"""Partitions to shuffled batches: columns in, tensors out, memory bounded by the shuffle buffer.

A rank owns every world_size-th row group of the catalogue. If its stars fit into the buffer they are read once and stay in memory;
otherwise each pass reads its row groups in a new random order across partitions, fills the buffer, shuffles it, and empties it
before it reads on. Which star comes when depends on the data, the seed, the pass, the rank and the world size alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaiadask.checks import check_finite
from gaiadask.errors import DataError
from gaiadask.inputs.transform import Transform
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.split import TRAIN_SHARE, Part, hash64, part_of, smallest
from gaiadask.store.files import Store


class Batch(NamedTuple):
    """Network inputs of n stars, as tensors.

    values: shape (n, n_values), float32, 0 where null. present: shape (n, n_values), bool. condition: shape (n, n_conditions),
    float32. sigma: for the loss alone, never an input: the catalogue's error of each value in the values' unit, shape (n, n_values),
    float32, 0 where it has none; shape (n, 0) where errors are not read.
    """

    values: Tensor
    present: Tensor
    condition: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> Batch:
        """The stars at `index`, shape (m,), int64."""
        return Batch(*(part.index_select(0, index) for part in self))

    def to(self, device: torch.device | str) -> Batch:
        """The same stars on a device."""
        return Batch(*(part.to(device) for part in self))


class Share(NamedTuple):
    """A rank's share of a batch. places: of its stars in the whole batch, shape (n,), int64, from 0."""

    stars: Batch
    places: Tensor


class StreamPosition(NamedTuple):
    """How far a stream of batches is: `batch` batches of pass `pass_number` have been drawn."""

    pass_number: int = 0
    batch: int = 0


BEGINNING = StreamPosition()


class RowGroup(NamedTuple):
    """One row group of one partition file."""

    name: str
    number: int
    rows: int


def row_groups(store: Store, names: Sequence[str]) -> list[RowGroup]:
    """Every row group of the partition files, in the files' order."""
    groups = []
    for name in names:
        metadata = store.open_parquet(name).metadata
        groups += [RowGroup(name, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
    return groups


def read_columns(transform: Transform) -> list[str]:
    """Columns of a partition that a transform needs: source_id, the position, the free columns, and the first of each null group.

    A derived column is computed from others, so it is read only where its own nulls form a group.
    """
    return list(dict.fromkeys((SOURCE_ID, RA, DEC, *transform.free, *(group[0] for group in transform.null_groups))))


class Piece(NamedTuple):
    """The parts of a `Batch` as arrays: some stars of one row group."""

    values: NDArray[np.float32]
    present: NDArray[np.bool_]
    condition: NDArray[np.float32]
    sigma: NDArray[np.float32]


def read_part(store: Store, group: RowGroup, transform: Transform, part: Part, errors: bool) -> Piece:
    """One part's stars in a row group. Raises DataError where a column has NaN or infinite values."""
    table = _read(store, group, read_columns(transform), transform if errors else None)
    table = table.filter(pa.array(part_of(_source_ids(table)) == part))
    return _piece(store, group, table, transform, errors)


def _piece(store: Store, group: RowGroup, table: pa.Table, transform: Transform, errors: bool) -> Piece:
    check_finite(table, store.uri_of(group.name))
    sigma = transform.sigma(table) if errors else np.empty((table.num_rows, 0), np.float32)
    return Piece(*transform.forward(table), sigma)


def _read(store: Store, group: RowGroup, columns: list[str], errors_of: Transform | None = None) -> pa.Table:
    """A row group's `columns`, and the error columns of a transform, as far as the file has them."""
    file = store.open_parquet(group.name)
    missing = sorted(set(columns) - set(file.schema_arrow.names))
    if missing:
        raise DataError(
            f"{store.uri_of(group.name)} lacks the column(s) {missing} that the model encodes; it has "
            f"{sorted(file.schema_arrow.names)}. Choose other model.columns, or ingest a catalogue with these"
        )
    errors = errors_of.error_columns(file.schema_arrow.names) if errors_of else ()
    return file.read_row_group(group.number, columns=list(dict.fromkeys((*columns, *errors))))


def _source_ids(table: pa.Table) -> NDArray[np.int64]:
    return table.column(SOURCE_ID).to_numpy()


def _tensors(pieces: Sequence[Piece]) -> Batch:
    """One batch of many row groups' stars (at least one)."""
    return Batch(*(torch.from_numpy(np.ascontiguousarray(np.concatenate(part))) for part in zip(*pieces, strict=True)))


def validation_rows(store: Store, names: Sequence[str], transform: Transform, n: int, *, errors: bool = False) -> Batch:
    """The validation stars of smallest `hash64`, in the order of their hashes: the same on every rank.

    A first pass reads the source_ids alone to find which; a second reads only the row groups that hold some.

    Args:
        names: partition files, relative to the store.
        n: at most how many.
        errors: whether the batch has the catalogue's errors.

    Raises:
        DataError: there are none, or a column is missing or not finite.
    """
    groups = row_groups(store, names)
    lowest_n = np.empty(0, np.uint64)
    lowest = []
    for group in groups:
        ids = _source_ids(_read(store, group, [SOURCE_ID]))
        hashed = hash64(ids[part_of(ids) == Part.VALIDATION])
        lowest.append(hashed.min() if len(hashed) else np.iinfo(np.uint64).max)
        lowest_n = np.sort(np.concatenate([lowest_n, hashed]))[:n]
    if not len(lowest_n):
        raise DataError(
            f"no validation star among the {sum(g.rows for g in groups)} stars of {len(names)} partition(s) of {store.uri}: "
            "a tenth of all stars, chosen by a hash of source_id, validates. Select more stars"
        )
    pieces, hashes = [], []
    for group, first in zip(groups, lowest, strict=True):
        if first > lowest_n[-1]:
            continue
        table = _read(store, group, read_columns(transform), transform if errors else None)
        hashed = hash64(_source_ids(table))
        chosen = (part_of(_source_ids(table)) == Part.VALIDATION) & (hashed <= lowest_n[-1])
        pieces.append(_piece(store, group, table.filter(pa.array(chosen)), transform, errors))
        hashes.append(hashed[chosen])
    order = smallest(np.concatenate(hashes), n)
    return _tensors(pieces).rows(torch.from_numpy(order))


@dataclass
class TrainBatches:
    """An endless stream of shuffled batches of one rank's train stars.

    names: partition files, relative to the store. batch_rows: stars in each of this rank's batches. buffer_rows: stars in memory
    at once (one row group more while reading). device: where the stars in memory and the batches are. errors: whether batches have
    the catalogue's errors.
    """

    store: Store
    names: Sequence[str]
    transform: Transform
    batch_rows: int
    buffer_rows: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"
    errors: bool = False
    position: StreamPosition = field(default=BEGINNING, init=False)
    """After each batch: where a stream that continues from here starts."""

    def __post_init__(self) -> None:
        self._groups = row_groups(self.store, self.names)[self.rank :: self.world_size]
        # From the split's share and the files' footers: no star has to be read to decide.
        self._all_fit = TRAIN_SHARE * sum(group.rows for group in self._groups) <= self.buffer_rows
        self._resident: Batch | None = None

    def stream(self, start: StreamPosition = BEGINNING) -> Iterator[Batch]:
        """Batches from `start` on, for ever.

        Where all stars are in memory the stream continues with exactly the next batch; a pass that reads files cannot be resumed
        midway, and the next pass begins instead.

        Raises:
            DataError: the rank has no train star, or a value is NaN or infinite.
        """
        pass_number, skip = start
        if skip and not self._all_fit:
            pass_number, skip = pass_number + 1, 0
        while True:
            for drawn, batch in enumerate(self._pass(pass_number, skip), start=skip + 1):
                self.position = StreamPosition(pass_number, drawn)
                yield batch
            pass_number, skip = pass_number + 1, 0

    def sample(self, n: int) -> Batch:
        """About n of the rank's train stars (fewer where it has fewer), from row groups taken at random."""
        stars = self._all_stars() if self._all_fit else next(self._fills(0, n))
        return Batch(*(part[:n] for part in stars))

    def _pass(self, pass_number: int, skip: int) -> Iterator[Batch]:
        """The batches of one pass after the first `skip`; stars that do not fill a batch are left out of this pass."""
        random = self._random(pass_number, 1)
        drawn = 0
        for stars in [self._all_stars()] if self._all_fit else self._fills(pass_number, max(self.buffer_rows, self.batch_rows)):
            order = random.permutation(len(stars))
            if len(order) < self.batch_rows:
                if drawn:
                    break
                order = np.resize(order, self.batch_rows)  # fewer stars than a batch: they come repeatedly
            index = torch.from_numpy(order).to(self.device)
            for first in range(0, len(order) - self.batch_rows + 1, self.batch_rows):
                drawn += 1
                if drawn > skip:
                    yield stars.rows(index[first : first + self.batch_rows])

    def _all_stars(self) -> Batch:
        if self._resident is None:
            self._resident = next(self._fills(0, sum(group.rows for group in self._groups) + 1))
        return self._resident

    def _fills(self, pass_number: int, capacity: int) -> Iterator[Batch]:
        """The pass's stars, `capacity` (and at most a row group more) at a time, from row groups in random order."""
        pieces: list[Piece] = []
        rows = total = 0
        for i in self._random(pass_number, 0).permutation(len(self._groups)):
            pieces.append(read_part(self.store, self._groups[i], self.transform, Part.TRAIN, self.errors))
            rows += len(pieces[-1].values)
            if rows >= capacity:
                yield _tensors(pieces).to(self.device)
                pieces, total, rows = [], total + rows, 0
        if rows:
            yield _tensors(pieces).to(self.device)
        if rows + total == 0:
            raise DataError(
                f"no train star in the {len(self._groups)} row group(s) of rank {self.rank} of {self.world_size} in "
                f"{self.store.uri} ({len(self.names)} partition file(s)): eight tenths of all stars, chosen by a hash of "
                "source_id, train. Select more stars"
            )

    def _random(self, pass_number: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, pass_number, self.rank, self.world_size, purpose])
