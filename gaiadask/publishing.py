"""A catalogue's metadata by the HATS rules, and hats' own validation of it: the one module that imports hats.

What the metadata say of the partition files is summed up by workers, a few partitions at a time, and merged; they are then made on
local scratch and put in place one file each, `hats.properties` last: a catalogue without it is not published.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io.votable.exceptions import VOWarning
from hats.catalog.catalog_type import CatalogType
from hats.catalog.dataset.collection_properties import CollectionProperties
from hats.catalog.dataset.extension_properties import ExtensionProperties
from hats.catalog.dataset.table_properties import TableProperties
from hats.catalog.partition_info import PartitionInfo
from hats.io.file_io.file_io import read_fits_image
from hats.io.parquet_metadata import write_voparquet_in_common_metadata
from hats.io.paths import get_skymap_file_pointer
from hats.io.skymap import write_skymap
from hats.io.validation import is_valid_catalog
from hats.pixel_math import healpix_shim
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.pixel_margins import get_margin
from hats.pixel_tree.negative_tree import compute_negative_tree_pixels
from hats.pixel_tree.pixel_tree import PixelTree
from numpy.typing import NDArray
from upath import UPath

from gaiadask.catalogue import CATALOGUE_ID, ROW_GROUP_ROWS, Partition, index_range, is_published, unpublish
from gaiadask.errors import DataError, StoreError
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.store.attempts import may_pass
from gaiadask.store.files import Store
from gaiadask.store.parquet import ParquetReader
from gaiadask.store.paths import CATALOGUE, COLLECTION, HATS_MARKER, MARGIN, Tile

FOOTERS = "dataset/_metadata"
COMMON_METADATA = "dataset/_common_metadata"
METADATA_FILES = (FOOTERS, COMMON_METADATA, "partition_info.csv", "skymap.fits", HATS_MARKER)

MOST_ROW_GROUPS = 2_000
"""Of a catalogue whose footers are also written into one file, `_metadata`, which HATS leaves to the writer: 40 MB of 94 columns, which
readers hold several times over. Of more it is left out."""
_SKYMAP_ORDER = 6
"""Of skymap.fits: 49,152 pixels of about a degree, 400 kB."""


# Summing up, on workers ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Summary:
    """What a catalogue's metadata say of some of its partition files.

    Attributes:
        rows: in the files.
        pixels: of the sky map, those with stars, ascending, shape (n,).
        stars: in each of them, shape (n,).
        first: name of the first of the files, below dataset/.
        schema: of that file.
        footers: tile and footer of each file, where they are asked for.
    """

    rows: int
    pixels: NDArray[np.int64]
    stars: NDArray[np.int64]
    first: str
    schema: pa.Schema
    footers: tuple[tuple[Tile, pq.FileMetaData], ...]


def has_footers(partitions: Sequence[Partition]) -> bool:
    """Whether a catalogue of these partitions has a file of all footers."""
    return sum(-(-p.rows // ROW_GROUP_ROWS) for p in partitions) <= MOST_ROW_GROUPS


def summary_of(store: Store, folder: str, footers: bool, partitions: Sequence[Partition]) -> Summary:
    """What the metadata of the catalogue at `folder` say of some of its partitions: in memory is one row group's index.

    footers: whether they are to be kept. Raises StoreError where a file cannot be read.
    """
    return merged_summaries([_summary(store, folder, partition.tile, footers) for partition in partitions])


def merged_summaries(parts: Sequence[Summary]) -> Summary:
    """Several as one."""
    pixels, place = np.unique(np.concatenate([part.pixels for part in parts]), return_inverse=True)
    stars = np.zeros(len(pixels), np.int64)
    np.add.at(stars, place, np.concatenate([part.stars for part in parts]))
    first = min(parts, key=lambda part: part.first)
    footers = tuple(footer for part in parts for footer in part.footers)
    return Summary(sum(part.rows for part in parts), pixels, stars, first.first, first.schema, footers)


def _summary(store: Store, folder: str, tile: Tile, footers: bool) -> Summary:
    counts = Counter[int]()
    with store.open_parquet(f"{folder}/{tile.file}") as file:
        for group in range(file.num_row_groups):
            counts.update(_pixel_counts(file, group))
        metadata, schema = file.metadata, file.schema_arrow
    name = tile.file.removeprefix("dataset/")
    if footers:
        metadata.set_file_path(name)
    pixels, stars = (np.array(values, np.int64) for values in (list(counts), list(counts.values())))
    return Summary(metadata.num_rows, pixels, stars, name, schema, ((tile, metadata),) if footers else ())


def _pixel_counts(file: ParquetReader, group: int) -> dict[int, int]:
    """Stars in each pixel of the sky map; not read where the footer says that all of a row group lie in one."""
    shift = 2 * (29 - _SKYMAP_ORDER)
    lowest, highest = index_range(file, group)
    if lowest >> shift == highest >> shift:
        return {lowest >> shift: file.metadata.row_group(group).num_rows}
    index = file.read_row_group(group, [HEALPIX_29])[HEALPIX_29].to_numpy()
    pixels, stars = np.unique(index >> shift, return_counts=True)
    return dict(zip(pixels.tolist(), stars.tolist(), strict=True))


# Publishing ----------------------------------------------------------------------------------------------------------
def publish(
    store: Store, folder: str, title: str, partitions: Sequence[Partition], properties: Mapping[str, str], summary: Summary
) -> None:
    """Write the HATS metadata over the partition files and validate the catalogue.

    Args:
        store, folder: where the partition files are.
        title: name of the catalogue.
        partitions: every partition, as written.
        properties: extra entries of hats.properties (provenance).
        summary: of all partitions' files.

    Raises:
        DataError: the files do not hold the rows that were written, or hats' strict validation refuses them; the catalogue is
            then not published.
    """
    unpublish(store, folder)
    store.sweep(folder)
    remove_other_tiles(store, folder, partitions)
    rows = sum(p.rows for p in partitions)
    uri = store.uri_of(folder)
    if summary.rows != rows:
        raise DataError(f"{uri}: {rows} rows were written, its files hold {summary.rows}: a file was changed from outside")
    with tempfile.TemporaryDirectory(prefix="gaiadask-hats-") as scratch:
        _write_schema(scratch, summary)
        PartitionInfo.from_healpix([HealpixPixel(p.tile.order, p.tile.pixel) for p in partitions]).write_to_file(
            catalog_path=scratch
        )
        histogram = np.zeros(12 * 4**_SKYMAP_ORDER, np.int64)
        histogram[summary.pixels] = summary.stars
        write_skymap(histogram, scratch)
        _properties(title, partitions, properties).to_properties_file(scratch)
        for name in METADATA_FILES:
            if (made := Path(scratch) / name).exists():
                store.write_bytes(f"{folder}/{name}", made.read_bytes())
            else:  # an earlier version made it of any number of partitions
                store.remove(f"{folder}/{name}")
    if problems := strict_problems(store, folder):
        unpublish(store, folder)
        raise DataError(f"{uri} is not a valid HATS catalogue: {'; '.join(problems)}: not published")


def publish_extension(store: Store, name: str, folder: str, file: str, properties: Mapping[str, str]) -> None:
    """Write the properties file by which a published catalogue of more columns is joined to the store's catalogue on source_id.

    Args:
        store: where both are.
        name: of the extension.
        folder: of the catalogue of more columns, beside the file.
        file: to write.
        properties: extra entries (provenance).
    """
    extension = ExtensionProperties(
        name=name,
        primary_catalog=store.uri_of(CATALOGUE),
        primary_column=SOURCE_ID,
        # Beside the file, so that a store can be moved.
        join_catalog=folder.rpartition("/")[2],
        join_column=SOURCE_ID,
        extension_join_style="left",
        shares_primary_coordinates=True,
        **dict(properties),
    )
    with tempfile.TemporaryDirectory(prefix="gaiadask-hats-") as scratch:
        extension.to_properties_file(scratch)
        store.write_bytes(file, (Path(scratch) / f"{name}.properties").read_bytes())


# The margin ----------------------------------------------------------------------------------------------------------
def margin_order(arcsec: float) -> int:
    """The finest order whose pixels are nowhere narrower than a margin."""
    return int(healpix_shim.margin2order(np.array(arcsec / 60)))


def widest_margin(order: int) -> float:
    """The widest margin, arcsec, that pixels of an order are not narrower than."""
    return float(healpix_shim.order2mindist(order)) * 60


def border(tile: Tile, order: int) -> NDArray[np.int64]:
    """The pixels of a finer order that touch a tile from outside, ascending."""
    return np.array(get_margin(tile.order, tile.pixel, order - tile.order), np.int64)


def empty_tiles(tiles: Sequence[Tile]) -> list[Tile]:
    """The largest pixels that are in none of a catalogue's tiles."""
    tree = PixelTree.from_healpix([HealpixPixel(tile.order, tile.pixel) for tile in tiles])
    return [Tile(int(pixel.order), int(pixel.pixel)) for pixel in compute_negative_tree_pixels(tree)]


