"""Work over partitions on real workers: in order, bounded, gone on with after failures and deaths."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from gaiadask.cluster import clients
from gaiadask.cluster.clients import open_workers
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.here import Here
from gaiadask.cluster.rank_process import ALLOCATOR
from gaiadask.cluster.workers import Task
from gaiadask.config.sections import ClusterConfig
from gaiadask.errors import ArchiveError, DataError, GaiadaskError, StoreError
from gaiadask.store.files import Store

pytestmark = pytest.mark.slow


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, task: str, total: float, unit: str) -> None:
        self.calls.append(("start", task, total, unit))

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
        self.calls.append(("advance", task, amount))

    def finish(self, task: str, whole: bool = True) -> None:
        self.calls.append(("finish", task))


def environment_at_start() -> dict[str, str]:
    """As the process was started: glibc reads its variables then, and not again."""
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(entry.decode().split("=", 1) for entry in entries if entry)


def test_workers_do_not_give_back_memory_after_each_array(workers: DaskWorkers) -> None:
    for environment in workers.client.run(environment_at_start).values():
        assert {name: environment.get(name) for name in ALLOCATOR} == ALLOCATOR


# Over partitions -----------------------------------------------------------------------------------------------------
def square_late(number: int) -> int:
    time.sleep(0.2 if number % 3 == 0 else 0.0)
    return number**2


def test_results_come_in_the_order_given(workers: DaskWorkers) -> None:
    told = Told()
    numbers = list(range(10))
    found = workers.map(square_late, numbers, Task("square", unit="numbers", amount=lambda n: n / 2), told)
    assert found == [n**2 for n in numbers]
    assert told.calls[0] == ("start", "square", 10.0, "numbers")
    assert told.calls[-1] == ("finish", "square")
    assert sum(call[2] for call in told.calls[1:-1]) == sum(n**2 / 2 for n in numbers)


def quarter(number: int) -> int:
    return number // 4 if number < 64 else number


def test_what_a_result_brings_is_done_too(workers: DaskWorkers) -> None:
    numbers = [64, 3, 256]
    found = workers.map(quarter, numbers, Task("quarter", more=lambda n: [n // 4] * 4 if n >= 64 else [], at_once=2))
    assert found[:3] == [64, 0, 256]
    assert sorted(found[3:]) == sorted([4] * 4 + [64] * 4 + [4] * 16)
    assert numbers == [64, 3, 256]


def test_nothing_to_do_is_done(workers: DaskWorkers) -> None:
    assert workers.map(square_late, [], Task("nothing")) == []


def fail_some(folder: str, number: int) -> int:
    Path(folder, str(number)).touch()
    if number in (2, 5):
        raise DataError(f"number {number} is damaged")
    return number


def test_failures_are_told_by_name_while_the_others_finish(workers: DaskWorkers, tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(DataError) as caught:
        workers.map(partial(fail_some, str(tmp_path)), list(range(9)), Task("read", label=lambda n: f"part-{n}"), told)
    text = str(caught.value)
    assert text.startswith("read: 2 of 9 failed; finished work is not lost:")
    assert "part-2: number 2 is damaged" in text
    assert "part-5: number 5 is damaged" in text
    assert len(text.splitlines()) == 3
    assert {int(p.name) for p in tmp_path.iterdir()} == set(range(9))
    assert told.calls[-1] == ("finish", "read")


def fail_all(number: int) -> int:
    raise ArchiveError(f"chunk {number}: no answer") if number % 2 else StoreError(f"chunk {number}: disk full")


def test_many_failures_fit_on_a_screen(workers: DaskWorkers) -> None:
    with pytest.raises(GaiadaskError, match="… and 20 more") as caught:
        workers.map(fail_all, list(range(30)), Task("fetch"))
    assert len(str(caught.value).splitlines()) == 12


def test_the_only_failure_of_one_is_told_as_it_is(workers: DaskWorkers) -> None:
    with pytest.raises(StoreError, match=r"^chunk 0: disk full$"):
        workers.map(fail_all, [0], Task("fetch"))


def bug(folder: str, number: int) -> None:
    Path(folder, str(number)).touch()
    if number == 1:
        raise ZeroDivisionError("a bug")
    time.sleep(0.1)


def test_a_bug_stops_at_once(workers: DaskWorkers, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        workers.map(partial(bug, str(tmp_path)), list(range(60)), Task("bug"))
    assert len(list(tmp_path.iterdir())) < 15
    # And the cluster is free again.
    assert workers.map(square_late, [4], Task("after")) == [16]


def note_start(folder: str, number: int) -> None:
    Path(folder, f"{time.time_ns()}-{number}").touch()
    time.sleep(0.05)


def test_what_is_under_way_is_bounded(workers: DaskWorkers, tmp_path: Path) -> None:
    """Held back by the receiver of results, no more is submitted than the bound lets."""
    seen: list[int] = []

    class Slow(Told):
        def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
            if not seen:
                time.sleep(1.0)
                seen.append(len(list(tmp_path.iterdir())))

    workers.map(partial(note_start, str(tmp_path)), list(range(30)), Task("bounded"), Slow())
    assert seen[0] <= 2 * sum(workers.client.nthreads().values())
    assert len(list(tmp_path.iterdir())) == 30


def die_once(folder: str, number: int) -> int:
    marker = Path(folder, str(number))
    if number == 3 and not marker.exists():
        marker.touch()
        os._exit(9)
    return number


def test_the_work_of_a_worker_that_dies_is_done_again(workers: DaskWorkers, tmp_path: Path) -> None:
    assert workers.map(partial(die_once, str(tmp_path)), list(range(8)), Task("die")) == list(range(8))
    assert (tmp_path / "3").exists()


def die_always(number: int) -> int:
    if number == 1:
        os._exit(9)
    return number


@pytest.mark.slow
def test_work_that_kills_every_worker_is_named_and_no_other(workers: DaskWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask blames all that waits at a worker when it dies; what is no killer's is done nevertheless."""
    cluster: Any = workers.client.cluster
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 1)  # a dead worker's successor takes seconds
    with pytest.raises(GaiadaskError, match=r"kill: 1 of 48 failed.*\n  1: the workers that tried it died.*out of memory\?"):
        workers.map(die_always, list(range(48)), Task("kill"))
    workers.client.wait_for_workers(2, timeout=60)


