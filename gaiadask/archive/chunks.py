"""Chunks: the pieces in which an archive is asked for its stars; how counts are cut into them, and tables to a size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from gaiadask.records import JsonObject, Record

FileState = dict[str, str | int]
"""What tells one state of a file from another: its MD5, else the size, time and tags under the file system's own names."""


class ChunkFacts(Record):
    """What an archive notes about a chunk under way, so that another attempt can go on with it; in JSON without what is None."""

    job_url: str | None = Field(None, description="tap: the job that was asked for the chunk's rows")
    counted: int | None = Field(None, description="tap: rows that the service counted before")
    files: tuple[FileState, ...] | None = Field(None, description="files: URI and state of each file when it was read")

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: SerializerFunctionWrapHandler) -> JsonObject:
        return {name: value for name, value in serialize(self).items() if value is not None}


Note = Callable[[ChunkFacts], None]
"""Writes the facts about a chunk under way to the ledger, in place of the earlier ones, before they are relied on."""


class ChunkFile(NamedTuple):
    """A file of a chunk: its URI without credentials, and what the plan knows of it: bytes (0: unknown) and MD5 ("": unknown)."""

    uri: str
    size: int = 0
    md5: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the selection that is asked for, checked and retried as a whole.

    Args:
        name: unique within a plan, and part of file names.
        first, stop: half-open range of source_id (tap, mock; for files, the range in the file's name, else all ids).
        files: the files whose rows it holds (files), else none.
        expected_rows: selected rows in it where the plan knows them exactly, else None.
        hash_limit: with `selection.limit` (files, mock), the largest `split.sample_hash` of a star that the limit keeps, else
            None.
        random_index_limit: the same for tap: the largest random_index that the limit keeps, else None.
    """

    name: str
    first: int
    stop: int
    files: tuple[ChunkFile, ...] = ()
    expected_rows: int | None = None
    hash_limit: int | None = None
    random_index_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How the selection lies on the sky and the chunks that hold it.

    Args:
        order: HEALPix order of the histogram.
        histogram: shape (12 * 4**order,): rows by the HEALPix pixel of their source_id; exact or a close upper estimate, for it
            sizes the partitions.
        chunks: together they hold every selected row once.
    """

    order: int
    histogram: NDArray[np.int64]
    chunks: tuple[Chunk, ...]


# Runs of counts -------------------------------------------------------------------------------------------------------
class Run(NamedTuple):
    """Consecutive entries of a list of counts: half-open range of their numbers."""

    first: int
    stop: int


def runs_within(rows: NDArray[np.int64], most: int) -> list[Run]:
    """The longest runs whose rows add up to at most `most`; an entry that has more is a run of its own."""
    cumulative = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
    runs: list[Run] = []
    first = 0
    while first < len(rows):
        fitting = int(np.searchsorted(cumulative, cumulative[first] + most, side="right")) - 1
        runs.append(Run(first, max(first + 1, fitting)))
        first = runs[-1].stop
    return runs


def runs_about(rows: NDArray[np.int64] | NDArray[np.float64], aim: int, at: float = 0.0) -> list[Run]:
    """Runs whose rows add up to about `aim`: one starts at each entry that lies beyond another multiple of `aim` rows.

    at: which of an entry's rows says where it lies, as a share of them: 0 the first, 0.5 the middle one.
    """
    counts = np.asarray(rows, np.float64)
    run = (np.cumsum(counts) - (1 - at) * counts) // aim
    starts = np.flatnonzero(np.diff(run, prepend=-1)).tolist()
    return [Run(*bounds) for bounds in pairwise([*starts, len(rows)])]


# Tables of a size -----------------------------------------------------------------------------------------------------
def regrouped(tables: Iterable[pa.Table], rows: int, *, cut: bool = True) -> Iterator[pa.Table]:
    """The same rows in tables of at most `rows` rows, each column in one piece; none is empty.

    cut: all but the last have exactly `rows` rows; False: only tables that are too large themselves are cut.
    """
    pending: list[pa.Table] = []
    count = 0
    for table in tables:
        if not cut and count and count + len(table) > rows:
            yield pa.concat_tables(pending).combine_chunks()
            pending, count = [], 0
        pending.append(table)
        count += len(table)
        while count >= rows:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, rows).combine_chunks()
            pending, count = [joined.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(pending).combine_chunks()
