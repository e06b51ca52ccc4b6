"""What is ingested, and in which pieces: the selection that a store is for, and the plan of chunks and tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PlainSerializer, SerializeAsAny

from gaiadask import catalogue
from gaiadask.archive.base import Archive, Identity, Known
from gaiadask.archive.chunks import Chunk, FileState, Plan
from gaiadask.config.sections import Config
from gaiadask.errors import DataError, KeyMismatchError, StoreError
from gaiadask.keys import differences, digest
from gaiadask.ledger import read_ledger, read_record
from gaiadask.records import Record
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import Tile

FORMAT = 1
"""Of the files of an ingest: raised when the same selection is stored in another way."""
_FIRST_CHUNKS = 100
"""Chunks that are looked for by name: more than are under way at once on most clusters."""


# The selection -------------------------------------------------------------------------------------------------------
class Selection(Record):
    """What a catalogue depends on, and nothing of how it is fetched: selection.json."""

    format: int = Field(FORMAT, description="version of the files")
    archive: SerializeAsAny[Identity] = Field(description="identity of the archive's selected rows")
    columns: tuple[str, ...] = Field(description="columns fetched")
    partition_mb: int = Field(description="size aimed at for one partition file, MB")

    @property
    def key(self) -> str:
        """Hash of the selection: part of the catalogue's files and of what is made from them."""
        return digest(self.to_json())


def selection_of(config: Config, archive: Archive, identity: Identity | None = None) -> Selection:
    """The selection that a configuration asks for. identity: of the archive, where it is known."""
    columns = tuple(archive.schema.names)
    return Selection(archive=identity or archive.identity(), columns=columns, partition_mb=config.catalogue.partition_mb)


def selection_in(store: Store, config: Config, archive: Archive, published: bool | None = None) -> Selection:
    """The selection that a configuration asks for: the store's own where the archive has the same rows, as far as it can be seen.

    published: whether what the rows came from is not needed any more; by default where the catalogue is published.
    """
    stored = stored_selection(store)
    if not isinstance(stored, dict) or not isinstance(stored.get("archive"), dict):
        return selection_of(config, archive)

    def states() -> dict[str, FileState]:
        facts = (record.facts.files or () for record in read_ledger(store).values())
        return {str(state["uri"]): state for files in facts for state in files}

    known = Known(states, catalogue.is_published(store, paths.CATALOGUE) if published is None else published)
    return selection_of(config, archive, archive.identity_beside(Identity.model_validate(stored["archive"]), known))


def stored_selection(store: Store) -> Any:
    """The selection that a store records, as JSON: an earlier version's may have other fields. None where it records none."""
    stored = store.read_json_if_there(paths.SELECTION)
    if stored is None and catalogue.is_published(store, paths.CATALOGUE):
        record = store.read_json_if_there(paths.PUBLISHED)  # which has its own copy
        return record["selection"] if record else None
    return stored


def adopt_store(store: Store, selection: Selection) -> None:
    """Make the store this selection's, or make sure that it is.

    A selection of which no star has come yet (it was empty, or mistyped) gives way to another one.

    Args:
        store: where the catalogue is, or will be.
        selection: what is asked for.

    Raises:
        KeyMismatchError: the store holds or began a catalogue of another selection; the message names what differs.
    """
    stored = stored_selection(store)
    if stored is not None and digest(stored) == selection.key:
        if store.read_bytes_if_there(paths.SELECTION) is None:
            store.write_json(paths.SELECTION, stored)
        return
    begun = catalogue.is_published(store, paths.CATALOGUE) or _is_begun(store)
    if begun and stored is None and catalogue.is_published(store, paths.CATALOGUE):
        raise StoreError(
            f"the store {store.uri} holds a catalogue, but not what it was made from ({paths.SELECTION} and {paths.PUBLISHED} are "
            "lost): restore them, or drop it and everything made from it: `gaiadask ingest CONFIG --replace ingest`"
        )
    if stored is not None and begun:
        raise KeyMismatchError(
            f"the store {store.uri} holds a catalogue of another selection "
            f"({differences(stored, selection.to_json())}). A store holds one catalogue: name another store, or drop it "
            "and everything made from it: `gaiadask ingest CONFIG --replace ingest`"
        )
    for name in (paths.PLAN, paths.LEDGER, paths.PARTS, paths.TILES):
        store.remove(name)
    store.write_json(paths.SELECTION, selection.to_json())


def _is_begun(store: Store) -> bool:
    """Whether rows of an ingest are filed."""
    if any(record.rows for record in read_ledger(store).values()):
        return True
    # A listing may be old. Chunks are fetched in the plan's order: where any has a record, one of the first has.
    plan = store.read_record_if_there(paths.PLAN, IngestPlan)
    first = plan.chunks[:_FIRST_CHUNKS] if plan is not None else ()
    return any(record.rows or record.children for chunk in first if (record := read_record(store, chunk.name)))


