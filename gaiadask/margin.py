"""The catalogue's margin: for each partition the stars of its neighbours that lie near its edge, as a HATS catalogue of its own.

Readers that look at one partition at a time, as LSDB's cross-match does, find neighbours of stars at the edge there. Whether a star is near
an edge is told by the HEALPix pixels of a finer order, none of which is narrower than the margin is wide: those that touch a partition from
outside have all stars that are near, and some more.

The catalogue is read once: of each partition the stars along its own edge, whichever partition they are near to, go into a strip, a small
file. Then each partition's margin is gathered from its neighbours' strips.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from gaiadask import catalogue, publishing
from gaiadask.catalogue import Partition
from gaiadask.checks import repeated
from gaiadask.cluster.workers import Each, Task, Workers
from gaiadask.errors import ConfigurationError, DataError, StoreError
from gaiadask.ingest import CatalogueRecord
from gaiadask.merge import GROUP_ROWS
from gaiadask.progress import Progress
from gaiadask.records import Record
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

_EVEN_BITS = 0x1555_5555_5555_5555
"""Of a nested pixel number: one coordinate within its base pixel; the odd bits are the other one."""


class MarginRecord(Record):
    """A published margin: margin.json."""

    catalogue_id: str = Field(description="of the catalogue that it is the margin of")
    arcsec: float = Field(description="width: every star that is at most so far from a partition is in its margin")
    partitions: tuple[Partition, ...] = Field(description="in the order of the sky; those that have stars near their edge")

    @property
    def rows(self) -> int:
        """Stars of all partitions; some are near to several."""
        return sum(partition.rows for partition in self.partitions)


class Strip(NamedTuple):
    """A file of the stars along the edges of partitions that follow each other on the sky.

    first, stop: half-open range of `_healpix_29` of the partitions.
    """

    first: int
    stop: int
    name: str
    tiles: tuple[Tile, ...]


def strips_of(partitions: Sequence[Partition]) -> list[Strip]:
    """The strips of a catalogue's partitions, in the order of the sky."""
    ordered = sorted(partitions, key=lambda partition: partition.tile.healpix_29)
    strips = []
    for some in catalogue.batches(ordered):
        tiles = tuple(partition.tile for partition in some)
        name = f"{paths.MARGIN_STRIPS}/{tiles[0].flat_name}.parquet"
        strips.append(Strip(tiles[0].healpix_29[0], tiles[-1].healpix_29[1], name, tiles))
    return strips


class Neighbourhood(NamedTuple):
    """Tiles whose margins are one piece of work, and the strips in which stars near their edges can be, in the order of the sky."""

    tiles: tuple[Tile, ...]
    strips: tuple[Strip, ...]


def neighbourhoods(groups: Iterable[Sequence[Tile]], strips: Sequence[Strip]) -> list[Neighbourhood]:
    """Each group of tiles with its own strips: all of them with each would be gigabytes where there are many partitions."""
    firsts, stops = (np.array(ends, np.int64) for ends in zip(*((strip.first, strip.stop) for strip in strips), strict=True))
    found = []
    for tiles in groups:
        near = [Tile(tile.order, pixel).healpix_29 for tile in tiles for pixel in publishing.border(tile, tile.order).tolist()]
        numbers = {
            number
            for first, stop in near
            for number in range(int(np.searchsorted(stops, first, "right")), int(np.searchsorted(firsts, stop, "left")))
        }
        found.append(Neighbourhood(tuple(tiles), tuple(strips[number] for number in sorted(numbers))))
    return found


def fine_order(arcsec: float, tiles: Sequence[Tile]) -> int:
    """The order of the pixels that tell which stars are near an edge.

    Raises:
        ConfigurationError: where a partition is no wider than the margin.
    """
    order, finest = publishing.margin_order(arcsec), max(tile.order for tile in tiles)
    if order <= finest:
        raise ConfigurationError(
            f"catalogue.margin_arcsec = {arcsec:g} is too wide for this catalogue, whose smallest partitions are pixels of order {finest}: give "
            f"at most {publishing.widest_margin(finest + 1):.2g}, or make partitions larger with catalogue.partition_mb"
        )
    return order


def expected_share(arcsec: float, tiles: Sequence[Tile]) -> float:
    """The stars of a margin, of the catalogue's, where stars are even within a partition and partitions have equally many.

    Raises:
        ConfigurationError: where a partition is no wider than the margin.
    """
    order = fine_order(arcsec, tiles)
    sides = [2 ** (order - tile.order) for tile in tiles]  # of a partition, in fine pixels
    return sum(4 * (side + 1) / side**2 for side in sides) / len(sides)


@dataclass(frozen=True)
class WriteStrips:
    """Writes strips; for workers. order: of the fine pixels."""

    store: Store
    order: int

    def __call__(self, strip: Strip) -> int:
        """Returns the stars in the strip. In memory is one row group."""
        rows = 0
        with self.store.open_parquet(f"{paths.CATALOGUE}/{strip.tiles[0].file}") as file:
            schema = file.schema_arrow
        with (
            self.store.writing(strip.name) as scratch,
            catalogue.parquet_writer(scratch, schema, "lz4", write_statistics=[HEALPIX_29]) as writer,
        ):
            for tile in strip.tiles:
                for table in catalogue.iterate_partition(self.store, paths.CATALOGUE, tile):
                    near = table.filter(pa.array(at_edge(table[HEALPIX_29].to_numpy(), tile, self.order)))
                    writer.write_table(near, row_group_size=GROUP_ROWS)
                    rows += len(near)
        return rows


