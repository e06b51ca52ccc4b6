"""Leases: the right to write below one folder of a store, of one process at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from gaiadask.errors import MissingFileError, StoreError, StoreHeldError
from gaiadask.records import Record
from gaiadask.store.files import PARTIAL, Store

log = logging.getLogger(__name__)

LEASE_S = 60.0
"""A lease that was not renewed for so long belonged to a writer that is dead. Shorter would take leases from writers that a busy
machine or store delays; longer makes the successor of a killed run wait."""
_RENEWALS_A_LEASE = 6
"""Renewals in the time of a lease: several may fail before it is lost."""


class LeaseRecord(Record):
    """Content of a lease's file."""

    host: str = Field(description="of the writer")
    pid: int = Field(description="of the writer")
    renewed_unix_s: float = Field(description="when the lease was created or last renewed")
    token: str = Field(description="names this lease of this writer")

    @property
    def is_dead(self) -> bool:
        """Whether the writer is dead: not renewed in time, or of this machine and without its process."""
        if time.time() - self.renewed_unix_s > LEASE_S:
            return True
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


@dataclass
class Lease:
    """The right to write below one folder, of one process at a time, renewed by a thread meanwhile.

    The lease file names host, process and time; one that was not renewed for `LEASE_S` seconds belonged to a writer
    that is dead, and is taken over.

    Attributes:
        store: that the folder lies in.
        name: of the lease's file.
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
            if self._is_mine():
                self.store.remove(self.name)

    def _record(self) -> LeaseRecord:
        return LeaseRecord(host=socket.gethostname(), pid=os.getpid(), renewed_unix_s=time.time(), token=self._token)

    def _write_record(self) -> None:
        self.store.write_json(self.name, self._record().to_json())

    def _holder(self, name: str = "") -> LeaseRecord | None:
        """The record of the writer that holds the lease, or another lease file; None where there is no such file."""
        name = name or self.name
        try:
            return LeaseRecord.model_validate_json(self.store.read_bytes(name))
        except MissingFileError:
            return None
        except ValidationError as error:
            raise StoreHeldError(
                f"{self.store.uri_of(name)} is not a lease: another writer writes it this moment, or it was damaged from outside. "
                "Run again; remove it where that does not help and nothing else runs"
            ) from error

    def _is_mine(self) -> bool:
        holder = self._holder()
        return holder is not None and holder.token == self._token

    def _acquire(self) -> None:
        holder = self._holder()
        if holder is None:
            self._create_exclusively(self.name)
        elif holder.is_dead:
            self._take_over(holder)
        else:
            age_s = time.time() - holder.renewed_unix_s
            raise StoreHeldError(
                f"{self.store.uri_of(self.name)} is held by process {holder.pid} on {holder.host}, renewed "
                f"{age_s:.0f} s ago: one writer at a time. Wait for it or stop it; a dead writer's lease ends after {LEASE_S:.0f} s"
            )

    def _take_over(self, dead: LeaseRecord) -> None:
        claims: list[str] = []
        try:
            self._claim_succession(dead, claims)
            holder = self._holder()
            if holder is None or holder.token != dead.token:
                raise self._taken(self.name)
            log.warning("taking over the lease %s of process %s on %s, which is dead", self.name, dead.pid, dead.host)
            self._write_record()
        finally:
            for claim in reversed(claims):
                self.store.remove(claim)

    def _claim_succession(self, dead: LeaseRecord, claims: list[str]) -> None:
        """Of several that find the same dead writer one gets its lease: the one that creates the file named by its token.

        Who dies while it holds such a claim is itself a dead writer, with a token of its own. A claim that is created late,
        when the lease has been taken over and the first claim is gone, finds another token in the lease.
        """
        name = f"{self.name}.taking-{dead.token}"
        try:
            self._create_exclusively(name)
        except StoreHeldError:
            claimant = self._holder(name)
            if claimant is None or not claimant.is_dead:
                raise
            self._claim_succession(claimant, claims)
        claims.append(name)

    def _create_exclusively(self, name: str) -> None:
        content = self._record().model_dump_json().encode()
        path = Path(self.store.path(name))
        try:
            if not self.store.is_local:
                self.store.fs.pipe_file(str(path), content, mode="create")
                return
            with self._written_beside(path, content) as scratch:
                os.link(scratch, path)
        except FileExistsError as error:
            raise self._taken(name) from error
        except OSError as error:
            raise self._not_writable(error) from error

    @contextlib.contextmanager
    def _written_beside(self, path: Path, content: bytes) -> Iterator[Path]:
        scratch = Path(f"{path}{PARTIAL}{self._token}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(content)
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            yield scratch
        finally:
            scratch.unlink()

    def _taken(self, name: str) -> StoreHeldError:
        return StoreHeldError(f"{self.store.uri_of(name)} was taken by another writer this moment; run again later")

    def _not_writable(self, error: OSError) -> StoreError:
        return StoreError(
            f"store {self.store.uri} is not writable: {error}. Make room, check the permissions, or name another store"
        )

    def _renew(self) -> None:
        while not self._released.wait(LEASE_S / _RENEWALS_A_LEASE):
            try:
                if not self._is_mine():
                    log.error("the lease %s was taken by another writer while this one seemed dead", self.name)
                    return
                self._write_record()
            except StoreError as error:
                log.warning("lease %s could not be renewed: %s", self.name, error)