# Here ----------------------------------------------------------------------------------------------------------------
def test_this_process_gives_what_a_cluster_gives(workers: DaskWorkers, tmp_path: Path) -> None:
    numbers = list(range(20))
    for one in (workers, Here()):
        assert one.map(quarter, [64, 3], Task("quarter", more=lambda n: [1] if n >= 64 else [])) == [64, 0, 0]
        assert one.reduce(as_list, join, numbers, "join", fan_in=3) == numbers
        assert one.one(partial(halfway, 21), "double") == 42
        with pytest.raises(DataError, match=r"(?s)read: 2 of 9 failed.*part-2: number 2 is damaged.*part-5"):
            one.map(partial(fail_some, str(tmp_path)), list(range(9)), Task("read", label=lambda n: f"part-{n}"))
        with pytest.raises(DataError, match="below nothing"):
            one.one(partial(halfway, -1), "double")


# Reduction -----------------------------------------------------------------------------------------------------------
def as_list(number: int) -> list[int]:
    return [number]


def join(lists: list[list[int]]) -> list[int]:
    return [n for each in lists for n in each]


@pytest.mark.parametrize(("count", "fan_in"), [(1, 8), (8, 8), (9, 8), (20, 2), (27, 3)])
def test_a_tree_gives_what_one_merge_gives(workers: DaskWorkers, count: int, fan_in: int) -> None:
    told = Told()
    numbers = list(range(count))
    assert workers.reduce(as_list, join, numbers, "join", told, fan_in) == numbers
    assert sum(call[2] for call in told.calls[1:-1]) == count


def test_few_items_are_a_task_each_and_many_are_merged_where_they_are_made(workers: DaskWorkers) -> None:
    for count, expected in ((9, [1.0] * 9), (64, [8.0] * 8)):
        told = Told()
        assert workers.reduce(as_list, join, list(range(count)), "join", told) == list(range(count))
        assert [call[2] for call in told.calls[1:-1]] == expected


