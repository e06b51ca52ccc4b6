"""The partitions of a HATS catalogue: written whole, in row groups that bound a reader's memory, and read row group by row group.

What `hats.properties`, written last, says of the whole catalogue is made by `gaiadask.publishing`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from gaiadask.archive.chunks import regrouped, runs_within
from gaiadask.errors import DamagedFileError, DataError, KeyMismatchError, MissingFileError
from gaiadask.keys import require_same
from gaiadask.records import Record
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.split import Part, chosen
from gaiadask.store.files import Store
from gaiadask.store.parquet import FOOTERS_AT_ONCE, ParquetReader
from gaiadask.store.paths import HATS_MARKER, Tile
from gaiadask.store.placing import Placing
from gaiadask.voparquet import vo_metadata

log = logging.getLogger(__name__)

T = TypeVar("T")

ROW_GROUP_ROWS = 131_072
"""Of a partition file: bounds what a reader holds, some 80 MB of 94 columns; smaller groups compress less well."""
STARS_AT_ONCE = ROW_GROUP_ROWS // 4
"""That go through the steps of encoding and decoding together: few, so that a partition's first are soon computed while its next are
read, and its last soon written."""
BATCH_ROWS = ROW_GROUP_ROWS
"""Of the small partitions that are one piece of work, together: some tenths of a second, beside which placing it costs nothing."""
MOST_IN_A_BATCH = 64
"""Partitions, or other small items, that are one piece of work: a worker that dies loses no more."""
LARGEST_BATCH_ROWS = 8 * ROW_GROUP_ROWS
"""Of partitions whose files are kept when a worker dies (`tapering`): some seconds of work, of which beginning and end are little."""
_LEFT_A_THREAD = 4
"""Pieces of work for each thread, of the size of the next one, that what is left is to make."""

CATALOGUE_ID, KEY, WEIGHTS = "gaiadask_catalogue_id", "gaiadask_key", "gaiadask_weights"
"""In hats.properties: id of the catalogue; of latents also the key of their stage and the sha256 of their model's weights."""
SELECTION_KEY = "gaiadask.selection"
"""In the footer of a catalogue's partitions: the key of the selection that they are of."""
WEIGHTS_ENTRY = "gaiadask.weights"
"""In the footer of what a model made: the sha256 of its weights."""
BITS_ENTRY = b"bits"
"""In the metadata of a column of integers that are latents: how many bits they have."""
NO_FOOTER: Mapping[str, str] = MappingProxyType({})


class Partition(Record):
    """A written partition."""

    tile: Tile = Field(description="the HEALPix pixel that its stars lie in")
    rows: int = Field(description="number of stars")
    checksum: str = Field(description="sha256 of the file, hex")


def batches(items: Sequence[T], rows: Callable[[T], int] = attrgetter("rows")) -> list[tuple[T, ...]]:
    """Partitions, or other items with rows, that follow each other in groups that are one piece of work each: of small ones several,
    the same ones everywhere."""
    return [tuple(items[run.first : run.stop]) for run in runs_within(_weights([rows(item) for item in items]), BATCH_ROWS)]


def largest_first(partitions: Sequence[Partition]) -> list[tuple[Partition, ...]]:
    """`batches` of partitions, the one of most stars first: so that all workers are busy to the end."""
    return sorted(batches(partitions), key=lambda some: -sum(partition.rows for partition in some))


