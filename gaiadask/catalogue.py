"""Reading and writing HATS catalogues: the one module that knows the format.

A partition is written whole, in row groups that bound a reader's memory; the catalogue's metadata are made on local
scratch and put in place one file each, `hats.properties` last: a catalogue without it is not published.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from astropy.io.votable.exceptions import VOWarning
from hats.catalog.catalog_type import CatalogType
from hats.catalog.dataset.table_properties import TableProperties
from hats.catalog.partition_info import PartitionInfo
from hats.io.file_io.file_io import read_fits_image
from hats.io.parquet_metadata import write_parquet_metadata, write_voparquet_in_common_metadata
from hats.io.paths import get_skymap_file_pointer
from hats.io.skymap import write_skymap
from hats.io.validation import is_valid_catalog
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray
from pydantic import Field
from upath import UPath

from gaiadask.archive.chunks import regrouped
from gaiadask.errors import DamagedFileError, DataError, KeyMismatchError, MissingFileError, StoreError
from gaiadask.keys import require_same
from gaiadask.records import Record
from gaiadask.release.column import DEC, HEALPIX_29, RA, SOURCE_ID
from gaiadask.split import Part, chosen
from gaiadask.store.attempts import may_pass
from gaiadask.store.files import Store
from gaiadask.store.parquet import ParquetReader
from gaiadask.store.paths import HATS_MARKER, Tile

log = logging.getLogger(__name__)

ROW_GROUP_ROWS = 131_072
"""Of a partition file: bounds what a reader holds, some 80 MB of 94 columns; smaller groups compress less well."""
METADATA_FILES = ("dataset/_metadata", "dataset/_common_metadata", "partition_info.csv", "skymap.fits", HATS_MARKER)

CATALOGUE_ID, KEY, WEIGHTS = "gaiadask_catalogue_id", "gaiadask_key", "gaiadask_weights"
"""In hats.properties: id of the catalogue; of latents also the key of their stage and the sha256 of their model's weights."""
SELECTION_KEY = "gaiadask.selection"
"""In the footer of a catalogue's partitions: the key of the selection that they are of."""
WEIGHTS_ENTRY = "gaiadask.weights"
"""In the footer of what a model made: the sha256 of its weights."""
NO_FOOTER: Mapping[str, str] = MappingProxyType({})

_REQUESTS = 16
"""Files looked at at once: on an object store each is a request or two."""
_SKYMAP_ORDER = 6
"""Of skymap.fits: 49,152 pixels of about a degree, 400 kB."""


class Partition(Record):
    """A written partition."""

    tile: Tile = Field(description="the HEALPix pixel that its stars lie in")
    rows: int = Field(description="number of stars")
    checksum: str = Field(description="sha256 of the file, hex")


def write_partition(
    store: Store, folder: str, tile: Tile, rows: pa.Table | Iterable[pa.Table], footer: Mapping[str, str]
) -> Partition:
    """Write one partition file of the catalogue at `folder`.

    Args:
        store, folder: where the catalogue is.
        tile: the partition's HEALPix pixel.
        rows: its rows, sorted by `_healpix_29`, in a table or in pieces.
        footer: entries of the file's key-value metadata.

    Returns:
        The partition as written.

    Raises:
        DataError: a row lies in another tile or the order is broken: HATS readers would silently miss such rows.
    """
    with store.writing(f"{folder}/{tile.file}") as scratch:
        count = write_pieces([rows] if isinstance(rows, pa.Table) else rows, scratch, footer, tile)
        checksum = file_checksum(scratch)
    return Partition(tile=tile, rows=count, checksum=checksum)


