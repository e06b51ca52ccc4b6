"""Where stars come from, behind one small interface: ask how they lie on the sky, cut into chunks, fetch a chunk.

An archive is small and picklable; workers fetch with copies of it. Rows come in the columns, order, types and units of
`Archive.schema`, with nulls as nulls (never NaN), and already selected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.columns import COLUMNS
from gaiadask.config import ArchiveConfig, SelectionConfig
from gaiadask.errors import ArchiveError

Note = Callable[[dict[str, Any]], None]
"""Writes facts about a chunk under way (a job's URL, say) to the ledger before they are relied on."""


class ChunkFile(NamedTuple):
    """A file of a chunk: its URI without credentials, and what the plan knows of it: bytes (0: unknown) and MD5 ("": unknown)."""

    uri: str
    size: int = 0
    md5: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the selection that is asked for, checked and retried as a whole.

    first, stop: half-open range of source_id (tap, mock; for files, bounds told by the file, else the whole id space).
    files: the files whose rows it holds (files), else none.
    expected_rows: selected rows in it where the plan knows them exactly, else None.
    hash_limit: with `selection.limit` (files, mock), the largest `split.sample_hash` of a star that the limit keeps, else None.
    random_index_limit: the same for tap: the largest random_index that the limit keeps, else None.
    """

    name: str
    first: int
    stop: int
    files: tuple[ChunkFile, ...] = ()
    expected_rows: int | None = None
    hash_limit: int | None = None
    random_index_limit: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(ChunkFile(*file) for file in self.files))  # JSON has lists


@dataclass(frozen=True, slots=True)
class Plan:
    """How the selection lies on the sky and the chunks that hold it.

    histogram: shape (12 * 4**order,): rows by the HEALPix pixel of their source_id; exact or a close upper estimate,
    for it sizes the partitions.
    """

    order: int
    histogram: NDArray[np.int64]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Archive(ABC):
    """One source of stars and the selection made from it."""

    config: ArchiveConfig
    selection: SelectionConfig

    @property
    def schema(self) -> pa.Schema:
        """Of every table fetched: the selected columns of the column table."""
        return pa.schema([COLUMNS[name].field for name in self.selection.column_names])

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the selected rows depend on, JSON-able, without secrets and without transport options."""

    @abstractmethod
    def plan(self) -> Plan:
        """Look at the archive and cut the selection into chunks. Raises ArchiveError or DataError."""

    @abstractmethod
    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        """The chunk's rows, in tables of bounded size.

        Raises ArchiveError where the rows are not certain to be all of the chunk's, ChunkTooLargeError where `split` may
        help, DataError where they are not what the column table says. Every row yielded has passed the selection.
        """

    def resume(self, chunk: Chunk, note: Note, known: Mapping[str, Any]) -> Iterator[pa.Table]:
        """`fetch`, going on with what an attempt that was cut off had noted (`known`, empty where there was none)."""
        return self.fetch(chunk, note)

    def split(self, chunk: Chunk) -> tuple[Chunk, ...]:
        """Smaller chunks that hold the chunk's rows, each once. Raises ArchiveError where it cannot be cut."""
        raise ArchiveError(f"chunk {chunk.name} cannot be cut into smaller ones")


def open_archive(config: ArchiveConfig, selection: SelectionConfig) -> Archive:
    """The archive that `config.kind` names."""
    if config.kind == "mock":
        from gaiadask.archive.mock import MockArchive

        return MockArchive(config, selection)
    if config.kind == "files":
        from gaiadask.archive.files import FileArchive

        return FileArchive(config, selection)
    from gaiadask.archive.tap import TapArchive

    return TapArchive(config, selection)
