"""Partitions to batches: every train star once a pass, nobody else's, in an order that can be told again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_up import VALIDATION, fitted, made_up_stars, write_partitions

from gaiadask.errors import ConfigurationError, DataError, MissingFileError
from gaiadask.inputs.statistics import Statistics
from gaiadask.loader.mixing import Dealt, Mixing
from gaiadask.release.dr2 import DR2
from gaiadask.split import Part, hash64, part_of
from gaiadask.store.files import Store
from gaiadask.training.batches import BEGINNING, Share, StreamPosition, TrainBatches
from gaiadask.training.codes import LINEAR, Batch, Codec
from gaiadask.training.group import Group
from gaiadask.training.validation import read_validation

R = TypeVar("R")

ROWS, GROUP_ROWS = 6_000, 500
TABLE = made_up_stars(ROWS, nulls=0.1)
TRANSFORM = fitted(TABLE)
STATISTICS = Statistics.from_table(TABLE, DR2).train
CODEC = Codec.fit(TRANSFORM, STATISTICS, errors=False)
TRAIN = int((part_of(TABLE["source_id"].to_numpy()) == Part.TRAIN).sum())
RESIDENT, STREAMED = ROWS, 900
IDS = TABLE["source_id"].to_numpy()
# Of each star, to know it by: what its position comes back as from codes.
CODED = CODEC.decoder("cpu")(torch.from_numpy(CODEC.encode(TRANSFORM.forward(TABLE), np.empty((ROWS, 0), np.float32))))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("store")))
    write_partitions(store, TABLE, row_group_rows=GROUP_ROWS)
    return store


def batches(store: Store, **options: Any) -> TrainBatches:
    defaults: dict[str, Any] = {"batch_rows": 100, "buffer_rows": RESIDENT}
    return TrainBatches(store, store.list("catalogue"), TRANSFORM, CODEC, **(defaults | options))


def named(stars: Batch) -> list[bytes]:
    """Each star's position, as a name: no two stars share one."""
    return [row.tobytes() for row in stars.condition[:, :3].numpy()]


def names_of(shares: Iterable[Share]) -> list[bytes]:
    return [name for share in shares for name in named(share.stars)]


NUMBER_OF = {name: i for i, name in enumerate(named(CODED))}


def positions(part: Part) -> set[bytes]:
    return {name for name, found in zip(named(CODED), part_of(IDS) == part, strict=True) if found}


def one_pass(source: TrainBatches) -> list[Share]:
    shares = []
    for share in source.stream():
        if source.position.pass_number:
            break
        shares.append(share)
    return shares


# Several ranks, each in a thread ------------------------------------------------------------------------------------
@dataclass
class Exchange:
    """Where the ranks of one process meet."""

    world_size: int
    given: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = Barrier(self.world_size, timeout=60)


@dataclass
class InThread:
    """A rank among others in threads; of a group it can what batches need."""

    rank: int
    exchange: Exchange

    @property
    def world_size(self) -> int:
        return self.exchange.world_size

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        self.exchange.given[self.rank] = tensor
        self.exchange.barrier.wait()
        whole = torch.cat([self.exchange.given[rank] for rank in range(self.world_size)])
        self.exchange.barrier.wait()
        return whole


def on_ranks(world_size: int, work: Callable[[Group], R]) -> list[R]:
    """What each of so many ranks makes, all at the same time."""
    exchange = Exchange(world_size)
    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(lambda rank: work(InThread(rank, exchange)), range(world_size)))  # type: ignore[arg-type]


def global_batches(
    store: Store, world_size: int, number: int, start: StreamPosition = BEGINNING, **options: Any
) -> list[list[int]]:
    """The next batches of all ranks together: numbers of the stars, in their places."""

    def shares(group: Group) -> list[Share]:
        return list(islice(batches(store, group=group, **options).stream(start), number))

    found = []
    for parts in zip(*on_ranks(world_size, shares), strict=True):
        places = torch.cat([share.places for share in parts])
        assert torch.equal(places.sort().values, torch.arange(len(places)))
        names = names_of(parts)
        found.append([NUMBER_OF[names[i]] for i in places.argsort().tolist()])
    return found


@pytest.mark.parametrize("buffer_rows", [RESIDENT, STREAMED])
def test_batches_are_whole_and_hold_what_the_transform_gives(store: Store, buffer_rows: int) -> None:
    inputs = TRANSFORM.forward(TABLE)
    unit = np.array(CODEC.unit)[: TRANSFORM.n_values]
    for share in islice(batches(store, buffer_rows=buffer_rows, batch_rows=128).stream(), 60):
        assert torch.equal(share.places, torch.arange(128))
        assert (share.stars.values.dtype, share.stars.present.dtype) == (torch.float32, torch.bool)
        rows = [NUMBER_OF[name] for name in named(share.stars)]
        np.testing.assert_array_equal(share.stars.present.numpy(), inputs.present[rows])
        np.testing.assert_array_equal(share.stars.condition.numpy()[:, 3:], inputs.condition[rows][:, 3:])
        assert np.abs((share.stars.values.numpy() - inputs.values[rows]) / unit).max() < 2e-4
        assert np.abs(inputs.values / unit).max() < LINEAR, "or tails have larger errors"