def fail_at_7(number: int) -> list[int]:
    if number == 7:
        raise StoreError("partition 7 is damaged")
    return [number]


def test_a_tree_tells_what_failed(workers: DaskWorkers) -> None:
    with pytest.raises(StoreError, match="partition 7 is damaged"):
        workers.reduce(fail_at_7, join, list(range(20)), "join")


# Clients -------------------------------------------------------------------------------------------------------------
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_ANSWER_S", "1s")
    with (
        pytest.raises(GaiadaskError, match=r"no Dask scheduler answers at cluster\.address 'tcp://127\.0\.0\.1:9'"),
        open_workers(ClusterConfig(address="tcp://127.0.0.1:9")),
    ):
        pass


def test_workers_that_do_not_start_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object, **__: object) -> None:
        raise TimeoutError("only 0/1 workers arrived")

    monkeypatch.setattr(Client, "wait_for_workers", late)
    with (
        pytest.raises(GaiadaskError, match=r"the 1 workers of this machine did not start in 120 s"),
        open_workers(ClusterConfig(workers=1)),
    ):
        pass


def test_an_address_that_is_none_is_named() -> None:
    with (
        pytest.raises(GaiadaskError, match=r"cluster\.address 'nonsense://x'"),
        open_workers(ClusterConfig(address="nonsense://x")),
    ):
        pass


@pytest.fixture
def scheduler() -> Iterator[str]:
    """A scheduler of its own, without workers."""
    code = (
        "import asyncio\nfrom distributed import Scheduler\n"
        "async def main():\n"
        "    async with Scheduler(host='127.0.0.1', dashboard=False) as s:\n"
        "        print(s.address, flush=True)\n        await s.finished()\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.kill()


def test_a_scheduler_without_workers_is_told(scheduler: str) -> None:
    with pytest.raises(GaiadaskError, match=r"has no workers: start some"), open_workers(ClusterConfig(address=scheduler)):
        pass


def test_any_scheduler_will_do(workers: DaskWorkers) -> None:
    address = workers.client.scheduler.address  # type: ignore[union-attr]
    with open_workers(ClusterConfig(address=address)) as other:
        assert other.map(square_late, [5], Task("remote")) == [25]
    assert workers.map(square_late, [6], Task("still there")) == [36]


def test_every_worker_tries_the_store(workers: DaskWorkers, tmp_path: Path) -> None:
    answers = workers.probe(Store(str(tmp_path)))
    assert set(answers) == set(workers.client.nthreads())
    assert all(re.match(r"python \S+, torch \S+, pyarrow \S+$", answer) for answer in answers.values())
    assert list(tmp_path.iterdir()) == []


def test_workers_that_cannot_write_are_named(workers: DaskWorkers) -> None:
    worker = next(iter(workers.client.nthreads()))
    with pytest.raises(StoreError, match=r"2 of 2 workers cannot use the store /proc/gaiadask:\n") as caught:
        workers.probe(Store("/proc/gaiadask"))
    assert worker in str(caught.value)
    assert "cannot be written" in str(caught.value)


# One long task ---------------------------------------------------------------------------------------------------------
def halfway(given: int, report: Callable[[float], None]) -> int:
    for step in range(1, 5):
        report(step / 4)
    if given < 0:
        raise DataError("below nothing")
    return 2 * given


def test_one_long_task_tells_how_far_it_is_and_what_it_raises(workers: DaskWorkers) -> None:
    told = Told()
    assert workers.one(partial(halfway, 21), "double", told) == 42
    assert told.calls[0] == ("start", "double", 100.0, "%")
    assert told.calls[-1] == ("finish", "double")
    # Events come beside the result: some may be late, none goes back.
    shares = [call[2] for call in told.calls if call[0] == "advance"]
    assert all(share >= 0 for share in shares) and sum(shares) <= 100
    with pytest.raises(DataError, match="below nothing"):
        workers.one(partial(halfway, -1), "double")
