"""Where stars come from, behind one small interface: ask how they lie on the sky, cut into chunks, fetch a chunk.

An archive is small and picklable; workers fetch with copies of it. Rows come in the columns, order, types and units of
`Archive.schema`, with nulls as nulls (never NaN), and already selected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gaiadask.archive.chunks import Chunk, Note, Plan
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.errors import ArchiveError
from gaiadask.release.release import Release


@dataclass(frozen=True)
class Archive(ABC):
    """One source of stars and the selection made from it."""

    config: ArchiveConfig
    selection: SelectionConfig

    @property
    def release(self) -> Release:
        """The data release that the stars are of."""
        return self.selection.release

    @property
    def schema(self) -> pa.Schema:
        """Of every table fetched: the selected columns of the column table."""
        return self.release.schema(self.selection.column_names)

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
        from gaiadask.archive.mock.archive import MockArchive

        return MockArchive(config, selection)
    if config.kind == "files":
        from gaiadask.archive.files.archive import FileArchive

        return FileArchive(config, selection)
    from gaiadask.archive.tap.archive import TapArchive

    return TapArchive(config, selection)
