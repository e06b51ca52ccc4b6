"""Stars from files: paths, fsspec URIs (file, http, https, s3) and globs, in the formats of `files.formats`.

One file is one chunk. The plan reads every file once, of each only source_id and the columns that decide on the selection,
so that the rows it promises are exact. Files of the Gaia archive's bulk download are the exception: their names,
`GaiaSource_<first>_<last>.csv.gz`, carry the range of source_id, so that they are planned from names and sizes. They are many
and small: consecutive ones are put together into chunks of about `archive.chunk_rows` rows.

Where `MD5SUM.txt` lies beside CSV files, a file's checksum there is its identity, and is checked while the file is read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from gaiadask.archive.base import Archive, Identity, Known, SelectedIdentity
from gaiadask.archive.chunks import Chunk, ChunkFacts, ChunkFile, FileState, Note, Plan, regrouped, runs_about
from gaiadask.archive.files import content
from gaiadask.archive.files.find import ChecksumLists, FoundFile, bulk_range, find_all, find_files
from gaiadask.archive.files.formats import csv_head, read_tables, reader_of
from gaiadask.archive.files.same import ENDS, Named, states_beside, with_ends
from gaiadask.archive.files.transfer import file_name
from gaiadask.archive.selection import HashLimit, apply, columns_of, needed_schema
from gaiadask.checks import check_id_range, check_positions
from gaiadask.errors import ArchiveError, ConfigurationError
from gaiadask.keys import digest
from gaiadask.records import Record
from gaiadask.release.column import SOURCE_ID
from gaiadask.sky import SOURCE_ID_STOP, healpix_of_source_id

logger = logging.getLogger(__name__)

ORDER = 6
"""HEALPix order of the plan's histogram, of pixels of about a degree: tiles are no finer."""
_SAMPLED_FILES = 8
_SAMPLED_BYTES = 1 << 20
"""Bulk files are estimated from so many of them and so much of each: a few megabytes, seconds over http."""
_LISTED_FILES = 1_000
"""An identity names so many files one by one; of more, it holds the number and a hash."""


class ManyFiles(Record):
    """More files than an identity names one by one."""

    count: int = Field(description="number of files")
    first: FileState = Field(description="state of the first file")
    last: FileState = Field(description="state of the last file")
    digest: str = Field(description="hash of the states of all files")


class FilesIdentity(SelectedIdentity):
    """The files, and the selection."""

    files: tuple[FileState, ...] | ManyFiles = Field(description="URI and state of each file")


class _Estimate(NamedTuple):
    """Of bulk files that were not read: selected stars by pixel, shape (pixels,), and rows a file, shape (files,)."""

    histogram: NDArray[np.float64]
    rows: NDArray[np.float64]


