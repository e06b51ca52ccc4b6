"""A parquet file of a store, read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from gaiadask.errors import DamagedFileError
from gaiadask.store.attempts import Operation, attempt, may_pass, reason

R = TypeVar("R")

FOOTERS_AT_ONCE = 16
"""Files whose footers are read side by side: on an object store each is a request or two."""

_ROWS_FOR_THREADS = 8_192
"""A row group of fewer rows is read by one thread: waking others takes longer."""


class ParquetReader:
    """Reads a parquet file; opened anew where a read has failed and may go well.

    Each method raises StoreError where the file cannot be read, or is damaged.
    """

    def __init__(self, uri: str, opened: Callable[[], pq.ParquetFile], patience_s: float) -> None:
        self._uri, self._opened, self._patience_s = uri, opened, patience_s
        self._file: pq.ParquetFile | None = None
        self.metadata: pq.FileMetaData = self._read(lambda file: file.metadata)

    @cached_property
    def schema_arrow(self) -> pa.Schema:
        """The file's columns and key-value metadata."""
        return self._read(lambda file: file.schema_arrow)

    @property
    def num_row_groups(self) -> int:
        """Row groups of the file."""
        return int(self.metadata.num_row_groups)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole file, or some of its columns."""
        return self._read(lambda file: file.read(columns=_names(columns)))

    def read_row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group, or some of its columns."""
        threads = self.metadata.row_group(number).num_rows > _ROWS_FOR_THREADS
        return self._read(lambda file: file.read_row_group(number, columns=_names(columns), use_threads=threads))

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._file is not None:
            self._file.close(force=True)  # also what it was given to read from
            self._file = None

    def __enter__(self) -> ParquetReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, part: Callable[[pq.ParquetFile], R]) -> R:
        return attempt(Operation("read", self._uri), lambda: self._part(part), self._patience_s)

    def _part(self, part: Callable[[pq.ParquetFile], R]) -> R:
        try:
            self._file = self._file or self._opened()
            return part(self._file)
        except Exception as error:
            found = "is not a whole parquet file" if self._file is None else "is damaged"
            self._file = None
            # Arrow tells of damage by errors of its own, or by one of the operating system's type without its number.
            damaged = isinstance(error, pa.ArrowException) and not isinstance(error, MemoryError)
            if damaged or (type(error) is OSError and error.errno is None and not may_pass(error)):
                raise DamagedFileError(
                    f"{self._uri} {found}: {reason(error).rstrip('.')}. It was damaged from outside: run the stage that made it again, or "
                    "restore it"
                ) from error
            raise


def _names(columns: Sequence[str] | None) -> list[str] | None:
    return list(columns) if columns is not None else None
