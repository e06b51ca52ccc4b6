"""Work over partitions on real workers: in order, bounded, gone on with after failures and deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from made_up import fitted, made_up_stars, write_partitions

from gaiadask.cluster import workers as cluster_module
from gaiadask.cluster.clients import open_client
from gaiadask.cluster.ranks import train_rank
from gaiadask.cluster.workers import over_partitions, probe, run_one, tree_reduce
from gaiadask.config.sections import ClusterConfig, ModelConfig, TrainingConfig
from gaiadask.errors import ArchiveError, DataError, GaiadaskError, StoreError, TrainingError
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment
from gaiadask.training.metrics import read_metrics

pytestmark = pytest.mark.slow


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, task: str, total: float, unit: str) -> None:
        self.calls.append(("start", task, total, unit))

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
        self.calls.append(("advance", task, amount))

    def finish(self, task: str) -> None:
        self.calls.append(("finish", task))


# Over partitions -----------------------------------------------------------------------------------------------------
def square_late(number: int) -> int:
    time.sleep(0.2 if number % 3 == 0 else 0.0)
    return number**2


def test_results_come_in_the_order_given(client: Client) -> None:
    told = Told()
    numbers = list(range(10))
    found = over_partitions(client, square_late, numbers, task="square", unit="numbers", weight_of=lambda n: n / 2, progress=told)
    assert found == [n**2 for n in numbers]
    assert told.calls[0] == ("start", "square", 10.0, "numbers")
    assert told.calls[-1] == ("finish", "square")
    assert sum(call[2] for call in told.calls[1:-1]) == sum(n**2 / 2 for n in numbers)


def quarter(number: int) -> int:
    return number // 4 if number < 64 else number


def test_what_a_result_brings_is_done_too(client: Client) -> None:
    numbers = [64, 3, 256]
    found = over_partitions(client, quarter, numbers, task="quarter", more_of=lambda n: [n // 4] * 4 if n >= 64 else [], at_once=2)
    assert found[:3] == [64, 0, 256]
    assert sorted(found[3:]) == sorted([4] * 4 + [64] * 4 + [4] * 16)
    assert numbers == [64, 3, 256]


def test_nothing_to_do_is_done(client: Client) -> None:
    assert over_partitions(client, square_late, [], task="nothing") == []


def fail_some(folder: str, number: int) -> int:
    Path(folder, str(number)).touch()
    if number in (2, 5):
        raise DataError(f"number {number} is damaged")
    return number


def test_failures_are_told_by_name_while_the_others_finish(client: Client, tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(DataError) as caught:
        over_partitions(
            client, partial(fail_some, str(tmp_path)), list(range(9)), task="read", name_of=lambda n: f"part-{n}", progress=told
        )
    text = str(caught.value)
    assert text.startswith("read: 2 of 9 failed; what was finished is kept:")
    assert "part-2: number 2 is damaged" in text
    assert "part-5: number 5 is damaged" in text
    assert len(text.splitlines()) == 3
    assert {int(p.name) for p in tmp_path.iterdir()} == set(range(9))
    assert told.calls[-1] == ("finish", "read")


def fail_all(number: int) -> int:
    raise ArchiveError(f"chunk {number}: no answer") if number % 2 else StoreError(f"chunk {number}: disk full")


def test_many_failures_fit_on_a_screen(client: Client) -> None:
    with pytest.raises(GaiadaskError, match="… and 20 more") as caught:
        over_partitions(client, fail_all, list(range(30)), task="fetch")
    assert len(str(caught.value).splitlines()) == 12


def test_the_only_failure_of_one_is_told_as_it_is(client: Client) -> None:
    with pytest.raises(StoreError, match=r"^chunk 0: disk full$"):
        over_partitions(client, fail_all, [0], task="fetch")


def bug(folder: str, number: int) -> None:
    Path(folder, str(number)).touch()
    if number == 1:
        raise ZeroDivisionError("a bug")
    time.sleep(0.1)


def test_a_bug_stops_at_once(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        over_partitions(client, partial(bug, str(tmp_path)), list(range(60)), task="bug")
    assert len(list(tmp_path.iterdir())) < 15
    # And the cluster is free again.
    assert over_partitions(client, square_late, [4], task="after") == [16]


def note_start(folder: str, number: int) -> None:
    Path(folder, f"{time.time_ns()}-{number}").touch()
    time.sleep(0.05)


def test_what_is_under_way_is_bounded(client: Client, tmp_path: Path) -> None:
    """Held back by the receiver of results, no more is submitted than the bound lets."""
    seen: list[int] = []

    class Slow(Told):
        def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
            if not seen:
                time.sleep(1.0)
                seen.append(len(list(tmp_path.iterdir())))

    over_partitions(client, partial(note_start, str(tmp_path)), list(range(30)), task="bounded", progress=Slow())
    assert seen[0] <= 2 * sum(client.nthreads().values())
    assert len(list(tmp_path.iterdir())) == 30


def die_once(folder: str, number: int) -> int:
    marker = Path(folder, str(number))
    if number == 3 and not marker.exists():
        marker.touch()
        os._exit(9)
    return number


def test_the_work_of_a_worker_that_dies_is_done_again(client: Client, tmp_path: Path) -> None:
    assert over_partitions(client, partial(die_once, str(tmp_path)), list(range(8)), task="die") == list(range(8))
    assert (tmp_path / "3").exists()


def die_always(number: int) -> int:
    if number == 1:
        os._exit(9)
    return number


def test_work_that_kills_every_worker_is_named(client: Client) -> None:
    with pytest.raises(GaiadaskError, match=r"kill: 1 of 3 failed.*\n  1: the workers that tried it died.*out of memory\?"):
        over_partitions(client, die_always, list(range(3)), task="kill")
    client.wait_for_workers(2, timeout=60)


# Reduction -----------------------------------------------------------------------------------------------------------
def as_list(number: int) -> list[int]:
    return [number]


def join(lists: list[list[int]]) -> list[int]:
    return [n for each in lists for n in each]


@pytest.mark.parametrize(("count", "fan_in"), [(1, 8), (8, 8), (9, 8), (20, 2), (27, 3)])
def test_a_tree_gives_what_one_merge_gives(client: Client, count: int, fan_in: int) -> None:
    told = Told()
    numbers = list(range(count))
    assert tree_reduce(client, as_list, join, numbers, task="join", fan_in=fan_in, progress=told) == numbers
    assert sum(call[2] for call in told.calls[1:-1]) == count


def fail_at_7(number: int) -> list[int]:
    if number == 7:
        raise StoreError("partition 7 is damaged")
    return [number]


def test_a_tree_tells_what_failed(client: Client) -> None:
    with pytest.raises(StoreError, match="partition 7 is damaged"):
        tree_reduce(client, fail_at_7, join, list(range(20)), task="join")


# Clients -------------------------------------------------------------------------------------------------------------
def test_a_scheduler_that_does_not_answer_is_named() -> None:
    with (
        pytest.raises(GaiadaskError, match=r"no Dask scheduler answers at cluster\.address 'tcp://127\.0\.0\.1:9'"),
        open_client(ClusterConfig(address="tcp://127.0.0.1:9")),
    ):
        pass


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(GaiadaskError, match=r"cluster\.address 'nonsense://x'"), open_client(ClusterConfig(address="nonsense://x")):
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
    with pytest.raises(GaiadaskError, match=r"has no workers: start some"), open_client(ClusterConfig(address=scheduler)):
        pass


def test_any_scheduler_will_do(client: Client) -> None:
    address = client.scheduler.address  # type: ignore[union-attr]
    with open_client(ClusterConfig(address=address)) as other:
        assert over_partitions(other, square_late, [5], task="remote") == [25]
    assert over_partitions(client, square_late, [6], task="still there") == [36]


def wait_long(_: int) -> None:
    time.sleep(60)


def test_a_cluster_whose_workers_are_all_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "NO_WORKERS_S", 1.0)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as alone,
    ):
        cluster.scale(0)
        with pytest.raises(GaiadaskError, match=r"has had no workers for \d+ s"):
            over_partitions(alone, wait_long, [1, 2], task="alone")
        with pytest.raises(GaiadaskError, match=r"has had no workers for \d+ s"):
            tree_reduce(alone, wait_long, sum, [1, 2], task="alone")


def test_every_worker_tries_the_store(client: Client, tmp_path: Path) -> None:
    answers = probe(client, Store(str(tmp_path)))
    assert set(answers) == set(client.nthreads())
    assert all({"python", "torch", "pyarrow"} <= set(answer) for answer in answers.values())
    assert list(tmp_path.iterdir()) == []


def test_workers_that_cannot_write_are_named(client: Client) -> None:
    worker = next(iter(client.nthreads()))
    with pytest.raises(StoreError, match=r"2 of 2 workers cannot use the store /proc/gaiadask:\n") as caught:
        probe(client, Store("/proc/gaiadask"))
    assert worker in str(caught.value)
    assert "cannot be written" in str(caught.value)


# One long task ---------------------------------------------------------------------------------------------------------
def halfway(given: int, report: Callable[[float], None]) -> int:
    for step in range(1, 5):
        report(step / 4)
    if given < 0:
        raise DataError("below nothing")
    return 2 * given


def test_one_long_task_tells_how_far_it_is_and_what_it_raises(client: Client) -> None:
    told = Told()
    assert run_one(client, halfway, client.scatter(21, hash=False), task="double", progress=told) == 42
    assert told.calls[0] == ("start", "double", 100.0, "%")
    assert told.calls[-1] == ("finish", "double")
    # Events come beside the result: some may be late, none goes back.
    shares = [call[2] for call in told.calls if call[0] == "advance"]
    assert all(share >= 0 for share in shares) and sum(shares) <= 100
    with pytest.raises(DataError, match="below nothing"):
        run_one(client, halfway, -1, task="double")


# Ranks ---------------------------------------------------------------------------------------------------------------
RUN = RunPaths("r")


def assignment(store: Store, **changes: Any) -> dict[str, Any]:
    table = made_up_stars(4_000)
    training = {"rows_seen": 120_000, "validate_every_rows": 10_000, "batch_rows": 100, "validation_rows": 200, "patience": 1_000}
    told = Assignment(
        store=store.uri,
        run=RUN.name,
        partitions=tuple(write_partitions(store, table)),
        transform=fitted(table).to_json(),
        model=ModelConfig(latents=4, hidden=(16,)),
        training=TrainingConfig(**(training | changes)),
        key="k",
        attempt="a",
    )
    return told.model_dump(mode="json")


def ranks() -> set[int]:
    """Process ids of the training ranks on this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"gaiadask.training.process" in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_a_rank_that_is_killed_is_told_and_goes_on_when_asked_again(client: Client, tmp_path: Path) -> None:
    store, before = Store(str(tmp_path)), ranks()
    told = assignment(store)
    killed: list[int] = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "validated" and event["rows_seen"] >= 20_000 and not killed:
            killed.extend(ranks() - before)
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"the rank ended with code -9 and no model"):
        train_rank(client, told, kill)
    assert wait_for(lambda: ranks() <= before)
    events: list[dict[str, Any]] = []
    last = train_rank(client, told, events.append)
    assert (last["event"], last["rows_seen"]) == ("done", 120_000)
    assert wait_for(lambda: any(e["event"] == "done" for e in events))
    resumed = {record.resumed_from_rows for record in read_metrics(store, RUN)}
    assert len(resumed) == 2
    assert max(resumed) >= 20_000


def test_a_rank_whose_worker_dies_goes_on_on_another(client: Client, tmp_path: Path) -> None:
    store, before = Store(str(tmp_path)), ranks()
    killed: list[int] = []

    def kill_worker(event: dict[str, Any]) -> None:
        if event["event"] == "validated" and event["rows_seen"] >= 20_000 and not killed:
            (rank,) = ranks() - before
            killed.append(parent_of(rank))
            os.kill(killed[0], signal.SIGKILL)

    last = train_rank(client, assignment(store), kill_worker)
    assert killed
    assert last["event"] == "done"
    assert max(record.resumed_from_rows for record in read_metrics(store, RUN)) >= 10_000
    assert wait_for(lambda: ranks() <= before)
    client.wait_for_workers(2, timeout=60)


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_rank_that_refuses_says_why_in_its_own_words(client: Client, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    told = assignment(store)
    store.remove(told["partitions"][0])
    with pytest.raises(StoreError, match=r"catalogue/dataset/0\.parquet: no such file"):
        train_rank(client, told, lambda _: None)
    with pytest.raises(TrainingError, match="world_size is 2"):
        train_rank(client, assignment(store) | {"world_size": 2}, lambda _: None)
