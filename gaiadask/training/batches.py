"""Partitions to shuffled batches: a rank's share of each batch of train stars.

Where all train stars fit into the ranks' memory as codes (`training.codes`), each rank reads its part of the catalogue once and
keeps it, and every pass is a full shuffle, the same for any number of ranks: stars are numbered through the catalogue, a pass is a
permutation of the numbers (`training.order`), and a batch is the next `batch_rows` of them, of which each rank takes those that it
has. Otherwise each rank reads its part of every pass ahead in threads, in random order of the row groups, and mixes it in a buffer
(`loader.mixing`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gaiadask import catalogue
from gaiadask.ahead import read_ahead
from gaiadask.archive.chunks import regrouped
from gaiadask.checks import check_finite
from gaiadask.errors import ConfigurationError, DataError
from gaiadask.inputs.transform import Transform
from gaiadask.loader.mixing import Dealt, Mixing, Rows, cut, not_empty
from gaiadask.loader.row_ranges import Placed, RowRange, bounds_of_share, in_passes, read_rows, row_groups, share_of
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.split import TRAIN_SHARE, Part, part_of
from gaiadask.store.files import Store
from gaiadask.training.codes import Batch, Codec
from gaiadask.training.group import Group, OneRank
from gaiadask.training.order import Order

_PLACES = 1 << 16
"""Of the order, calculated at once: enough that no step waits for it."""


class Share(NamedTuple):
    """A rank's share of a batch. places: of its stars in the whole batch, shape (n,), int64, from 0."""

    stars: Batch
    places: Tensor


class StreamPosition(NamedTuple):
    """How far a stream of batches is: `batch` batches of pass `pass_number` have been drawn."""

    pass_number: int = 0
    batch: int = 0


BEGINNING = StreamPosition()


def read_columns(transform: Transform) -> list[str]:
    """Columns of a partition that a transform needs: source_id, the position, the free columns, and the first of each null group.

    A derived column is computed from others, so it is read only where its own nulls form a group.
    """
    return list(dict.fromkeys((SOURCE_ID, RA, DEC, *transform.free, *(group[0] for group in transform.null_groups))))


class _ResidentStars(NamedTuple):
    """A rank's train stars in memory: their codes, the number of the first, and how many stars all ranks have."""

    codes: Tensor
    first: int
    stars: int


class _Drawn(NamedTuple):
    """Codes of a rank's stars of a batch, their places, and the position after it."""

    codes: Tensor
    places: Tensor
    position: StreamPosition


