"""Leases: the right to write below one folder of a store, of one process at a time.

The lease's file names the writer and is written once, by creation; a thread renews it meanwhile by writing a second file, whose
name has the writer's token: a writer that was stopped and wakes renews nothing of its successor's. How old a lease is, is asked of the
store (the time of its files, beside that of one written now): clocks of two machines are never compared.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, ValidationError

from gaiadask.errors import MissingFileError, StoreError, StoreHeldError
from gaiadask.records import Record
from gaiadask.store.files import Fence, Store

log = logging.getLogger(__name__)

LEASE_S = 60.0
"""A lease that was not renewed for so long belonged to a writer that is dead. Shorter would take leases from writers that a busy
machine or store delays; longer makes the successor of a killed run wait."""
_RENEWALS_A_LEASE = 6
"""Renewals in the time of a lease: several may fail before it is lost."""
_WATCHED_RENEWALS = 1.5
"""Renewals for which a writer is watched whose process is there although its lease is old."""
sleep = time.sleep  # for tests: waits that take no time


class LeaseRecord(Record):
    """Content of a lease's file."""

    host: str = Field(description="of the writer, for people; containers may share a name")
    pid: int = Field(description="of the writer")
    token: str = Field(description="names this lease of this writer")
    boot: str = Field("", description="names the running system of the writer's machine; empty where it has no such name")
    processes: str = Field("", description="names the process namespace in which the pid counts")
    started: str = Field("", description="when the process started, by its system: a pid is used again")
    renewed_unix_s: float | None = Field(None, description="by the writer's clock; of files of version 0.1, and not compared")

    @classmethod
    def of_this_process(cls, token: str) -> LeaseRecord:
        """This process's."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(), pid=pid, token=token, boot=_boot(), processes=_process_namespace(), started=_started(pid)
        )

    @property
    def writer_lives(self) -> bool | None:
        """Whether the writer's process runs; None where it cannot be seen from here."""
        if not self.boot or (self.boot, self.processes) != (_boot(), _process_namespace()):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's
            return True
        return _started(self.pid) == self.started


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _process_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    try:
        # After the name, which may hold blanks and parentheses: the 22nd field of the line.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


