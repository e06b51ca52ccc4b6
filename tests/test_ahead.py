"""Items made in a thread ahead of their use: the same ones, two at most in memory, errors in their turn, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from gaiadask.ahead import ahead, side_by_side


class Made:
    """Items from 0, and what became of their making."""

    def __init__(self, stop: int, error: int = -1) -> None:
        self.stop, self.error, self.made, self.closed = stop, error, 0, False

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self.stop):
                if number == self.error:
                    raise ValueError(f"item {number}")
                self.made += 1
                yield number
        finally:
            self.closed = True


def test_the_next_item_is_made_while_one_is_used_and_no_more() -> None:
    source, seen = Made(5), []
    for number in ahead(iter(source)):
        deadline = time.monotonic() + 5
        while source.made < min(number + 2, 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert source.made == min(number + 2, 5), "the next one, not the one after it"
        seen.append(number)
    assert seen == list(range(5))
    assert source.closed


def test_an_error_comes_in_its_turn() -> None:
    with closing(ahead(Made(5, error=2))) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(ValueError, match="item 2"):
            next(items)


def test_what_is_given_up_is_closed_and_leaves_no_thread() -> None:
    source = Made(5)
    with closing(ahead(iter(source))) as items:
        assert next(items) == 0
    assert source.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_items_are_made_side_by_side_in_their_order() -> None:
    """Each waits for its neighbour to be at work too: alone, or one after the other, they would wait for ever."""
    meetings = [threading.Barrier(2, timeout=5) for _ in range(3)]

    def made(number: int) -> int:
        meetings[number // 2].wait()
        time.sleep(0.02 if number == 0 else 0)
        return 10 * number

    assert list(side_by_side(made, iter(Made(6)), threads=2)) == [0, 10, 20, 30, 40, 50]


def test_no_more_are_under_way_than_there_are_threads() -> None:
    source = Made(50)
    with closing(side_by_side(lambda number: number, iter(source), threads=2)) as items:
        assert next(items) == 0
        time.sleep(0.05)
        assert source.made == 3
        assert list(items) == list(range(1, 50))
    assert list(side_by_side(str, [])) == []


@pytest.mark.parametrize("of", ["item", "step"])
def test_an_error_beside_others_comes_in_its_turn_and_leaves_no_thread(of: str) -> None:
    source = Made(5, error=2 if of == "item" else -1)

    def checked(number: int) -> int:
        if number == 2:
            raise ValueError("step")
        time.sleep(0.01)
        return number + 1

    with closing(side_by_side(checked, iter(source), threads=3)) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(ValueError, match=of):
            next(items)
    assert source.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
