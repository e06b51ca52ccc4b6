"""A lease that another writer has taken is the other's: nothing of it is renewed, and nothing removed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from gaiadask.store import lease as leases
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease, LeaseRecord


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A folder, and an object store's semantics."""
    return Store(str(tmp_path / "store") if request.param == "local" else f"memory://lease-{tmp_path.name}")


def taken(store: Store) -> bytes:
    """Another writer has taken the lease: what its file has now."""
    record = store.read_record("lease.json", LeaseRecord)
    store.write_json("lease.json", record.model_copy(update={"token": "another", "host": "elsewhere"}).to_json())
    return store.read_bytes("lease.json")


def test_a_lease_that_was_lost_is_not_removed_in_the_end(store: Store) -> None:
    with Lease(store, "lease.json"):
        others = taken(store)
    assert store.read_bytes("lease.json") == others


@pytest.mark.slow
def test_a_lease_that_was_lost_is_not_renewed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.3)
    with Lease(store, "lease.json"):
        others = taken(store)
        time.sleep(0.3)  # six renewals
        assert store.read_bytes("lease.json") == others
    assert store.read_bytes("lease.json") == others


def test_a_lease_ends_with_its_thread_and_its_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.3)
    with Lease(store, "lease.json"):
        assert "gaiadask-lease" in {thread.name for thread in threading.enumerate()}
        time.sleep(0.1)
    assert "gaiadask-lease" not in {thread.name for thread in threading.enumerate()}
    assert store.list("") == []