def test_a_pass_shows_every_train_star_once_and_no_other(store: Store) -> None:
    count = Counter(names_of(one_pass(batches(store, batch_rows=10))))
    assert max(count.values()) == 1
    assert set(count) <= positions(Part.TRAIN)
    assert TRAIN - 10 < len(count) <= TRAIN


@pytest.mark.slow
def test_streamed_passes_show_every_train_star_as_often(store: Store) -> None:
    """But for those that are in the buffer."""
    count = Counter(names_of(islice(batches(store, buffer_rows=STREAMED, batch_rows=10).stream(), 3 * TRAIN // 10)))
    assert set(count) == positions(Part.TRAIN)
    assert {2, 3} <= set(count.values()) <= {2, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize("buffer_rows", [RESIDENT, STREAMED])
def test_the_order_is_told_by_seed_and_pass(store: Store, buffer_rows: int) -> None:
    def first(start: StreamPosition = BEGINNING, **options: int) -> list[bytes]:
        return names_of(islice(batches(store, buffer_rows=buffer_rows, **options).stream(start), 20))

    assert first() == first()
    assert first() != first(seed=1)
    assert first(StreamPosition(1)) == first(StreamPosition(1)) != first()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_any_number_of_ranks_share_the_same_batches(store: Store, world_size: int) -> None:
    """Also where a rank's stars begin in the midst of a row group, and into the second pass."""
    number = TRAIN // 100 + 5
    assert global_batches(store, world_size, number) == global_batches(store, 1, number)


@pytest.mark.slow
def test_training_goes_on_with_the_very_batch_with_more_or_fewer_ranks(store: Store) -> None:
    whole = batches(store)
    stream = whole.stream()
    before = [next(stream) for _ in range(TRAIN // 100 + 7)]
    left = whole.position
    assert left == StreamPosition(1, 7)
    assert len(before) > left.batch
    expected = [[NUMBER_OF[name] for name in named(share.stars)] for share in islice(stream, 60)]
    for world_size in (1, 2, 5):
        assert global_batches(store, world_size, 60, left) == expected


def test_streaming_ranks_take_other_stars_and_equal_steps(store: Store) -> None:
    shares = on_ranks(3, lambda group: list(islice(batches(store, buffer_rows=300, group=group).stream(), 25)))
    for parts in zip(*shares, strict=True):
        assert torch.equal(torch.cat([share.places for share in parts]), torch.arange(100))
    first = [set(names_of(rank[:10])) for rank in shares]
    assert sum(map(len, first)) == len(set.union(*first)) == 1_000


def test_a_streamed_pass_left_midway_is_given_up_for_the_next(store: Store) -> None:
    resumed = names_of(islice(batches(store, buffer_rows=STREAMED).stream(StreamPosition(2, 5)), 20))
    assert resumed == names_of(islice(batches(store, buffer_rows=STREAMED).stream(StreamPosition(3)), 20))


def test_a_buffer_holds_what_it_may(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read and has not left."""
    read, held = [0], []
    deal = Mixing.deal

    def watched(self: Mixing, rows: Any) -> Dealt:
        read[0] += len(rows.rows)
        return deal(self, rows)

    monkeypatch.setattr(Mixing, "deal", watched)
    for drawn, share in enumerate(islice(batches(store, buffer_rows=2_000).stream(), 3 * TRAIN // 100)):
        held.append(read[0] - (drawn + 1) * len(share.places))
    assert 1_000 < max(held) < 2_000 + 7 * GROUP_ROWS  # and the row groups that are read ahead


def test_fewer_stars_than_a_batch_come_repeatedly(store: Store) -> None:
    source = batches(store, batch_rows=2 * TRAIN)
    count = Counter(names_of([next(source.stream())]))
    assert set(count) == positions(Part.TRAIN)
    assert set(count.values()) == {2}


def test_rows_of_files_may_be_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then each file is opened once, and no other rank's."""
    opened: list[str] = []
    open_parquet = Store.open_parquet
    monkeypatch.setattr(Store, "open_parquet", lambda self, name: opened.append(name) or open_parquet(self, name))
    expected = global_batches(store, 1, 5)
    opened.clear()
    assert global_batches(store, 1, 5, file_rows=[2_000] * 3) == expected
    assert sorted(opened) == store.list("catalogue")
    opened.clear()
    on_ranks(6, lambda group: next(batches(store, file_rows=[2_000] * 3, group=group).stream()))
    assert sorted(opened) == sorted(2 * store.list("catalogue"))


@pytest.mark.parametrize("buffer_rows", [RESIDENT, STREAMED])
def test_errors_come_along_when_asked_for(tmp_path: Path, buffer_rows: int) -> None:
    """Of the columns whose errors the catalogue has, in a batch's own part."""
    table = TABLE.append_column("pmra_error", pa.array(np.linspace(0.01, 0.1, ROWS)))
    store = Store(str(tmp_path))
    names = write_partitions(store, table, row_group_rows=GROUP_ROWS)
    expected = TRANSFORM.sigma(table)
    column = TRANSFORM.slots["pmra"].start
    assert expected[:, column].all()
    codec = Codec.fit(TRANSFORM, STATISTICS, errors=True)
    found = next(TrainBatches(store, names, TRANSFORM, codec, batch_rows=100, buffer_rows=buffer_rows).stream()).stars
    np.testing.assert_allclose(found.sigma.numpy(), expected[[NUMBER_OF[name] for name in named(found)]], rtol=1e-3, atol=1e-7)
    ids = table["source_id"].to_numpy()
    order = np.argsort(hash64(ids), kind="stable")
    chosen = order[part_of(ids)[order] == Part.VALIDATION][:50]
    np.testing.assert_array_equal(read_validation(store, VALIDATION, TRANSFORM, 50, errors=True).sigma.numpy(), expected[chosen])
    assert next(batches(store, buffer_rows=buffer_rows).stream()).stars.sigma.shape == (100, 0)
    assert read_validation(store, VALIDATION, TRANSFORM, 50).sigma.shape == (50, 0)


@pytest.mark.parametrize("buffer_rows", [RESIDENT, 300])
def test_a_sample_is_of_train_stars_and_the_same_on_every_rank(store: Store, buffer_rows: int) -> None:
    samples = [named(each) for each in on_ranks(2, lambda group: batches(store, buffer_rows=buffer_rows, group=group).sample(700))]
    assert samples[0] == samples[1]
    assert len(set(samples[0])) == 700
    assert set(samples[0]) <= positions(Part.TRAIN)
    if buffer_rows == RESIDENT:
        assert samples[0] == named(batches(store).sample(700)) == names_of(islice(batches(store).stream(), 7))


# Bad data ------------------------------------------------------------------------------------------------------------
def test_no_train_star_is_said(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_partitions(store, TABLE.filter(pa.array(part_of(TABLE["source_id"].to_numpy()) == Part.TEST)), files=2)
    for buffer_rows in (RESIDENT, 100):
        with pytest.raises(DataError, match=r"no train star among the \d+ stars of rank 0 of 1"):
            next(batches(store, buffer_rows=buffer_rows).stream())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    store = Store(str(tmp_path))
    values = TABLE["pmra"].to_numpy().copy()
    values[np.flatnonzero(part_of(TABLE["source_id"].to_numpy()) == Part.TRAIN)[3]] = bad
    table = TABLE.set_column(TABLE.column_names.index("pmra"), "pmra", pa.array(values))
    [name] = write_partitions(store, table, files=1)
    for buffer_rows in (RESIDENT, STREAMED):
        with pytest.raises(DataError, match=rf"{name}: column pmra: NaN or infinite in 1 of"):
            list(islice(batches(store, buffer_rows=buffer_rows).stream(), 60))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    [name] = write_partitions(store, TABLE.drop_columns(["pmra"]), files=1)
    with pytest.raises(DataError, match=rf"{name} lacks the column\(s\) \['pmra'\]"):
        next(batches(store).stream())


def test_derived_columns_need_not_be_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.writing("catalogue/a.parquet") as scratch:
        pq.write_table(TABLE.drop_columns(["bp_rp", "lum_val"]), scratch)
    assert len(next(batches(store).stream()).stars) == 100


@pytest.mark.parametrize("buffer_rows", [RESIDENT, STREAMED])
def test_a_partition_that_vanished_midway_is_named(tmp_path: Path, buffer_rows: int) -> None:
    store = Store(str(tmp_path))
    [_, name, _] = write_partitions(store, TABLE, row_group_rows=GROUP_ROWS)
    source = batches(store, buffer_rows=buffer_rows)
    store.remove(name)
    with pytest.raises(
        MissingFileError, match=rf"{name}: no such file: restore it, or make it again with `gaiadask ingest CONFIG`"
    ):
        list(islice(source.stream(), 60))


def test_a_batch_has_a_star_for_each_rank(store: Store) -> None:
    with pytest.raises(ConfigurationError, match=r"training\.batch_rows is 2, and 3 ranks share a batch"):
        batches(store, batch_rows=2, group=InThread(0, Exchange(3)))


def test_a_rank_may_have_no_star_of_its_own(tmp_path: Path) -> None:
    """Its share of every batch is empty, and it takes as many steps."""
    store = Store(str(tmp_path))
    write_partitions(store, TABLE.take(np.argsort(part_of(IDS) != Part.TRAIN, kind="stable")), files=2)
    shares = on_ranks(8, lambda group: list(islice(batches(store, group=group).stream(), 5)))
    assert [len(share.places) for share in shares[-1]] == [0] * 5
    assert all(sum(len(share.places) for share in parts) == 100 for parts in zip(*shares, strict=True))
