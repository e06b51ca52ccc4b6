"""The right to write below one folder of a store, held by one process at a time."""

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
from gaiadask.store.files import Store, _PARTIAL, log


LEASE_S = 60.0


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
