"""A store's files are whole or absent, and one writer holds it at a time."""

from __future__ import annotations

import datetime
import errno
import hashlib
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gaiadask.errors import MissingFileError, StoreError, StoreHeldError
from gaiadask.records import Record
from gaiadask.store import attempts
from gaiadask.store import lease as store_module
from gaiadask.store.artifact import Artifact
from gaiadask.store.attempts import Operation
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease
from gaiadask.store.placing import Placing
from gaiadask.uris import absolute_uri


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture(params=["local", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A folder, and an object store's semantics (no rename, put in one call)."""
    return Store(str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}")


def test_json_comes_back(any_store: Store) -> None:
    value = {"rows": 3, "name": "ϖ", "nested": [1.5, None]}
    any_store.write_json("a/b.json", value)
    assert any_store.read_json("a/b.json") == value
    assert any_store.list("a") == ["a/b.json"]
    assert any_store.exists("a/b.json")


def test_a_write_that_fails_leaves_the_old_file(any_store: Store) -> None:
    any_store.write_bytes("file", b"old")
    with pytest.raises(RuntimeError, match="midway"), any_store.writing("file") as scratch:
        scratch.write_bytes(b"new, but not all of i")
        raise RuntimeError("midway")
    assert any_store.read_bytes("file") == b"old"
    assert any_store.list("") == ["file"]


def test_files_of_one_piece_of_work_are_synced_side_by_side(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    together, sync = threading.Barrier(4), os.fsync

    def waits_for_others(number: int) -> None:
        if not stat.S_ISDIR(os.fstat(number).st_mode):
            together.wait(20)
        sync(number)

    monkeypatch.setattr(os, "fsync", waits_for_others)
    with Placing(store) as placing:
        for name in "abcd":
            with placing.writing(name) as scratch:
                scratch.write_text(name)
    assert [store.read_bytes(name) for name in store.list("")] == [b"a", b"b", b"c", b"d"]


def test_a_file_that_cannot_be_put_in_its_place_is_told_and_the_others_are_whole(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    perform = attempts.perform

    def full(operation: Operation, call: Callable[[], Any]) -> Any:
        if operation.kind == "write" and operation.where.endswith("/b"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return perform(operation, call)

    monkeypatch.setattr(attempts, "perform", full)
    with pytest.raises(StoreError, match=r"/b cannot be written: .*No space"), Placing(any_store) as placing:
        for name in "abc":
            with placing.writing(name) as scratch:
                scratch.write_text(name)
    assert any_store.list("") == ["a", "c"]


def test_work_that_fails_leaves_what_it_had_written_whole_and_no_more(any_store: Store) -> None:
    with pytest.raises(RuntimeError, match="midway"), Placing(any_store) as placing:
        with placing.writing("a") as scratch:
            scratch.write_text("a")
        with placing.writing("b") as scratch:
            scratch.write_text("half")
            raise RuntimeError("midway")
    assert any_store.list("") == ["a"]
    if any_store.is_local:
        assert os.listdir(any_store.root) == ["a"]


def test_removing_what_is_not_there_is_no_error(any_store: Store) -> None:
    any_store.remove("nothing")
    any_store.write_bytes("folder/file", b"x")
    any_store.remove("folder")
    assert not any_store.exists("folder/file")


def test_a_missing_or_damaged_file_is_named(store: Store) -> None:
    with pytest.raises(StoreError, match=r"missing\.json: no such file"):
        store.read_json("missing.json")
    store.write_bytes("broken.json", b"{")
    with pytest.raises(StoreError, match=r"broken\.json is not JSON"):
        store.read_json("broken.json")
    store.write_bytes("broken.parquet", b"PAR1 and no more")
    with pytest.raises(StoreError, match=r"broken\.parquet is not a whole parquet file"):
        store.open_parquet("broken.parquet")


def test_an_unknown_protocol_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match="nosuch://"):
        Store("nosuch://bucket/store").exists("x")


def test_a_full_disk_is_an_error_with_a_remedy(store: Store) -> None:
    with pytest.raises(StoreError, match="make room"), store.writing("file"):
        raise OSError(28, "No space left on device")
    assert not store.exists("file")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc, which not even root can write to")
def test_a_read_only_store_is_an_error_with_a_remedy() -> None:
    store = Store("/proc/gaiadask")
    with pytest.raises(StoreError, match="check the permissions"):
        store.write_bytes("file", b"x")
    with pytest.raises(StoreError, match="not writable"), Lease(store, "lease.json"):
        pass


def test_a_path_through_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(str(tmp_path / "file")).write_bytes("x", b"x")
    with pytest.raises(StoreError, match="not writable"), Lease(Store(str(tmp_path / "file")), "lease.json"):
        pass


def test_sweep_removes_what_a_killed_writer_left(store: Store) -> None:
    store.write_bytes("a/whole", b"x")
    leftover = Path(store.path("a/whole.partial-0badcafe"))
    leftover.write_bytes(b"half")
    assert store.list("") == ["a/whole"]
    store.sweep("")
    assert not leftover.exists()
    assert store.read_bytes("a/whole") == b"x"


def test_a_second_writer_is_refused_by_name(any_store: Store) -> None:
    with (
        Lease(any_store, "lease.json"),
        pytest.raises(StoreHeldError, match=f"process {os.getpid()}"),
        Lease(any_store, "lease.json"),
    ):
        pass
    assert not any_store.exists("lease.json")
    with Lease(any_store, "lease.json"):
        pass


def test_a_dead_process_holds_nothing(store: Store) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    with Lease(store, "lease.json") as lease:
        record = lease._record().model_copy(update={"pid": dead.pid, "token": "another"})
    store.write_json("lease.json", record.to_json())
    with Lease(store, "lease.json"):
        assert store.read_json("lease.json")["pid"] == os.getpid()


def age(store: Store, name: str, seconds: float) -> None:
    """Let a file have been written so long ago, by the store's clock."""
    if store.is_local:
        then = time.time() - seconds
        os.utime(store.path(name), (then, then))
    else:
        file = store.fs.store[store.fs._strip_protocol(store.path(name))]
        file.modified -= datetime.timedelta(seconds=seconds)


ELSEWHERE = {"host": "elsewhere", "pid": 1, "token": "another"}


@pytest.mark.parametrize("clock_s", [-90.0, 0.0, 90.0])
def test_a_lease_of_another_host_ends_when_it_is_not_renewed_whatever_its_clock_says(any_store: Store, clock_s: float) -> None:
    # As version 0.1 wrote it, with its own clock's time.
    any_store.write_json("lease.json", ELSEWHERE | {"renewed_unix_s": time.time() + clock_s})
    age(any_store, "lease.json", 50)
    with pytest.raises(StoreHeldError, match="elsewhere, renewed 50 s ago"), Lease(any_store, "lease.json"):
        pass
    age(any_store, "lease.json", 2 * store_module.LEASE_S)
    with Lease(any_store, "lease.json"):
        pass
    assert any_store.list("") == []


def test_a_lease_is_as_old_as_its_last_renewal(any_store: Store) -> None:
    any_store.write_json("lease.json", ELSEWHERE)
    any_store.write_json("lease.json.renewed-another", {})
    age(any_store, "lease.json", 1_000)
    with pytest.raises(StoreHeldError, match="renewed 0 s ago"), Lease(any_store, "lease.json"):
        pass
    age(any_store, "lease.json.renewed-another", 1_000)
    with Lease(any_store, "lease.json"):
        assert any_store.list("") == ["lease.json"]


def test_a_process_is_known_by_its_system_and_its_namespace_not_by_its_hosts_name(store: Store) -> None:
    """A container may have the same host name, and its process 1 is another one."""
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    with Lease(store, "lease.json") as lease:
        record = lease._record().model_copy(update={"pid": dead.pid, "token": "another"})
    assert record.boot and record.processes and record.started
    for unseen in ({"boot": "another"}, {"processes": "pid:[1]"}, {"boot": ""}):
        store.write_json("lease.json", record.model_copy(update=unseen).to_json())
        with pytest.raises(StoreHeldError, match="one writer at a time"), Lease(store, "lease.json"):
            pass
    reused = record.model_copy(update={"pid": os.getpid(), "started": "1"})
    store.write_json("lease.json", reused.to_json())
    with Lease(store, "lease.json"):
        pass


def test_a_process_that_runs_is_watched_before_its_old_lease_is_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock may just have been set; a process that was stopped renews nothing."""
    watched: list[float] = []

    def renewed_meanwhile(seconds: float) -> None:
        watched.append(seconds)
        store.write_json(f"lease.json.renewed-{token}", {})

    with Lease(store, "lease.json") as lease:
        token = lease._token
        age(store, "lease.json", 90)
        monkeypatch.setattr(store_module, "sleep", renewed_meanwhile)
        with pytest.raises(StoreHeldError), Lease(store, "lease.json"):
            pass
        age(store, f"lease.json.renewed-{token}", 90)
        monkeypatch.setattr(store_module, "sleep", watched.append)
        with Lease(store, "lease.json"):
            pass
    assert watched == [15.0, 15.0]


def renewals(store: Store) -> list[str]:
    return [name for name in store.list("") if ".renewed-" in name]


def test_a_lease_is_renewed_while_held(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LEASE_S", 0.3)
    with Lease(any_store, "lease.json"):
        wait_until(lambda: bool(renewals(any_store)), "the lease was not renewed")
    assert any_store.list("") == []


def wait_until(done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("error", [ConnectionRefusedError("refused"), ValueError("a bug"), OSError(errno.EIO, "broken")])
def test_renewing_goes_on_after_any_error(store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(store_module, "LEASE_S", 0.3)
    failing, perform = [True], attempts.perform
    failures = 0

    def broken(operation: attempts.Operation, call: Callable[[], Any]) -> Any:
        nonlocal failures
        if failing[0] and ".renewed-" in operation.where:
            failures += 1
            raise error
        return perform(operation, call)

    monkeypatch.setattr(attempts, "perform", broken)
    with Lease(store, "lease.json"):
        wait_until(lambda: failures > 2, "renewing ended")
        assert not renewals(store)
        failing[0] = False
        wait_until(lambda: bool(renewals(store)), "renewing ended")


def test_a_writer_whose_lease_was_taken_changes_nothing_any_more(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped for longer than a lease lasts, and wakes."""
    monkeypatch.setattr(store_module, "sleep", lambda _: None)
    with Lease(any_store, "runs/r/lease.json") as stopped:
        fenced = pickle.loads(pickle.dumps(stopped.fenced))  # as it travels to workers
        fenced.write_bytes("runs/r/model", b"of the first")
        late = "taken by another writer while this one seemed dead.*nothing more was written"
        with pytest.raises(StoreHeldError, match=late), fenced.writing("runs/r/late") as scratch:
            scratch.write_bytes(b"begun before")
            age(any_store, "runs/r/lease.json", 100)
            successor = Lease(any_store, "runs/r/lease.json").__enter__()
            successor.fenced.write_bytes("runs/r/model", b"of the second")
        for change in (
            lambda: fenced.write_bytes("runs/r/model", b"of the first"),
            lambda: fenced.write_json("manifest.json", {}),
            lambda: fenced.remove("runs/r/model"),
            lambda: fenced.sweep("runs"),
        ):
            with pytest.raises(StoreHeldError, match="taken by another writer"):
                change()
    assert any_store.list("") == ["runs/r/lease.json", "runs/r/model"]
    assert any_store.read_bytes("runs/r/model") == b"of the second"
    assert any_store.read_json("runs/r/lease.json")["token"] == successor._token
    successor.__exit__()
    with pytest.raises(StoreHeldError):
        successor.fenced.write_bytes("runs/r/model", b"after the end")
    assert any_store.list("") == ["runs/r/model"]


def test_of_many_that_find_a_dead_writer_one_gets_its_lease(any_store: Store) -> None:
    held = {"host": "elsewhere", "pid": 1, "token": "dead", "renewed_unix_s": time.time()}

    def take(_: int) -> Lease | None:
        try:
            return Lease(any_store, "lease.json").__enter__()
        except StoreHeldError:
            return None

    for _ in range(5):
        any_store.write_json("lease.json", held)
        age(any_store, "lease.json", 2 * store_module.LEASE_S)
        with ThreadPoolExecutor(6) as threads:
            leases = [lease for lease in threads.map(take, range(6)) if lease]
        assert len(leases) == 1
        assert any_store.read_json("lease.json")["token"] == leases[0]._token
        leases[0].__exit__()
        assert any_store.list("") == []


def test_a_damaged_lease_holds_and_is_named(store: Store) -> None:
    store.write_bytes("lease.json", b"{")
    with pytest.raises(StoreHeldError, match=r"lease\.json is not a lease"), Lease(store, "lease.json"):
        pass


def test_who_dies_while_taking_over_is_a_dead_writer_too(any_store: Store) -> None:
    files = {"lease.json": "first", "lease.json.taking-first": "second", "lease.json.taking-second": "third"}
    for name, token in files.items():
        any_store.write_json(name, ELSEWHERE | {"token": token})
    for name in ("lease.json", "lease.json.taking-first"):
        age(any_store, name, 2 * store_module.LEASE_S)
    with pytest.raises(StoreHeldError, match="taken by another"), Lease(any_store, "lease.json"):
        pass
    age(any_store, "lease.json.taking-second", 2 * store_module.LEASE_S)
    with Lease(any_store, "lease.json"):
        assert any_store.list("") == ["lease.json"]
    assert any_store.list("") == []


def test_many_json_files_come_in_their_order(any_store: Store) -> None:
    names = [f"a/{number}.json" for number in (3, 1, 2)]
    for name in names:
        any_store.write_json(name, {"name": name})
    assert [value["name"] for value in any_store.read_jsons(names)] == names
    assert any_store.read_jsons([]) == []
    with pytest.raises(StoreError, match=r"cannot be read|no such file"):
        any_store.read_jsons([*names, "a/none.json"])


class Marked(Record):
    """A record of the tests."""

    number: int


def test_what_is_no_such_record_is_named(store: Store) -> None:
    store.write_json("a.json", {"number": 3})
    assert store.read_record("a.json", Marked) == Marked(number=3)
    for value in ({"number": "many"}, {}, [1], {"number": 3, "more": 1}):
        store.write_json("a.json", value)
        with pytest.raises(StoreError, match=r"a\.json is not a Marked \(.*damaged from outside.*restore it"):
            store.read_record("a.json", Marked)
        with pytest.raises(StoreError, match=r"a\.json is not a Marked"):
            store.read_records(["a.json"], Marked)


def test_an_artifact_that_is_being_replaced_has_no_card(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads it meanwhile, or after a kill, is told that there is none."""
    artifact = Artifact("weights", "card.json", 1, "make it again")
    artifact.save(any_store, b"old", {"name": "old"})
    write = Store.write_bytes

    def killed(self: Store, name: str, content: bytes) -> None:
        if name == "weights":
            raise KeyboardInterrupt
        write(self, name, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "write_bytes", killed)
        artifact.save(any_store, b"new", {"name": "new"})
    with pytest.raises(MissingFileError, match=r"card\.json"):
        artifact.load(any_store)
    saved = artifact.save(any_store, b"new", {"name": "new"})
    assert artifact.load(any_store) == (b"new", saved)
    assert artifact.identity(any_store) == saved["weights_sha256"] == hashlib.sha256(b"new").hexdigest()


def test_a_path_of_this_machine_is_made_absolute_and_a_uri_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    uris = ("s3://bucket/a", "a/b", "~/a", "/a/../b")
    assert [absolute_uri(uri) for uri in uris] == ["s3://bucket/a", f"{tmp_path}/a/b", "/home/somebody/a", "/b"]


def test_a_parquet_file_is_opened_anew_after_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle that has gone stale stays so, however often it is read."""

    class Stale:
        def read(self, **_: object) -> None:
            raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(attempts, "sleep", lambda _: None)
    with store.writing("a.parquet") as scratch:
        pq.write_table(pa.table({"a": [1, 2]}), scratch)
    with store.open_parquet("a.parquet") as file:
        monkeypatch.setattr(file, "_file", Stale())
        assert file.read()["a"].to_pylist() == [1, 2]
