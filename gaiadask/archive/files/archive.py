"""Stars from files: paths, fsspec URIs (file, http, https, s3) and globs, in the formats of `archive.formats`.

One file is one chunk. The plan reads every file once, of each only source_id and the columns that decide on the selection,
so that the rows it promises are exact. Files of the Gaia archive's bulk download are the exception: their names,
`GaiaSource_<first>_<last>.csv.gz`, carry the range of source_id, so that they are planned from names and sizes. They are many
and small: consecutive ones are put together into chunks of about `archive.chunk_rows` rows.

Where `MD5SUM.txt` lies beside CSV files, what it says of a file is the file's identity, and is checked as the file streams.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.archive.base import Archive
from gaiadask.archive.chunks import Chunk, ChunkFile, Note, Plan
from gaiadask.archive.files.find import FoundFile, _find, public_uri
from gaiadask.archive.files.formats import csv_head, read_tables, reader_of, regrouped
from gaiadask.archive.selection import SOURCE_ID_STOP, HashLimit, apply, columns_of, needed_schema
from gaiadask.errors import ArchiveError, ConfigurationError, DataError
from gaiadask.keys import digest
from gaiadask.release.column import SOURCE_ID
from gaiadask.sky import healpix_of_source_id

logger = logging.getLogger(__name__)


ORDER = 6


_SAMPLED_FILES = 8


_SAMPLED_BYTES = 1 << 20


_LISTED_FILES = 1_000
"""An identity names so many files one by one; of more, it holds the number and a hash."""


class _Estimate(NamedTuple):
    """Of bulk files that were not read: selected stars by pixel, shape (pixels,), and rows a file, shape (files,)."""

    histogram: NDArray[np.float64]
    rows: NDArray[np.float64]


@dataclass(frozen=True)
class FileArchive(Archive):
    """Files named by `config.uris`."""

    def identity(self) -> dict[str, Any]:
        selection = self.selection
        files: Any = [{"uri": found.uri, **found.facts} for found in self.find()]
        if len(files) > _LISTED_FILES:
            files = {"count": len(files), "first": files[0], "last": files[-1], "digest": digest(files)}
        return {
            "kind": "files",
            "files": files,
            "columns": list(selection.column_names),
            "not_null": sorted(selection.not_null_names),
            "where": selection.where,
            "limit": selection.limit,
        }

    def find(self) -> list[FoundFile]:
        """The files, each once: bulk files by their range, then the others by URI. Raises ArchiveError for a URI that names none."""
        if not self.config.uris:
            raise ConfigurationError("archive.kind is 'files' but archive.uris is empty: name the files")
        found = {file.uri: file for uri in self.config.uris for file in _find(uri, self.config.timeout_s)}
        for file in found.values():
            reader_of(file.uri)
        return sorted(found.values(), key=lambda file: (file.bulk_range or (SOURCE_ID_STOP, 0), file.uri))

    def plan(self) -> Plan:
        """Exact counts but for bulk files and under a limit, where they are estimates (from above)."""
        found = self.find()
        bulk = [file for file in found if file.bulk_range]
        histogram = np.zeros(12 * 4**ORDER, dtype=np.float64)
        smallest = HashLimit(self.selection.limit) if self.selection.limit else None
        estimate = self._estimate(bulk, len(histogram))
        looked_at = found if smallest else [file for file in found if not file.bulk_range]
        rows: dict[str, int] = {}
        for number, file in enumerate(looked_at, start=1):
            rows[file.uri] = 0
            for source_id in self._selected_ids(file):
                rows[file.uri] += len(source_id)
                histogram += np.bincount(healpix_of_source_id(source_id, ORDER), minlength=len(histogram))
                if smallest:
                    smallest.add(source_id)
            logger.info("planned %s (%d of %d files): %d stars selected", file.uri, number, len(looked_at), rows[file.uri])
        hash_limit = None
        if smallest is None:
            histogram += estimate.histogram
        elif (total := sum(rows.values())) > self.selection.limit:
            # Hashes are uniform, so each pixel keeps the same share of its stars.
            histogram *= self.selection.limit / total
            hash_limit, rows = int(smallest.threshold), {}
        groups = [*_grouped(bulk, estimate.rows, self.config.chunk_rows), *([file] for file in found if not file.bulk_range)]
        chunks = tuple(_chunk(group, rows, hash_limit) for group in groups)
        return Plan(ORDER, np.ceil(histogram).astype(np.int64), chunks)

    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        """The selected rows of the chunk's files, in tables of at most `formats.TABLE_ROWS` rows.

        Raises ArchiveError where a file is gone, not whole, of another size or checksum, or has other rows than were planned.
        """
        found = [self._found_again(planned) for planned in chunk.files]
        note({"files": [{"uri": file.uri, **file.facts} for file in found]})
        rows = 0
        for table in regrouped(table for file in found for table in self._selected(file, chunk)):
            rows += len(table)
            yield table
        if chunk.expected_rows not in (None, rows):
            raise ArchiveError(
                f"{', '.join(file.uri for file in chunk.files)}: {rows} stars pass the selection, {chunk.expected_rows} did when "
                "it was planned: the file has changed meanwhile. Ingest into a new store"
            )

    def _found_again(self, planned: ChunkFile) -> FoundFile:
        """Raises ArchiveError where the file is gone or has another size than planned."""
        (found,) = _find(self._with_credentials(planned.uri), self.config.timeout_s, literal=True)
        if planned.size and found.size and planned.size != found.size:
            raise ArchiveError(
                f"{planned.uri}: {found.size} bytes, it had {planned.size} when it was planned: the file has changed meanwhile. "
                "Ingest into a new store"
            )
        return replace(found, file=replace(found.file, md5=planned.md5))

    def _selected(self, found: FoundFile, chunk: Chunk) -> Iterator[pa.Table]:
        first, stop = found.bulk_range or (chunk.first, chunk.stop)
        for table in read_tables(found.file, needed_schema(self.selection)):
            _check_range(table.column(SOURCE_ID), first, stop, found.uri)
            yield apply(table, self.selection, self.schema, chunk.hash_limit)

    def _selected_ids(self, found: FoundFile) -> Iterator[NDArray[np.int64]]:
        """source_ids of the stars that pass not_null and where."""
        schema, narrow = self._deciding_schema(), self.release.schema([SOURCE_ID])
        for table in read_tables(found.file, schema):
            yield apply(table, self.selection, narrow).column(SOURCE_ID).to_numpy()

    def _deciding_schema(self) -> pa.Schema:
        names = (SOURCE_ID, *self.selection.not_null_names, *columns_of(self.selection.where, self.release))
        return self.release.schema(dict.fromkeys(names))

    def _estimate(self, bulk: list[FoundFile], pixels: int) -> _Estimate:
        """Rows a byte and the share that passes not_null come from the start of some of the files, with a tenth added.

        A file's stars are spread over its range. The condition `where` is taken to keep all, for it may single out a part of
        the sky. A file whose size is not known is taken to have the mean size of those that were looked at.
        """
        if not bulk:
            return _Estimate(np.zeros(pixels), np.zeros(0))
        schema, narrow = self._deciding_schema(), self.release.schema([SOURCE_ID])
        selection = self.selection.model_copy(update={"where": ""})
        sizes: list[int] = []
        taken = rows = selected = 0
        for file in bulk[:: -(-len(bulk) // _SAMPLED_FILES)]:
            head_bytes, head = csv_head(file.file, schema, _SAMPLED_BYTES)
            taken, rows, selected = taken + head_bytes, rows + len(head), selected + len(apply(head, selection, narrow))
            sizes.append(file.size or self._found_again(file.chunk_file).size)
        size = np.array([file.size or np.mean(sizes) for file in bulk])
        histogram = np.zeros(pixels)
        for file, stars in zip(bulk, size * (1.1 * max(selected, 1) / taken), strict=True):
            _spread(histogram, file.bulk_range or (0, SOURCE_ID_STOP), float(stars))
        return _Estimate(histogram, size * (max(rows, 1) / taken))

    def _with_credentials(self, uri: str) -> str:
        """The URI as it was configured: chunks carry it without credentials, for they are written to the store."""
        for configured in self.config.uris:
            if public_uri(configured) == uri:
                return configured
            private, public = urlsplit(configured), urlsplit(uri)
            if "@" in private.netloc and (private.scheme, urlsplit(public_uri(configured)).netloc) == public[:2]:
                return urlunsplit(public._replace(netloc=private.netloc))
        return uri


# Chunks ---------------------------------------------------------------------------------------------------------------
def _grouped(files: Sequence[FoundFile], rows: NDArray[np.float64], chunk_rows: int) -> list[list[FoundFile]]:
    """Runs of files that have about `chunk_rows` rows together, one file at least."""
    if not len(files):
        return []
    group = ((np.cumsum(rows) - rows / 2) // chunk_rows).astype(np.int64)
    bounds = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(files)]
    return [list(files[first:stop]) for first, stop in pairwise(bounds)]


def _chunk(files: Sequence[FoundFile], rows: dict[str, int], hash_limit: int | None) -> Chunk:
    """rows: exact ones by URI, where they are known."""
    ranges = [file.bulk_range or (0, SOURCE_ID_STOP) for file in files]
    expected = sum(rows[file.uri] for file in files) if all(file.uri in rows for file in files) else None
    return Chunk(
        name=_chunk_name([file.uri for file in files]),
        first=min(first for first, _ in ranges),
        stop=max(stop for _, stop in ranges),
        files=tuple(file.chunk_file for file in files),
        expected_rows=expected,
        hash_limit=hash_limit,
    )


def _chunk_name(uris: Sequence[str]) -> str:
    """Unique and the same each time: the first file's name, shortened, and a hash of the URIs."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", urlsplit(uris[0]).path.rsplit("/", 1)[-1]).strip("-")
    return f"{name[:64]}-{digest(uris[0] if len(uris) == 1 else list(uris))[:8]}"


def _spread(histogram: NDArray[np.float64], bounds: tuple[int, int], stars: float) -> None:
    """Add stars to the pixels of a source_id range, by their share of it."""
    first, stop = bounds
    width = SOURCE_ID_STOP // len(histogram)
    touched = np.arange(first // width, min(-(-stop // width), len(histogram)))
    overlap = [min(stop, (p + 1) * width) - max(first, p * width) for p in touched.tolist()]
    histogram[touched] += stars * np.array(overlap, dtype=np.float64) / (stop - first)


def _check_range(source_id: pa.ChunkedArray, first: int, stop: int, label: str) -> None:
    """Raises DataError for a source_id outside the range that the file's name tells."""
    bounds = pc.min_max(source_id).as_py()
    for value in bounds.values():
        if value is not None and not first <= value < stop:
            raise DataError(f"{label}: source_id {value} is outside the range of the file's name, {first} to {stop - 1}")
