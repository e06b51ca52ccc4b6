"""Items made in a thread ahead of their use: the same ones, two at most in memory, errors in their turn, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from gaiadask.ahead import ahead, in_steps


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


def test_steps_overlap_and_keep_the_order() -> None:
    """Each waits for the one after it to be at work too: alone, or one after the other, they would wait for ever."""
    meetings = [threading.Barrier(2, timeout=5) for _ in range(4)]

    def first(number: int) -> int:
        if number:
            meetings[number - 1].wait()
        return number + 1

    def second(number: int) -> int:
        if number <= 4:
            meetings[number - 1].wait()
        return 10 * number

    assert list(in_steps(range(5), first, second)) == [10, 20, 30, 40, 50]


def test_an_error_in_a_step_comes_in_its_turn_and_leaves_no_thread() -> None:
    source = Made(5)

    def checked(number: int) -> int:
        if number == 2:
            raise ValueError("step")
        return number

    with closing(in_steps(iter(source), checked, lambda number: number + 1)) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(ValueError, match="step"):
            next(items)
    assert source.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