def write_pieces(tables: Iterable[pa.Table], path: Path, footer: Mapping[str, str], tile: Tile | None = None) -> int:
    """Write a parquet file of stars, one row group after the other.

    Args:
        tables: its rows.
        path: of the file.
        footer: entries of its key-value metadata.
        tile: of a catalogue's partition: rows must lie in it, in order, and readers get an index of the file's pages.

    Returns:
        The number of rows.

    Raises:
        DataError: a row lies in another tile or the order is broken.
    """
    count, last = 0, -1
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for table in regrouped(tables, ROW_GROUP_ROWS):
            if tile is not None:
                check_rows_in_tile(table, tile, last)
                last = int(table[HEALPIX_29][-1].as_py())
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), **footer})
            writer = writer or stack.enter_context(parquet_writer(path, table.schema, write_page_index=tile is not None))
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            count += len(table)
    return count


def parquet_writer(path: Path, schema: pa.Schema, compression: str = "zstd", **options: Any) -> pq.ParquetWriter:
    """Writes a parquet file of stars. Without dictionaries: measured values do not repeat, and trying costs time and bytes."""
    return pq.ParquetWriter(path, schema, compression=compression, use_dictionary=False, **options)


def write_parquet(table: pa.Table, path: Path, *, row_group_size: int, write_page_index: bool = False) -> None:
    """Write a parquet file of stars from one table."""
    with parquet_writer(path, table.schema, write_page_index=write_page_index) as writer:
        writer.write_table(table, row_group_size=row_group_size)


def check_rows_in_tile(table: pa.Table, tile: Tile, before: int = -1) -> None:
    """Raise DataError unless every row's `_healpix_29` lies in `tile`, in ascending order from `before` on."""
    index = table[HEALPIX_29].to_numpy()
    first, stop = tile.healpix_29
    outside = int(np.count_nonzero((index < first) | (index >= stop)))
    if outside:
        raise DataError(f"partition {tile}: {outside} of {len(index)} rows lie in another tile; the plan or the parts are wrong")
    if np.any(np.diff(index, prepend=before) < 0):
        raise DataError(f"partition {tile}: rows are not sorted by {HEALPIX_29}")


def file_checksum(path: Path) -> str:
    """sha256 of a local file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reread(store: Store, folder: str, tile: Tile) -> Partition:
    """The record of a partition that is already there, from its file."""
    name = f"{folder}/{tile.file}"
    with store.open_parquet(name) as file:
        rows = file.metadata.num_rows
    return Partition(tile=tile, rows=rows, checksum=store.sha256(name))


def read_partition(
    store: Store, folder: str, tile: Tile, columns: Sequence[str] | None = None, footer: Mapping[str, str] = NO_FOOTER
) -> pa.Table:
    """A whole partition, or some of its columns.

    Args:
        store, folder: where the catalogue is.
        tile: the partition's HEALPix pixel.
        columns: names of the columns to read; None: all.
        footer: what the file must have been made from, as entries of its footer.

    Raises:
        StoreError: the file is missing or damaged.
        KeyMismatchError: it has another footer.
        DataError: the file lacks a column.
    """
    return pa.concat_tables(iterate_partition(store, folder, tile, columns, footer))


def iterate_partition(
    store: Store, folder: str, tile: Tile, columns: Sequence[str] | None = None, footer: Mapping[str, str] = NO_FOOTER
) -> Iterator[pa.Table]:
    """A partition's row groups, one table each. Arguments and errors as of `read_partition`."""
    return iterate_file(store, f"{folder}/{tile.file}", columns, footer)


def iterate_file(
    store: Store, name: str, columns: Sequence[str] | None = None, footer: Mapping[str, str] = NO_FOOTER
) -> Iterator[pa.Table]:
    """A file's row groups, one table each. Errors as of `read_partition`."""
    with store.open_parquet(name) as file:
        check_footer(file, store.uri_of(name), footer)
        missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
        if missing:
            raise DataError(f"{store.uri_of(name)} has no column(s) {missing}; it has {file.schema_arrow.names}")
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns)


def check_footer(file: ParquetReader, uri: str, footer: Mapping[str, str]) -> None:
    """Raise KeyMismatchError where a file says that it was made from other things than `footer`."""
    own = {name.decode(): value.decode(errors="replace") for name, value in (file.schema_arrow.metadata or {}).items()}
    remedy = "it was made anew meanwhile. Open the run again, or run the stages that made it and what it is used with again"
    # Version 0.1.0 wrote no hash of weights.
    require_same(uri, {name: own.get(name, None if name == WEIGHTS_ENTRY else "") for name in footer}, footer, remedy)