def tapering(partitions: Sequence[Partition], threads: int) -> list[tuple[Partition, ...]]:
    """Partitions that follow each other in groups that are one piece of work each, for so many threads of workers.

    First come large groups, in which one file is written while the next is computed and read, then ever smaller ones, a share of what
    is left, so that all threads end together (Polychronopoulos and Kuck 1987).

    >>> each = [Partition(tile=Tile(3, number), rows=200_000, checksum="") for number in range(20)]
    >>> [len(group) for group in tapering(each, threads=2)]
    [2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    ends = np.cumsum(_weights([partition.rows for partition in partitions]))
    groups, first, before = [], 0, 0
    while first < len(partitions):
        most = min(max((ends[-1] - before) // (_LEFT_A_THREAD * threads), BATCH_ROWS), LARGEST_BATCH_ROWS)
        stop = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        groups.append(tuple(partitions[first:stop]))
        first, before = stop, int(ends[stop - 1])
    return groups


def _weights(rows: Sequence[int]) -> NDArray[np.int64]:
    """How much work items of so many rows are: a small one costs something too."""
    return np.maximum(np.array(rows, np.int64), BATCH_ROWS // MOST_IN_A_BATCH)


def shown(some: Sequence[Partition] | Sequence[Tile]) -> str:
    """The tiles of partitions that follow each other, in words."""
    first, last = (each.tile if isinstance(each, Partition) else each for each in (some[0], some[-1]))
    return str(first) if len(some) == 1 else f"{first} to {last}"


def write_partition(
    store: Store | Placing, folder: str, tile: Tile, rows: pa.Table | Iterable[pa.Table], footer: Mapping[str, str]
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
    """Writes a parquet file of stars, with what VO tools read of its columns. Without dictionaries: measured values do not repeat, and
    trying costs time and bytes. But latents that are integers of few bits take just these bits as numbers in a dictionary, where the
    format has 32 for each."""
    small = [field.name for field in schema if BITS_ENTRY in (field.metadata or {})]
    described = schema.with_metadata({**(schema.metadata or {}), **vo_metadata(schema)})
    return pq.ParquetWriter(
        path, described, compression=compression, use_dictionary=small or False, write_page_checksum=True, **options
    )


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


def as_written(store: Store, folder: str, source: Partition, checksum: str | None) -> Partition:
    """The partition that was made of another one with as many rows; checksum: of its file, None where it was there already."""
    if checksum is None:
        return reread(store, folder, source.tile)
    return Partition(tile=source.tile, rows=source.rows, checksum=checksum)


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


def iterate_written(store: Store, folder: str, partition: Partition, columns: Sequence[str]) -> Iterator[pa.Table]:
    """A partition's row groups, one table each. Raises, beside the errors of `read_partition`, DataError where the file does not have
    the rows that were written to it."""
    rows = 0
    for table in iterate_partition(store, folder, partition.tile, columns):
        yield table
        rows += table.num_rows
    check_row_count(store, f"{folder}/{partition.tile.file}", rows, partition.rows)


def check_row_count(store: Store, name: str, rows: int, written: int) -> None:
    """Raise DataError where a file of ingest's catalogue has other rows than as many as were written to it."""
    if rows != written:
        raise DataError(
            f"{store.uri_of(name)} has {rows} rows, {written} were written: it was changed since. Run `gaiadask ingest CONFIG`, "
            "which writes it again, then the same command"
        )


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


def iterate_between(store: Store, name: str, first: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """A file's rows with a `_healpix_29` from `first` on and below `stop`, and others that lie beside them in its row groups.

    store, name: of the file, whose rows are in ascending order. columns: as of `read_partition`, `_healpix_29` among them.
    """
    with store.open_parquet(name) as file:
        for group in range(file.num_row_groups):
            lowest, highest = index_range(file, group)
            if highest >= first and lowest < stop:
                yield file.read_row_group(group, columns)


def index_range(file: ParquetReader, group: int) -> tuple[int, int]:
    """Smallest and largest `_healpix_29` of a row group by the file's footer; where that does not tell, those that there can be."""
    statistics = file.metadata.row_group(group).column(file.schema_arrow.names.index(HEALPIX_29)).statistics
    if statistics is None or not statistics.has_min_max:
        return 0, 12 * 4**29 - 1
    return statistics.min, statistics.max


def check_footer(file: ParquetReader, uri: str, footer: Mapping[str, str]) -> None:
    """Raise KeyMismatchError where a file says that it was made from other things than `footer`."""
    entries = file.metadata.metadata or {}
    own = {name: entries[name.encode()].decode(errors="replace") for name in footer if name.encode() in entries}
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


def each_whole(store: Store, files: Iterable[tuple[str, int, Mapping[str, str]]]) -> Iterator[bool]:
    """Of each file, given by its name, rows and footer, what `is_whole` says. Some are read at once, as long as answers are taken."""
    threads = ThreadPoolExecutor(FOOTERS_AT_ONCE)
    try:
        yield from threads.map(lambda file: is_whole(store, *file), files)
    finally:
        threads.shutdown(cancel_futures=True)


def not_whole(
    store: Store, folder: str, partitions: Sequence[Partition], footer: Callable[[Partition], Mapping[str, str]]
) -> list[Partition]:
    """The partitions whose file is missing, cut, or of another footer."""
    files = ((f"{folder}/{partition.tile.file}", partition.rows, footer(partition)) for partition in partitions)
    found = [partition for partition, whole in zip(partitions, each_whole(store, files), strict=True) if not whole]
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


def sort_rows(table: pa.Table) -> pa.Table:
    """Rows by `_healpix_29`, then source_id: the order of every partition."""
    return table.take(pc.sort_indices(table, sort_keys=[(HEALPIX_29, "ascending"), (SOURCE_ID, "ascending")]))
