"""A store: a folder of files at any fsspec URI, in which a file is whole or absent.

Locally a file is written beside its place, synced and renamed. On object stores it is made on local scratch and put in
one call, since a stream into such a store publishes what was written so far when an exception passes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from gaiadask.errors import MissingFileError, StoreError, StoreHeldError

log = logging.getLogger(__name__)

LEASE_S = 60.0
_PARTIAL = ".partial-"


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
        found = self.fs.find(root) if self.fs.exists(root) else []
        names = (str(f)[len(prefix) :] for f in found)
        return sorted(n for n in names if n.endswith(suffix) and _PARTIAL not in n)

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

    def _parsed(self, name: str, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise StoreError(f"{self.uri_of(name)} is not JSON ({error}): damaged from outside; remove it and run again") from error

    def read_jsons(self, names: Sequence[str]) -> Sequence[Any]:
        """Many JSON files in the order of `names`; from an object store at once, not one after the other."""
        if self.is_local or len(names) < 2:
            return [self.read_json(name) for name in names]
        try:
            found = self.fs.cat([self.path(name) for name in names])
        except OSError as error:
            raise StoreError(f"{self.uri_of(names[0])} and {len(names) - 1} more cannot be read: {error}") from error
        return [self._parsed(name, found[self.path(name)]) for name in names]

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
        scratch = target.with_name(f"{target.name}{_PARTIAL}{uuid.uuid4().hex[:8]}")
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
            for leftover in Path(self.path(folder)).rglob(f"*{_PARTIAL}*"):
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
            raise StoreError(
                f"{self.uri_of(name)} is not a whole parquet file: {error}. It was damaged from outside: restore it, or make "
                "it again with --replace and its stage"
            ) from error


@dataclass
class Lease:
    """The right to write below one folder, held by one process at a time and renewed by a thread while held.

    The lease file names host, process and time; one that was not renewed for `LEASE_S` seconds belonged to a writer
    that is dead, and is taken over.
    """

    store: Store
    name: str

    def __enter__(self) -> Lease:
        self._token = uuid.uuid4().hex
        self._acquire()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="gaiadask-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(StoreError):
            if self._holder().get("token") == self._token:
                self.store.remove(self.name)

    def _record(self) -> dict[str, Any]:
        return {"host": socket.gethostname(), "pid": os.getpid(), "renewed_unix_s": time.time(), "token": self._token}

    def _holder(self, name: str = "") -> dict[str, Any]:
        try:
            content = self.store.read_bytes(name or self.name)
        except MissingFileError:
            return {}
        try:
            return dict(json.loads(content))
        except ValueError as error:
            raise StoreHeldError(
                f"{self.store.uri_of(name or self.name)} is not JSON: another writer writes it this moment, or it was damaged from "
                "outside. Run again; remove it where that does not help and nothing else runs"
            ) from error

    def _acquire(self) -> None:
        holder = self._holder()
        if holder and not _is_dead(holder):
            age_s = time.time() - holder["renewed_unix_s"]
            raise StoreHeldError(
                f"{self.store.uri_of(self.name)} is held by process {holder['pid']} on {holder['host']}, renewed "
                f"{age_s:.0f} s ago: one writer at a time. Wait for it or stop it; a dead writer's lease ends after {LEASE_S:.0f} s"
            )
        if holder:
            self._take_over(holder)
        else:
            self._create_exclusively(self.name)

    def _take_over(self, dead: dict[str, Any]) -> None:
        claims: list[str] = []
        try:
            self._claim(dead, claims)
            if self._holder().get("token") != dead["token"]:
                raise self._lost(self.name)
            log.warning("taking over the lease %s of process %s on %s, which is dead", self.name, dead["pid"], dead["host"])
            self.store.write_json(self.name, self._record())
        finally:
            for claim in reversed(claims):
                self.store.remove(claim)

    def _claim(self, dead: dict[str, Any], claims: list[str]) -> None:
        """Of several that find the same dead writer one gets its lease: the one that creates the file named by its token.

        Who dies while it holds such a claim is itself a dead writer, with a token of its own. A claim that is created late,
        when the lease has been taken over and the first claim is gone, finds another token in the lease.
        """
        name = f"{self.name}.taking-{dead['token']}"
        try:
            self._create_exclusively(name)
        except StoreHeldError:
            claimant = self._holder(name)
            if not claimant or not _is_dead(claimant):
                raise
            self._claim(claimant, claims)
        claims.append(name)

    def _create_exclusively(self, name: str) -> None:
        content = json.dumps(self._record()).encode()
        path = Path(self.store.path(name))
        try:
            if not self.store.is_local:
                self.store.fs.pipe_file(str(path), content, mode="create")
                return
            with self._written_beside(path, content) as scratch:
                os.link(scratch, path)
        except FileExistsError as error:
            raise self._lost(name) from error
        except OSError as error:
            raise self._not_writable(error) from error

    @contextlib.contextmanager
    def _written_beside(self, path: Path, content: bytes) -> Iterator[Path]:
        scratch = Path(f"{path}{_PARTIAL}{self._token}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(content)
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            yield scratch
        finally:
            scratch.unlink()

    def _lost(self, name: str) -> StoreHeldError:
        return StoreHeldError(f"{self.store.uri_of(name)} was taken by another writer this moment; run again later")

    def _not_writable(self, error: OSError) -> StoreError:
        return StoreError(
            f"store {self.store.uri} is not writable: {error}. Make room, check the permissions, or name another store"
        )

    def _renew(self) -> None:
        while not self._released.wait(LEASE_S / 6):
            try:
                if self._holder().get("token") != self._token:
                    log.error("the lease %s was taken by another writer while this one seemed dead", self.name)
                    return
                self.store.write_json(self.name, self._record())
            except StoreError as error:
                log.warning("lease %s could not be renewed: %s", self.name, error)


def _is_dead(holder: dict[str, Any]) -> bool:
    if time.time() - holder["renewed_unix_s"] > LEASE_S:
        return True
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
