"""Partitions to batches: every train star once a pass, nobody else's, in an order that can be told again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_up import fitted, made_up_stars, write_partitions

from gaiadask.errors import DataError
from gaiadask.split import Part, hash64, part_of
from gaiadask.store.files import Store
from gaiadask.training.batches import BEGINNING, Batch, StreamPosition, TrainBatches, row_groups, validation_rows

ROWS, GROUP_ROWS = 6_000, 500
TABLE = made_up_stars(ROWS, nulls=0.1)
TRANSFORM = fitted(TABLE)
TRAIN = int((part_of(TABLE["source_id"].to_numpy()) == Part.TRAIN).sum())
RESIDENT, STREAMED = ROWS, 900


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("store")))
    write_partitions(store, TABLE, row_group_rows=GROUP_ROWS)
    return store


def batches(store: Store, **options: object) -> TrainBatches:
    defaults: dict = {"batch_rows": 100, "buffer_rows": RESIDENT}
    return TrainBatches(store, store.list("catalogue"), TRANSFORM, **(defaults | options))


def names_of(stars: Iterable[Batch]) -> list[bytes]:
    """Each star's position, as a name: no two stars share one."""
    return [row.tobytes() for batch in stars for row in batch.condition.numpy()]


def positions(part: Part) -> set[bytes]:
    table = TABLE.filter(pa.array(part_of(TABLE["source_id"].to_numpy()) == part))
    return {row.tobytes() for row in TRANSFORM.forward(table).condition}