def is_whole(store: Store, name: str, rows: int, footer: Mapping[str, str]) -> bool:
    """Whether a parquet file is there, not cut, with these rows and this footer. Raises StoreError where the store cannot tell."""
    try:
        with store.open_parquet(name) as file:
            check_footer(file, name, footer)
            return int(file.metadata.num_rows) == rows
    except DamagedFileError as error:
        log.warning("%s", error)
        return False
    except (MissingFileError, KeyMismatchError):
        return False


def not_whole(
    store: Store, folder: str, partitions: Sequence[Partition], footer: Callable[[Partition], Mapping[str, str]]
) -> list[Partition]:
    """The partitions whose file is missing, cut, or of another footer."""

    def check(partition: Partition) -> bool:
        return is_whole(store, f"{folder}/{partition.tile.file}", partition.rows, footer(partition))

    with ThreadPoolExecutor(_REQUESTS) as threads:
        found = [p for p, whole in zip(partitions, threads.map(check, partitions), strict=True) if not whole]
    if found:
        name = store.uri_of(f"{folder}/{found[0].tile.file}")
        log.warning("%d of %d files are missing, cut or of another origin, %s first", len(found), len(partitions), name)
    return found


def iterate_chosen(
    store: Store, folder: str, tile: Tile, part: Part, below: float, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The stars of one part of the split with a hash below `below` (`split.chosen`) in a partition.

    Args:
        store, folder, tile: where the partition is.
        part, below: which stars.
        columns: names of the columns to read, source_id among them; None: all.

    Yields:
        A table for each row group. Errors as of `read_partition`.
    """
    for table in iterate_partition(store, folder, tile, columns):
        yield table.filter(pa.array(chosen(table[SOURCE_ID].to_numpy(), part, below)))


def provenance(store: Store, folder: str) -> dict[str, str]:
    """What a published catalogue says of itself: the entries of hats.properties that gaiadask wrote, by name."""
    lines = store.read_bytes(f"{folder}/{HATS_MARKER}").decode(errors="replace").splitlines()
    entries = (line.partition("=") for line in lines if line.startswith("gaiadask_"))
    return {name.strip(): value.strip() for name, _, value in entries}


def is_published(store: Store, folder: str) -> bool:
    """Whether the catalogue at `folder` is published: all its files are in place."""
    return store.read_bytes_if_there(f"{folder}/{HATS_MARKER}") is not None


def unpublish(store: Store, folder: str) -> None:
    """Remove the marker of a published catalogue; done before anything below `folder` changes."""
    store.remove(f"{folder}/{HATS_MARKER}")


def publish(store: Store, folder: str, title: str, partitions: Sequence[Partition], properties: Mapping[str, str]) -> None:
    """Write the HATS metadata over the partition files and validate the catalogue.

    Args:
        store, folder: where the partition files are.
        title: name of the catalogue.
        partitions: every partition, as written.
        properties: extra entries of hats.properties (provenance).

    Raises:
        DataError: the files do not hold the rows that were written, or hats' strict validation refuses them; the catalogue is
            then not published.
    """
    unpublish(store, folder)
    store.sweep(folder)
    _remove_other_tiles(store, folder, partitions)
    rows = sum(p.rows for p in partitions)
    uri = store.uri_of(folder)
    with tempfile.TemporaryDirectory(prefix="gaiadask-hats-") as scratch:
        write_metadata = partial(write_parquet_metadata, _pointer(store, folder), output_path=scratch, create_metadata=True)
        file_rows = store.reading(f"{folder}/dataset", write_metadata)
        if file_rows != rows:
            raise DataError(f"{uri}: {rows} rows were written, its files hold {file_rows}: a file was changed from outside")
        _write_units(scratch)
        PartitionInfo.from_healpix([HealpixPixel(p.tile.order, p.tile.pixel) for p in partitions]).write_to_file(
            catalog_path=scratch
        )
        histogram = sum(_histogram(store, folder, p.tile) for p in partitions)
        write_skymap(np.asarray(histogram, dtype=np.int64), scratch)
        _properties(title, partitions, properties).to_properties_file(scratch)
        for name in METADATA_FILES:
            store.write_bytes(f"{folder}/{name}", (Path(scratch) / name).read_bytes())
    if problems := strict_problems(store, folder):
        unpublish(store, folder)
        raise DataError(f"{uri} is not a valid HATS catalogue: {'; '.join(problems)}: not published")


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


def wrong_metadata(store: Store, folder: str, rows: int, catalogue_id: str) -> list[MetadataValue]:
    """Each value of the HATS metadata that is not the expected one."""
    try:
        properties = read_properties(store, folder)
        with store.open_parquet(f"{folder}/dataset/_metadata") as file:
            metadata_rows = file.metadata.num_rows
        counted = int(read_skymap(store, folder).sum())
    except (StoreError, OSError, ValueError) as error:
        return [MetadataValue("the metadata", f"unreadable ({error})", "whole files")]
    values = (
        MetadataValue("hats_nrows of hats.properties", properties.total_rows, rows),
        MetadataValue("gaiadask_catalogue_id of hats.properties", (properties.model_extra or {}).get(CATALOGUE_ID), catalogue_id),
        MetadataValue("number of rows in dataset/_metadata", metadata_rows, rows),
        MetadataValue("number of stars in skymap.fits", counted, rows),
    )
    return [each for each in values if each.value != each.expected]


def _write_units(scratch: str) -> None:
    # Where VO tools look: a VOTable header in _common_metadata, from the fields' own metadata.
    schema = pq.read_schema(f"{scratch}/dataset/_common_metadata")
    fields = {
        key: {f.name: text.decode() for f in schema if (text := (f.metadata or {}).get(key.encode()))}
        for key in ("unit", "ucd", "description")
    }
    with warnings.catch_warnings():
        # astropy's VOTable writer doubts the archive's own 'electron'.s**-1, which its VOUnit parser reads.
        warnings.simplefilter("ignore", VOWarning)
        write_voparquet_in_common_metadata(
            scratch, field_units=fields["unit"], field_ucds=fields["ucd"], field_descriptions=fields["description"]
        )


def _remove_other_tiles(store: Store, folder: str, partitions: Sequence[Partition]) -> None:
    # Files of tiles that an earlier, unfinished model or plan left would be read as part of the dataset.
    known = {f"{folder}/{p.tile.file}" for p in partitions}
    for name in store.list(f"{folder}/dataset", ".parquet"):
        if name not in known:
            store.remove(name)


def _histogram(store: Store, folder: str, tile: Tile) -> NDArray[np.int64]:
    counts = np.zeros(12 * 4**_SKYMAP_ORDER, dtype=np.int64)
    for table in iterate_partition(store, folder, tile, [HEALPIX_29]):
        np.add.at(counts, table[HEALPIX_29].to_numpy() >> (2 * (29 - _SKYMAP_ORDER)), 1)
    return counts


def _properties(title: str, partitions: Sequence[Partition], extra: Mapping[str, str]) -> TableProperties:
    return TableProperties(
        catalog_name=title,
        catalog_type=CatalogType.OBJECT,
        total_rows=sum(p.rows for p in partitions),
        ra_column=RA,
        dec_column=DEC,
        healpix_column=HEALPIX_29,
        healpix_order=29,
        skymap_order=_SKYMAP_ORDER,
        hats_max_rows=max(p.rows for p in partitions),
        **dict(extra),
    )


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


def sort_rows(table: pa.Table) -> pa.Table:
    """Rows by `_healpix_29`, then source_id: the order of every partition."""
    return table.take(pc.sort_indices(table, sort_keys=[(HEALPIX_29, "ascending"), (SOURCE_ID, "ascending")]))