def at_edge(index: NDArray[np.int64], tile: Tile, order: int) -> NDArray[np.bool_]:
    """Whether `_healpix_29` in a tile lie in those of its pixels of a finer order that touch its edge."""
    inside = 4 ** (order - tile.order) - 1
    pixel = (index >> 2 * (29 - order)) & inside
    coordinates = pixel & (_EVEN_BITS & inside), (pixel >> 1) & (_EVEN_BITS & inside)
    return np.any([(each == 0) | (each == (_EVEN_BITS & inside)) for each in coordinates], axis=0)


@dataclass(frozen=True)
class GatherMargins:
    """Writes the margins of partitions; for workers. order: of the fine pixels. key: of the catalogue's selection, for the footers."""

    store: Store
    order: int
    key: str

    def __call__(self, piece: Neighbourhood) -> list[Partition]:
        """Returns the margins that have stars, tile by tile. In memory is one row group."""
        return [partition for tile in piece.tiles if (partition := self._gather(tile, piece.strips)) is not None]

    def _gather(self, tile: Tile, strips: Sequence[Strip]) -> Partition | None:
        near = self._near(publishing.border(tile, self.order), strips)
        first = next(near, None)
        if first is None:
            return None
        with self.store.writing(f"{paths.MARGIN}/{tile.file}") as scratch:
            footer = {catalogue.SELECTION_KEY: self.key}
            rows = catalogue.write_pieces(itertools.chain([first], near), scratch, footer)
            return Partition(tile=tile, rows=rows, checksum=catalogue.file_checksum(scratch))

    def _near(self, border: NDArray[np.int64], strips: Sequence[Strip]) -> Iterator[pa.Table]:
        """The stars in some fine pixels, in order. border: the pixels' numbers, ascending."""
        shift, stops = 2 * (29 - self.order), np.array([strip.stop for strip in strips], np.int64)
        numbers = np.searchsorted(stops, border << shift, side="right")
        for number in np.unique(numbers[numbers < len(stops)]).tolist():
            own = border[numbers == number]
            span = int(own[0]) << shift, (int(own[-1]) + 1) << shift
            for table in catalogue.iterate_between(self.store, strips[number].name, *span):
                pixel = table[HEALPIX_29].to_numpy() >> shift
                place = np.minimum(np.searchsorted(own, pixel), len(own) - 1)
                if len(found := table.filter(pa.array(own[place] == pixel))):
                    yield found


# What is there -------------------------------------------------------------------------------------------------------
def read_margin(store: Store) -> MarginRecord | None:
    """The record of the margin that is published; None where there is none. It may be of another catalogue than the store's."""
    if store.read_bytes_if_there(paths.MARGIN_RECORD) is None:
        return None
    return store.read_record(paths.MARGIN_RECORD, MarginRecord, "remove the folder margin/, and run `gaiadask ingest CONFIG`")


def margin_findings(
    workers: Workers, store: Store, record: CatalogueRecord, progress: Progress | None, quick: bool
) -> Iterator[tuple[str, str]]:
    """Everything that is wrong with the store's margin: where, and the problem; nothing where there is no margin.

    workers: read its files. quick: no checksums are made.
    """
    where, remedy = "margin", "`gaiadask ingest CONFIG` makes it again"
    try:
        margin = read_margin(store)
    except StoreError as error:
        yield where, str(error)
        return
    if margin is None:
        if store.exists(paths.COLLECTION):
            yield paths.COLLECTION, f"it names a margin, and there is none: {remedy}"
        return
    if margin.catalogue_id != record.id:
        yield where, f"it is of another catalogue, {margin.catalogue_id[:12]}…: {remedy}"
        return
    check = Each(partial(_partition_problems, store, publishing.margin_order(margin.arcsec), quick))
    task = Task[Sequence[Partition], list[list[str]]]("margin", label=catalogue.shown, amount=len, size=len)
    for some, found in zip(
        batches := catalogue.batches(margin.partitions), workers.map(check, batches, task, progress), strict=True
    ):
        for partition, problems in zip(some, found, strict=True):
            yield from ((f"{where}, {partition.tile}", problem) for problem in problems)
    if margin.partitions:
        for line in publishing.strict_problems(store, paths.MARGIN):
            yield f"{where}, HATS", line
        if not store.exists(paths.COLLECTION):
            yield paths.COLLECTION, f"it is missing, so that lsdb does not find the margin: {remedy}"


def _partition_problems(store: Store, order: int, quick: bool, partition: Partition) -> list[str]:
    found: list[str] = []
    name = f"{paths.MARGIN}/{partition.tile.file}"
    try:
        if not quick and store.sha256(name) != partition.checksum:
            found.append("its file was changed")
        border, shift = publishing.border(partition.tile, order), 2 * (29 - order)
        rows, outside, ids = 0, 0, [np.empty(0, np.int64)]
        for table in catalogue.iterate_file(store, name, [HEALPIX_29, SOURCE_ID]):
            outside += int((~np.isin(table[HEALPIX_29].to_numpy() >> shift, border)).sum())
            ids.append(table[SOURCE_ID].to_numpy())
            rows += len(table)
    except (StoreError, DataError) as error:
        return [*found, str(error)]
    if rows != partition.rows:
        found.append(f"it has {rows} rows: {partition.rows} were written")
    if outside:
        found.append(f"{outside} of {rows} rows do not lie at the partition's edge")
    if twice := len(repeated(np.concatenate(ids))):
        found.append(f"{twice} stars are in it more than once")
    return found