@dataclass
class Lease:
    """The right to write below one folder, of one process at a time, renewed by a thread meanwhile.

    One that was not renewed for `LEASE_S` seconds, or whose process is seen to have ended, belonged to a writer that is dead, and is
    taken over.

    Attributes:
        store: that the folder lies in.
        name: of the lease's file.
    """

    store: Store
    name: str

    def __enter__(self) -> Lease:
        self._token = uuid.uuid4().hex
        # Not behind fences: the lease is what a fence asks about.
        self._store = replace(self.store, fences=())
        self._acquire()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="gaiadask-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(StoreError):
            self._store.remove(self._renewals(self._token))
        with contextlib.suppress(StoreError):
            if self._is_mine():
                self._store.remove(self.name)

    @property
    def fenced(self) -> Store:
        """The store, for what is written while the lease is held: nothing is, any more, once another writer has taken it."""
        return self.store.behind(self.fence)

    @property
    def fence(self) -> Fence:
        """Compares the lease's token before each change of the store."""
        return Fence(lease=self.name, token=self._token)

    def _renewals(self, token: str) -> str:
        """Name of the file that the writer of this token writes at each renewal."""
        return f"{self.name}.renewed-{token}"

    # Taking it -------------------------------------------------------------------------------------------------------
    def _record(self) -> LeaseRecord:
        return LeaseRecord.of_this_process(self._token)

    def _holder(self, name: str = "") -> LeaseRecord | None:
        """The record of the writer that holds the lease, or another lease file; None where there is no such file."""
        name = name or self.name
        content = self._store.read_bytes_if_there(name)
        try:
            return None if content is None else LeaseRecord.model_validate_json(content)
        except ValidationError as error:
            raise StoreHeldError(
                f"{self._store.uri_of(name)} is not a lease: another writer writes it this moment, or it was damaged from outside. "
                "Run again; remove it where that does not help and nothing else runs"
            ) from error

    def _is_mine(self) -> bool:
        holder = self._holder()
        return holder is not None and holder.token == self._token

    def _acquire(self) -> None:
        holder = self._holder()
        if holder is None:
            self._create_exclusively(self.name)
            return
        age_s = self._age_s(self.name, holder)
        if self._is_dead(self.name, holder, age_s):
            self._take_over(holder)
            return
        raise StoreHeldError(
            f"{self._store.uri_of(self.name)} is held by process {holder.pid} on {holder.host}, renewed "
            f"{age_s:.0f} s ago: one writer at a time. Wait for it or stop it; a dead writer's lease ends after {LEASE_S:.0f} s"
        )

    def _age_s(self, name: str, holder: LeaseRecord) -> float:
        """Seconds since a lease was created or renewed, by the store's own clock."""
        store, clock = self._store, f"{self.name}.clock-{self._token}"
        renewed = []
        for file in (name, self._renewals(holder.token)):
            # Read first: where files' times are cached (NFS), opening a file brings its own up to date.
            if store.read_bytes_if_there(file) is not None:
                with contextlib.suppress(MissingFileError):
                    renewed.append(store.modified(file))
        store.write_bytes(clock, b"")
        try:
            now = store.modified(clock)
        finally:
            store.remove(clock)
        return (now - max(renewed, default=now)).total_seconds()

    def _is_dead(self, name: str, holder: LeaseRecord, age_s: float) -> bool:
        """Whether the writer is dead: its process has ended, or it has not renewed its lease in time."""
        lives = holder.writer_lives
        if lives and age_s > LEASE_S:
            # Its process is there. It was stopped, or hangs; or the clock has just been set, and its next renewal shows that it lives.
            sleep(_WATCHED_RENEWALS * LEASE_S / _RENEWALS_A_LEASE)
            return self._age_s(name, holder) > LEASE_S
        return lives is False or age_s > LEASE_S

    def _take_over(self, dead: LeaseRecord) -> None:
        claims: list[str] = []
        try:
            self._claim_succession(dead, claims)
            holder = self._holder()
            if holder is None or holder.token != dead.token:
                raise self._taken(self.name)
            log.warning("taking over the lease %s of process %s on %s, which is dead", self.name, dead.pid, dead.host)
            self._store.write_json(self.name, self._record().to_json())
            self._store.remove(self._renewals(dead.token))
        finally:
            for claim in reversed(claims):
                self._store.remove(claim)

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
            if claimant is None or not self._is_dead(name, claimant, self._age_s(name, claimant)):
                raise
            self._claim_succession(claimant, claims)
        claims.append(name)

    def _create_exclusively(self, name: str) -> None:
        try:
            self._store.create(name, self._record().model_dump_json().encode())
        except FileExistsError as error:
            holder = self._holder(name)
            if holder is None or holder.token != self._token:  # the answer to a creation may have been lost
                raise self._taken(name) from error
        except StoreError as error:
            raise StoreError(
                f"store {self._store.uri} is not writable: {error}. Make room, check the permissions, or name another store"
            ) from error

    def _taken(self, name: str) -> StoreHeldError:
        return StoreHeldError(f"{self._store.uri_of(name)} was taken by another writer this moment; run again later")

    # Holding it ------------------------------------------------------------------------------------------------------
    def _renew(self) -> None:
        # Tried for no longer than until the next renewal.
        store = replace(self._store, patience_s=LEASE_S / _RENEWALS_A_LEASE)
        while not self._released.wait(LEASE_S / _RENEWALS_A_LEASE):
            try:
                if not self._is_mine():
                    log.error("the lease %s was taken by another writer while this one seemed dead", self.name)
                    return
                store.write_json(self._renewals(self._token), {"unix_s": time.time()})
            except Exception as error:  # noqa: BLE001  whatever it is: a thread that ends here would lose the lease
                log.warning("lease %s could not be renewed: %s", self.name, error)
