"""Stages without Prefect: how an ingest is cut into shards, what it tells of itself, and what a failing chunk costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import small_config

from gaiadask import ingest
from gaiadask.archive.base import open_archive
from gaiadask.archive.chunks import Chunk
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.errors import ClusterError, StoreError
from gaiadask.ingest_plan import adopt_store, selection_of
from gaiadask.ledger import read_ledger
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store


class Told:
    """What a stage says of its progress."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.done: dict[str, float] = {}
        self.notes: list[str] = []
        self.units: dict[str, str] = {}

    def start(self, task: str, total: float, unit: str) -> None:
        assert task not in self.totals, "started twice"
        self.totals[task], self.units[task], self.done[task] = total, unit, 0.0

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
        self.done[task] += amount
        self.notes += [note] if task == "fetch" else []

    def finish(self, task: str, whole: bool = True) -> None:
        assert task in self.totals


def six_chunks(store: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, tuple[Chunk, ...]]:
    """An ingest of six chunks of mock stars, in shards of two."""
    config = small_config(store, archive={"mock_stars": 3_000, "chunk_rows": 500})
    monkeypatch.setattr(ingest, "shards", lambda chunks: [chunks[i : i + 2] for i in range(0, len(chunks), 2)])
    chunks = open_archive(config.archive, config.selection).plan().chunks
    assert len(chunks) >= 6
    return config, chunks


def block(config: Config, chunk: Chunk) -> Path:
    """Claim the store and put a folder where the chunk's record goes, so that it can be neither read nor written."""
    store = Store(config.store)
    adopt_store(store, selection_of(config, open_archive(config.archive, config.selection)))
    folder = Path(store.path(paths.chunk_record(chunk.name)))
    folder.mkdir(parents=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 999, 1_000, 1_001, 61_234])
def test_shards_hold_every_chunk_once_in_order(count: int) -> None:
    chunks = [Chunk(str(number), number, number + 1) for number in range(count)]
    shards = ingest.shards(chunks)
    assert [chunk for shard in shards for chunk in shard] == chunks
    assert all(50 <= len(shard) <= 500 for shard in shards[:-1])
    assert all(0 < len(shard) <= 500 for shard in shards)


@pytest.mark.slow
def test_an_ingest_tells_stars_and_bytes_and_works_shard_by_shard(
    workers: DaskWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, chunks = six_chunks(tmp_path / "store", monkeypatch)
    names: list[str] = []

    def shard(name: str, work: Callable[[], None]) -> None:
        names.append(name)
        work()

    told = Told()
    result = run_stages(config, ["ingest"], progress=told, shard=shard, workers=workers)["ingest"]
    shards = -(-len(chunks) // 2)
    assert names == [f"fetch {number} of {shards}" for number in range(1, shards + 1)]
    assert told.units["fetch"] == "stars"
    assert told.done["fetch"] == told.totals["fetch"] == result.rows
    ledger = read_ledger(Store(config.store))
    assert told.notes[-1] == f"{sum(record.bytes for record in ledger.values()) / 1e3:.1f} kB"


@pytest.mark.slow
def test_a_chunk_that_fails_stops_neither_its_shard_nor_the_others(
    workers: DaskWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, chunks = six_chunks(tmp_path / "store", monkeypatch)
    store, blocked = Store(config.store), chunks[2]
    obstacle = block(config, blocked)
    with pytest.raises(StoreError, match=f"fetch: 1 of {len(chunks)} failed; finished work is not lost:\n  {blocked.name}: "):
        run_stages(config, ["ingest"], workers=workers)
    obstacle.rmdir()
    assert set(read_ledger(store)) == {chunk.name for chunk in chunks} - {blocked.name}
    told = Told()
    rows = run_stages(config, ["ingest"], progress=told, workers=workers)["ingest"].rows
    assert told.totals["fetch"] == told.done["fetch"] == read_ledger(store)[blocked.name].rows
    assert rows == sum(record.rows for record in read_ledger(store).values())


@pytest.mark.slow
def test_where_a_whole_shard_fails_no_further_one_is_begun(
    workers: DaskWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, chunks = six_chunks(tmp_path / "store", monkeypatch)
    for chunk in chunks[:2]:
        block(config, chunk)
    with pytest.raises(StoreError, match=f"fetch: 2 of {len(chunks)} failed"):
        run_stages(config, ["ingest"], workers=workers)
    assert not read_ledger(Store(config.store))


class Gone(Here):
    """A cluster that is gone."""

    def __init__(self) -> None:
        self.asked = 0

    def map(self, function: Any, items: Any, task: Any, progress: Any = None) -> Any:
        self.asked += 1
        raise ClusterError("no workers for 300 s")


def test_a_cluster_that_is_gone_is_not_waited_for_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = six_chunks(tmp_path / "store", monkeypatch)
    gone = Gone()
    with pytest.raises(ClusterError, match=r"^no workers for 300 s$"):
        run_stages(config, ["ingest"], workers=gone)
    assert gone.asked == 1
