"""A store: a folder of files at any fsspec URI, in which a file is whole or absent.

Locally a file is written beside its place, synced, renamed, and its folder synced. On object stores it is made on local scratch
and put in one call, since a stream into such a store publishes what was written so far when an exception passes. Every operation
passes through `attempts.attempt`: it is tried again while that may help, and ends in a StoreError.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from pydantic import Field, ValidationError

from gaiadask.errors import DamagedFileError, MissingFileError, StoreError, StoreHeldError
from gaiadask.records import Record, problems
from gaiadask.store.attempts import PATIENCE_S, Operation, attempt
from gaiadask.store.parquet import ParquetReader
from gaiadask.store.paths import CATALOGUE

RecordType = TypeVar("RecordType", bound=Record)
R = TypeVar("R")
_REMEDY = "restore it, or remove it and run again"
PARTIAL = ".partial-"
"""In the name of a file that is being written."""
_READ_BYTES = 1 << 22
"""Read at once for a checksum: large enough that requests to an object store do not dominate."""


class Fence(Record):
    """A lease that must still be its writer's whenever the store is changed."""

    lease: str = Field(description="name of the lease's file, relative to the store")
    token: str = Field(description="of the writer, in that file")


@dataclass(frozen=True)
class Store:
    """A store by its URI. Small and picklable: every worker opens its own file system.

    Attributes:
        uri: of the folder.
        fences: leases under which this writer works. Before each file appears or goes, their tokens are compared: a writer that
            was stopped, and whose lease another one has taken meanwhile, changes nothing any more.
        patience_s: for how long an operation is tried again.
        checksums: whether the checksum of each page of a parquet file is compared as it is read: where files are validated.
    """

    uri: str
    fences: tuple[Fence, ...] = field(default=(), compare=False)
    patience_s: float = field(default=PATIENCE_S, compare=False)
    checksums: bool = field(default=False, compare=False)

    @property
    def fs(self) -> AbstractFileSystem:
        """The file system; fsspec keeps one instance a process."""
        return self._opened()[0]

    @property
    def root(self) -> str:
        return str(self._opened()[1]).rstrip("/")

    def _opened(self) -> tuple[AbstractFileSystem, str]:
        try:
            return _opened(self.uri, os.getpid(), threading.get_ident())
        except (ImportError, ValueError) as error:
            raise StoreError(f"store {self.uri!r} cannot be opened: {error}. Is the protocol's package installed?") from error

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Path of a file within the file system (no protocol)."""
        return f"{self.root}/{name}" if name else self.root

    def uri_of(self, name: str) -> str:
        """Full URI of a file, as users and other libraries open it."""
        return f"{self.uri.rstrip('/')}/{name}"

    def reading(self, name: str, read: Callable[[], R]) -> R:
        """What `read` returns, which reads file or folder `name` by other means than this class; its errors become StoreErrors."""
        return self._attempt("read", name, read)

    # Looking ---------------------------------------------------------------------------------------------------------
    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder.

        Before anything is made anew or removed because a file is absent, read it instead (`read_record_if_there`): a listing,
        which tells of folders, may be old.

        Raises:
            StoreError: the store does not say.
        """
        try:
            self._attempt("look", name, lambda: self.fs.info(self.path(name)))
        except MissingFileError:
            return False
        return True

    def list(self, folder: str, suffix: str = "") -> list[str]:
        """Names (relative to the store) of the files below `folder`, sorted; unfinished ones are not files.

        Raises:
            StoreError: the folder, or one below it, cannot be listed; that is not taken for an empty one.
        """
        prefix = self.path("") + "/"
        try:
            files = self._attempt("list", folder, lambda: self._files_below(self.path(folder)))
        except MissingFileError:
            return []
        names = (file[len(prefix) :] for file in files)
        return sorted(n for n in names if n.endswith(suffix) and PARTIAL not in n)

    def _files_below(self, root: str) -> Sequence[str]:
        return _local_files(root) if self.is_local else list(self._sizes_below(root))

    def _sizes_below(self, root: str) -> dict[str, int]:
        """Bytes of each file below a folder, or of the file itself, by its path, as fsspec lists them."""
        # fsspec's own walk takes a folder that cannot be listed for an empty one, unless it is told not to.
        kind = type(self.fs)
        walks = kind.find is AbstractFileSystem.find and getattr(kind, "_find", AsyncFileSystem._find) is AsyncFileSystem._find
        found = self.fs.find(root, detail=True, **({"on_error": "raise"} if walks else {}))
        # Of a file that it is asked for itself, fsspec's walk tells nothing.
        return {str(file): int((detail or self.fs.info(file))["size"] or 0) for file, detail in found.items()}

    def size(self, name: str) -> int:
        """Bytes of a file, or of all files below a folder; 0 where there is none."""
        try:
            return self._attempt("look", name, lambda: self._bytes_below(self.path(name)))
        except MissingFileError:
            return 0

    def _bytes_below(self, root: str) -> int:
        if self.is_local:
            return sum(os.path.getsize(file) for file in _local_files(root) if PARTIAL not in file)
        # One listing, where asking for each file would be a request each.
        return sum(size for file, size in self._sizes_below(root).items() if PARTIAL not in file)

    def modified(self, name: str) -> datetime:
        """When the file was written last, by the store's own clock. Raises MissingFileError where it is missing."""
        return self._attempt("look", name, lambda: self.fs.modified(self.path(name)))

    # Reading ---------------------------------------------------------------------------------------------------------
    def read_bytes(self, name: str) -> bytes:
        """The file's content.

        Raises:
            MissingFileError: there is no such file.
            StoreError: it cannot be read.
        """
        return self._attempt("read", name, lambda: bytes(self.fs.cat_file(self.path(name))))

    def read_bytes_if_there(self, name: str) -> bytes | None:
        """The file's content, None where reading it says that it is missing: any other failure is an error."""
        try:
            return self.read_bytes(name)
        except MissingFileError:
            return None

    def read_json(self, name: str) -> Any:
        return self.parsed(name, self.read_bytes(name))

    def read_json_if_there(self, name: str) -> Any:
        """A JSON file's value, None where reading it says that it is missing: any other failure is an error."""
        content = self.read_bytes_if_there(name)
        return None if content is None else self.parsed(name, content)

    def read_record(self, name: str, kind: type[RecordType], remedy: str = _REMEDY) -> RecordType:
        """A JSON file as a record. Raises StoreError where it is missing, damaged, or not such a record; `remedy` ends it."""
        return self.as_record(name, self.read_json(name), kind, remedy)

    def read_record_if_there(self, name: str, kind: type[RecordType]) -> RecordType | None:
        """A JSON file as a record, None where reading it says that it is missing: any other failure is an error."""
        value = self.read_json_if_there(name)
        return None if value is None else self.as_record(name, value, kind)

    def as_record(self, name: str, value: Any, kind: type[RecordType], remedy: str = _REMEDY) -> RecordType:
        """The value of a JSON file as a record. Raises StoreError where it is not such a record; `remedy` ends it."""
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise StoreError(
                f"{self.uri_of(name)} is not a {kind.__name__} ({problems(error)[0]}): damaged from outside, or written by another "
                f"version; {remedy}"
            ) from error

    def parsed(self, name: str, text: bytes) -> Any:
        """The value of a JSON file's content. Raises DamagedFileError, naming the file, where it is no JSON."""
        try:
            return json.loads(text)
        except ValueError as error:
            raise DamagedFileError(
                f"{self.uri_of(name)} is not JSON ({error}): damaged from outside; remove it and run again"
            ) from error

    def read_records(self, names: Sequence[str], kind: type[RecordType]) -> Sequence[RecordType]:
        """Many JSON files as records, in the order of `names`."""
        return [self.as_record(name, value, kind) for name, value in zip(names, self.read_jsons(names), strict=True)]

    def read_jsons(self, names: Sequence[str]) -> Sequence[Any]:
        """Many JSON files in the order of `names`; from an object store at once, not one after the other."""
        if self.is_local or len(names) < 2:
            return [self.read_json(name) for name in names]
        content = self._attempt("read", names[0], lambda: self.fs.cat([self.path(name) for name in names]))
        return [self.parsed(name, content[self.path(name)]) for name in names]

    def sha256(self, name: str) -> str:
        """Checksum of a file, hex; a piece of it in memory at a time."""

        def digest() -> str:
            digester = hashlib.sha256()
            with self.fs.open(self.path(name), "rb") as file:
                while block := file.read(_READ_BYTES):
                    digester.update(block)
            return digester.hexdigest()

        return self._attempt("read", name, digest)

    def open_parquet(self, name: str) -> ParquetReader:
        """Open a parquet file. Raises StoreError where it is missing, truncated or not parquet."""
        try:
            return ParquetReader(self.uri_of(name), lambda: self._opened_parquet(self.path(name)), self.patience_s)
        except MissingFileError as error:
            maker = "`gaiadask ingest CONFIG`" if name.startswith(f"{CATALOGUE}/") else "what made it"
            raise MissingFileError(f"{error}: restore it, or make it again with {maker}") from error

    def _opened_parquet(self, path: str) -> pq.ParquetFile:
        if self.is_local:
            # Given a path, pyarrow first looks for the file system that it might be of, which takes as long as to read a small footer.
            return pq.ParquetFile(pa.OSFile(path), page_checksum_verification=self.checksums)
        # Arrow joins the ranges of the columns asked for and fetches them at once; fsspec's own read-ahead fetches them all.
        file = self.fs.open(path, "rb", cache_type="none")
        return pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=self.checksums)

    # Writing ---------------------------------------------------------------------------------------------------------
    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a whole file, or none. Raises StoreError where the store cannot be written."""
        with self.writing(name) as scratch:
            scratch.write_bytes(content)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local scratch path to write to; when the block ends well, the file appears at `name`, whole.

        Raises:
            StoreError: the store cannot be written.
            StoreHeldError: another writer has taken a lease of this one's; nothing was written.
        """
        with self._scratch(name) as scratch:
            try:
                yield scratch
                number = scratch.stat().st_ino
            except OSError as error:
                raise StoreError(
                    f"{self.uri_of(name)} cannot be written: {error}. Nothing was changed there; make room or check the "
                    "permissions, then run the same command again"
                ) from error
            self.check_fences()
            if self.is_local:
                self._attempt("write", name, partial(_replace, scratch, Path(self.path(name)), number), scratch)
                self._sync_folder(name)
            else:
                self._attempt("write", name, lambda: self.fs.put_file(str(scratch), self.path(name)), scratch)

    def create(self, name: str, content: bytes) -> None:
        """Write a file where there is none; of several writers one gets its file there.

        Raises:
            FileExistsError: there is one, or there was none and it is this one: an answer may have been lost on the way.
        """
        with self._scratch(name) as scratch:
            try:
                scratch.write_bytes(content)
            except OSError as error:
                raise StoreError(f"{self.uri_of(name)} cannot be written: {error}") from error
            link = partial(_link, scratch, Path(self.path(name)))
            pipe = partial(self.fs.pipe_file, self.path(name), content, mode="create")
            try:
                self._attempt("create", name, link if self.is_local else pipe, scratch)
            except StoreError as error:
                if isinstance(error.__cause__, FileExistsError):
                    raise error.__cause__ from error
                raise
            self._sync_folder(name)

    @contextlib.contextmanager
    def _scratch(self, name: str) -> Iterator[Path]:
        """A local path, to be written, beside the file's own place where that is local."""
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="gaiadask-") as folder:
                yield Path(folder) / "file"
            return
        target = Path(self.path(name))
        self._attempt("folder", name, partial(_make_folder, target.parent))
        scratch = target.with_name(f"{target.name}{PARTIAL}{uuid.uuid4().hex[:8]}")
        try:
            yield scratch
        finally:
            with contextlib.suppress(OSError):  # what is left is swept
                scratch.unlink(missing_ok=True)

    def _sync_folder(self, name: str) -> None:
        if self.is_local:
            self._attempt("sync", name, partial(_sync, Path(self.path(name)).parent))

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if there.

        Raises:
            StoreError: it cannot be removed.
            StoreHeldError: another writer has taken a lease of this one's; nothing was removed.
        """
        self.check_fences()
        path = self.path(name)
        remove = partial(_remove_local, Path(path)) if self.is_local else partial(self.fs.rm, path, recursive=True)
        with contextlib.suppress(MissingFileError):
            self._attempt("remove", name, remove)
            self._sync_folder(name)

    def sweep(self, folder: str) -> None:
        """Remove what killed writers left half-written below `folder`; only under the lease."""
        self.check_fences()
        if self.is_local:
            with contextlib.suppress(MissingFileError):
                self._attempt("remove", folder, partial(_sweep, self.path(folder)))

    # Fences ----------------------------------------------------------------------------------------------------------
    def behind(self, fence: Fence) -> Store:
        """The same store for a writer that holds one more lease."""
        return replace(self, fences=(*self.fences, fence))

    def check_fences(self) -> None:
        """Raise StoreHeldError where a lease of this writer's has been taken by another one."""
        for fence in self.fences:
            record = self.read_json_if_there(fence.lease)
            if not isinstance(record, dict) or record.get("token") != fence.token:
                raise StoreHeldError(
                    f"{self.uri_of(fence.lease)} was taken by another writer while this one seemed dead (it was stopped, or could "
                    "not reach the store for a minute): nothing more was written. Run again when the other one has ended"
                )

    def _attempt(self, kind: Any, name: str, call: Callable[[], R], source: Path | None = None) -> R:
        def fresh() -> R:
            # Object stores' listings are cached by fsspec; another process may have written since.
            self.fs.invalidate_cache()
            return call()

        return attempt(Operation(kind, self.uri_of(name), source), fresh, self.patience_s)


