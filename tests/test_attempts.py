"""Whatever a store's client raises is a StoreError, tried again where it may pass; an error is never taken for absence."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yarl
from multidict import CIMultiDict, CIMultiDictProxy
from small_run import copied, make_catalogue, make_run, small_config

from gaiadask import catalogue, ingest
from gaiadask.config.sections import Config
from gaiadask.errors import MissingFileError, StoreError
from gaiadask.model.source import ModelSource
from gaiadask.records import StageResult
from gaiadask.stages.encode import EncodePartitions
from gaiadask.store import attempts, paths
from gaiadask.store.attempts import Operation
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

ASKED = aiohttp.RequestInfo(yarl.URL("http://s3"), "GET", CIMultiDictProxy(CIMultiDict()))
THROTTLED = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
REFUSED = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
PASSING = {
    "stale": OSError(errno.ESTALE, "Stale file handle"),
    "broken disk": OSError(errno.EIO, "Input/output error"),
    "busy": OSError(errno.EBUSY, "Please reduce your request rate."),
    "refused": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    "reset": ConnectionResetError("reset"),
    "timed out": TimeoutError(),
    "botocore, refused": botocore.exceptions.EndpointConnectionError(endpoint_url="http://s3"),
    "botocore, no answer": botocore.exceptions.ReadTimeoutError(endpoint_url="http://s3"),
    "botocore, cut": botocore.exceptions.ConnectionClosedError(endpoint_url="http://s3"),
    "botocore, cut answer": botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    "botocore, throttled": botocore.exceptions.ClientError(THROTTLED, "PutObject"),
    "aiohttp, cut": aiohttp.ClientPayloadError("Response payload is not completed"),
    "aiohttp, gone": aiohttp.ServerDisconnectedError(),
    "aiohttp, 503": aiohttp.ClientResponseError(ASKED, (), status=503),
}
LASTING = {
    "permission": PermissionError(errno.EACCES, "Permission denied"),
    "no space": OSError(errno.ENOSPC, "No space left on device"),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "no bucket": FileNotFoundError("The specified bucket does not exist"),
    "botocore, refused access": botocore.exceptions.ClientError(REFUSED, "PutObject"),
    "botocore, no login": botocore.exceptions.NoCredentialsError(),
    "aiohttp, 403": aiohttp.ClientResponseError(ASKED, (), status=403),
    "arrow": pa.ArrowInvalid("Parquet magic bytes not found"),
}
OPERATIONS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read_bytes("a/file"),
    "read if there": lambda store: store.read_json_if_there("a/file"),
    "read many": lambda store: store.read_jsons(["a/file", "a/other"]),
    "write": lambda store: store.write_bytes("a/file", b"1"),
    "list": lambda store: store.list("a"),
    "exists": lambda store: store.exists("a/file"),
    "size": lambda store: store.size("a"),
    "modified": lambda store: store.modified("a/file"),
    "checksum": lambda store: store.sha256("a/file"),
    "remove": lambda store: store.remove("a"),
    "sweep": lambda store: store.sweep("a"),
    "parquet": lambda store: store.open_parquet("a/stars.parquet").read(),
    "create": lambda store: store.create("a/new", b"1"),
}


class Failing:
    """Fails operations, and takes the place of waits. times: how many fail; which: of these kinds, or all."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.times, self.failed = 0, 0
        self.which: Callable[[Operation], bool] = lambda _: True
        self.waits: list[float] = []
        perform = attempts.perform

        def failing(operation: Operation, call: Callable[[], Any]) -> Any:
            if self.error is not None and self.failed < self.times and self.which(operation):
                self.failed += 1
                raise self.error
            return perform(operation, call)

        patch.setattr(attempts, "perform", failing)
        patch.setattr(attempts, "sleep", self.waits.append)
        patch.setattr(attempts, "clock", lambda: sum(self.waits))

    def now(self, error: Exception, times: int = 10**9, which: Callable[[Operation], bool] = lambda _: True) -> None:
        self.error, self.times, self.which, self.failed = error, times, which, 0
        self.waits.clear()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    return Failing(monkeypatch)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, failing: Failing) -> Store:
    store = Store(str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}")
    store.write_bytes("a/file", b"1")
    store.write_bytes("a/other", b"2")
    with store.writing("a/stars.parquet") as scratch:
        pq.write_table(pa.table({"x": [1, 2]}), scratch)
    return store


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_passes_is_waited_for(name: str, store: Store, failing: Failing) -> None:
    if name == "sweep" and not store.is_local:
        pytest.skip("nothing is half-written there")
    for number, error in enumerate(PASSING.values()):
        failing.now(error, times=3)
        OPERATIONS[name](store)
        assert failing.failed == len(failing.waits) == 3, error
        assert failing.waits[0] < failing.waits[2] < 10
        for file in ("a/new", "a/file", "a/other"):
            failing.error = None
            store.remove("a/new") if file == "a/new" else store.write_bytes(file, b"1")
        if name == "remove":
            with store.writing("a/stars.parquet") as scratch:
                pq.write_table(pa.table({"x": [1, number]}), scratch)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_goes_on_is_told_within_about_a_minute(name: str, store: Store, failing: Failing) -> None:
    if name == "sweep" and not store.is_local:
        pytest.skip("nothing is half-written there")
    failing.now(PASSING["botocore, refused"])
    with pytest.raises(
        StoreError, match=r"a(/\w+)?.* cannot be .*EndpointConnectionError.*\d attempts in \d\d s.*same command again"
    ):
        OPERATIONS[name](store)
    assert sum(failing.waits) == pytest.approx(attempts.PATIENCE_S)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_does_not_pass_is_told_at_once(name: str, store: Store, failing: Failing) -> None:
    if name == "sweep" and not store.is_local:
        pytest.skip("nothing is half-written there")
    for error in LASTING.values():
        failing.now(error)
        with pytest.raises(StoreError, match=r"cannot be|not a whole") as raised:
            OPERATIONS[name](store)
        assert not isinstance(raised.value, MissingFileError)
        assert not failing.waits