# The plan ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class TileCover:
    """Tiles that cover the sky once, in the order of their first position: sent with every chunk, so as two arrays.

    orders, starts: of each tile its HEALPix order and the first `_healpix_29` in it, shape (tiles,).
    """

    orders: NDArray[np.int8]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, tiles: Sequence[Tile]) -> TileCover:
        """These tiles."""
        orders = np.array([tile.order for tile in tiles], np.int8)
        return cls(orders, np.array([tile.healpix_29[0] for tile in tiles], np.int64))

    def numbers(self, healpix_29: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the tile of each position, shape of `healpix_29`."""
        return np.searchsorted(self.starts, healpix_29, side="right") - 1

    def tile(self, number: int) -> Tile:
        """The tile of a number."""
        order = int(self.orders[number])
        return Tile(order, int(self.starts[number]) >> 2 * (29 - order))


def _tile(value: Any) -> Any:
    return Tile(*value) if isinstance(value, list) else value


# A plan has up to hundreds of thousands of tiles: each is [order, pixel] in its file.
_ShortTile = Annotated[Tile, BeforeValidator(_tile), PlainSerializer(lambda tile: [tile.order, tile.pixel])]


class IngestPlan(Record):
    """Chunks and tiles, fixed before the first row arrives: plan.json."""

    chunks: tuple[Chunk, ...] = Field(description="together they hold every selected row once")
    tiles: tuple[_ShortTile, ...] = Field(description="they cover the sky once, in the order of their first position")
    rows: int = Field(0, description="about how many rows there are")

    @cached_property
    def cover(self) -> TileCover:
        """The tiles as arrays."""
        return TileCover.of(self.tiles)


def make_plan(config: Config, archive: Archive) -> IngestPlan:
    """Ask the archive how the selection lies on the sky, and fix tiles and chunks.

    Raises:
        DataError: the selection is empty.
    """
    plan = archive.plan()
    rows = int(plan.histogram.sum())
    if not plan.chunks or not rows:
        raise empty_selection(archive)
    tiles = tile_cover(plan, partition_rows(config, archive))
    return IngestPlan(chunks=plan.chunks, tiles=tiles, rows=rows)


def partition_rows(config: Config, archive: Archive) -> int:
    """Rows of a partition of the size that is aimed at."""
    row_bytes = archive.release.row_bytes(archive.release.catalogue_schema(archive.schema.names).names)
    return max(1, config.catalogue.partition_mb * 1_000_000 // row_bytes)


def empty_selection(archive: Archive) -> DataError:
    """The error for a selection without stars: it names the conditions, in one screen."""
    selection = archive.selection
    conditions = [f"satisfies selection.where = {selection.where!r}"] if selection.where.strip() else []
    if names := selection.not_null_names:
        shown = ", ".join(names[:10]) + (f", … ({len(names)} columns)" if len(names) > 10 else "")
        conditions.append(f"has a value in each column of selection.not_null: {shown}")
    return DataError(
        f"the selection is empty: no star of {archive.source} {' and '.join(conditions) or 'is there'}. "
        f"{'Relax these conditions' if conditions else 'Name files or a table that have stars'}"
    )


def tile_cover(plan: Plan, max_rows: int) -> tuple[Tile, ...]:
    """Tiles that cover the whole sky once, each split while it holds more than `max_rows` by the histogram.

    The finest are of the histogram's order. Tiles without stars are covered too: a star whose source_id says otherwise
    may lie in them.
    """
    levels = [plan.histogram]
    while len(levels[-1]) > 12:
        levels.append(levels[-1].reshape(-1, 4).sum(axis=1))
    levels.reverse()

    def split(tile: Tile) -> Iterator[Tile]:
        if tile.order == plan.order or levels[tile.order][tile.pixel] <= max_rows:
            yield tile
        else:
            for child in range(4):
                yield from split(Tile(tile.order + 1, 4 * tile.pixel + child))

    return tuple(tile for pixel in range(12) for tile in split(Tile(0, pixel)))


def planned_tiles(plan: IngestPlan, tiles: Sequence[Tile]) -> list[Tile]:
    """The plan's tile that each partition's tile lies in: itself, unless that was crowded and cut."""
    return [plan.tiles[number] for number in plan.cover.numbers(np.array([tile.healpix_29[0] for tile in tiles], np.int64))]


def read_plan(store: Store) -> IngestPlan:
    """The plan that was fixed. Raises StoreError where there is none."""
    return store.read_record(paths.PLAN, IngestPlan)


def write_plan(store: Store, plan: IngestPlan) -> None:
    """Fix the plan."""
    store.write_json(paths.PLAN, plan.to_json())


def load_or_make_plan(store: Store, config: Config, archive: Archive, made: IngestPlan | None = None) -> IngestPlan:
    """The plan an earlier run fixed, or a new one, written before the first row arrives. made: the new one, if it is made already.

    Raises:
        DataError: the selection is empty.
    """
    plan = store.read_record_if_there(paths.PLAN, IngestPlan)
    if plan is None:
        plan = made or make_plan(config, archive)
        write_plan(store, plan)
    return plan
