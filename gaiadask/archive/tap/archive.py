"""Stars from a TAP service: planned by one histogram query, fetched in chunks that are whole or refused.

Where the service refuses the histogram or takes too long, tiles are counted one by one. A chunk is counted, then asked for
by an asynchronous job with room for one row more. Its answer is read as a stream, in bounded memory, and its rows are kept on local
scratch until they are accepted: when the answer was read to its end and its status is OK, and it has as many rows as were counted,
all within the chunk's ids and none twice. Parquet, which is asked for where the service offers it, has no status: there the count
alone tells, and a chunk whose parquet has another one is asked for as a VOTable. A chunk that is still too large is asked for in
quarters.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from pydantic import Field

from gaiadask.archive.base import Archive, SelectedIdentity
from gaiadask.archive.chunks import Chunk, ChunkFacts, Note, Plan, runs_within
from gaiadask.archive.files.formats import read_tables
from gaiadask.archive.files.transfer import SourceFile
from gaiadask.archive.files.units import check_unit
from gaiadask.archive.tap.adql import RANDOM_INDEX, StarQuery, check_condition, check_table, pixel_width
from gaiadask.archive.tap.answers import keep, kept, temporary
from gaiadask.archive.tap.attempts import Damaged, Interrupted, JobLost, NotATapServiceError, attempted
from gaiadask.archive.tap.service import ColumnMetadata, Service
from gaiadask.conform import folded
from gaiadask.errors import ArchiveError, ChunkTooLargeError, ConfigurationError, DataError
from gaiadask.sky import SOURCE_ID_ORDER, SOURCE_ID_STOP

logger = logging.getLogger(__name__)

HISTOGRAM_ORDER = 6
"""HEALPix order of the plan's histogram: 49,152 rows, which services give in one answer, of pixels of about a degree."""
REFINED_BY = 3
"""A crowded pixel is counted again in pixels of so many orders finer: 64 of them, one small query."""
CROWDED = 2
"""A pixel of more than so many times archive.chunk_rows is cut further: one a little too large is not worth a query."""
PLAN_ATTEMPTS = 2
"""Few, for somebody waits for the answer, and the session has tried each request three times."""


class TapIdentity(SelectedIdentity):
    """Service and table, and the selection."""

    url: str = Field(description="address of the service")
    table: str = Field(description="name of the table")