def test_a_lack_of_memory_is_no_fault_of_the_store(store: Store) -> None:
    """Arrow's is a MemoryError too: Dask's workers and their client tell of it as that."""

    def allocate() -> None:
        pa.allocate_buffer(2**60)

    with pytest.raises(MemoryError):
        attempts.attempt(attempts.Operation("read", store.uri), allocate)


def test_a_bug_is_a_bug(store: Store, failing: Failing) -> None:
    for error in (TypeError("a bug"), KeyError("a"), AssertionError()):
        failing.now(error)
        with pytest.raises(type(error)):
            store.read_bytes("a/file")


def test_what_took_effect_and_then_failed_is_well(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's answer may be lost on its way."""
    answered = attempts.perform
    lost: list[Operation] = []

    def answer_lost(operation: Operation, call: Callable[[], Any]) -> Any:
        result = answered(operation, call)
        if operation not in lost:
            lost.append(operation)
            raise ConnectionResetError("the answer was lost")
        return result

    monkeypatch.setattr(attempts, "perform", answer_lost)
    store.write_bytes("a/file", b"new")
    store.remove("a/other")
    assert store.read_bytes("a/file") == b"new"
    assert store.list("a") == ["a/file", "a/stars.parquet"]
    assert {operation.kind for operation in lost} >= {"write", "remove", "read", "list"}
    with pytest.raises(FileExistsError):  # whoever creates looks whose it is
        store.create("a/lease", b"mine")
    assert store.read_bytes("a/lease") == b"mine"


def test_a_file_that_breaks_while_it_is_read_is_opened_again(store: Store, failing: Failing) -> None:
    with store.open_parquet("a/stars.parquet") as file:
        failing.now(PASSING["stale"], times=2)
        assert file.read_row_group(0)["x"].to_pylist() == [1, 2]
        assert failing.failed == 2
        failing.now(PASSING["botocore, cut answer"])
        with pytest.raises(StoreError, match=r"a/stars\.parquet cannot be read"):
            file.read_row_group(0)
        failing.now(PASSING["stale"], times=0)
        store.write_bytes("a/stars.parquet", b"PAR1, and no more")
        file.close()
        with pytest.raises(StoreError, match=r"stars\.parquet is not a whole parquet file.*run the stage that made it again"):
            file.read_row_group(0)


@pytest.mark.skipif(os.getuid() == 0, reason="root may list any folder")
def test_a_folder_that_may_not_be_listed_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0)
    with pytest.raises(StoreError, match="cannot be listed"):
        Store(str(tmp_path)).list("a")


