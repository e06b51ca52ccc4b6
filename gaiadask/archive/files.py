"""Stars from files: paths, fsspec URIs (file, http, https, s3) and globs, in the formats of `archive.formats`.

One file is one chunk. The plan reads every file once, of each only source_id and the columns that decide on the selection,
so that the rows it promises are exact. Files of the Gaia archive's bulk download are the exception: their names,
`GaiaSource_<first>_<last>.csv.gz`, carry the range of source_id, and their rows are estimated from their size.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.archive import Archive, Chunk, Note, Plan
from gaiadask.archive.formats import TABLE_ROWS, SourceFile, csv_head, read_tables, reader_of, transport_errors
from gaiadask.archive.selection import SOURCE_ID_STOP, HashLimit, apply, columns_of, needed_schema
from gaiadask.columns import COLUMNS, SOURCE_ID
from gaiadask.config import digest
from gaiadask.errors import ArchiveError, ConfigurationError, DataError
from gaiadask.sky import healpix_of_source_id

logger = logging.getLogger(__name__)

ORDER = 6
_BULK_NAME = re.compile(r"GaiaSource_(\d+)_(\d+)\.csv\.gz$")
_SECRET = re.compile(r"(?i)^x-(amz|goog|ms)-|signature|token|secret|password|credential|key|^sig$|^auth|^expires$")
_GLOB = re.compile(r"[*?\[]")
_SAMPLED_FILES = 8
_SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True)
class FoundFile:
    """A file that a URI names: `facts` (size, time, checksum, as far as the file system tells) change when it does."""

    file: SourceFile
    facts: dict[str, str | int]

    @property
    def uri(self) -> str:
        return self.file.label

    @property
    def size(self) -> int:
        return int(self.facts.get("size", 0))

    @property
    def bulk_range(self) -> tuple[int, int] | None:
        """Half-open range of source_id told by a bulk file's name."""
        match = _BULK_NAME.search(self.uri)
        return (int(match[1]), int(match[2]) + 1) if match else None

    @property
    def chunk_name(self) -> str:
        """Unique and the same each time: the file's name, shortened, and a hash of its URI."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", urlsplit(self.uri).path.rsplit("/", 1)[-1]).strip("-")
        return f"{name[:64]}-{digest(self.uri)[:8]}"


@dataclass(frozen=True)
class FileArchive(Archive):
    """Files named by `config.uris`."""

    def identity(self) -> dict[str, Any]:
        selection = self.selection
        return {
            "kind": "files",
            "files": [{"uri": found.uri, **found.facts} for found in self.find()],
            "columns": list(selection.column_names),
            "not_null": sorted(selection.not_null_names),
            "where": selection.where,
            "limit": selection.limit,
        }

    def find(self) -> list[FoundFile]:
        """The files, sorted by URI, each once. Raises ArchiveError for a URI that names none."""
        if not self.config.uris:
            raise ConfigurationError("archive.kind is 'files' but archive.uris is empty: name the files")
        found = {file.uri: file for uri in self.config.uris for file in _find(uri)}
        for file in found.values():
            reader_of(file.uri)
        return [found[uri] for uri in sorted(found)]

    def plan(self) -> Plan:
        """One chunk a file; exact counts but for bulk files and under a limit, where they are estimates (from above)."""
        found = self.find()
        estimated = [] if self.selection.limit else [file for file in found if file.bulk_range]
        looked_at = [file for file in found if file not in estimated]
        histogram = np.zeros(12 * 4**ORDER, dtype=np.float64)
        smallest = HashLimit(self.selection.limit) if self.selection.limit else None
        rows: dict[str, int] = {}
        for number, file in enumerate(looked_at, start=1):
            rows[file.uri] = 0
            for source_id in self._selected_ids(file):
                rows[file.uri] += len(source_id)
                histogram += np.bincount(healpix_of_source_id(source_id, ORDER), minlength=len(histogram))
                if smallest:
                    smallest.add(source_id)
            logger.info("planned %s (%d of %d files): %d stars selected", file.uri, number, len(looked_at), rows[file.uri])
        histogram += self._estimate(estimated, len(histogram))
        hash_limit = None
        if smallest and (total := sum(rows.values())) > self.selection.limit:
            # Hashes are uniform, so each pixel keeps the same share of its stars.
            histogram *= self.selection.limit / total
            hash_limit, rows = int(smallest.threshold), {}
        chunks = tuple(_chunk(file, rows.get(file.uri), hash_limit) for file in found)
        return Plan(ORDER, np.ceil(histogram).astype(np.int64), chunks)

    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        """The selected rows of the chunk's file, in tables of at most `formats.TABLE_ROWS` rows.

        Raises ArchiveError where the file is gone, not whole or has other rows than were planned.
        """
        (found,) = _find(self._with_credentials(chunk.uri), literal=True)
        note({"uri": found.uri, **found.facts})
        rows = 0
        for table in _regrouped(self._selected(found, chunk)):
            rows += len(table)
            yield table
        if chunk.expected_rows not in (None, rows):
            raise ArchiveError(
                f"{chunk.uri}: {rows} stars pass the selection, {chunk.expected_rows} did when it was planned: "
                "the file has changed meanwhile. Ingest into a new store"
            )

    def _selected(self, found: FoundFile, chunk: Chunk) -> Iterator[pa.Table]:
        for table in read_tables(found.file, needed_schema(self.selection)):
            _check_range(table.column(SOURCE_ID), chunk.first, chunk.stop, found.uri)
            yield apply(table, self.selection, self.schema, chunk.hash_limit)

    def _selected_ids(self, found: FoundFile) -> Iterator[NDArray[np.int64]]:
        """source_ids of the stars that pass not_null and where."""
        schema, narrow = self._deciding_schema(), pa.schema([COLUMNS[SOURCE_ID].field])
        for table in read_tables(found.file, schema):
            yield apply(table, self.selection, narrow).column(SOURCE_ID).to_numpy()

    def _deciding_schema(self) -> pa.Schema:
        names = (SOURCE_ID, *self.selection.not_null_names, *columns_of(self.selection.where))
        return pa.schema([COLUMNS[name].field for name in dict.fromkeys(names)])

    def _estimate(self, bulk: list[FoundFile], pixels: int) -> NDArray[np.float64]:
        """Stars by pixel, shape (pixels,), of files that were not read: size over bytes a star, spread over the range.

        Bytes a star and the share that passes not_null come from the start of some of the files, with a tenth added; the
        condition `where` is taken to keep all, for it may single out a part of the sky.
        """
        histogram = np.zeros(pixels)
        if not bulk:
            return histogram
        schema, narrow = self._deciding_schema(), pa.schema([COLUMNS[SOURCE_ID].field])
        selection = self.selection.model_copy(update={"where": ""})
        size = selected = 0
        for file in bulk[:: -(-len(bulk) // _SAMPLED_FILES)]:
            taken, head = csv_head(file.file, schema, _SAMPLED_BYTES)
            size, selected = size + taken, selected + len(apply(head, selection, narrow))
        stars_a_byte = 1.1 * max(selected, 1) / size
        width = SOURCE_ID_STOP // pixels
        for file in bulk:
            first, stop = file.bulk_range or (0, SOURCE_ID_STOP)
            touched = np.arange(first // width, min(-(-stop // width), pixels))
            overlap = [min(stop, (p + 1) * width) - max(first, p * width) for p in touched.tolist()]
            histogram[touched] += file.size * stars_a_byte * np.array(overlap, dtype=np.float64) / (stop - first)
        return histogram

    def _with_credentials(self, uri: str) -> str:
        """The URI as it was configured: chunks carry it without credentials, for they are written to the store."""
        for configured in self.config.uris:
            if public_uri(configured) == uri:
                return configured
            private, public = urlsplit(configured), urlsplit(uri)
            if "@" in private.netloc and (private.scheme, urlsplit(public_uri(configured)).netloc) == public[:2]:
                return urlunsplit(public._replace(netloc=private.netloc))
        return uri


def _chunk(found: FoundFile, expected_rows: int | None, hash_limit: int | None) -> Chunk:
    first, stop = found.bulk_range or (0, SOURCE_ID_STOP)
    return Chunk(found.chunk_name, first, stop, found.uri, expected_rows, hash_limit)


def public_uri(uri: str) -> str:
    """The URI without user, password and signature."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET.search(name)]
    query = parts.query if len(kept) == len(parse_qsl(parts.query, keep_blank_values=True)) else urlencode(kept)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def _find(uri: str, *, literal: bool = False) -> list[FoundFile]:
    """The file at a URI, else (unless literal) the files that match it as a glob. Raises ArchiveError where there are none."""
    shown = public_uri(uri)
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        filesystem.invalidate_cache()
        paths = [path]
        if not literal and _GLOB.search(path) and ("*" in path or not filesystem.exists(path)):
            paths = sorted(str(name) for name in filesystem.glob(path))
        with ThreadPoolExecutor(16) as threads:  # over http each file is a request
            details = list(threads.map(filesystem.info, paths))
    except FileNotFoundError as error:
        cause = f" ({_without_secrets(str(error.__cause__), uri)})" if error.__cause__ else ""
        raise ArchiveError(f"archive.uris: {shown} matches no file{cause}: check the path, or the address") from error
    except (ImportError, ValueError) as error:
        raise ArchiveError(f"archive.uris: {shown} cannot be opened: {error}. Is the protocol's package installed?") from error
    except transport_errors() as error:
        raise ArchiveError(f"archive.uris: {shown} cannot be reached: {_without_secrets(str(error), uri)}") from error
    files = [
        FoundFile(SourceFile(filesystem, name, public_uri(_full_uri(filesystem, name))), _facts(detail))
        for name, detail in zip(paths, details, strict=True)
        if detail["type"] == "file"
    ]
    if not files:
        hint = "it is a folder: name its files, as in" if len(paths) == 1 else "check the path; a glob looks like"
        raise ArchiveError(f"archive.uris: {shown} matches no file: {hint} {shown.split('*')[0].rstrip('/')}/*.parquet")
    return files


