"""A store: a folder of files at any fsspec URI, in which a file is whole or absent.

Locally a file is written beside its place, synced and renamed. On object stores it is made on local scratch and put in
one call, since a stream into such a store publishes what was written so far when an exception passes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from gaiadask.errors import DamagedFileError, MissingFileError, StoreError
from gaiadask.records import Record, problems

log = logging.getLogger(__name__)

RecordType = TypeVar("RecordType", bound=Record)
_REMEDY = "restore it, or remove it and run again"
PARTIAL = ".partial-"
"""In the name of a file that is being written."""


def absolute_uri(uri: str) -> str:
    """The URI; a path of this machine made absolute, for workers may run in another folder. Links are not followed."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


@dataclass(frozen=True)
class Store:
    """A store by its URI. Small and picklable: every worker opens its own file system."""

    uri: str

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system; fsspec keeps one instance a process."""
        try:
            return fsspec.core.url_to_fs(self.uri)[0]
        except (ImportError, ValueError) as error:
            raise StoreError(f"store {self.uri!r} cannot be opened: {error}. Is the protocol's package installed?") from error

    @property
    def root(self) -> str:
        return str(fsspec.core.url_to_fs(self.uri)[1]).rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Path of a file within the file system (no protocol)."""
        return f"{self.root}/{name}" if name else self.root

    def uri_of(self, name: str) -> str:
        """Full URI of a file, as users and other libraries open it."""
        return f"{self.uri.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        self._fresh()
        return bool(self.fs.exists(self.path(name)))

    def list(self, folder: str, suffix: str = "") -> list[str]:
        """Names (relative to the store) of the files below `folder`, sorted; unfinished ones are not files."""
        self._fresh()
        root, prefix = self.path(folder), self.path("") + "/"
        files = self.fs.find(root) if self.fs.exists(root) else []
        names = (str(file)[len(prefix) :] for file in files)
        return sorted(n for n in names if n.endswith(suffix) and PARTIAL not in n)

    def size(self, name: str) -> int:
        """Bytes of a file, or of all files below a folder; 0 where there is none."""
        self._fresh()
        return sum(int(self.fs.size(self.path(n)) or 0) for n in self.list(name))

    def read_bytes(self, name: str) -> bytes:
        """The file's content. Raises StoreError where it is missing or cannot be read."""
        try:
            return bytes(self.fs.cat_file(self.path(name)))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(f"{self.uri_of(name)}: no such file") from error
        except OSError as error:
            raise StoreError(f"{self.uri_of(name)} cannot be read: {error}") from error

    def read_json(self, name: str) -> Any:
        return self._parsed(name, self.read_bytes(name))

    def read_record(self, name: str, kind: type[RecordType], remedy: str = _REMEDY) -> RecordType:
        """A JSON file as a record. Raises StoreError where it is missing, damaged, or not such a record; `remedy` ends it."""
        return self._as_record(name, self.read_json(name), kind, remedy)

    def _as_record(self, name: str, value: Any, kind: type[RecordType], remedy: str = _REMEDY) -> RecordType:
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise StoreError(
                f"{self.uri_of(name)} is not a {kind.__name__} ({problems(error)[0]}): damaged from outside, or written by another "
                f"version; {remedy}"
            ) from error

    def _parsed(self, name: str, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise DamagedFileError(
                f"{self.uri_of(name)} is not JSON ({error}): damaged from outside; remove it and run again"
            ) from error

    def read_records(self, names: Sequence[str], kind: type[RecordType]) -> Sequence[RecordType]:
        """Many JSON files as records, in the order of `names`."""
        return [self._as_record(name, value, kind) for name, value in zip(names, self.read_jsons(names), strict=True)]

    def read_jsons(self, names: Sequence[str]) -> Sequence[Any]:
        """Many JSON files in the order of `names`; from an object store at once, not one after the other."""
        if self.is_local or len(names) < 2:
            return [self.read_json(name) for name in names]
        try:
            content = self.fs.cat([self.path(name) for name in names])
        except OSError as error:
            raise StoreError(f"{self.uri_of(names[0])} and {len(names) - 1} more cannot be read: {error}") from error
        return [self._parsed(name, content[self.path(name)]) for name in names]

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a whole file, or none. Raises StoreError where the store cannot be written."""
        with self.writing(name) as scratch:
            scratch.write_bytes(content)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local scratch path to write to; when the block ends well, the file appears at `name`, whole."""
        try:
            if self.is_local:
                yield from self._write_beside(Path(self.path(name)))
            else:
                with tempfile.TemporaryDirectory(prefix="gaiadask-") as folder:
                    scratch = Path(folder) / "file"
                    yield scratch
                    self.fs.put_file(str(scratch), self.path(name))
        except OSError as error:
            raise StoreError(
                f"{self.uri_of(name)} cannot be written: {error}. Nothing was changed there; make room or "
                "check the permissions, then run the same command again"
            ) from error

    @staticmethod
    def _write_beside(target: Path) -> Iterator[Path]:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f"{target.name}{PARTIAL}{uuid.uuid4().hex[:8]}")
        try:
            yield scratch
            with open(scratch, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if there."""
        self._fresh()
        if self.fs.exists(self.path(name)):
            try:
                self.fs.rm(self.path(name), recursive=True)
            except OSError as error:
                raise StoreError(f"{self.uri_of(name)} cannot be removed: {error}") from error

    def sweep(self, folder: str) -> None:
        """Remove what killed writers left half-written below `folder`; only under the lease."""
        if self.is_local:
            for leftover in Path(self.path(folder)).rglob(f"*{PARTIAL}*"):
                leftover.unlink(missing_ok=True)

    def _fresh(self) -> None:
        # Object stores' listings are cached by fsspec; another process may have written since.
        self.fs.invalidate_cache()

    # Parquet ---------------------------------------------------------------------------------------------------------
    def open_parquet(self, name: str) -> pq.ParquetFile:
        """Open a parquet file. Raises StoreError where it is missing, truncated or not parquet."""
        try:
            if self.is_local:
                return pq.ParquetFile(self.path(name))
            # Arrow joins the ranges of the columns asked for and fetches them at once; fsspec's own read-ahead fetches them all.
            return pq.ParquetFile(self.fs.open(self.path(name), "rb", cache_type="none"), pre_buffer=True)
        except FileNotFoundError as error:
            raise MissingFileError(f"{self.uri_of(name)}: no such file") from error
        except (OSError, pa.ArrowInvalid) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the store's, not arrow's
                raise StoreError(f"{self.uri_of(name)} cannot be read: {error}") from error
            raise DamagedFileError(
                f"{self.uri_of(name)} is not a whole parquet file: {error}. It was damaged from outside: run the stage that made "
                "it again, or restore it"
            ) from error
