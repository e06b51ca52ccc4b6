"""Stage compress, on request: the catalogue within a bound of each star's own errors, a product that is complete by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
from pydantic import Field

from gaiadask import catalogue, publishing
from gaiadask.ahead import ahead
from gaiadask.archive.chunks import regrouped
from gaiadask.catalogue import Partition, check_footer
from gaiadask.cluster.workers import MapMerge
from gaiadask.codec.bounds import Tolerance, tolerances
from gaiadask.codec.card import FORMAT_VERSION, CodecCard, ColumnCode
from gaiadask.codec.chunk import CodedChunk, encode_chunk
from gaiadask.codec.compressed import (
    Compressed,
    CompressedColumn,
    CompressedReader,
    CompressedRecord,
    SizeAtBound,
    chunk_rows,
    chunks_of,
    partition_key,
)
from gaiadask.codec.files import ColumnSummary, Summaries, column_names, merged, read_chunks, read_summaries, write_chunks
from gaiadask.codec.fit import fit_codec
from gaiadask.codec.ratings import bytes_over_bounds, noise_bits_of
from gaiadask.errors import DamagedFileError, DataError, GaiadaskError, MissingFileError, StoreError
from gaiadask.product import PRODUCT_KEY
from gaiadask.records import JsonObject, StageResult
from gaiadask.release.column import HEALPIX_29, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.split import Part, hash64, hash_bound, smallest
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.validate import Finding

log = logging.getLogger(__name__)


class CompressResult(StageResult):
    """Result of the stage compress."""

    rows: int = Field(description="stars")
    bytes_a_star: float = Field(description="of all files of the compressed catalogue")
    share: float = Field(description="of the catalogue's own files")
    worst: float = Field(description="largest |error| over its bound, of all values")
    exceptions: int = Field(description="values that are stored as they are")
    exact: tuple[str, ...] = Field((), description="columns whose values are exact for lack of their error column")

    def summary(self) -> str:
        return (
            f"{self.rows:,} stars in {self.bytes_a_star:.2f} bytes each, {self.share:.1%} of the catalogue; every value was decoded, the "
            f"worst is at {self.worst:.4f} of its bound; {self.exceptions:,} are stored as they are"
        )


def _inputs(context: Context) -> JsonObject:
    options = context.config.codec
    return {"catalogue_id": context.catalogue.id, "codec": options.for_key(), "format": FORMAT_VERSION}


def _product(context: Context) -> Compressed:
    return Compressed(context.store, context.run.compressed)


def _bounds(context: Context) -> dict[str, Tolerance]:
    options = context.config.codec
    return tolerances(context.config.release, context.catalogue.columns, options.bound_sigma, options.bounds)


def _prepare(context: Context) -> None:
    """Raises for bounds that are none, before what is there is dropped for them."""
    _bounds(context)


def _make(context: Context, key: str) -> CompressResult:
    record, release, options = context.catalogue, context.config.release, context.config.codec
    bounds = _bounds(context)
    for name, bound in bounds.items():
        if bound.note:
            log.warning("compress: %s is exact: %s", name, bound.note)
    product = _product(context)
    product.store.remove(product.marker)
    sample = _sample(context)
    # A compress that was interrupted goes on with its card: what it has made is of that one, and a fit takes a while.
    sha256 = product.fitted_for(key)
    if sha256 is None:
        sha256 = product.write_card(fit_codec(sample, bounds, options.bound_sigma, release, record.rows), key)
    card, tables = product.read_card(sha256), product.write_tables()
    work = CompressPartition(product, release, key, sha256)
    items = catalogue.largest_first(record.partitions)  # sums and the worst are the same in any order
    columns = context.workers.reduce(MapMerge(work, merged), merged, items, "compress", context.progress, size=len)
    publishing.remove_other_tiles(product.store, product.folder, record.partitions)
    size = product.store.size(product.folder)
    id_bytes = columns[SOURCE_ID].bytes / record.rows
    sizes = bytes_over_bounds(sample, card, release, options.bounds, id_bytes)
    whole = CompressedRecord(
        version=FORMAT_VERSION,
        key=key,
        catalogue_id=record.id,
        bound_sigma=options.bound_sigma,
        card=sha256,
        tables=tables,
        rows=record.rows,
        bytes=size,
        columns={code.name: _described(code, columns[code.name], release) for code in card.columns},
        sizes=tuple(SizeAtBound(bound_sigma=bound, bytes_a_star=round(size, 2)) for bound, size in sizes.items()),
        partitions=record.partitions,
    )
    product.store.write_json(product.marker, whole.to_json())
    every = ColumnSummary.merged(columns.values())
    return CompressResult(
        rows=record.rows,
        bytes_a_star=round(size / record.rows, 3),
        share=round(size / context.store.size(f"{paths.CATALOGUE}/dataset"), 4),
        worst=every.worst,
        exceptions=every.exceptions,
        exact=tuple(name for name, bound in bounds.items() if bound.note),
    )


def _described(code: ColumnCode, summary: ColumnSummary, release: Release) -> CompressedColumn:
    column = release.columns.get(code.name)
    noise = noise_bits_of(code, column.error_factor) if column else None
    return CompressedColumn(
        **summary.to_json(), tolerance=code.tolerance, raw_bits=8 * column.bytes if column else 1, alone_bits=code.alone_bits, noise_bits=noise
    )  # fmt: skip


def _problems(context: Context, place: str, quick: bool) -> list[Finding]:
    """What is wrong with the compressed catalogue; unless quick, every value is decoded and compared with its checksum."""
    try:
        product = _product(context)
        product.check_tables()
        partitions = product.record.partitions
        work = partial(_compressed_problems, product.reader, quick)
    except StoreError as error:
        return [Finding("compressed catalogue", str(error))]
    return list(chain.from_iterable(context.map_partitions(work, partitions, "compressed")))


def _compressed_problems(reader: CompressedReader, quick: bool, partition: Partition) -> list[Finding]:
    try:
        if quick:
            with reader.store.open_parquet(name := reader.name(partition)) as file:
                check_footer(file, reader.store.uri_of(name), reader.footer(partition))
        else:
            for _ in reader.iterate(partition):
                pass
    except GaiadaskError as error:
        return [Finding(f"compressed partition {partition.tile}", str(error))]
    return []


def _sample(context: Context) -> pa.Table:
    """The train stars of smallest hash, by their hash: every column."""
    record, stars = context.catalogue, context.config.codec.stars
    below = hash_bound(Part.TRAIN, stars, record.rows)
    work = partial(gather_stars, context.store, below, stars)
    items = catalogue.batches(record.partitions)
    return context.workers.reduce(work, partial(smallest_stars, stars), items, "codec", context.progress, size=len)


def gather_stars(store: Store, below: float, stars: int, partitions: Sequence[Partition]) -> pa.Table:
    """Of the train stars with a hash below `below` in some partitions, at most `stars` of smallest hash."""
    tables = [
        table
        for partition in partitions
        for table in catalogue.iterate_chosen(store, paths.CATALOGUE, partition.tile, Part.TRAIN, below)
    ]
    return smallest_stars(stars, tables)


def smallest_stars(stars: int, tables: Sequence[pa.Table]) -> pa.Table:
    """The stars of smallest hash of several tables, by their hash."""
    table = pa.concat_tables(tables)
    return table.take(pa.array(smallest(hash64(table[SOURCE_ID].to_numpy()), stars)))


@dataclass(frozen=True)
class CompressPartition:
    """Compresses one partition of the catalogue, and reads it back; for workers."""

    product: Compressed
    release: Release
    key: str
    sha256: str

    @property
    def card(self) -> CodecCard:
        """How the catalogue is coded."""
        return self.product.read_card(self.sha256)

    def __call__(self, source: Partition) -> Summaries:
        """What became of each column. A partition that an earlier, interrupted run compressed likewise is not made again.

        Raises:
            DataError: the catalogue's partition does not hold the rows that were written to it, or a value does not come back.
        """
        store, name = self.product.store, self.product.partition(source.tile)
        footer = {PRODUCT_KEY: partition_key(self.key, self.sha256, source)}
        if catalogue.is_whole(store, name, chunks_of(source), footer):
            with suppress(DamagedFileError), store.open_parquet(name) as file:
                return read_summaries(file, name, self.card)
        with store.writing(name) as scratch:
            with closing(ahead(self._chunks(source))) as chunks:
                summaries = write_chunks(chunks, scratch, self.card, footer)
            self._read_back(Store(str(scratch.parent)), scratch.name, source)
        return summaries

    def _chunks(self, source: Partition) -> Iterator[CodedChunk]:
        before = -1
        tables = catalogue.iterate_written(self.product.store, paths.CATALOGUE, source, list(column_names(self.card)))
        for table in regrouped(tables, chunk_rows(source)):
            yield encode_chunk(table, self.card, source.tile, self.release, before)
            before = int(table[HEALPIX_29][-1].as_py())

    def _read_back(self, scratch: Store, name: str, source: Partition) -> None:
        """Decode what was written. The checksum of each column says whether what comes back is what was found to be within the bound."""
        rows = 0
        names = column_names(self.card)
        with scratch.open_parquet(name) as file:
            for table in read_chunks(file, name, self.card, source.tile, self.release, names):
                rows += table.num_rows
                if np.any(np.diff(table[HEALPIX_29].to_numpy()) < 0):
                    raise DataError(f"partition {source.tile}: the decompressed stars are not in the order of their positions")
        if rows != source.rows:
            raise DataError(f"partition {source.tile}: {rows} of {source.rows} stars came back of what was written")


def _is_present(context: Context) -> bool:
    product = _product(context)
    try:
        record, reader = product.record, product.reader
        if record.key != context.key("compress") or product.card is None:
            return False
        product.check_tables()
    except (MissingFileError, DamagedFileError, StoreError):
        return False
    files = ((reader.name(p), chunks_of(p), reader.footer(p)) for p in record.partitions)
    return all(catalogue.each_whole(product.store, files))


def _files(context: Context) -> tuple[str, ...]:
    return _product(context).marker, context.run.compressed


WORK = StageWork(_inputs, _make, CompressResult, prepare=_prepare, present=_is_present, files=_files, problems=_problems)