def margin_properties(arcsec: float, catalogue_id: str) -> dict[str, str]:
    """The entries of hats.properties that make a catalogue the margin of the store's."""
    return {
        "catalog_type": CatalogType.MARGIN.value,
        "primary_catalog": CATALOGUE,
        "margin_threshold": str(arcsec),
        CATALOGUE_ID: catalogue_id,
    }


def publish_collection(store: Store, title: str) -> None:
    """Write the file by which readers that open the store find its catalogue and its margin."""
    collection = CollectionProperties.model_validate(
        {"obs_collection": title, "hats_primary_table_url": CATALOGUE, "all_margins": [MARGIN], "default_margin": MARGIN}
    )
    with tempfile.TemporaryDirectory(prefix="gaiadask-hats-") as scratch:
        collection.to_properties_file(scratch)
        store.write_bytes(COLLECTION, (Path(scratch) / COLLECTION).read_bytes())


def remove_other_tiles(store: Store, folder: str, partitions: Sequence[Partition]) -> None:
    """Remove the files of tiles that an earlier, unfinished model or plan left: they would be read as part of the dataset."""
    known = {f"{folder}/{p.tile.file}" for p in partitions}
    for name in store.list(f"{folder}/dataset", ".parquet"):
        if name not in known:
            store.remove(name)


