"""Every way in which work on a cluster can end: each is a result, one error, or a bug with its traceback; none is waited for for ever."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from distributed.scheduler import NoWorkerError

from gaiadask.cluster import dask_workers, placement
from gaiadask.cluster import futures as futures_module
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.futures import Futures
from gaiadask.cluster.workers import Task, Workers
from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import TrainingConfig
from gaiadask.errors import ClusterError, DataError, GaiadaskError, StoreError, WorkersDiedError
from gaiadask.store.files import Store
from gaiadask.training.assignment import Assignment

pytestmark = pytest.mark.slow


@pytest.fixture
def futures(client: Client) -> Futures:
    return Futures(client)


# One piece of work ---------------------------------------------------------------------------------------------------
def give(what: Any) -> Any:
    if isinstance(what, BaseException):
        raise what
    return what


def give_a_lock(_: int) -> Any:
    return threading.Lock()


class WithALock(Exception):
    def __init__(self) -> None:
        super().__init__("nobody can send me")
        self.lock = threading.Lock()


def raise_a_lock(_: int) -> None:
    raise WithALock


def test_what_the_work_gives_or_raises_of_its_own_is_its_outcome(futures: Futures) -> None:
    assert futures.outcome(futures.submit(give, 7, key="value")) == 7
    error = futures.outcome(futures.submit(give, DataError("damaged"), key="own"))
    assert type(error) is DataError and str(error) == "damaged"
    died = futures.outcome(futures.submit(give, MemoryError(), key="memory"))
    assert type(died) is WorkersDiedError and "out of memory?" in str(died)
    with pytest.raises(ClusterError, match="give it and the workers the gaiadask"):
        futures.outcome(futures.submit(give, RuntimeError("Error during deserialization of the task graph. …"), key="other"))
    none = futures.outcome(futures.submit(give, NoWorkerError("x", 3.0), key="none"))
    assert type(none) is WorkersDiedError and "no worker" in str(none)


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("of no size"),
        OSError("of the work"),
        TimeoutError("of the work"),
        CancelledError("of the work"),
        RuntimeError("of the work"),
    ],
)
def test_any_other_error_of_the_work_is_a_bug_and_keeps_its_traceback(futures: Futures, error: Exception) -> None:
    with pytest.raises(type(error), match="of ") as caught:
        futures.outcome(futures.submit(give, error, key=f"bug-{type(error).__name__}"))
    assert "in give\n" in "".join(traceback.format_tb(caught.value.__traceback__))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_work_that_would_end_its_workers_is_a_bug_and_they_live_on(futures: Futures, error: BaseException) -> None:
    before = set(futures.client.nthreads())
    with pytest.raises(RuntimeError, match=f"the work raised {type(error).__name__}"):
        futures.outcome(futures.submit(give, error, key=f"end-{type(error).__name__}"))
    assert set(futures.client.nthreads()) == before


def test_what_cannot_be_sent_back_is_a_bug(futures: Futures) -> None:
    with pytest.raises(TypeError, match="Could not serialize object of type lock"):
        futures.outcome(futures.submit(give_a_lock, 1, key="lock"))
    with pytest.raises(Exception, match="nobody can send me"):
        futures.outcome(futures.submit(raise_a_lock, 1, key="lock-raised"))


def test_work_that_another_client_cancels_is_lost_and_said_so(futures: Futures) -> None:
    future = futures.submit(time.sleep, 3, key="long")
    whose = futures.client.id
    wait_until(lambda: "long" in tasks(futures.client))
    futures.client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.stimulus_cancel(["long"], whose, True, "a test", ""))
    error = futures.outcome(future)
    assert type(error) is GaiadaskError and "lost the work" in str(error)


def processes(client: Client) -> dict[str, int]:
    """The process of each worker, by its address."""
    return dict(client.run(os.getpid))


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_result_that_died_with_its_worker_before_it_was_fetched_is_made_again(futures: Futures) -> None:
    client = futures.client
    future = futures.submit(os.getpid, key="pid")
    wait_until(lambda: future.status == "finished")
    ((holder,),) = client.who_has([future]).values()
    first = processes(client)[holder]
    os.kill(first, signal.SIGKILL)
    again = futures.outcome(future)
    assert isinstance(again, int) and again != first
    client.wait_for_workers(2, timeout=60)


# Many pieces ---------------------------------------------------------------------------------------------------------
def as_list(folder: str, number: int) -> list[int]:
    Path(folder, f"{number}-{time.time_ns()}").touch()
    return [number]


def join(lists: list[list[int]]) -> list[int]:
    return [n for each in lists for n in each]


def test_records_that_die_between_two_levels_are_made_again(workers: DaskWorkers, tmp_path: Path) -> None:
    left = [27.0]

    class KillAfterTheFirstLevel:
        def start(self, task: str, total: float, unit: str) -> None: ...
        def finish(self, task: str, whole: bool = True) -> None: ...
        def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
            left[0] -= amount
            if left[0] == 0:
                held = workers.client.has_what()
                os.kill(processes(workers.client)[max(held, key=lambda worker: len(held[worker]))], signal.SIGKILL)

    found = workers.reduce(partial(as_list, str(tmp_path)), join, list(range(27)), "join", KillAfterTheFirstLevel(), fan_in=3)
    assert found == list(range(27))
    assert len(list(tmp_path.iterdir())) > 27
    workers.client.wait_for_workers(2, timeout=60)


STOP = threading.Event()
"""Ends the work of workers in this process."""


def sleeping(*_: Any, **__: Any) -> int:
    STOP.wait(30)
    return 1


def sleeping_with_report(report: Callable[[float], None]) -> int:
    return sleeping(report)


ASSIGNMENT = Assignment(
    store="/nowhere", run="r", partitions=("p",), validation="v", transform={}, codec={}, model=ModelConfig(latents=4, hidden=(16,)),
    training=TrainingConfig(), key="k", attempt="a",
)  # fmt: skip

WAYS: dict[str, Callable[[Workers], Any]] = {
    "map": lambda workers: workers.map(sleeping, [1, 2], Task("map")),
    "reduce": lambda workers: workers.reduce(sleeping, sum, [1, 2], "reduce"),
    "one": lambda workers: workers.one(sleeping_with_report, "one"),
    "train": lambda workers: workers.train([ASSIGNMENT], lambda *_: None),
}


@contextmanager
def alone(workers: int) -> Iterator[Client]:
    """A client of a cluster of its own in this process."""
    STOP.clear()
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        try:
            yield client
        finally:
            STOP.set()


@pytest.fixture(autouse=True)
def rank_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dask_workers, placement):
        monkeypatch.setattr(module, "run_rank", sleeping)
    monkeypatch.setattr(placement, "RETURN_S", 0.2)


@pytest.mark.timeout(60)
def test_a_cluster_without_workers_is_given_up_whatever_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(futures_module, "NO_WORKERS_S", 0.2)
    with alone(0) as client:
        for way in WAYS.values():
            with pytest.raises(ClusterError, match=r"has had no workers for \d+ s: start some"):
                way(DaskWorkers(client))
        with pytest.raises(ClusterError, match=r"has had no workers"):
            DaskWorkers(client).probe(Store(str(tmp_path)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
def test_a_cluster_whose_last_worker_left_for_good_is_given_up(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures_module, "NO_WORKERS_S", 0.2)
    with alone(1) as client:
        leave = threading.Timer(0.5, lambda: client.retire_workers(list(client.nthreads()), close_workers=True))
        leave.start()
        with pytest.raises(ClusterError, match=r"has had no workers for \d+ s: start some"):
            WAYS[way](DaskWorkers(client))
        leave.join()


@pytest.mark.timeout(60)
def test_a_worker_without_what_the_work_takes_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures_module, "NO_WORKERS_S", 0.2)
    with alone(1) as client:
        assert Futures(client).threads() == 1
        with pytest.raises(ClusterError, match=r"has had no worker with a GPU for"):
            Futures(client, "GPU").threads()
        waiting = Futures(client, "GPU")
        with pytest.raises(ClusterError, match=r"has had no worker with a GPU for"):
            waiting.outcome(waiting.submit(give, 1, key="gpu"))


def tasks(client: Client) -> list[Any]:
    """The keys that the scheduler knows."""
    return list(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)))


def ended_with(client: Client, way: str, found: dict[str, GaiadaskError]) -> threading.Thread:
    def run() -> None:
        try:
            WAYS[way](DaskWorkers(client))
        except GaiadaskError as error:
            found[way] = error

    thread = threading.Thread(target=run)
    thread.start()
    return thread


SCHEDULER = (
    "import asyncio\nfrom distributed import Scheduler, Worker\n"
    "async def main():\n"
    "    async with Scheduler(host='127.0.0.1', dashboard=False) as s:\n"
    "        async with Worker(s.address, nthreads=4, dashboard=False):\n"
    "            print(s.address, flush=True)\n            await s.finished()\n"
    "asyncio.run(main())"
)


@pytest.mark.timeout(60)
def test_a_scheduler_that_dies_is_told_whatever_waits() -> None:
    found: dict[str, GaiadaskError] = {}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        subprocess.Popen([sys.executable, "-c", SCHEDULER], stdout=subprocess.PIPE, text=True, env=environment) as scheduler,
        closing(scheduler.stdout) as said,  # type: ignore[type-var]
        Client(said.readline().strip(), set_as_default=False, timeout=1) as client,
    ):
        threads = [ended_with(client, way, found) for way in WAYS]
        wait_until(lambda: len(tasks(client)) >= len(WAYS) + 1)
        scheduler.kill()
        for thread in threads:
            thread.join(30)
        wait_until(lambda: client.status == "closed")
        for way in WAYS:
            assert type(found[way]) is ClusterError and "scheduler cannot be reached any more" in str(found[way]), (way, found[way])
            with pytest.raises(ClusterError, match="scheduler cannot be reached any more"):  # and what comes after
                WAYS[way](DaskWorkers(client))


@pytest.mark.timeout(60)
def test_a_client_that_is_closed_meanwhile_is_told_whatever_waits() -> None:
    found: dict[str, GaiadaskError] = {}
    with alone(1) as client:
        threads = [ended_with(client, way, found) for way in WAYS]
        wait_until(lambda: len(tasks(client)) >= len(WAYS) + 1)
        client.close()
        for thread in threads:
            thread.join(30)
    assert {way: type(error) for way, error in found.items()} == dict.fromkeys(WAYS, ClusterError)


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_leaves_no_work_behind(way: str) -> None:
    with alone(1) as client:

        def interrupt() -> None:
            wait_until(lambda: tasks(client))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            WAYS[way](DaskWorkers(client))
        assert caught.value.__traceback__  # which still holds the frames, and what is in them
        wait_until(lambda: not tasks(client), 5.0)
        thread.join()


# The probe -----------------------------------------------------------------------------------------------------------
class Deadly(Store):
    """Ends the first process that writes to it."""

    def write_bytes(self, name: str, content: bytes) -> None:
        try:
            Path(self.uri, "died").touch(exist_ok=False)
        except FileExistsError:
            return super().write_bytes(name, content)
        os._exit(9)


class Elsewhere(Store):
    """Is nowhere but in this process."""

    def __reduce__(self) -> Any:
        return partial(__import__, "a_module_that_no_worker_has"), ()


def test_a_worker_that_dies_while_it_is_asked_is_not_believed_to_be_there(workers: DaskWorkers, tmp_path: Path) -> None:
    answers = workers.probe(Deadly(str(tmp_path)))
    assert (tmp_path / "died").exists()
    assert len(answers) == 1
    workers.client.wait_for_workers(2, timeout=60)


def test_a_worker_that_freezes_is_ended_and_its_work_done_elsewhere(
    workers: DaskWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mark, before = tmp_path / "mark", set(Futures(workers.client).workers())

    def stop_once(number: int) -> int:  # sent as it is: the worker's successor need not load this module for it
        with suppress(FileExistsError):
            mark.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGSTOP)
        return number

    monkeypatch.setattr(futures_module, "FROZEN_S", 5.0)
    monkeypatch.setattr(futures_module, "_LOOK_S", 0.5)
    assert workers.map(stop_once, range(6), Task("freeze")) == list(range(6))
    (frozen,) = re.findall(r"worker (\S+) said nothing for 5 s", caplog.text)
    workers.client.wait_for_workers(2, timeout=60)
    assert before - set(Futures(workers.client).workers()) == {frozen}


def test_a_time_in_which_the_client_was_stopped_is_no_workers_fault(futures: Futures, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(futures_module.time, "monotonic", lambda: clock[0])
    futures._looked = 0.0

    def frozen(at: float, **heard: float) -> list[str]:
        clock[0] = at
        return futures._frozen(heard)

    assert frozen(1.0, a=10.0, b=10.0) == []
    assert frozen(1_000.0, a=10.0, b=10.0) == []
    for at in range(1_005, 1_051, 5):
        assert frozen(at, a=10.0, b=float(at)) == []
    assert frozen(1_055.0, a=10.0, b=10.0) == ["a"]
    assert frozen(1_060.0, b=10.0, c=1.0) == []


def test_a_worker_with_other_packages_is_named(workers: DaskWorkers, tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"(?s)2 of 2 workers cannot use .*tcp://.*a_module_that_no_worker_has.*: install gaiadask"
    ):
        workers.probe(Elsewhere(str(tmp_path)))
