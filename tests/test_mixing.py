"""Rows through the mixing buffer: each once, well mixed, within bounds, and from any moment on again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaiadask.ahead import read_ahead
from gaiadask.errors import DataError
from gaiadask.loader.mixing import Cut, Dealt, Mixing, Rows, cut, not_empty
from gaiadask.loader.row_ranges import RowRange, in_passes, share_of


def stream(mixing: Mixing, pieces: list[int], kept: float = 1.0, position: int = 0) -> Iterator[Dealt]:
    """Rows that are their own positions; kept: the share of positions that have a row."""
    first = 0
    for rows in pieces:
        stop = first + rows
        here = np.flatnonzero(np.random.default_rng(first).random(rows) < kept)
        if stop > position:
            yield mixing.deal(Rows(first, stop, None if kept == 1.0 else here, (first + here)[:, None]))
        first = stop


def batches(mixing: Mixing, pieces: list[int], batch_rows: int, kept: float = 1.0) -> list[Cut]:
    return list(cut(mixing.slabs(stream(mixing, pieces, kept), mixing.first_slab), batch_rows))


PIECES = st.lists(st.integers(1, 400), min_size=1, max_size=12)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pieces=PIECES, buffer_rows=st.integers(1, 2_000), batch_rows=st.integers(1, 150), kept=st.sampled_from([1.0, 0.8, 0.1]))
def test_each_row_leaves_once_and_any_moment_can_be_returned_to(
    pieces: list[int], buffer_rows: int, batch_rows: int, kept: float
) -> None:
    mixing = Mixing.within(buffer_rows, (7,), kept)
    found = batches(mixing, pieces, batch_rows, kept)
    rows = np.concatenate([np.empty((0, 1), int), *(each.rows for each in found)])[:, 0]
    dealt = stream(mixing, pieces, kept)
    assert sorted(rows) == sorted(int(row) for each in dealt for _, some in each.slabs for row in some[:, 0])
    assert all(len(each.rows) == batch_rows for each in found[:-1])
    for number in {0, len(found) // 2, max(0, len(found) - 2)} & set(range(len(found))):
        after = found[number]
        again = stream(mixing, pieces, kept, mixing.first_position(after.slab))
        rest = list(cut(mixing.slabs(again, after.slab), batch_rows, after.taken))
        assert [each.rows.tolist() for each in rest] == [each.rows.tolist() for each in found[number + 1 :]]


def test_a_slab_leaves_in_every_order_alike() -> None:
    """Of 3 rows, each of the 6 orders as often as chance has it: 1,000 of 6,000 each, 29 being one standard deviation."""
    mixing = Mixing(16, 1, (0,))
    orders = [tuple(mixing._order(slab, 3).tolist()) for slab in range(6_000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6 and max(abs(count - 1_000) for count in counts) < 150


def test_the_buffer_is_not_exceeded() -> None:
    buffer_rows, mixing = 10_000, Mixing.within(10_000, (0,))
    read, most = 0, 0

    def watched() -> Iterator[Dealt]:
        nonlocal read
        for dealt in stream(mixing, [250] * 400):
            read = dealt.first + 250
            yield dealt

    left = 0
    for slab in mixing.slabs(watched(), mixing.first_slab):
        # Beside what waits: the slab that leaves, which is there twice while it is gathered.
        most = max(most, read - left + len(slab.rows))
        left += len(slab.rows)
    assert left == 100_000
    assert 0.8 * buffer_rows < most < 1.05 * buffer_rows


def test_neighbours_are_torn_apart_from_the_first_batch_on() -> None:
    """A batch's rows come from as many pieces as the buffer holds, at random."""
    mixing = Mixing.within(20_000, (0,))
    found = batches(mixing, [1_000] * 100, 500)
    pieces = [len(np.unique(each.rows // 1_000)) for each in found]
    assert min(pieces[:3]) >= 7, "a quarter of the window is read before the first batch"
    assert np.median(pieces) > 25
    inner = np.concatenate([each.rows[:, 0] for each in found[40:-40]])
    assert abs(np.corrcoef(np.diff(inner)[1:], np.diff(inner)[:-1])[0, 1] + 0.5) < 0.03  # as of independent numbers


def test_a_buffer_as_large_as_the_stream_shuffles_it_fully() -> None:
    mixing = Mixing.within(40_000, (0,))
    rows = np.concatenate([each.rows[:, 0] for each in batches(mixing, [1_000] * 10, 500)])
    assert abs(np.corrcoef(rows, np.arange(10_000))[0, 1]) < 0.04


def test_a_stream_without_rows_is_refused() -> None:
    mixing = Mixing.within(100, (0,))
    with pytest.raises(DataError, match="nothing"):
        list(not_empty(stream(mixing, [10] * 30, kept=0.0), 100, "nothing"))
    assert len(list(not_empty(stream(mixing, [10] * 30, kept=0.5), 100, "nothing"))) == 30


# Shares and passes ----------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.integers(0, 50), min_size=1, max_size=9), world_size=st.integers(1, 12))
def test_ranks_share_all_rows_among_them_evenly(rows: list[int], world_size: int) -> None:
    ranges = [RowRange(str(i), 0, n) for i, n in enumerate(rows)]
    shares = [share_of(ranges, rank, world_size) for rank in range(world_size)]
    everything = [(each.name, row) for share in shares for each in share for row in range(each.first, each.stop)]
    assert everything == [(each.name, row) for each in ranges for row in range(each.stop)]
    sizes = [sum(each.rows for each in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_each_pass_has_an_order_of_its_own_and_can_be_entered_anywhere() -> None:
    ranges = [RowRange(str(i), 0, 10 + i) for i in range(8)]
    rows = sum(each.rows for each in ranges) // 2
    placed = list(islice(in_passes(ranges, (1, 2), 3), 40))
    assert all(b.position - a.position == a.rows.rows for a, b in pairwise(placed))
    first, second = ([each.rows for each in placed if p * rows <= each.position < (p + 1) * rows] for p in (0, 1))
    assert sum(each.rows for each in first) == sum(each.rows for each in second) == rows
    assert first != second
    for position in (0, 1, rows - 1, rows, 2 * rows + 5):
        entered = next(in_passes(ranges, (1, 2), 3, position=position))
        assert entered == next(each for each in placed if each.position + each.rows.rows > position)
    assert next(in_passes(ranges, (1, 2), 3, first_pass=1)).rows == second[0]


# Reading ahead --------------------------------------------------------------------------------------------------------
def test_what_is_read_ahead_comes_in_order_and_is_bounded() -> None:
    begun: list[int] = []
    go = Event()

    def read(item: int) -> int:
        begun.append(item)
        if item == 0:
            assert go.wait(10)
        return item

    results = read_ahead(read, iter(range(1_000)), threads=3)
    go.set()
    assert list(islice(results, 5)) == list(range(5))
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 5 + 4


def test_a_failure_comes_in_its_turn() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise DataError("bad")
        return item

    found = []
    with pytest.raises(DataError, match="bad"):
        found.extend(read_ahead(read, range(10)))
    assert found == [0, 1]