def _full_uri(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Local files by their absolute path, others with their protocol."""
    return path if "file" in filesystem.protocol else str(filesystem.unstrip_protocol(path))


def _without_secrets(text: str, uri: str) -> str:
    return text.replace(uri, public_uri(uri))


def _facts(detail: dict[str, Any]) -> dict[str, str | int]:
    """What tells one state of a file from another."""
    kept = ("size", "mtime", "ETag", "etag", "LastModified", "Last-Modified", "Content-MD5", "Digest")
    found = {key: detail[key] for key in kept if detail.get(key) is not None}
    return {key: value if isinstance(value, int) else str(value) for key, value in found.items()}


def _check_range(source_id: pa.ChunkedArray, first: int, stop: int, label: str) -> None:
    """Raises DataError for a source_id outside the range that the file's name tells."""
    bounds = pc.min_max(source_id).as_py()
    for value in bounds.values():
        if value is not None and not first <= value < stop:
            raise DataError(f"{label}: source_id {value} is outside the range of the file's name, {first} to {stop - 1}")


def _regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of TABLE_ROWS rows, the last one shorter; none that is empty."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        while sum(map(len, pending)) >= TABLE_ROWS:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, TABLE_ROWS).combine_chunks()
            pending = [joined.slice(TABLE_ROWS)]
    rest = pa.concat_tables(pending) if pending else None
    if rest is not None and len(rest):
        yield rest.combine_chunks()