@pytest.mark.parametrize("buffer_rows", [RESIDENT, STREAMED])
def test_a_pass_shows_every_train_star_once_and_no_other(store: Store, buffer_rows: int) -> None:
    source = batches(store, buffer_rows=buffer_rows, batch_rows=10)
    shown: list[Batch] = []
    for batch in source.stream():
        if source.position.pass_number:
            break
        shown.append(batch)
    count = Counter(names_of(shown))
    assert max(count.values()) == 1
    assert set(count) <= positions(Part.TRAIN)
    # Each buffer leaves out what does not fill a batch.
    buffers = 1 if buffer_rows == RESIDENT else -(-TRAIN // buffer_rows)
    assert TRAIN - 10 * buffers < len(count) <= TRAIN


@pytest.mark.parametrize("buffer_rows", [RESIDENT, STREAMED])
def test_batches_are_whole_and_hold_what_the_transform_gives(store: Store, buffer_rows: int) -> None:
    inputs = TRANSFORM.forward(TABLE)
    row_of = {row.tobytes(): i for i, row in enumerate(inputs.condition)}
    for batch in islice(batches(store, buffer_rows=buffer_rows, batch_rows=128).stream(), 60):
        assert len(batch) == 128
        assert (batch.values.dtype, batch.present.dtype) == (torch.float32, torch.bool)
        rows = [row_of[name] for name in names_of([batch])]
        np.testing.assert_array_equal(batch.values.numpy(), inputs.values[rows])
        np.testing.assert_array_equal(batch.present.numpy(), inputs.present[rows])


@pytest.mark.parametrize("buffer_rows", [RESIDENT, STREAMED])
def test_the_order_is_told_by_seed_and_pass(store: Store, buffer_rows: int) -> None:
    def first(start: StreamPosition = BEGINNING, **options: int) -> list[bytes]:
        return names_of(islice(batches(store, buffer_rows=buffer_rows, **options).stream(start), 20))

    assert first() == first()
    assert first() != first(seed=1)
    assert first(StreamPosition(1)) == first(StreamPosition(1)) != first()


def test_stars_that_are_held_go_on_with_the_very_batch(store: Store) -> None:
    whole = batches(store)
    stream = whole.stream()
    before = [next(stream) for _ in range(TRAIN // 100 + 7)]
    assert len(before) > whole.position.batch  # into the second pass
    expected = names_of(islice(stream, 60))
    assert names_of(islice(batches(store).stream(StreamPosition(1, 7)), 60)) == expected


def test_a_streamed_pass_left_midway_is_given_up_for_the_next(store: Store) -> None:
    resumed = names_of(islice(batches(store, buffer_rows=STREAMED).stream(StreamPosition(2, 5)), 20))
    assert resumed == names_of(islice(batches(store, buffer_rows=STREAMED).stream(StreamPosition(3)), 20))


@pytest.mark.parametrize("buffer_rows", [RESIDENT, STREAMED])
def test_ranks_share_the_stars_among_them(store: Store, buffer_rows: int) -> None:
    shown: list[set[bytes]] = []
    for rank in range(3):
        source = batches(store, buffer_rows=buffer_rows, rank=rank, world_size=3, batch_rows=1)
        mine = set()
        for batch in source.stream():
            if source.position.pass_number:
                break
            mine |= set(names_of([batch]))
        shown.append(mine)
    assert set.union(*shown) == positions(Part.TRAIN)
    assert sum(map(len, shown)) == TRAIN


def test_memory_is_bounded_by_the_buffer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    to = Batch.to
    monkeypatch.setattr(Batch, "to", lambda self, device: held.append(len(self)) or to(self, device))
    list(islice(batches(store, buffer_rows=STREAMED).stream(), 3 * TRAIN // 100))
    assert len(held) > 6
    assert max(held) < STREAMED + GROUP_ROWS


def test_fewer_stars_than_a_batch_come_repeatedly(store: Store) -> None:
    source = batches(store, batch_rows=2 * TRAIN)
    count = Counter(names_of([next(source.stream())]))
    assert set(count) == positions(Part.TRAIN)
    assert set(count.values()) == {2}


@pytest.mark.parametrize("buffer_rows", [RESIDENT, STREAMED])
def test_errors_come_along_when_asked_for(tmp_path: Path, buffer_rows: int) -> None:
    """Of the columns whose errors the catalogue has, in a batch's own part."""
    table = TABLE.append_column("pmra_error", pa.array(np.linspace(0.01, 0.1, ROWS)))
    store = Store(str(tmp_path))
    names = write_partitions(store, table, row_group_rows=GROUP_ROWS)
    expected = TRANSFORM.sigma(table)
    column = TRANSFORM.slots["pmra"].start
    assert expected[:, column].all()
    row_of = {row.tobytes(): i for i, row in enumerate(TRANSFORM.condition(table))}
    batch = next(TrainBatches(store, names, TRANSFORM, batch_rows=100, buffer_rows=buffer_rows, errors=True).stream())
    for found in (batch, validation_rows(store, names, TRANSFORM, 50, errors=True)):
        np.testing.assert_array_equal(found.sigma.numpy(), expected[[row_of[name] for name in names_of([found])]])
    assert next(batches(store, buffer_rows=buffer_rows).stream()).sigma.shape == (100, 0)
    assert validation_rows(store, names, TRANSFORM, 50).sigma.shape == (50, 0)


def test_a_sample_is_of_train_stars(store: Store) -> None:
    for buffer_rows in (RESIDENT, STREAMED):
        sample = names_of([batches(store, buffer_rows=buffer_rows).sample(700)])
        assert len(sample) == len(set(sample)) == 700
        assert set(sample) <= positions(Part.TRAIN)


def test_validation_stars_are_those_of_smallest_hash(store: Store) -> None:
    ids = TABLE["source_id"].to_numpy()
    order = np.argsort(hash64(ids), kind="stable")
    chosen = order[part_of(ids)[order] == Part.VALIDATION]
    inputs = TRANSFORM.forward(TABLE.take(chosen))
    for n in (50, len(chosen), 10 * ROWS):
        found = validation_rows(store, store.list("catalogue"), TRANSFORM, n)
        np.testing.assert_array_equal(found.values.numpy(), inputs.values[:n])
        np.testing.assert_array_equal(found.present.numpy(), inputs.present[:n])


def test_row_groups_are_all_told(store: Store) -> None:
    groups = row_groups(store, store.list("catalogue"))
    assert sum(group.rows for group in groups) == ROWS
    assert len(groups) == ROWS // GROUP_ROWS


# Bad data ------------------------------------------------------------------------------------------------------------
def test_no_train_star_is_said(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_partitions(store, TABLE.filter(pa.array(part_of(TABLE["source_id"].to_numpy()) == Part.TEST)), files=2)
    with pytest.raises(DataError, match=r"no train star in the 2 row group\(s\)"):
        next(batches(store).stream())
    with pytest.raises(DataError, match="no validation star among the"):
        validation_rows(store, store.list("catalogue"), TRANSFORM, 10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    store = Store(str(tmp_path))
    values = TABLE["pmra"].to_numpy().copy()
    values[np.flatnonzero(part_of(TABLE["source_id"].to_numpy()) == Part.TRAIN)[3]] = bad
    table = TABLE.set_column(TABLE.column_names.index("pmra"), "pmra", pa.array(values))
    [name] = write_partitions(store, table, files=1)
    with pytest.raises(DataError, match=rf"{name}: column pmra: NaN or infinite in 1 of"):
        next(batches(store).stream())


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    [name] = write_partitions(store, TABLE.drop_columns(["pmra"]), files=1)
    with pytest.raises(DataError, match=rf"{name} lacks the column\(s\) \['pmra'\]"):
        next(batches(store).stream())


def test_derived_columns_need_not_be_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.writing("catalogue/a.parquet") as scratch:
        pq.write_table(TABLE.drop_columns(["bp_rp", "lum_val"]), scratch)
    assert len(next(batches(store).stream())) == 100
