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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gaiadask.archive import Archive, Chunk, ChunkFile, Note, Plan
from gaiadask.archive.formats import csv_head, read_tables, reader_of, regrouped, transport_errors
from gaiadask.archive.selection import SOURCE_ID_STOP, HashLimit, apply, columns_of, needed_schema
from gaiadask.archive.transfer import SourceFile
from gaiadask.columns import COLUMNS, SOURCE_ID
from gaiadask.config import digest
from gaiadask.errors import ArchiveError, ConfigurationError, DataError
from gaiadask.sky import healpix_of_source_id

logger = logging.getLogger(__name__)

ORDER = 6
CHECKSUMS = "MD5SUM.txt"
_BULK_NAME = re.compile(r"GaiaSource_(\d+)_(\d+)\.csv\.gz$")
_CHECKSUM_LINE = re.compile(rb"^\\?([0-9a-fA-F]{32})\s+\*?(?:\./)?(\S.*?)\s*$", re.MULTILINE)
_SECRET = re.compile(r"(?i)^x-(amz|goog|ms)-|signature|token|secret|password|credential|key|^sig$|^auth|^expires$")
_GLOB = re.compile(r"[*?\[]")
_SAMPLED_FILES = 8
_SAMPLED_BYTES = 1 << 20
_LISTED_FILES = 1_000
"""An identity names so many files one by one; of more, it holds the number and a hash."""


@dataclass(frozen=True)
class FoundFile:
    """A file that a URI names: `facts` (its MD5, else size and time as far as the file system tells) change when it does.

    size: bytes, 0 where that is not known yet.
    """

    file: SourceFile
    facts: dict[str, str | int]
    size: int

    @property
    def uri(self) -> str:
        return self.file.label

    @property
    def bulk_range(self) -> tuple[int, int] | None:
        """Half-open range of source_id told by a bulk file's name."""
        return bulk_range(self.uri)

    @property
    def chunk_file(self) -> ChunkFile:
        return ChunkFile(self.uri, self.size, self.file.md5)


def bulk_range(uri: str) -> tuple[int, int] | None:
    """Half-open range of source_id told by the name of a file of the bulk download, None for other names."""
    match = _BULK_NAME.search(uri)
    return (int(match[1]), int(match[2]) + 1) if match else None


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
        schema, narrow = self._deciding_schema(), pa.schema([COLUMNS[SOURCE_ID].field])
        for table in read_tables(found.file, schema):
            yield apply(table, self.selection, narrow).column(SOURCE_ID).to_numpy()

    def _deciding_schema(self) -> pa.Schema:
        names = (SOURCE_ID, *self.selection.not_null_names, *columns_of(self.selection.where))
        return pa.schema([COLUMNS[name].field for name in dict.fromkeys(names)])

    def _estimate(self, bulk: list[FoundFile], pixels: int) -> _Estimate:
        """Rows a byte and the share that passes not_null come from the start of some of the files, with a tenth added.

        A file's stars are spread over its range. The condition `where` is taken to keep all, for it may single out a part of
        the sky. A file whose size is not known is taken to have the mean size of those that were looked at.
        """
        if not bulk:
            return _Estimate(np.zeros(pixels), np.zeros(0))
        schema, narrow = self._deciding_schema(), pa.schema([COLUMNS[SOURCE_ID].field])
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


# Finding files --------------------------------------------------------------------------------------------------------
def public_uri(uri: str) -> str:
    """The URI without user, password and signature."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET.search(name)]
    query = parts.query if len(kept) == len(parse_qsl(parts.query, keep_blank_values=True)) else urlencode(kept)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def _find(uri: str, timeout_s: float, *, literal: bool = False) -> list[FoundFile]:
    """The file at a URI, else (unless literal) the files that match it as a glob. Raises ArchiveError where there are none.

    literal: of a file that was found before; its checksum is not looked up.
    """
    shown = public_uri(uri)
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        filesystem.invalidate_cache()
        paths = [path]
        if not literal and _GLOB.search(path) and ("*" in path or not filesystem.exists(path)):
            paths = sorted(str(name) for name in filesystem.glob(path))
        files = [SourceFile(filesystem, name, public_uri(_full_uri(filesystem, name)), timeout_s=timeout_s) for name in paths]
        if not literal:
            files = _with_checksums(files)
        with ThreadPoolExecutor(16) as threads:  # over http each file is a request
            found = list(threads.map(_look_at, files))
    except FileNotFoundError as error:
        cause = f" ({_without_secrets(str(error.__cause__), uri)})" if error.__cause__ else ""
        raise ArchiveError(f"archive.uris: {shown} matches no file{cause}: check the path, or the address") from error
    except (ImportError, ValueError) as error:
        raise ArchiveError(f"archive.uris: {shown} cannot be opened: {error}. Is the protocol's package installed?") from error
    except transport_errors() as error:
        raise ArchiveError(f"archive.uris: {shown} cannot be reached: {_without_secrets(str(error), uri)}") from error
    if not any(found):
        hint = "it is a folder: name its files, as in" if len(paths) == 1 else "check the path; a glob looks like"
        raise ArchiveError(f"archive.uris: {shown} matches no file: {hint} {shown.split('*')[0].rstrip('/')}/*.parquet")
    return [file for file in found if file]


def _look_at(file: SourceFile) -> FoundFile | None:
    """None for a folder. Nothing is asked of a server for a file that its checksum identifies: there may be 61,234 of them."""
    if file.is_http and file.md5:
        return FoundFile(file, {"md5": file.md5}, 0)
    detail = file.filesystem.info(file.path)
    if detail["type"] != "file":
        return None
    facts = _facts(detail)
    return FoundFile(file, {"md5": file.md5} if file.md5 else facts, int(facts.get("size", 0)))


def _with_checksums(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files, with the MD5 that the list beside them tells of CSV files: those are streamed, so the check costs no reading."""
    told: dict[str, dict[str, str]] = {}

    def md5(file: SourceFile) -> str:
        if not _is_csv(file.name) or urlsplit(file.path).query:
            return ""
        beside = urljoin(file.path, CHECKSUMS) if file.is_http else f"{file.path.rpartition('/')[0]}/{CHECKSUMS}"
        if beside not in told:
            told[beside] = _read_checksums(file.filesystem, beside)
        return told[beside].get(file.name, "")

    return [replace(file, md5=md5(file)) for file in files]


def _is_csv(name: str) -> bool:
    return name.lower().endswith((".csv", ".csv.gz"))


def _read_checksums(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, str]:
    """MD5 by file name; empty where there is no such list."""
    try:
        content = bytes(filesystem.cat_file(path))
    except (FileNotFoundError, PermissionError):  # s3 refuses what is not there to users who may not list
        return {}
    return {name.decode(errors="replace").rpartition("/")[2]: md5.decode().lower() for md5, name in _CHECKSUM_LINE.findall(content)}


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
