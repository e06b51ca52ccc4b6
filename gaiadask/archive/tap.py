"""Stars from a TAP service: planned by one histogram query, fetched in chunks that are whole or refused.

A chunk is counted, then asked for by an asynchronous job with room for one row more; its VOTable is accepted only when the
service says OK and it has as many rows as were counted, all within the chunk's ids and none twice.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from gaiadask.archive import Archive, Chunk, Note, Plan
from gaiadask.archive.adql import RANDOM_INDEX, Stars, check_condition, check_table, pixel_width
from gaiadask.archive.formats import SourceFile, check_unit, read_tables
from gaiadask.archive.selection import SOURCE_ID_STOP
from gaiadask.archive.service import ColumnMetadata, Interrupted, Service, attempted
from gaiadask.columns import SOURCE_ID
from gaiadask.errors import ArchiveError, ConfigurationError, DataError
from gaiadask.sky import SOURCE_ID_ORDER

logger = logging.getLogger(__name__)

HISTOGRAM_ORDER = 6
REFINED_BY = 3
"""Orders that a crowded pixel is looked at more finely."""
CROWDED = 2
"""A pixel of more than so many times archive.chunk_rows is cut further."""


@dataclass(frozen=True)
class TapArchive(Archive):
    """A table of any TAP service. Passwords come from the environment alone (`service.credentials`) and stay there."""

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

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "tap",
            "url": self.config.url.rstrip("/"),
            "table": self.config.table,
            "columns": list(self.selection.column_names),
            "not_null": sorted(self.selection.not_null_names),
            "where": self.selection.where.strip(),
            "limit": self.selection.limit,
        }

    def plan(self) -> Plan:
        # Not tried over and over: somebody waits for the answer, and the session has tried each request three times.
        return attempted("plan", self._plan, attempts=1)

    def _plan(self) -> Plan:
        service = self._service()
        most_rows = service.row_limit
        self._check_columns(service.columns(self.config.table))
        stars = Stars(self.config.table, self.selection, random_index_limit=self._random_index_limit(service))
        order = HISTOGRAM_ORDER if most_rows is None else order_within(most_rows)
        histogram = self._histogram(service, stars, order)
        total = int(histogram.sum())
        if not total:
            raise DataError(
                f"{self.config.table} at {self.config.url} has no star that passes the selection: "
                "relax selection.where and selection.not_null"
            )
        if self.selection.limit:
            self._check_limit(total)
        # One row less than the limit: a job is given room for one row more than its chunk has.
        ceiling = None if most_rows is None else most_rows - 1
        chunks = tuple(self._chunks(service, stars, histogram, order, 0, ceiling))
        logger.info("%s: %d stars in %d chunks", self.config.table, total, len(chunks))
        return Plan(order, histogram, chunks)

    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        yield from attempted(f"chunk {chunk.name}", lambda: self._fetch(chunk, note))

    def _fetch(self, chunk: Chunk, note: Note) -> list[pa.Table]:
        """The chunk's rows in small tables, all of them or none. Raises Interrupted where a new attempt may help."""
        service = self._service()
        stars = Stars(self.config.table, self.selection, chunk.first, chunk.stop, chunk.random_index_limit)
        # The plan's histogram may be old: what is counted now rules.
        counted = service.count(stars.count())
        if not counted:
            return []
        query = stars.rows(self.selection.column_names)
        with service.answer(query, counted + 1, started=lambda url: note({"job_url": url, "counted": counted})) as path:
            tables = self._read(chunk, str(path))
        _check_rows(chunk, counted, tables)
        return tables

    def _read(self, chunk: Chunk, path: str) -> list[pa.Table]:
        label = f"chunk {chunk.name} of {self.config.table}"
        try:
            return list(read_tables(SourceFile(LocalFileSystem(), path, label), self.schema))
        except ArchiveError as error:
            if error.__cause__ is not None:  # the parser's: the body is damaged
                raise Interrupted(str(error)) from error
            if "OVERFLOW" in str(error):
                raise ArchiveError(
                    f"{label}: the service cut the answer at its row limit (OVERFLOW): lower archive.chunk_rows"
                ) from error
            raise

    def _service(self) -> Service:
        return Service(self.config.url.rstrip("/"), self.config.timeout_s)

    # The plan ----------------------------------------------------------------------------------------------------------
    def _check_columns(self, found: Sequence[ColumnMetadata]) -> None:
        """What the service says of its columns against the selection; nothing said, the first query tells."""
        units = {column.name.lower(): column.unit for column in found}
        if not units:
            logger.warning("%s tells nothing of table %s", self.config.url, self.config.table)
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
            check_unit(units[name], name, f"{self.config.table} at {self.config.url}")

    def _random_index_limit(self, service: Service) -> int | None:
        """The largest random_index among the `limit` smallest of the selection; None without a limit or without a star."""
        if not self.selection.limit:
            return None
        value = service.ask(Stars(self.config.table, self.selection).threshold(), 2, quick=True)["random_index_limit"]
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

    def _histogram(self, service: Service, stars: Stars, order: int) -> NDArray[np.int64]:
        """Stars by pixel of this order, over the pixels of the range that `stars` asks for."""
        first, stop = stars.first // pixel_width(order), stars.stop // pixel_width(order)
        found = service.ask(stars.histogram(order), stop - first + 1)
        pixel, n_stars = found["pixel"], found["n_stars"]
        if np.ma.getdata(pixel).dtype.kind not in "iu":
            raise ArchiveError(f"{self.config.url} does not divide integers as integers: choose another TAP service")
        histogram = np.zeros(stop - first, dtype=np.int64)
        if len(pixel):
            if np.ma.is_masked(pixel) or pixel.min() < first or pixel.max() >= stop:
                raise DataError(f"{self.config.table} has stars whose source_id is null or outside [0, {SOURCE_ID_STOP})")
            np.add.at(histogram, np.ma.getdata(pixel).astype(np.int64) - first, np.ma.getdata(n_stars).astype(np.int64))
        return histogram

    def _chunks(
        self, service: Service, stars: Stars, histogram: NDArray[np.int64], order: int, first_pixel: int, ceiling: int | None
    ) -> Iterator[Chunk]:
        """Packed chunks, crowded pixels cut along finer pixels (down to order 12)."""
        aim = self.config.chunk_rows if ceiling is None else min(self.config.chunk_rows, ceiling)
        most = CROWDED * self.config.chunk_rows if ceiling is None else min(CROWDED * self.config.chunk_rows, ceiling)
        for chunk in pack(histogram, order, aim, first_pixel, stars.random_index_limit):
            rows = cast(int, chunk.expected_rows)
            if rows <= most:
                yield chunk
            elif order < SOURCE_ID_ORDER:
                finer = min(order + REFINED_BY, SOURCE_ID_ORDER)
                part = Stars(stars.table, stars.selection, chunk.first, chunk.stop, stars.random_index_limit)
                inside = self._histogram(service, part, finer)
                yield from self._chunks(service, stars, inside, finer, chunk.first // pixel_width(finer), ceiling)
            elif ceiling is None or rows <= ceiling:
                yield chunk
            else:
                raise ArchiveError(
                    f"{self.config.url} gives at most {ceiling + 1} rows at once, but {rows} stars lie in one pixel "
                    f"(order {order}, {chunk.first // pixel_width(order)}): choose another TAP service or a narrower selection"
                )


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
    cumulative = np.concatenate([[0], np.cumsum(histogram, dtype=np.int64)])
    chunks: list[Chunk] = []
    first = 0
    while first < len(histogram):
        fitting = int(np.searchsorted(cumulative, cumulative[first] + chunk_rows, side="right")) - 1
        stop = max(first + 1, fitting)
        pixels = (first_pixel + first, first_pixel + stop)
        chunks.append(
            Chunk(
                name=f"{order:02d}-{pixels[0]:09d}-{pixels[1] - 1:09d}",
                first=pixels[0] * pixel_width(order),
                stop=pixels[1] * pixel_width(order),
                expected_rows=int(cumulative[stop] - cumulative[first]),
                random_index_limit=random_index_limit,
            )
        )
        first = stop
    return chunks


def _check_rows(chunk: Chunk, counted: int, tables: Sequence[pa.Table]) -> None:
    """Raises Interrupted for another number of rows than counted, DataError for ids that are not the chunk's or come twice."""
    ids = np.concatenate([table.column(SOURCE_ID).to_numpy() for table in tables] or [np.empty(0, np.int64)])
    if len(ids) != counted:
        raise Interrupted(f"the service counted {counted} rows and gave {len(ids)}")
    outside = (ids < chunk.first) | (ids >= chunk.stop)
    if outside.any():
        raise DataError(
            f"chunk {chunk.name}: source_id {ids[outside][0]} was not asked for: expected {chunk.first} <= source_id < {chunk.stop}"
        )
    if twice := len(ids) - len(np.unique(ids)):
        raise DataError(f"chunk {chunk.name}: {twice} rows have a source_id that another row has: expected each star once")