def _write_schema(scratch: str, summary: Summary) -> None:
    """The footers in the order of the sky, and the schema with units where VO tools look for them: in a VOTable header."""
    (Path(scratch) / "dataset").mkdir()
    if summary.footers:
        finest = max(tile.order for tile, _ in summary.footers)
        ordered = sorted(summary.footers, key=lambda footer: footer[0].pixel << 2 * (finest - footer[0].order))
        pq.write_metadata(summary.schema, f"{scratch}/{FOOTERS}", [footer for _, footer in ordered])
    pq.write_metadata(summary.schema, f"{scratch}/{COMMON_METADATA}")
    fields = {
        key: {f.name: text.decode() for f in summary.schema if (text := (f.metadata or {}).get(key.encode()))}
        for key in ("unit", "ucd", "description")
    }
    with warnings.catch_warnings():
        # astropy's VOTable writer doubts the archive's own 'electron'.s**-1, which its VOUnit parser reads.
        warnings.simplefilter("ignore", VOWarning)
        write_voparquet_in_common_metadata(
            scratch, field_units=fields["unit"], field_ucds=fields["ucd"], field_descriptions=fields["description"]
        )


def _properties(title: str, partitions: Sequence[Partition], extra: Mapping[str, str]) -> TableProperties:
    return TableProperties(
        catalog_name=title,
        total_rows=sum(p.rows for p in partitions),
        ra_column=RA,
        dec_column=DEC,
        healpix_column=HEALPIX_29,
        healpix_order=29,
        skymap_order=_SKYMAP_ORDER,
        hats_max_rows=max(p.rows for p in partitions),
        **{"catalog_type": CatalogType.OBJECT.value, **extra},
    )


# Checking ------------------------------------------------------------------------------------------------------------
def strict_problems(store: Store, folder: str) -> list[str]:
    """Everything that hats' strict validation reports about a catalogue, in the words of its log."""
    handler = _Warnings(logging.WARNING)
    logging.getLogger().addHandler(handler)

    def problems() -> list[str]:
        handler.lines.clear()
        try:
            valid = is_valid_catalog(_pointer(store, folder), strict=True)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            if may_pass(error):  # nothing is known of the catalogue
                raise
            return [*handler.lines, f"hats cannot read it: {error}"]
        return [] if valid else handler.lines or ["hats' strict validation refuses it and gives no reason"]

    try:
        return store.reading(folder, problems)
    finally:
        logging.getLogger().removeHandler(handler)


class _Warnings(logging.Handler):
    """Collects log lines: hats reports why a catalogue is not valid in the log only."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


class MetadataValue(NamedTuple):
    """A value of the HATS metadata beside the one that is expected."""

    name: str
    value: int | str | None
    expected: int | str


def wrong_metadata(store: Store, folder: str, partitions: Sequence[Partition], rows: int, catalogue_id: str) -> list[MetadataValue]:
    """Each value of the HATS metadata that is not the expected one."""
    footers: list[MetadataValue] = []
    try:
        properties = read_properties(store, folder)
        if has_footers(partitions):
            with store.open_parquet(f"{folder}/{FOOTERS}") as file:
                footers = [MetadataValue(f"number of rows in {FOOTERS}", file.metadata.num_rows, rows)]
        counted = int(read_skymap(store, folder).sum())
    except (StoreError, OSError, ValueError) as error:
        return [MetadataValue("the metadata", f"unreadable ({error})", "whole files")]
    values = (
        MetadataValue("hats_nrows of hats.properties", properties.total_rows, rows),
        MetadataValue("gaiadask_catalogue_id of hats.properties", (properties.model_extra or {}).get(CATALOGUE_ID), catalogue_id),
        *footers,
        MetadataValue("number of stars in skymap.fits", counted, rows),
    )
    return [each for each in values if each.value != each.expected]


def read_skymap(store: Store, folder: str) -> NDArray[np.int64]:
    """Stars in each nested HEALPix pixel of a published catalogue, shape (12 * 4**order,)."""
    counts = store.reading(f"{folder}/skymap.fits", lambda: read_fits_image(get_skymap_file_pointer(_pointer(store, folder))))
    return np.asarray(counts, dtype=np.int64)


def read_properties(store: Store, folder: str) -> TableProperties:
    """hats.properties of a published catalogue. Raises StoreError where it is not published."""
    if not is_published(store, folder):
        raise StoreError(f"{store.uri_of(folder)} holds no published catalogue (no {HATS_MARKER})")
    return store.reading(f"{folder}/{HATS_MARKER}", lambda: TableProperties.read_from_dir(_pointer(store, folder)))


def _pointer(store: Store, folder: str) -> UPath:
    # Not the bare URI: of an s3:// text hats assumes that anyone may read it, and sends no credentials.
    return UPath(store.uri_of(folder))
