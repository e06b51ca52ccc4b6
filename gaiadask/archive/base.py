"""Where stars come from, behind one small interface: ask how they lie on the sky, cut into chunks, fetch a chunk.

An archive is small and picklable; workers fetch with copies of it. Rows come in the columns, order, types and units of
`Archive.schema`, with nulls as nulls (never NaN), and already selected.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import pyarrow as pa
from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from gaiadask.archive.chunks import Chunk, ChunkFacts, FileState, Note, Plan
from gaiadask.archive.kinds import ARCHIVES
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.errors import ArchiveError
from gaiadask.records import JsonObject, Record
from gaiadask.release.release import Release


class Identity(Record):
    """What the selected rows of an archive depend on, without secrets and without transport options.

    Each kind of archive adds its fields in a subclass. Read from a store it is of this class, with the same JSON.
    """

    model_config = ConfigDict(extra="allow")

    kind: str = Field(description="of the archive")


class SelectedIdentity(Identity):
    """The identity of an archive that makes the whole selection; a subclass adds what the stars are selected from."""

    columns: tuple[str, ...] = Field(description="columns fetched")
    not_null: tuple[str, ...] = Field(description="columns in which every star has a value, sorted")
    where: str = Field(description="the condition")
    limit: int = Field(description="largest number of stars; 0: all")

    @model_serializer(mode="wrap")
    def _selection_last(self, serialize: SerializerFunctionWrapHandler) -> JsonObject:
        # As in every store so far: the kind, the fields of the subclass, the selection.
        selection = SelectedIdentity.model_fields.keys() - Identity.model_fields.keys()
        return dict(sorted(serialize(self).items(), key=lambda item: item[0] in selection))


class Known(NamedTuple):
    """What a store knows of the files that its catalogue is made from.

    Attributes:
        states: gives the state of each file when it was read, by its URI.
        published: whether all rows have come: what they came from is not needed any more.
    """

    states: Callable[[], Mapping[str, FileState]]
    published: bool


@dataclass(frozen=True)
class Archive(ABC):
    """One source of stars and the selection made from it.

    A new kind of archive is a subclass with `identity`, `plan` and `fetch`, and a line in `kinds.ARCHIVES`.

    Args:
        config: section [archive] of the configuration.
        selection: section [selection].
    """

    config: ArchiveConfig
    selection: SelectionConfig

    @property
    def release(self) -> Release:
        """The data release that the stars are of."""
        return self.selection.release

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of every fetched table: the selected columns."""
        return self.release.schema(self.selection.column_names)

    @property
    def title(self) -> str:
        """Name of the catalogue that is made from it."""
        return f"gaiadask {self.config.kind}"

    @property
    def source(self) -> str:
        """What the stars come from, for messages, in some words."""
        return self.title

    @property
    def jobs_at_once(self) -> int | None:
        """How many chunks may be fetched at once, over the whole cluster; None: as many as there are workers."""
        return None

    @abstractmethod
    def identity(self) -> Identity:
        """What the selected rows depend on: a store whose catalogue has another identity holds other stars."""

    def identity_beside(self, recorded: Identity, known: Known) -> Identity:
        """The identity, compared with the one that a store records.

        Returns:
            `recorded` where the archive gives the same rows, as far as it can be seen; else the archive's own, as like to it as
            is true.
        """
        return self.identity()

    @abstractmethod
    def plan(self) -> Plan:
        """Look at the archive and cut the selection into chunks.

        Returns:
            The chunks, and how many selected stars each part of the sky has.

        Raises:
            ArchiveError: the archive cannot be reached or refuses a query.
            DataError: its rows or columns are not what the column table says.
        """

    @abstractmethod
    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        """Fetch a chunk.

        Args:
            chunk: one of the plan's, or of those that `split` made of it.
            note: called with facts about the chunk under way, before they are relied on.

        Yields:
            Tables of bounded size; every row has passed the selection.

        Raises:
            ArchiveError: the rows are not certain to be all of the chunk's.
            ChunkTooLargeError: the same, and `split` may help.
            DataError: rows are not what the column table says.
        """

    def resume(self, chunk: Chunk, note: Note, known: ChunkFacts) -> Iterator[pa.Table]:
        """Resume an interrupted `fetch`; yields and raises what that does.

        Args:
            chunk, note: as for `fetch`.
            known: the facts that the earlier attempt noted, all None where there was none.
        """
        return self.fetch(chunk, note)

    def split(self, chunk: Chunk) -> tuple[Chunk, ...]:
        """Cut a chunk that is too large.

        Returns:
            Smaller chunks that together contain each of its rows once.

        Raises:
            ArchiveError: the chunk cannot be cut.
        """
        raise ArchiveError(f"chunk {chunk.name} cannot be cut into smaller ones")


def open_archive(config: ArchiveConfig, selection: SelectionConfig) -> Archive:
    """The archive that `config.kind` names.

    Args:
        config: section [archive] of the configuration.
        selection: section [selection].

    Returns:
        The archive; nothing has been asked of it yet.

    Raises:
        ConfigurationError: an option that this kind of archive cannot work with.

    >>> from gaiadask.config.toml import parse_config
    >>> config = parse_config({"archive": {"kind": "mock", "mock_stars": 1_000, "chunk_rows": 500}})
    >>> archive = open_archive(config.archive, config.selection)
    >>> [chunk.name for chunk in archive.plan().chunks]
    ['mock-00000', 'mock-00001']
    """
    module, _, name = ARCHIVES[config.kind].partition(":")
    return cast(Archive, getattr(importlib.import_module(module), name)(config, selection))