@dataclass(frozen=True)
class TapArchive(Archive):
    """A table of any TAP service. Passwords are read from the environment where they are used (`login.credentials`), and are
    written nowhere."""

    def __post_init__(self) -> None:
        check_table(self.config.table)
        check_condition(self.selection.where)
        if urlsplit(self.config.url).username is not None:
            raise ConfigurationError(
                "archive.url contains a user name: leave it out, for this option is written into logs and the store; "
                "set GAIADASK_TAP_USER and GAIADASK_TAP_PASSWORD instead"
            )
        if urlsplit(self.config.url).scheme not in ("http", "https"):
            raise ConfigurationError(f"archive.url {self.config.url!r}: expected the http or https address of a TAP service")

    @property
    def title(self) -> str:
        """The table's name."""
        return self.config.table

    @property
    def source(self) -> str:
        """The table and its service."""
        return f"{self.config.table} at {self.config.url}"

    @property
    def jobs_at_once(self) -> int:
        """Limits how many jobs the service has at once, wherever the workers are."""
        return self.config.max_jobs

    def identity(self) -> TapIdentity:
        """Service and table, and the selection."""
        return TapIdentity(
            kind="tap",
            url=self.config.url.rstrip("/"),
            table=self.config.table,
            columns=self.selection.column_names,
            not_null=tuple(sorted(self.selection.not_null_names)),
            where=self.selection.where.strip(),
            limit=self.selection.limit,
        )

    def plan(self) -> Plan:
        """Chunks from one histogram query, or where the service does not answer it from counts tile by tile."""
        return attempted("plan", self._plan, PLAN_ATTEMPTS)

    def _plan(self) -> Plan:
        service = self._service()
        most_rows = service.row_limit
        logger.info("%s: rows are asked for as %s", self.config.url, service.rows_form)
        self._check_columns(service.columns(self.config.table))
        stars = StarQuery(self.config.table, self.selection, random_index_limit=self._random_index_limit(service))
        ceiling = self._ceiling(most_rows)
        order = HISTOGRAM_ORDER if most_rows is None else order_within(most_rows)
        try:
            histogram = self._histogram(service, stars, order)
            chunks = tuple(self._chunks(service, stars, histogram, order, 0, ceiling))
        except (ArchiveError, JobLost) as error:
            logger.warning("%s gives no histogram (%s): counting tile by tile", self.config.url, error)
            order = HISTOGRAM_ORDER
            tiles = [tile for pixel in range(12) for tile in self._counted(service, stars, 0, pixel, ceiling)]
            histogram = spread(tiles, order)
            chunks = tuple(pack_tiles(tiles, self._aim(ceiling), stars.random_index_limit))
        total = int(histogram.sum())
        if not total:
            raise DataError(
                f"{self.config.table} at {self.config.url} has no star that passes the selection: "
                "relax selection.where and selection.not_null"
            )
        if self.selection.limit:
            self._check_limit(total)
        logger.info("%s: %d stars in %d chunks", self.config.table, total, len(chunks))
        return Plan(order, histogram, chunks)

    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        """The chunk's rows, all of them or an error."""
        return self.resume(chunk, note, ChunkFacts())

    def resume(self, chunk: Chunk, note: Note, known: ChunkFacts) -> Iterator[pa.Table]:
        """`fetch`, going on with the job that an earlier attempt left."""
        latest, parquet = known, True

        def remember(facts: ChunkFacts) -> None:
            nonlocal latest
            latest = facts
            note(facts)

        def fetched() -> bool:
            nonlocal parquet
            try:
                return self._fetch(chunk, remember, latest, rows, parquet)
            except Interrupted:
                parquet = False  # a VOTable tells what is wrong with it
                raise

        with temporary() as folder:
            rows = folder / "rows.arrow"
            try:
                has_rows = attempted(f"chunk {chunk.name}", fetched, self.config.attempts)
            except ArchiveError as error:
                if latest.job_url is not None:
                    self._service().delete_job(latest.job_url)
                if chunk.name in str(error):
                    raise
                raise type(error)(f"chunk {chunk.name}: {error}") from error
            if has_rows:
                yield from kept(rows)

    def split(self, chunk: Chunk) -> tuple[Chunk, ...]:
        """The quarters of its range of source_id."""
        width = chunk.stop - chunk.first
        if width < 2:
            raise ArchiveError(f"chunk {chunk.name} is one source_id wide already: choose another TAP service")
        bounds = [chunk.first + width * quarter // 4 for quarter in range(5)]
        return tuple(
            replace(chunk, name=f"{chunk.name}.{quarter}", first=first, stop=stop, expected_rows=None)
            for quarter, (first, stop) in enumerate(pairwise(bounds))
            if first < stop
        )

    def _fetch(self, chunk: Chunk, note: Note, known: ChunkFacts, rows: Path, parquet: bool) -> bool:
        """Write the chunk's rows to a file, all of them or an error; whether there are any.

        parquet: whether to ask for it where the service offers it. Raises Interrupted where a new attempt may help.
        """
        service = self._service()
        stars = StarQuery(self.config.table, self.selection, chunk.first, chunk.stop, chunk.random_index_limit)
        query = stars.rows(self.selection.column_names)
        try:
            job = service.find_job(known.job_url, query) if known.job_url is not None else None
            if job:
                logger.info("chunk %s: going on with job %s", chunk.name, job.url)
            # The plan's histogram may be old: the count of now decides.
            counted = known.counted if job and known.counted is not None else service.count(stars.count())
            if not counted:
                return False
            self._check_fits(service, chunk, counted)

            def started(url: str) -> None:
                note(ChunkFacts(job_url=url, counted=counted))

            with service.answer(query, counted + 1, started, job, parquet=parquet) as path:
                keep(self._read(chunk, path), self.schema, chunk, counted, rows)
            return True
        except NotATapServiceError as error:  # it was one when the plan was made
            raise Interrupted(str(error)) from error

    def _check_fits(self, service: Service, chunk: Chunk, counted: int) -> None:
        if service.row_limit is not None and counted >= service.row_limit:
            raise ChunkTooLargeError(
                f"chunk {chunk.name}: {counted} rows, more than the service gives in one answer ({service.row_limit} with one to spare)"
            )

    def _read(self, chunk: Chunk, path: Path) -> Iterator[pa.Table]:
        label = f"chunk {chunk.name} of {self.config.table}"
        try:
            yield from read_tables(SourceFile(LocalFileSystem(), str(path), label), self.schema)
        except ArchiveError as error:
            if error.__cause__ is not None:  # the parser's: the body is damaged
                raise Damaged(str(error)) from error
            if "OVERFLOW" in str(error):
                raise ChunkTooLargeError(f"{label}: the service cut the answer at its row limit (OVERFLOW)") from error
            raise

    def _service(self) -> Service:
        return Service(self.config.url.rstrip("/"), self.config.timeout_s, self.config.chunk_mb * 10**6)

    # The plan ----------------------------------------------------------------------------------------------------------
    def _check_columns(self, columns: Sequence[ColumnMetadata]) -> None:
        """Compare the service's metadata with the selection. Without metadata, the first query shows what is missing."""
        units = {folded(column.name): column.unit for column in columns}  # some services quote names
        if not units:
            logger.warning("%s has no metadata of table %s", self.config.url, self.config.table)
            return
        needed = [*self.selection.column_names, *self.selection.not_null_names, *([RANDOM_INDEX] if self.selection.limit else [])]
        if missing := [name for name in dict.fromkeys(needed) if name not in units]:
            near = sorted({n for name in missing for n in difflib.get_close_matches(name, units, n=3)})
            raise ArchiveError(
                f"{self.config.table} at {self.config.url} has no column {', '.join(missing)}: leave it out of "
                f"selection.columns and selection.not_null{', and limit at 0' if RANDOM_INDEX in missing else ''}, "
                f"or choose another archive.table{f' (it has {chr(44).join(near)})' if near else ''}"
            )
        for name in self.selection.column_names:
            check_unit(units[name], self.schema.field(name), f"{self.config.table} at {self.config.url}")

    def _random_index_limit(self, service: Service) -> int | None:
        """The largest random_index among the `limit` smallest of the selection; None without a limit or without a star."""
        if not self.selection.limit:
            return None
        value = service.ask(StarQuery(self.config.table, self.selection).threshold(), 2, quick=True)["random_index_limit"]
        return int(value[0]) if len(value) and not np.ma.is_masked(value[0]) else -1

    def _check_limit(self, total: int) -> None:
        if total > self.selection.limit:
            raise ArchiveError(
                f"selection.limit asks for {self.selection.limit} stars but {total} have a random_index as small as theirs: "
                f"{RANDOM_INDEX} of {self.config.table} is not unique; select by a condition in selection.where instead"
            )
        if total < self.selection.limit:
            logger.warning(
                "selection.limit asks for %d stars: the selection has %d with a random_index", self.selection.limit, total
            )

    def _histogram(self, service: Service, stars: StarQuery, order: int) -> NDArray[np.int64]:
        """Stars by pixel of this order, over the pixels of the range that `stars` asks for."""
        first, stop = stars.first // pixel_width(order), stars.stop // pixel_width(order)
        answer = service.ask(stars.histogram(order), stop - first + 1)
        pixel, n_stars = answer["pixel"], answer["n_stars"]
        if np.ma.getdata(pixel).dtype.kind not in "iu":
            raise ArchiveError(f"{self.config.url} does not divide integers as integers: choose another TAP service")
        histogram = np.zeros(stop - first, dtype=np.int64)
        if len(pixel):
            if np.ma.is_masked(pixel) or pixel.min() < first or pixel.max() >= stop:
                raise DataError(f"{self.config.table} has stars whose source_id is null or outside [0, {SOURCE_ID_STOP})")
            np.add.at(histogram, np.ma.getdata(pixel).astype(np.int64) - first, np.ma.getdata(n_stars).astype(np.int64))
        return histogram

    def _chunks(
        self, service: Service, stars: StarQuery, histogram: NDArray[np.int64], order: int, first_pixel: int, ceiling: int
    ) -> Iterator[Chunk]:
        """Packed chunks, crowded pixels cut along finer pixels (down to order 12)."""
        most = min(CROWDED * self.config.chunk_rows, ceiling)
        for chunk in pack(histogram, order, self._aim(ceiling), first_pixel, stars.random_index_limit):
            # A pixel that is still crowded at the finest order is cut when it is fetched.
            if cast(int, chunk.expected_rows) <= most or order >= SOURCE_ID_ORDER:
                yield chunk
            else:
                finer = min(order + REFINED_BY, SOURCE_ID_ORDER)
                part = replace(stars, first=chunk.first, stop=chunk.stop)
                inside = self._histogram(service, part, finer)
                yield from self._chunks(service, stars, inside, finer, chunk.first // pixel_width(finer), ceiling)

    def _ceiling(self, most_rows: int | None) -> int:
        """The most rows of a chunk: of an answer of archive.chunk_mb, and one row less than the service's limit.

        One less, for a job is given room for one row more than its chunk has.
        """
        # A VOTable's binary data is coded in base64.
        row_bytes = 4 / 3 * sum(self.release.columns[name].bytes for name in self.selection.column_names)
        fitting = int(self.config.chunk_mb * 1e6 / row_bytes)
        return max(1, fitting if most_rows is None else min(fitting, most_rows - 1))

    def _aim(self, ceiling: int) -> int:
        return min(self.config.chunk_rows, ceiling)

    def _counted(self, service: Service, stars: StarQuery, order: int, pixel: int, ceiling: int) -> Iterator[CountedTile]:
        """The pixel, or where it is crowded or takes too long to count its descendants, with their stars.

        Raises ArchiveError where the service does not even count one pixel of the finest order.
        """
        width = pixel_width(order)
        finest = order == SOURCE_ID_ORDER
        try:
            rows = service.count(replace(stars, first=pixel * width, stop=(pixel + 1) * width).count())
        except ChunkTooLargeError:
            if finest:
                raise
            rows = None
        if rows is not None and (finest or rows <= self._aim(ceiling)):
            yield CountedTile(order, pixel, rows)
        else:
            for child in range(4 * pixel, 4 * pixel + 4):
                yield from self._counted(service, stars, order + 1, child, ceiling)


class CountedTile(NamedTuple):
    """A HEALPix pixel of source_ids (nested) and its stars."""

    order: int
    pixel: int
    rows: int


def order_within(most_rows: int) -> int:
    """The finest order up to HISTOGRAM_ORDER whose histogram is sure to fit into so many rows."""
    fitting = [order for order in range(HISTOGRAM_ORDER + 1) if 12 * 4**order < most_rows]
    return fitting[-1] if fitting else 0


def pack(
    histogram: NDArray[np.int64],
    order: int,
    chunk_rows: int,
    first_pixel: int = 0,
    random_index_limit: int | None = None,
) -> list[Chunk]:
    """Runs of consecutive pixels, each of at most `chunk_rows` stars or of one pixel.

    histogram: shape (n_pixels,), stars in the pixels `first_pixel`, … of this order (nested, at most 12).
    The chunks' half-open ranges of source_id follow one another and cover these pixels exactly.
    """
    bounds = [pixel * pixel_width(order) for pixel in range(first_pixel, first_pixel + len(histogram) + 1)]
    return [
        Chunk(
            f"{order:02d}-{first_pixel + first:09d}-{first_pixel + stop - 1:09d}", bounds[first], bounds[stop],
            expected_rows=int(histogram[first:stop].sum()), random_index_limit=random_index_limit,
        )
        for first, stop in runs_within(histogram, chunk_rows)
    ]  # fmt: skip


def pack_tiles(tiles: Sequence[CountedTile], chunk_rows: int, random_index_limit: int | None = None) -> list[Chunk]:
    """The same for pixels of any orders that follow one another; named by their pixels of the finest order."""
    bounds = [tile.pixel * pixel_width(tile.order) for tile in tiles]
    bounds.append((tiles[-1].pixel + 1) * pixel_width(tiles[-1].order))
    pixels = [bound // pixel_width(SOURCE_ID_ORDER) for bound in bounds]
    rows = np.array([tile.rows for tile in tiles], dtype=np.int64)
    return [
        Chunk(
            f"{SOURCE_ID_ORDER:02d}-{pixels[first]:09d}-{pixels[stop] - 1:09d}", bounds[first], bounds[stop],
            expected_rows=int(rows[first:stop].sum()), random_index_limit=random_index_limit,
        )
        for first, stop in runs_within(rows, chunk_rows)
    ]  # fmt: skip


def spread(tiles: Sequence[CountedTile], order: int) -> NDArray[np.int64]:
    """Histogram of this order, shape (12 * 4**order,): stars of coarser pixels are spread evenly, the sum is exact."""
    histogram = np.zeros(12 * 4**order, dtype=np.int64)
    for tile in tiles:
        if tile.order >= order:
            histogram[tile.pixel >> 2 * (tile.order - order)] += tile.rows
        else:
            n = 4 ** (order - tile.order)
            each, left = divmod(tile.rows, n)
            inside = histogram[tile.pixel * n : (tile.pixel + 1) * n]
            inside += each
            inside[:left] += 1
    return histogram
