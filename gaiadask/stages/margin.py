"""The catalogue's margin, as the stage ingest makes it: by workers, in one pass over the catalogue, published whole or absent."""

from __future__ import annotations

from gaiadask import catalogue, margin, publishing
from gaiadask.catalogue import Partition
from gaiadask.cluster.workers import Task
from gaiadask.margin import GatherMargins, MarginRecord, Neighbourhood, Strip, WriteStrips
from gaiadask.stages.context import Context
from gaiadask.store import paths


def is_present(context: Context) -> bool:
    """Whether the store has the margin that the configuration asks for, of its catalogue and whole; true where it asks for none."""
    arcsec = context.config.catalogue.margin_arcsec
    if not arcsec:
        return True
    own = _whole(context, arcsec)
    return own is not None and (not own.partitions or context.store.exists(paths.COLLECTION))


def make(context: Context) -> int:
    """Make the margin that the configuration asks for, unless it is there; the number of its stars, each in every partition that it is
    near to. A margin that is there and not asked for is left as it is: another run may read it."""
    arcsec = context.config.catalogue.margin_arcsec
    if not arcsec:
        return 0
    with context.holding(paths.INGEST_LEASE):
        record = _whole(context, arcsec)
        if record is None:
            remove(context)
            record = _make(context, arcsec)
        if record.partitions:
            publishing.publish_collection(context.store, context.archive.title)
    return record.rows


def remove(context: Context) -> None:
    """Remove the margin: what names it first."""
    for name in (paths.COLLECTION, paths.MARGIN_RECORD, f"{paths.MARGIN}/{paths.HATS_MARKER}", paths.MARGIN):
        context.store.remove(name)


def _whole(context: Context, arcsec: float) -> MarginRecord | None:
    """The record of the margin of this width of the store's catalogue; None where it is missing, damaged or of another catalogue."""
    record, own = context.catalogue, margin.read_margin(context.store)
    if own is None or (own.catalogue_id, own.arcsec) != (record.id, arcsec):
        return None
    if own.partitions and not catalogue.is_published(context.store, paths.MARGIN):
        return None
    footer = {catalogue.SELECTION_KEY: record.selection.key}
    return None if context.not_whole(paths.MARGIN, own.partitions, lambda _: footer) else own


def _shown(piece: Strip | Neighbourhood) -> str:
    return catalogue.shown(piece.tiles)


def _make(context: Context, arcsec: float) -> MarginRecord:
    record, store = context.catalogue, context.store
    order = margin.fine_order(arcsec, record.tiles)
    strips = margin.strips_of(record.partitions)
    context.map(WriteStrips(store, order), strips, Task[Strip, int]("margin strips", label=_shown))
    gather = GatherMargins(store, order, record.selection.key)
    rows = {partition.tile: partition.rows for partition in record.partitions}
    # Where the catalogue has no partition another one's stars may be near to its stars all the same.
    tiles = sorted((*rows, *publishing.empty_tiles(record.tiles)), key=lambda tile: tile.healpix_29)
    pieces = margin.neighbourhoods(catalogue.batches(tiles, lambda tile: rows.get(tile, 0)), strips)
    gathered = context.map(gather, pieces, Task[Neighbourhood, list[Partition]]("margin", label=_shown))
    partitions = tuple(partition for some in gathered for partition in some)
    store.remove(paths.MARGIN_STRIPS)
    if partitions:
        properties = publishing.margin_properties(arcsec, record.id)
        summary = context.summary_of(paths.MARGIN, partitions)
        publishing.publish(store, paths.MARGIN, f"{context.archive.title} margin", partitions, properties, summary)
    made = MarginRecord(catalogue_id=record.id, arcsec=arcsec, partitions=partitions)
    store.write_json(paths.MARGIN_RECORD, made.to_json())
    return made