@lru_cache(maxsize=256)
def _opened(uri: str, *_: int) -> tuple[AbstractFileSystem, str]:
    """File system and path of a URI: asked for at each operation, and dear. fsspec itself keeps an instance a process and thread, which
    are given for that."""
    return fsspec.core.url_to_fs(uri)


# The local file system ------------------------------------------------------------------------------------------------
def _local_files(root: str) -> list[str]:
    """Every file below a folder, or the file itself. Raises OSError where a folder cannot be listed."""

    def failed(error: OSError) -> None:
        # One that was there a moment ago, and is gone, has no files.
        if not isinstance(error, FileNotFoundError) or error.filename == root:
            raise error

    if os.path.isfile(root):
        return [root]
    return [f"{folder}/{name}" for folder, _, names in os.walk(root, onerror=failed, followlinks=True) for name in names]


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each synced into the one above."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        _sync(each.parent)


def _replace(scratch: Path, target: Path, number: int) -> None:
    """Put a file, synced, in its place. number: the file's own, by which it is known where this has been done already."""
    try:
        _sync_file(scratch)
        os.replace(scratch, target)
    except FileNotFoundError:
        if not target.exists() or target.stat().st_ino != number:
            raise


def _link(scratch: Path, target: Path) -> None:
    """Put a file, synced, where there is none."""
    _sync_file(scratch)
    os.link(scratch, target)


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that knows no such thing
            raise
    finally:
        os.close(descriptor)


def _remove_local(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sweep(root: str) -> None:
    for file in _local_files(root):
        if PARTIAL in os.path.basename(file):
            Path(file).unlink(missing_ok=True)