def test_a_folder_whose_listing_fails_is_no_empty_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the error comes out of a folder below, deep in the library that lists."""

    def stale(*_: object, **__: object) -> Iterator[Any]:
        raise PermissionError(errno.EACCES, "Permission denied")

    store.write_bytes("a/b/c", b"x")
    monkeypatch.setattr(os, "scandir", stale)
    monkeypatch.setattr(type(store.fs), "find", stale)
    with pytest.raises(StoreError, match=r"a cannot be listed: .*Permission denied"):
        store.list("a")


# What is rewritten or removed where a file is absent -------------------------------------------------------------------
@pytest.fixture(scope="module")
def catalogued(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = small_config(tmp_path_factory.mktemp("store") / "store", archive={"mock_stars": 3_000, "chunk_rows": 1_000})
    make_catalogue(config)
    return config


def contents(store: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(store).rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("file", [paths.SELECTION, paths.PLAN, paths.LEDGER, f"{paths.CATALOGUE}/hats.properties", paths.PUBLISHED])
def test_nothing_is_begun_anew_because_a_record_cannot_be_read(
    file: str, catalogued: Config, tmp_path: Path, failing: Failing
) -> None:
    config = copied(catalogued, tmp_path / "store")
    before = contents(config.store)
    failing.now(LASTING["permission"], which=lambda operation: f"/{file}" in operation.where and operation.kind != "write")
    if file in (paths.PLAN, paths.LEDGER):  # looked at where nothing is published
        (Path(config.store) / paths.CATALOGUE / "hats.properties").unlink()
        before = contents(config.store)
    with pytest.raises(StoreError, match="Permission denied"):
        make_catalogue(config)
    assert contents(config.store) == before
    failing.now(PASSING["stale"], times=2, which=failing.which)
    assert make_catalogue(config).rows == 3_000
    assert failing.failed == 2


def test_a_manifest_that_cannot_be_read_is_not_begun_anew(store: Store, failing: Failing) -> None:
    manifest = Manifest(store, RunPaths("r"))
    manifest.write("ingest", {}, StageResult(), 0)
    for change in (lambda: manifest.write("statistics", {}, StageResult(), 0), lambda: manifest.remove("ingest")):
        failing.now(LASTING["permission"], which=lambda operation: operation.kind in ("read", "look"))
        with pytest.raises(StoreError, match="Permission denied"):
            change()
    failing.now(PASSING["stale"], times=1)
    manifest.write("statistics", {}, StageResult(), 0)
    assert set(manifest.read().stages) == {"ingest", "statistics"}


@pytest.mark.slow
def test_a_latent_partition_whose_footer_cannot_be_read_now_is_kept(small_run: Config, tmp_path: Path, failing: Failing) -> None:
    config = copied(small_run, tmp_path / "store")
    store, run = Store(config.store), RunPaths(config.name)
    partition = ingest.read_catalogue_record(store).partitions[0]
    encode = EncodePartitions(ModelSource(store, run, Manifest(store, run).require("train").key))
    file = Path(store.path(f"{run.latent}/{partition.tile.file}"))
    number = file.stat().st_ino
    failing.now(PASSING["stale"], times=2, which=lambda operation: str(file) in operation.where)
    assert encode([partition]) == [catalogue.reread(store, run.latent, partition.tile)]
    assert file.stat().st_ino == number
    failing.now(PASSING["stale"], which=lambda operation: str(file) in operation.where)
    with pytest.raises(StoreError, match="Stale file handle"):
        encode([partition])
    assert file.stat().st_ino == number


@pytest.mark.slow
def test_a_run_goes_on_when_its_store_comes_back(tmp_path: Path, failing: Failing) -> None:
    """Every third operation fails."""
    config = small_config(tmp_path / "store", archive={"mock_stars": 3_000, "chunk_rows": 1_000})
    number = itertools.count()
    failing.now(PASSING["refused"], which=lambda _: next(number) % 3 == 0)
    make_run(config, "ingest", "statistics")
    assert failing.failed > 10


# Durability -----------------------------------------------------------------------------------------------------------
def test_a_file_and_its_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is there after a power failure: its content before its name, and each new folder's name."""
    synced: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def note_replace(source: Any, target: Any) -> None:
        synced.append(f"{source} becomes {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", note_replace)
    store, folder = Store(str(tmp_path)), tmp_path / "a" / "b"
    store.write_bytes("a/b/file", b"x")
    assert synced[:2] == [str(tmp_path), str(folder.parent)]
    assert ".partial-" in synced[2] and synced[3] == f"{synced[2]} becomes {folder / 'file'}"
    assert synced[4:] == [str(folder)]
    synced.clear()
    store.write_bytes("a/b/file", b"y")
    assert [name.partition(".partial-")[0] for name in synced] == [str(folder / "file"), str(folder / "file"), str(folder)]
    synced.clear()
    store.remove("a/b/file")
    assert synced == [str(folder)]
    synced.clear()
    store.create("a/lease", b"x")
    assert ".partial-" in synced[0] and synced[1:] == [str(folder.parent)]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_object_store_that_refuses_connections_is_told_in_one_error(tmp_path: Path) -> None:
    """With the real client, which tries again by itself for some seconds; in a process of its own, for it reads the environment."""
    code = """
from gaiadask.errors import StoreError
from gaiadask.store.files import Store
store = Store("s3://gaia/store", patience_s=0.0)
for operation in (lambda: store.read_bytes("a"), lambda: store.write_bytes("a", b"x"), lambda: store.open_parquet("a.parquet")):
    try:
        operation()
    except StoreError as error:
        print(error)
"""
    environment = os.environ | {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200, check=True)
    lines = said.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "s3://gaia/store/a cannot be read", "s3://gaia/store/a cannot be written", "s3://gaia/store/a.parquet cannot be read",
    ]  # fmt: skip
    assert all("Could not connect to the endpoint URL" in line and "same command again" in line for line in lines)