@dataclass
class TrainBatches:
    """An endless stream of shuffled batches of train stars, as one rank takes them.

    names: partition files, relative to the store; file_rows: rows of each, None: their footers are read. codec: how stars are kept.
    batch_rows: stars in a batch, over all ranks. buffer_rows: stars that a rank has in memory at once (beside row groups that are
    read). group: the ranks that share the stars. device: where the batches are.
    """

    store: Store
    names: Sequence[str]
    transform: Transform
    codec: Codec
    batch_rows: int
    buffer_rows: int
    seed: int = 0
    group: Group = field(default_factory=OneRank)
    device: torch.device | str = "cpu"
    file_rows: Sequence[int] | None = None
    position: StreamPosition = field(default=BEGINNING, init=False)
    """After each batch: where a stream that continues from here starts."""

    def __post_init__(self) -> None:
        if self.batch_rows < self.group.world_size:
            raise ConfigurationError(
                f"training.batch_rows is {self.batch_rows}, and {self.group.world_size} ranks share a batch: give each a star at least"
            )
        self._ranges = (
            row_groups(self.store, self.names)
            if self.file_rows is None
            else [RowRange(name, 0, rows) for name, rows in zip(self.names, self.file_rows, strict=True)]
        )
        self._rows = sum(each.rows for each in self._ranges)
        # From the split's share: no star has to be read to decide.
        self._all_fit = TRAIN_SHARE * self._rows <= self.buffer_rows * self.group.world_size
        self._decode = self.codec.decoder(self.device)
        self._kept: _ResidentStars | None = None

    def stream(self, start: StreamPosition = BEGINNING) -> Iterator[Share]:
        """Shares of batches from `start` on, for ever.

        Where all stars are in memory the stream continues with exactly the next batch, also with another number of ranks; a pass
        that reads files cannot be resumed midway, and the next pass begins instead.

        Raises:
            DataError: there is no train star, or the rank has no row to read, or a value is NaN or infinite.
        """
        for codes, places, position in self._copied_ahead(self._drawn(start)):
            self.position = position
            yield Share(self._decode(codes), places)

    def sample(self, n: int) -> Batch:
        """The first n stars of the first pass (fewer where there are fewer), over all ranks: the same on each of them."""
        if self._all_fit:
            resident = self._resident_stars()
            order = Order.of(resident.stars, self.seed, 0, resident.codes.device)
            numbers, places = self._own(resident, order, 0, min(n, resident.stars))
            codes = resident.codes.index_select(0, numbers)
        else:
            with closing(self._streamed(BEGINNING, n)) as drawn:
                codes, places, _ = next(drawn)
        # As bytes: not every way between ranks knows integers of 16 bits.
        codes = self.group.gather(codes.to(self.device).view(torch.uint8)).view(torch.int16)
        places = self.group.gather(places.to(self.device))
        return self._decode(codes.index_select(0, places.argsort()))

    def _drawn(self, start: StreamPosition) -> Iterator[_Drawn]:
        if self._all_fit:
            return self._resident(start)
        return self._streamed(StreamPosition(start.pass_number + (start.batch > 0)), self.batch_rows)

    def _copied_ahead(self, drawn: Iterator[_Drawn]) -> Iterator[_Drawn]:
        """The same on the device; to a GPU, a batch is copied while the one before it is trained on."""
        if torch.device(self.device).type != "cuda":
            yield from drawn
            return
        waiting: _Drawn | None = None
        for codes, places, position in drawn:
            moved = [part if part.is_cuda else part.pin_memory().to(self.device, non_blocking=True) for part in (codes, places)]
            if waiting is not None:
                yield waiting
            waiting = _Drawn(moved[0], moved[1], position)

    # All stars in memory ----------------------------------------------------------------------------------------------
    def _resident(self, start: StreamPosition) -> Iterator[_Drawn]:
        resident = self._resident_stars()
        batches = max(1, resident.stars // self.batch_rows)  # stars that do not fill the last one are left out of the pass
        at_once = max(1, _PLACES // self.batch_rows)
        skip = start.batch
        for pass_number in count(start.pass_number):
            order = Order.of(resident.stars, self.seed, pass_number, resident.codes.device)
            for first in range(skip, batches, at_once):
                some = min(at_once, batches - first)
                numbers, places = self._own(resident, order, first * self.batch_rows, (first + some) * self.batch_rows)
                counts = torch.bincount(torch.div(places, self.batch_rows, rounding_mode="floor"), minlength=some).tolist()
                parts = zip(numbers.split(counts), (places % self.batch_rows).split(counts), strict=True)
                for batch, (mine, where) in enumerate(parts, start=first + 1):
                    yield _Drawn(resident.codes.index_select(0, mine), where, StreamPosition(pass_number, batch))
            skip = 0

    def _own(self, resident: _ResidentStars, order: Order, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Of the places `first` to `stop` of an order those whose stars are this rank's: rows of its codes, and places from `first` on."""
        places = torch.arange(first, stop, device=resident.codes.device)
        # Fewer stars than a batch: they come repeatedly.
        numbers = order(places % resident.stars if stop > resident.stars else places) - resident.first
        if len(resident.codes) == resident.stars:
            return numbers, places - first
        own = torch.nonzero((numbers >= 0) & (numbers < len(resident.codes))).flatten()
        return numbers[own], own

    def _resident_stars(self) -> _ResidentStars:
        """This rank's stars; all ranks ask at the same time."""
        if self._kept is None:
            ranges = share_of(self._ranges, self.group.rank, self.group.world_size)
            # As many rows as there may be: what is not written to takes no memory.
            codes = np.empty((sum(each.rows for each in ranges), self.codec.width), np.int16)
            stars = 0
            for part in read_ahead(self._codes, catalogue.batches(ranges)):
                codes[stars : stars + len(part.rows)] = part.rows
                stars += len(part.rows)
            counts = self.group.gather(torch.tensor([stars], device=self.device)).tolist()
            if not sum(counts):
                raise DataError(self._no_star(ranges))
            self._kept = _ResidentStars(
                _placed(torch.from_numpy(codes[:stars]), self.device), sum(counts[: self.group.rank]), sum(counts)
            )
        return self._kept

    # Read again each pass ---------------------------------------------------------------------------------------------
    def _streamed(self, start: StreamPosition, batch_rows: int) -> Generator[_Drawn]:
        share = self.group.rank, self.group.world_size
        mixing = Mixing.within(self.buffer_rows, (self.seed, start.pass_number, *share), TRAIN_SHARE)
        groups = self._ranges if self.file_rows is None else self._row_groups(self.file_rows)
        stream = in_passes(groups, share, self.seed, start.pass_number)
        mine = share_of(groups, *share)
        dealt = not_empty(read_ahead(partial(self._dealt, mixing), stream), sum(each.rows for each in mine), self._no_star(mine))
        first, stop = bounds_of_share(batch_rows, *share)
        places = torch.arange(first, stop, device=self.device)
        in_a_pass = max(1, int(TRAIN_SHARE * self._rows) // batch_rows)
        for drawn, rows in enumerate(cut(mixing.slabs(dealt, mixing.first_slab), stop - first), start=1):
            passes, batch = divmod(drawn, in_a_pass)
            yield _Drawn(torch.from_numpy(rows.rows), places, StreamPosition(start.pass_number + passes, batch))

    def _row_groups(self, file_rows: Sequence[int]) -> list[RowRange]:
        """The files' row groups. Raises DataError where a file has not the rows that were written to it."""
        groups = row_groups(self.store, self.names)
        found = Counter[str]()
        for each in groups:
            found[each.name] += each.rows
        for name, rows in zip(self.names, file_rows, strict=True):
            catalogue.check_row_count(self.store, name, found[name], rows)
        return groups

    def _dealt(self, mixing: Mixing, placed: Placed) -> Dealt:
        return mixing.deal(self._codes([placed.rows], placed.position))

    # Reading ----------------------------------------------------------------------------------------------------------
    def _codes(self, ranges: Sequence[RowRange], position: int = 0) -> Rows:
        """Codes of the train stars of ranges of rows; small ones are encoded together."""
        transform, rows = self.transform, sum(each.rows for each in ranges)
        kept, codes, before = [np.empty(0, np.int64)], [np.empty((0, self.codec.width), np.int16)], 0
        for table in regrouped((t for each in ranges for t in self._read(each)), catalogue.ROW_GROUP_ROWS, cut=False):
            train = part_of(table[SOURCE_ID].to_numpy()) == Part.TRAIN
            stars = table.filter(pa.array(train))
            self._check_finite(stars, ranges)
            sigma = transform.sigma(stars) if self.codec.sigmas else np.empty((len(stars), 0), np.float32)
            codes.append(self.codec.encode(transform.forward(stars), sigma))
            kept.append(before + np.flatnonzero(train))
            before += len(table)
        return Rows(position, position + rows, np.concatenate(kept), np.concatenate(codes))

    def _read(self, rows: RowRange) -> Iterator[pa.Table]:
        errors = self.transform.error_columns(self.transform.release.columns) if self.codec.sigmas else ()
        return read_rows(self.store, rows, read_columns(self.transform), errors)

    def _check_finite(self, stars: pa.Table, ranges: Sequence[RowRange]) -> None:
        """Raise DataError, naming the file, where a train star out of these ranges has a value that is not finite."""
        try:
            check_finite(stars, self.store.uri_of(ranges[0].name))
        except DataError:
            for each in ranges:
                for table in self._read(each):
                    train = pa.array(part_of(table[SOURCE_ID].to_numpy()) == Part.TRAIN)
                    check_finite(table.filter(train), self.store.uri_of(each.name))
            raise

    def _no_star(self, ranges: Sequence[RowRange]) -> str:
        return (
            f"no train star among the {sum(each.rows for each in ranges)} stars of rank {self.group.rank} of {self.group.world_size} in "
            f"{self.store.uri} ({len(self.names)} partition file(s)): eight tenths of all stars, chosen by a hash of source_id, train. "
            "Select more stars"
        )


def _placed(codes: Tensor, device: torch.device | str) -> Tensor:
    """Codes where batches are taken from: a GPU's memory, if they take no more than half of what is free there, else this machine's."""
    if torch.device(device).type != "cuda":
        return codes
    free, _ = torch.cuda.mem_get_info(device)
    return codes.to(device) if codes.nbytes <= free / 2 else codes
