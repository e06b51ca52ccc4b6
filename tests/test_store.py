"""A store's files are whole or absent, and one writer holds it at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gaiadask.errors import StoreError, StoreHeldError
from gaiadask.records import Record
from gaiadask.store import lease as store_module
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease


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


def test_a_lease_of_another_host_ends_when_it_is_not_renewed(store: Store) -> None:
    held = {"host": "elsewhere", "pid": 1, "token": "another"}
    store.write_json("lease.json", held | {"renewed_unix_s": time.time() - 5})
    with pytest.raises(StoreHeldError, match="elsewhere"), Lease(store, "lease.json"):
        pass
    store.write_json("lease.json", held | {"renewed_unix_s": time.time() - 2 * store_module.LEASE_S})
    with Lease(store, "lease.json"):
        pass


def test_a_lease_is_renewed_while_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LEASE_S", 0.3)
    with Lease(store, "lease.json"):
        first = json.loads(Path(store.path("lease.json")).read_text())["renewed_unix_s"]
        deadline = time.monotonic() + 10
        while store.read_json("lease.json")["renewed_unix_s"] == first:
            assert time.monotonic() < deadline, "the lease was not renewed"
            time.sleep(0.05)


def test_of_many_that_find_a_dead_writer_one_gets_its_lease(any_store: Store) -> None:
    held = {"host": "elsewhere", "pid": 1, "token": "dead", "renewed_unix_s": time.time() - 2 * store_module.LEASE_S}

    def take(_: int) -> Lease | None:
        try:
            return Lease(any_store, "lease.json").__enter__()
        except StoreHeldError:
            return None

    for _ in range(5):
        any_store.write_json("lease.json", held)
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
    held = {"host": "elsewhere", "pid": 1, "renewed_unix_s": time.time() - 2 * store_module.LEASE_S}
    any_store.write_json("lease.json", held | {"token": "first"})
    any_store.write_json("lease.json.taking-first", held | {"token": "second"})
    any_store.write_json("lease.json.taking-second", held | {"token": "third", "renewed_unix_s": time.time()})
    with pytest.raises(StoreHeldError, match="taken by another"), Lease(any_store, "lease.json"):
        pass
    any_store.write_json("lease.json.taking-second", held | {"token": "third"})
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