@dataclass(frozen=True)
class FileArchive(Archive):
    """Files named by `config.uris`."""

    @property
    def source(self) -> str:
        """The first of the URIs, and how many there are."""
        uris = self.config.uris
        return ", ".join(uris[:3]) + (f", … ({len(uris)} URIs)" if len(uris) > 3 else "")

    def identity(self) -> FilesIdentity:
        """The state of each file, and the selection."""
        return self._identity([file.facts for file in self.find()])

    def identity_beside(self, recorded: Identity, known: Known) -> Identity:
        """The identity, compared with the one that a store records.

        A file of another time of change is the same where its content is. Once the catalogue is published, files may be gone.
        """
        found = {file.uri: file for file in (self._find_those_left() if known.published else self.find())}
        asked = self._identity([file.facts for file in found.values()])
        if asked.to_json() == recorded.to_json():
            return recorded
        read = known.states()
        states = {str(state["uri"]): state for state in _recorded_states(recorded, read)}
        now = states_beside(states, found, read)
        if known.published:
            named = Named(self.config.uris)
            now |= {uri: state for uri, state in states.items() if uri not in found and uri in named}
        asked = self._identity([now[uri] for uri in sorted(now, key=_place)])
        return recorded if asked.to_json() == recorded.to_json() else asked

    def _identity(self, states: Sequence[FileState]) -> FilesIdentity:
        files: tuple[FileState, ...] | ManyFiles = tuple(states)
        if len(states) > _LISTED_FILES:
            files = ManyFiles(count=len(states), first=states[0], last=states[-1], digest=digest(states))
        return FilesIdentity(
            kind="files",
            files=files,
            columns=self.selection.column_names,
            not_null=tuple(sorted(self.selection.not_null_names)),
            where=self.selection.where,
            limit=self.selection.limit,
        )

    def _find_those_left(self) -> list[FoundFile]:
        """The files as far as they are there and can be reached."""
        files: dict[str, FoundFile] = {}
        lists = ChecksumLists()
        for uri in self.config.uris:
            try:
                files |= {file.uri: file for file in find_files(uri, self.config.timeout_s, lists=lists)}
            except ArchiveError as error:
                logger.info("the catalogue is there, and taken as it is: %s", error)
        return sorted(files.values(), key=lambda file: _place(file.uri))

    def find(self) -> list[FoundFile]:
        """The files, each once: bulk files by their range, then the others by URI. Raises ArchiveError for a URI that names none."""
        if not self.config.uris:
            raise ConfigurationError("archive.kind is 'files' but archive.uris is empty: name the files")
        files = {file.uri: file for found in find_all(self.config.uris, self.config.timeout_s) for file in found}
        for file in files.values():
            reader_of(file.file.name)
        return sorted(files.values(), key=lambda file: _place(file.uri))

    def plan(self) -> Plan:
        """Chunks with exact counts; those of bulk files, and all under a limit, are estimates from above."""
        files = self.find()
        bulk = [file for file in files if file.bulk_range]
        histogram = np.zeros(12 * 4**ORDER, dtype=np.float64)
        smallest = HashLimit(self.selection.limit) if self.selection.limit else None
        estimate = self._estimate(bulk, len(histogram))
        read = files if smallest else [file for file in files if not file.bulk_range]
        rows: dict[str, int] = {}
        for number, file in enumerate(read, start=1):
            rows[file.uri] = 0
            for source_id in self._selected_ids(file):
                rows[file.uri] += len(source_id)
                histogram += np.bincount(healpix_of_source_id(source_id, ORDER), minlength=len(histogram))
                if smallest:
                    smallest.add(source_id)
            logger.info("planned %s (%d of %d files): %d stars selected", file.uri, number, len(read), rows[file.uri])
        hash_limit = None
        if smallest is None:
            histogram += estimate.histogram
        elif (total := sum(rows.values())) > self.selection.limit:
            # Hashes are uniform, so each pixel keeps the same share of its stars.
            histogram *= self.selection.limit / total
            hash_limit, rows = int(smallest.threshold), {}
        runs = runs_about(estimate.rows, self.config.chunk_rows, at=0.5)
        groups = [*(bulk[run.first : run.stop] for run in runs), *([file] for file in files if not file.bulk_range)]
        chunks = tuple(_chunk(group, rows, hash_limit) for group in groups)
        return Plan(ORDER, np.ceil(histogram).astype(np.int64), chunks)

    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        """The selected rows of the chunk's files, in tables of at most `content.TABLE_ROWS` rows.

        Raises:
            ArchiveError: a file is gone, not whole, of another size or checksum, or has other rows than were planned.
        """
        files = [self._find_again(planned) for planned in chunk.files]
        note(ChunkFacts(files=tuple(with_ends(file) for file in files)))
        rows = 0
        for table in regrouped((table for file in files for table in self._selected(file, chunk)), content.TABLE_ROWS):
            rows += len(table)
            yield table
        if chunk.expected_rows not in (None, rows):
            raise ArchiveError(
                f"{', '.join(file.uri for file in chunk.files)}: {rows} stars pass the selection, {chunk.expected_rows} did when "
                "it was planned: the file has changed meanwhile. Ingest into a new store"
            )

    def _find_again(self, planned: ChunkFile) -> FoundFile:
        """Raises ArchiveError where the file is gone or has another size than planned."""
        (file,) = find_files(planned.uri, self.config.timeout_s, literal=True)
        if planned.size and file.size and planned.size != file.size:
            raise ArchiveError(
                f"{planned.uri}: {file.size} bytes, it had {planned.size} when it was planned: the file has changed meanwhile. "
                "Ingest into a new store"
            )
        return replace(file, file=replace(file.file, md5=planned.md5))

    def _selected(self, file: FoundFile, chunk: Chunk) -> Iterator[pa.Table]:
        first, stop = file.bulk_range or (chunk.first, chunk.stop)
        for table in read_tables(file.file, needed_schema(self.selection)):
            check_id_range(table.column(SOURCE_ID).to_numpy(), first, stop, file.uri, "the file's name")
            selected = apply(table, self.selection, self.schema, chunk.hash_limit)
            check_positions(selected, file.uri)
            yield selected

    def _selected_ids(self, file: FoundFile) -> Iterator[NDArray[np.int64]]:
        """source_ids of the stars that pass not_null and where."""
        schema, narrow = self._deciding_schema(), self.release.schema([SOURCE_ID])
        for table in read_tables(file.file, schema):
            yield apply(table, self.selection, narrow).column(SOURCE_ID).to_numpy()

    def _deciding_schema(self) -> pa.Schema:
        names = (SOURCE_ID, *self.selection.not_null_names, *columns_of(self.selection.where, self.release))
        return self.release.schema(dict.fromkeys(names))

    def _estimate(self, bulk: list[FoundFile], pixels: int) -> _Estimate:
        """Rows a byte and the share that passes not_null come from the start of some of the files, with a tenth added.

        A file's stars are spread over its range. The condition `where` is assumed to select all stars, for it may select a
        part of the sky only. A file of unknown size is assumed to have the mean size of those that were read.
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
            sizes.append(file.size or self._find_again(file.chunk_file).size)
        size = np.array([file.size or np.mean(sizes) for file in bulk])
        histogram = np.zeros(pixels)
        for file, stars in zip(bulk, size * (1.1 * max(selected, 1) / taken), strict=True):
            _spread(histogram, file.bulk_range or (0, SOURCE_ID_STOP), float(stars))
        return _Estimate(histogram, size * (max(rows, 1) / taken))


def _place(uri: str) -> tuple[tuple[int, int], str]:
    """By which files are ordered: bulk files by their range, then the others by URI."""
    return bulk_range(uri) or (SOURCE_ID_STOP, 0), uri


def _recorded_states(recorded: Identity, read: Mapping[str, FileState]) -> Sequence[FileState]:
    """State of each file as an identity has it; where it has their number alone, as they were when they were read."""
    files = recorded.to_json().get("files")
    if isinstance(files, list):
        return cast(Sequence[FileState], files)
    states = [{name: value for name, value in read[uri].items() if name != ENDS} for uri in sorted(read, key=_place)]
    return states if isinstance(files, dict) and files.get("digest") == digest(states) else ()


# Chunks ---------------------------------------------------------------------------------------------------------------
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
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", file_name(uris[0])).strip("-")
    return f"{name[:64]}-{digest(uris[0] if len(uris) == 1 else list(uris))[:8]}"


def _spread(histogram: NDArray[np.float64], bounds: tuple[int, int], stars: float) -> None:
    """Add stars to the pixels of a source_id range, by their share of it."""
    first, stop = bounds
    width = SOURCE_ID_STOP // len(histogram)
    touched = np.arange(first // width, min(-(-stop // width), len(histogram)))
    overlap = np.minimum(stop, (touched + 1) * width) - np.maximum(first, touched * width)
    histogram[touched] += stars * overlap.astype(np.float64) / (stop - first)
