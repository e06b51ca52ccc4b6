"""Chunks: the pieces in which an archive is asked for its stars, and the plan that holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
